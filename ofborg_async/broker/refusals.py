"""What aiormq raises, translated into what an operator can act on. Pure: exceptions in, errors out.

A refusal says who was refused what on which vhost, in the broker's own words, and what to ask its administrator for.
Everything else is "not available now": waiting and trying again can help. The password is never part of a text.
"""

from __future__ import annotations

import enum
import re
import shlex
import socket
import ssl

import aiormq.exceptions  # noqa: TID251 - this is that room
from attrs import frozen

from ofborg_async.broker.frametap import ConnectionClosedByBroker
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError
from ofborg_async.model.identity import BrokerSettings

Translated = BrokerRefusedError | BrokerUnavailableError

# What a builder needs, as the regular expressions that rabbitmqctl takes (wire document, "Connection and topology").
CONFIGURE = ("build-jobs", "build-inputs-.*")
WRITE = ("build-inputs-.*", "build-results", "logs", r"amq\.default")
READ = ("build-jobs", "build-inputs-.*")


class Phase(enum.StrEnum):
    """What was being done; for a 403, the permission that it needs."""

    CONNECT = "connect"
    DECLARE = "configure"
    BIND = "write on the queue and read on the exchange"
    CONSUME = "read"
    PUBLISH = "write"
    SETTLE = "settle"


@frozen
class Doing:
    """What was being done when something went wrong.

    ``kind`` and ``name`` are the resource (``queue``, its name), both "" for the connection; ``address`` is host:port.
    """

    settings: BrokerSettings
    phase: Phase
    kind: str = ""
    name: str = ""
    address: str = ""

    @property
    def resource(self) -> str:
        """The resource as errors show it."""
        return f"{self.kind} {self.name!r}" if self.kind else ""


def translate(
    error: BaseException, doing: Doing, *, closed: ConnectionClosedByBroker | None = None, garbage: bytes = b""
) -> Translated:
    """The error that callers see for ``error``.

    ``closed`` and ``garbage`` are what the frame tap saw of a connection under construction: they tell more than the
    exception.
    """
    causes = _causes(error)
    if closed is not None:
        return _connection_closed(closed, doing)
    if garbage:
        return _no_amqp(garbage, doing)
    for cause in causes:
        found = _by_type(cause, doing)
        if found is not None:
            return found
    return BrokerUnavailableError(f"{_where(doing)}{in_words(error)}")


def in_words(error: BaseException | None) -> str:
    """One clause that says why a connection or channel is gone."""
    if error is None or (isinstance(error, Exception) and type(error) is Exception):
        return "the broker closed the connection without a word"
    for cause in _causes(error):
        if isinstance(cause, aiormq.exceptions.ChannelClosed | aiormq.exceptions.ConnectionClosed):
            said = broker_text(cause)
            return f"the broker closed it: {said}" if said else "it was closed"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {_tls_reason(cause)}"
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiormq.exceptions.AMQPError):
            return cause.strerror
    if _is_cancellation(error):
        return "the connection was lost: no heartbeat of the broker, or it was closed on this side"
    return str(error) or type(error).__name__


def broker_text(error: BaseException) -> str:
    """The broker's own words in an aiormq exception (``NOT_FOUND - no queue 'x' in vhost '/'``), "" if it said none."""
    texts = [str(argument) for argument in error.args if isinstance(argument, str)]
    return texts[-1] if texts else ""


def permissions_line(settings: BrokerSettings, *, also: str = "") -> str:
    """The command that gives a user what a builder needs, ``also`` on one more resource.

    It states all three permissions, because ``set_permissions`` replaces what was there.
    """
    extra = () if not also or _is_covered(also) else (re.escape(also),)
    patterns = (f"^({'|'.join((*names, *extra))})$" for names in (CONFIGURE, WRITE, READ))
    return shlex.join(["rabbitmqctl", "set_permissions", "-p", settings.vhost, settings.username, *patterns])


def _is_covered(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in (*CONFIGURE, *WRITE))


def _is_cancellation(error: BaseException) -> bool:
    return not isinstance(error, Exception)


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _where(doing: Doing) -> str:
    if doing.resource:
        return f"{doing.resource}: "
    return f"{doing.address}: " if doing.address else ""


