"""The broker as an identity will use it: login, virtual host, rights, certificate, and its patience (R16)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from attrs import evolve, frozen

from ofborg_async.broker.probe import DEFAULT_EXCHANGE, LOGS_EXCHANGE, RESULTS_EXCHANGE, ProbeReport, Right, probe
from ofborg_async.broker.refusals import permissions_line
from ofborg_async.broker.topology import JOBS_EXCHANGE
from ofborg_async.doctor.findings import Finding, Group, Verdict
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError
from ofborg_async.model.identity import BrokerSettings, IdentitySettings

CONSUMER_TIMEOUT_SECONDS = 1800
"""How long RabbitMQ by default leaves a delivery unacknowledged before it takes it back."""
_MARGIN_SECONDS = 600
_HEARTBEAT_SECONDS_MOST = 30
_CERTIFICATE_DAYS = 14


@frozen
class BrokerUse:
    """One way to use a broker and the identities that use it so: they share connections."""

    settings: BrokerSettings
    identities: tuple[IdentitySettings, ...]

    @property
    def subject(self) -> str:
        """How findings name it."""
        return f"broker of {', '.join(identity.name for identity in self.identities)}"

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues of these identities; what takes every job has one of its own, which is not there yet."""
        systems = (each.nix.systems for each in self.identities if not each.build_all_jobs)
        return tuple(dict.fromkeys(f"build-inputs-{system}" for some in systems for system in some))


def uses_of(identities: Sequence[IdentitySettings]) -> list[BrokerUse]:
    """Identities by their broker settings."""
    groups: dict[BrokerSettings, list[IdentitySettings]] = {}
    for identity in identities:
        groups.setdefault(identity.broker, []).append(identity)
    return [BrokerUse(settings, tuple(members)) for settings, members in groups.items()]


async def examine_broker(use: BrokerUse, now: datetime) -> list[Finding]:
    """Everything about one use of a broker, at each of its addresses."""
    failures: list[Finding] = []
    reports: list[ProbeReport] = []
    for address in use.settings.addresses:
        try:
            reports.append(await probe(use.settings, address, use.queues))
        except BrokerRefusedError as refusal:
            failures.append(_broker("R16", use, Verdict.FAILURE, *_in_words(refusal)))
        except (BrokerUnavailableError, DeadlineExceededError) as error:
            remedy = "check rabbitmq.host and its port, the network and the firewall; the daemon tries again by itself"
            failures.append(_broker("R10", use, Verdict.FAILURE, str(error), remedy))
    if reports:  # the daemon goes on to the next address, so one that cannot be used is no failure
        failures = [evolve(failure, verdict=Verdict.WARNING) for failure in failures]
    judged = [finding for report in reports for finding in judge_probe(use, report, now)]
    return [*failures, *judged, *judge_patience(use), *judge_heartbeat(use)]


def judge_probe(use: BrokerUse, report: ProbeReport, now: datetime) -> Iterator[Finding]:
    """What one address answered."""
    faults = [*_rights(use, report), *_places(use, report), *_certificate(use, report, now)]
    yield from faults
    if not faults:
        who = f"{use.settings.username} may use vhost {use.settings.vhost!r} of {report.product} at {report.address}"
        resources: dict[str, list[str]] = {}
        for answer in report.answers:
            if answer.refusal is None:
                resources.setdefault(answer.resource, []).append(answer.right)
        asked = "; ".join(f"{resource}: {', '.join(rights)}" for resource, rights in resources.items())
        untried = "not tried: exchanges that a job names itself"
        if any(identity.build_all_jobs for identity in use.identities):
            untried += ", and a queue of one's own (runner.build_all_jobs)"
        yield _broker("R16", use, Verdict.OK, f"{who}. Asked without a side effect: {asked}; {untried}")


def _rights(use: BrokerUse, report: ProbeReport) -> Iterator[Finding]:
    """Rights that are missing; those to make and bind a queue count only where it is not there."""
    for queue in use.queues:
        there = report.refusal(Right.EXISTS, queue) is None
        if (refusal := report.refusal(Right.READ, queue)) is not None:
            yield _broker("R16", use, Verdict.FAILURE, *_in_words(refusal, f"cannot take jobs from queue {queue}"))
        if (refusal := report.refusal(Right.CONFIGURE, queue)) is not None and not there:
            yield _broker(
                "R16", use, Verdict.FAILURE, *_in_words(refusal, f"cannot make queue {queue}, which is missing")
            )
        if (refusal := report.refusal(Right.WRITE, queue)) is not None:
            verdict = Verdict.WARNING if there else Verdict.FAILURE
            what = f"cannot bind queue {queue} to {JOBS_EXCHANGE}, which is needed unless it is bound"
            yield _broker("R16", use, verdict, *_in_words(refusal, what))
    for exchange, verdict, what in (
        (RESULTS_EXCHANGE, Verdict.FAILURE, "cannot publish results"),
        (LOGS_EXCHANGE, Verdict.FAILURE, "cannot publish log lines"),
        (DEFAULT_EXCHANGE, Verdict.WARNING, "cannot publish straight to a queue, which some jobs ask for"),
    ):
        if (refusal := report.refusal(Right.WRITE, exchange)) is not None:
            yield _broker("R16", use, verdict, *_in_words(refusal, what))


