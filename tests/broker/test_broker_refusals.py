"""The translation of what aiormq raises, case by case. Pure; the same against a real broker is in the other files."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

import aiormq.exceptions as foreign
import pytest

from ofborg_async.broker.calls import translated
from ofborg_async.broker.frametap import ConnectionClosedByBroker
from ofborg_async.broker.refusals import (
    CONFIGURE,
    READ,
    WRITE,
    Doing,
    Phase,
    in_words,
    permissions_line,
    translate,
)
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeliveryLostError
from ofborg_async.model.identity import BrokerSettings, Secret

SETTINGS = BrokerSettings(addresses=(("b", 1),), vhost="of borg", username="o'hara", password=Secret("hunter2"))
QUEUE = Doing(SETTINGS, Phase.CONSUME, "queue", "build-inputs-x86_64-linux")
CONNECT = Doing(SETTINGS, Phase.CONNECT, address="b:1")


def chained(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def verification(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {message}")
    error.verify_message = message
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] something")
    error.reason = reason
    return error


REFUSED = {
    "wrong password": (
        foreign.ProbableAuthenticationError("ACCESS_REFUSED - Login was refused"),
        CONNECT,
        """rabbitmqctl change_password 'o'"'"'hara' NEW_PASSWORD""",
    ),
    "no PLAIN": (foreign.AuthenticationError("EXTERNAL", ["PLAIN"]), CONNECT, "PLAIN"),
    "vhost": (
        foreign.ConnectionNotAllowed("NOT_ALLOWED - vhost of borg not found"),
        CONNECT,
        "rabbitmqctl add_vhost 'of borg'",
    ),
    "queue missing": (
        foreign.ChannelNotFoundEntity("NOT_FOUND - no queue 'x' in vhost '/'"),
        QUEUE,
        "to declare queue 'build-inputs-x86_64-linux'",
    ),
    "read": (
        foreign.ChannelAccessRefused("ACCESS_REFUSED - access to queue 'x' in vhost '/' refused"),
        QUEUE,
        "the permission to read: rabbitmqctl set_permissions -p 'of borg'",
    ),
    "exclusive": (foreign.ChannelLockedResource("RESOURCE_LOCKED - cannot obtain"), QUEUE, "exclusively"),
    "exclusive consumer": (
        foreign.ChannelAccessRefused("ACCESS_REFUSED - queue 'x' in vhost '/' in exclusive use"),
        QUEUE,
        "exclusively",
    ),
    "inequivalent": (
        foreign.ChannelPreconditionFailed(
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'x' in vhost '/': received none but "
            "current is the value 'quorum' of type 'longstr'"
        ),
        QUEUE,
        "declared with another 'x-queue-type'",
    ),
    "too large": (
        foreign.ChannelPreconditionFailed("PRECONDITION_FAILED - message size 20000000 is larger than configured"),
        QUEUE,
        "max_message_size",
    ),
    "unknown authority": (
        chained(foreign.AMQPConnectionError("x"), verification("unable to get local issuer certificate")),
        CONNECT,
        "rabbitmq.ca_file",
    ),
    "host name": (verification("Hostname mismatch, certificate is not valid for 'b'."), CONNECT, "server_name"),
    "IP address": (
        verification("IP address mismatch, certificate not valid for '1.2.3.4'."),
        CONNECT,
        "server_name",
    ),
    "expired": (verification("certificate has expired"), CONNECT, "clock"),
    "plain port": (tls("WRONG_VERSION_NUMBER"), CONNECT, "5671"),
    "client certificate": (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), CONNECT, "client_certificate_file"),
    "unknown client certificate": (tls("TLSV1_ALERT_UNKNOWN_CA"), CONNECT, "client_certificate_file"),
}


@pytest.mark.parametrize(("error", "doing", "remedy"), REFUSED.values(), ids=REFUSED)
def test_refusals(error: BaseException, doing: Doing, remedy: str) -> None:
    refusal = translate(error, doing)
    assert isinstance(refusal, BrokerRefusedError)
    assert remedy in refusal.remedy
    assert (refusal.who, refusal.vhost) == ("o'hara", "of borg")
    assert not refusal.said.endswith(".")
    assert "hunter2" not in str(refusal)


UNAVAILABLE = {
    "name": (chained(foreign.AMQPConnectionError(-2, "x"), socket.gaierror(-2, "Name unknown")), "does not resolve"),
    "refused": (chained(foreign.AMQPConnectionError("x"), ConnectionRefusedError(111, "x")), "nothing listens"),
    "unreachable": (chained(foreign.AMQPConnectionError("x"), OSError(113, "No route to host")), "No route to host"),
    "reset": (chained(foreign.AMQPConnectionError("x"), ConnectionResetError(104, "Reset by peer")), "Reset by peer"),
    "forced": (foreign.ConnectionClosed(320, "CONNECTION_FORCED - shutdown"), "CONNECTION_FORCED - shutdown"),
    "consumer time-out": (
        foreign.ChannelPreconditionFailed(
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 5000 ms."
        ),
        "consumer_timeout above the longest build",
    ),
    "unknown tag": (
        foreign.ChannelPreconditionFailed("PRECONDITION_FAILED - unknown delivery tag 1"),
        "unknown delivery tag",
    ),
    "lost heartbeat": (asyncio.CancelledError(), "no heartbeat"),
    "bare": (Exception(), "without a word"),
    "closed channel": (foreign.ChannelInvalidStateError("<Channel> closed"), "closed"),
    "other TLS": (tls("UNEXPECTED_EOF_WHILE_READING"), "TLS failed: UNEXPECTED_EOF_WHILE_READING"),
}


@pytest.mark.parametrize(("error", "words"), UNAVAILABLE.values(), ids=UNAVAILABLE)
def test_what_waiting_may_help(error: BaseException, words: str) -> None:
    found = translate(error, CONNECT)
    assert type(found) is BrokerUnavailableError
    assert words in str(found)


def test_what_the_tap_saw_goes_first() -> None:
    opaque = foreign.InvalidFrameError("Expected one of ['Connection.OpenOk'], got <Connection.Close object>")
    refusal = translate(opaque, CONNECT, closed=ConnectionClosedByBroker(530, "NOT_ALLOWED - access to vhost refused"))
    assert isinstance(refusal, BrokerRefusedError)
    assert "access to vhost refused" in refusal.said
    passing = translate(opaque, CONNECT, closed=ConnectionClosedByBroker(541, "INTERNAL_ERROR"))
    assert type(passing) is BrokerUnavailableError
    tls_port = translate(opaque, CONNECT, garbage=b"\x15\x03\x01\x00\x02\x02\x16")
    assert "ssl = true" in str(tls_port)


def test_the_permissions_cover_what_a_builder_does() -> None:
    """As regular expressions, the way the broker matches them."""
    needs = {
        CONFIGURE: ("build-jobs", "build-inputs-x86_64-linux"),
        WRITE: ("build-inputs-x86_64-linux", "build-results", "logs", "amq.default"),
        READ: ("build-jobs", "build-inputs-x86_64-linux"),
    }
    for patterns, names in needs.items():
        assert all(re.fullmatch("|".join(patterns), name) for name in names)
    assert "special\\+exchange" in permissions_line(SETTINGS, also="special+exchange")
    assert permissions_line(SETTINGS, also="build-inputs-a") == permissions_line(SETTINGS)
    assert permissions_line(SETTINGS).startswith("rabbitmqctl set_permissions -p 'of borg' ")


def test_words_for_a_closed_channel() -> None:
    assert in_words(foreign.ChannelClosed(504, "CHANNEL_ERROR - x")) == "the broker closed it: CHANNEL_ERROR - x"
    assert in_words(foreign.ChannelClosed(None, None)) == "it was closed"
    assert in_words(None) == in_words(Exception())


async def test_a_cancellation_that_nobody_asked_for_is_translated() -> None:
    with pytest.raises(BrokerUnavailableError), translated(QUEUE):
        raise asyncio.CancelledError
    with pytest.raises(DeliveryLostError), translated(QUEUE):
        raise DeliveryLostError


async def test_a_cancellation_that_somebody_asked_for_is_not() -> None:
    async def wait() -> None:
        with translated(QUEUE):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