def _refused(doing: Doing, said: str, remedy: str, *, resource: str | None = None) -> BrokerRefusedError:
    return BrokerRefusedError(
        who=doing.settings.username,
        vhost=doing.settings.vhost,
        resource=doing.resource if resource is None else resource,
        said=said.rstrip(". "),
        remedy=remedy,
    )


def _by_type(cause: BaseException, doing: Doing) -> Translated | None:  # noqa: PLR0911 - a table of cases
    """The translation of one exception of a chain, None if it says nothing by itself."""
    match cause:
        case aiormq.exceptions.ProbableAuthenticationError():
            return _login_refused(broker_text(cause), doing)
        case aiormq.exceptions.AuthenticationError():
            return _refused(doing, str(cause), "The broker must offer the PLAIN mechanism to this user.")
        case aiormq.exceptions.ConnectionNotAllowed():
            return _connection_closed(ConnectionClosedByBroker(530, broker_text(cause)), doing)
        case aiormq.exceptions.ChannelClosed():
            return _channel_closed(cause, doing)
        case ssl.SSLError():
            return _tls(cause, doing)
        case socket.gaierror():
            return BrokerUnavailableError(f"{_where(doing)}the name does not resolve ({cause.strerror})")
        case ConnectionRefusedError() if not isinstance(cause, aiormq.exceptions.AMQPError):
            return BrokerUnavailableError(f"{_where(doing)}nothing listens there (connection refused)")
        case ValueError() | TypeError() if doing.phase is Phase.PUBLISH:
            return _refused(doing, f"no valid AMQP name ({cause})", "The job names an address that cannot exist.")
    return None


def _login_refused(said: str, doing: Doing) -> BrokerRefusedError:
    user = shlex.quote(doing.settings.username)
    remedy = (
        f"Check the user name and the password file; ask the broker's administrator for: rabbitmqctl change_password "
        f"{user} NEW_PASSWORD (or rabbitmqctl add_user {user} NEW_PASSWORD)."
    )
    if doing.settings.username == "guest":
        remedy += " The user guest may by default log in from the broker's own host only."
    return _refused(doing, said, remedy)


def _connection_closed(closed: ConnectionClosedByBroker, doing: Doing) -> Translated:
    """The broker closed a connection: a refusal for what an administrator must change."""
    vhost = shlex.quote(doing.settings.vhost)
    if closed.code == 403:  # ACCESS_REFUSED
        return _login_refused(closed.text, doing)
    if closed.code != 530:  # all but NOT_ALLOWED is a fault that can pass: forced, internal error, resources ...
        return BrokerUnavailableError(f"{_where(doing)}the broker closed the connection: {closed.code} {closed.text}")
    if "limit" in closed.text:
        limits = "'{\"max-connections\": -1}'"
        user = shlex.quote(doing.settings.username)
        setting = (
            f"set_user_limits {user}" if "user connection limit" in closed.text else f"set_vhost_limits -p {vhost}"
        )
        return _refused(doing, closed.text, f"Ask for a higher limit, or none: rabbitmqctl {setting} {limits}.")
    if "not found" in closed.text:
        return _refused(
            doing,
            closed.text,
            f"Check rabbitmq.virtualhost; or ask for: rabbitmqctl add_vhost {vhost} && "
            f"{permissions_line(doing.settings)}.",
        )
    return _refused(doing, closed.text, f"Ask the broker's administrator for: {permissions_line(doing.settings)}.")


def _channel_closed(error: aiormq.exceptions.ChannelClosed, doing: Doing) -> Translated:
    said = broker_text(error)
    match error:
        case aiormq.exceptions.ChannelAccessRefused() if "exclusive use" in said:
            return _refused(doing, said, _held_remedy(doing))
        case aiormq.exceptions.ChannelAccessRefused():
            line = permissions_line(doing.settings, also=doing.name)
            return _refused(doing, said, f"Ask for the permission to {doing.phase}: {line}.")
        case aiormq.exceptions.ChannelNotFoundEntity():
            return _refused(doing, said, _not_found_remedy(doing))
        case aiormq.exceptions.ChannelLockedResource():
            return _refused(doing, said, _held_remedy(doing))
        case aiormq.exceptions.ChannelPreconditionFailed():
            return _precondition_failed(said, doing)
    return BrokerUnavailableError(f"{_where(doing)}{in_words(error)}")