def _places(use: BrokerUse, report: ProbeReport) -> Iterator[Finding]:
    """What is not there and is made by others than builders."""
    line = permissions_line(use.settings)
    for exchange in (RESULTS_EXCHANGE, LOGS_EXCHANGE):
        if report.refusal(Right.EXISTS, exchange) is not None:
            cause = f"there is no exchange {exchange}: what jobs send there goes nowhere, and results are kept here"
            remedy = (
                f"ask the broker's administrator whether {use.settings.vhost!r} is the right vhost, and to declare it"
            )
            yield _broker("R16", use, Verdict.WARNING, cause, remedy)
    for queue in use.queues:
        if report.refusal(Right.EXISTS, queue) is not None and report.refusal(Right.CONFIGURE, queue) is None:
            cause = f"there is no queue {queue}; the daemon will make it, and until then nobody asked for such builds"
            remedy = f"check nix.systems and rabbitmq.virtualhost; rights that suffice: {line}"
            yield _broker("R16", use, Verdict.WARNING, cause, remedy)


def _certificate(use: BrokerUse, report: ProbeReport, now: datetime) -> Iterator[Finding]:
    if report.certificate_ends is not None and report.certificate_ends - now < timedelta(days=_CERTIFICATE_DAYS):
        cause = f"the certificate of {report.address} ends on {report.certificate_ends:%Y-%m-%d}"
        yield _broker("", use, Verdict.WARNING, cause, "ask the broker's administrator to renew it")


def judge_patience(use: BrokerUse) -> Iterator[Finding]:
    """How long a job may take against how long the broker waits for its acknowledgement, which no protocol tells."""
    longest, identity = max(((_longest_seconds(each), each) for each in use.identities), key=lambda pair: pair[0])
    if longest <= CONSUMER_TIMEOUT_SECONDS:
        cause = f"a job takes at most {longest} s, less than RabbitMQ waits for an acknowledgement by default"
        yield _broker("", use, Verdict.OK, cause)
        return
    wanted_ms = (longest + _MARGIN_SECONDS) * 1000
    cause = (
        f"a job of {identity.name} may take {longest} s (fetch, checkout and nix.attempt_timeout_seconds together), "
        f"but RabbitMQ by default takes a message back after {CONSUMER_TIMEOUT_SECONDS} s without an acknowledgement, "
        "and another host may build it too. What this broker has set neither AMQP nor its management interface tells"
    )
    remedy = (
        f"ask the broker's administrator for consumer_timeout = {wanted_ms} in rabbitmq.conf (milliseconds), to be "
        "seen with: rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'; or lower "
        "nix.attempt_timeout_seconds, limits.fetch_timeout_seconds and limits.checkout_timeout_seconds"
    )
    yield _broker("", use, Verdict.WARNING, cause, remedy)


def _longest_seconds(identity: IdentitySettings) -> int:
    limits = identity.limits
    together = limits.fetch_timeout_seconds + limits.checkout_timeout_seconds + identity.nix.attempt_timeout_seconds
    return math.ceil(together)


def judge_heartbeat(use: BrokerUse) -> Iterator[Finding]:
    """How soon a connection that died silently is noticed: after three heartbeats."""
    seconds = use.settings.heartbeat_seconds
    if not 0 < seconds <= _HEARTBEAT_SECONDS_MOST:
        noticed = f"only after {3 * (seconds + 1)} s" if seconds else "never"
        cause = f"rabbitmq.heartbeat_seconds is {seconds}: a connection that died silently is noticed {noticed}"
        yield _broker("", use, Verdict.WARNING, cause, "set rabbitmq.heartbeat_seconds between 15 and 30")


def _in_words(refusal: BrokerRefusedError, what: str = "") -> tuple[str, str]:
    """Cause and remedy."""
    who = f"user {refusal.who!r} on vhost {refusal.vhost!r}"
    if what:
        return f"{who} {what}: {refusal.said}", refusal.remedy
    resource = f" {refusal.resource}" if refusal.resource else ""
    return f"the broker refused {who}{resource}: {refusal.said}", refusal.remedy


def _broker(requirement: str, use: BrokerUse, verdict: Verdict, cause: str, remedy: str = "") -> Finding:
    return Finding(Group.BROKER, requirement, use.subject, verdict, cause, remedy)