def _held_remedy(doing: Doing) -> str:
    return f"Another connection holds {doing.resource} exclusively: ask who, and that it is given up."


def _not_found_remedy(doing: Doing) -> str:
    line = permissions_line(doing.settings, also=doing.name)
    if doing.kind == "queue":
        return (
            f"Ask the broker's administrator to declare {doing.resource} (durable, no arguments) and to bind it to the "
            f"exchange 'build-jobs', or to let this user do it: {line}."
        )
    return f"Ask the broker's administrator to declare {doing.resource}, or to let this user do it: {line}."


def _precondition_failed(said: str, doing: Doing) -> Translated:
    inequivalent = re.search(r"inequivalent arg '([^']+)'", said)
    if inequivalent:
        return _refused(
            doing,
            said,
            f"{doing.resource} was declared with another {inequivalent[1]!r}: ask for it to be deleted and declared "
            "again without arguments, or leave it: it is used as it is.",
        )
    if "message size" in said:
        return _refused(doing, said, "Ask for a larger max_message_size, or lower the limits on output and logs.")
    if "timed out" in said:
        return BrokerUnavailableError(
            f"{_where(doing)}the broker took the message back: {said} Ask its administrator for a consumer_timeout "
            "above the longest build (consumer_timeout in rabbitmq.conf, milliseconds)."
        )
    return BrokerUnavailableError(f"{_where(doing)}the broker closed the channel: {said}")


def _no_amqp(garbage: bytes, doing: Doing) -> BrokerRefusedError:
    if garbage[:1] in {b"\x15", b"\x16"}:  # a TLS alert or handshake record
        return _refused(
            doing,
            "the port speaks TLS, not plain AMQP",
            "Set rabbitmq.ssl = true, or use the plain port (usually 5672).",
            resource=f"at {doing.address}",
        )
    return _refused(
        doing,
        f"the port answers with something that is no AMQP 0-9-1: {garbage[:32]!r}",
        "Check rabbitmq.host and its port (usually 5672, with TLS 5671).",
        resource=f"at {doing.address}",
    )


# OpenSSL's reasons for a handshake that the peer ended because of our certificate or for want of one
_CLIENT_CERTIFICATE_ALERTS = (
    "CERTIFICATE_REQUIRED",
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_HANDSHAKE_FAILURE",
)


def _tls(error: ssl.SSLError, doing: Doing) -> Translated:
    """A TLS failure: a refusal where the configuration of either side must change."""
    reason = _tls_reason(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        message = str(getattr(error, "verify_message", "")) or reason
        said = f"its certificate was not accepted: {message}"
        remedy = _certificate_remedy(message, doing)
    elif reason in {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        said = f"the port does not speak TLS ({reason})"
        remedy = "Use the broker's TLS port (usually 5671), or set rabbitmq.ssl = false where the network is trusted."
    elif any(alert in reason for alert in _CLIENT_CERTIFICATE_ALERTS):
        said = f"it wants a client certificate that it trusts ({reason})"
        remedy = (
            "Set rabbitmq.client_certificate_file and rabbitmq.client_key_file to a certificate signed by an "
            "authority that the broker trusts."
        )
    else:
        return BrokerUnavailableError(f"{_where(doing)}TLS failed: {reason}")
    return _refused(doing, said, remedy, resource=f"TLS with {doing.address}")


def _tls_reason(error: ssl.SSLError) -> str:
    """OpenSSL's name for what went wrong; errors that Python itself makes have a text only."""
    return str(getattr(error, "reason", None) or error)


def _certificate_remedy(message: str, doing: Doing) -> str:
    lowered = message.lower()
    if "mismatch" in lowered or "not valid for" in lowered:
        return "Set rabbitmq.server_name to a name in the certificate, or use that name in rabbitmq.host."
    if "expired" in lowered or "not yet valid" in lowered:
        return "Ask the broker's administrator to renew the certificate, and check this host's clock."
    authority = doing.settings.ca_file or "the system's authorities"
    return f"It is not signed by {authority}: set rabbitmq.ca_file to the authority that signed it."
