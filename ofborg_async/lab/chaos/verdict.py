"""The invariants, judged from what the broker was given and what the builders remember. Pure."""

from __future__ import annotations

import enum
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from ofborg_async.lab.chaos.jobs import Job
from ofborg_async.lab.chaos.ledger import Entry
from ofborg_async.lab.chaos.plan import FaultKind, JobKind
from ofborg_async.lab.wiretap import LOGS, RESULTS
from ofborg_async.model.status import HistoryEntry

_TOKEN = re.compile(r"of-(\d+)-x")
_UNREPORTED = frozenset({"Requeued", "Interrupted", "Silent"})
_WITHOUT_LINES = frozenset({JobKind.CONFLICT})


LOSES_DELIVERIES = frozenset(
    {
        FaultKind.DAEMON_KILLED,
        FaultKind.DAEMON_RESTARTED,
        FaultKind.DAEMON_CUT_SHORT,
        FaultKind.HURRIED,
        FaultKind.IDENTITY_RESTARTED,
        FaultKind.BROKER_KILLED,
        FaultKind.BROKER_RESTARTED,
        FaultKind.CONNECTIONS_CLOSED,
        FaultKind.WRONG_PASSWORD,
        FaultKind.QUEUE_DELETED,
        FaultKind.PATH_FROZEN,
        FaultKind.PATH_HALF_FROZEN,
        FaultKind.PATH_SLOW,
        FaultKind.PATH_CUT,
        FaultKind.PATH_REFUSED,
    }
)
"""What ends a connection, or a queue, while a result of what it delivered may be there or on its way.

A slow path too: heartbeats come late.
"""


class Sort(enum.StrEnum):
    """What is wrong."""

    LOST = "lost"
    DOUBLED = "doubled"
    WRONG = "wrong"
    LEFT_BEHIND = "left behind"


@frozen
class Finding:
    """One violation."""

    sort: Sort
    text: str


@frozen
class Judgement:
    """``results``: jobs with a result; ``shared``: those of them with results of several daemons, as may be."""

    results: int
    shared: int
    findings: tuple[Finding, ...]


@define
class _Log:
    """What LOG got of one attempt. ``lines`` in the order of their first coming."""

    starts: list[Mapping[str, Any]] = field(factory=list)
    copies: list[bytes] = field(factory=list)
    lines: dict[int, str] = field(factory=dict)
    faults: list[str] = field(factory=list)

    def take(self, body: bytes, payload: Mapping[str, Any]) -> None:
        if "tag" in payload:
            self.copies.append(body)
        elif "line_number" in payload:
            number, text = payload["line_number"], payload["output"]
            if number not in self.lines:
                if self.lines and number < max(self.lines):
                    self.faults.append(f"line {number} came first after line {max(self.lines)}")
                if self.copies:
                    self.faults.append(f"line {number} came first after the result")
                self.lines[number] = text
            elif self.lines[number] != text:
                self.faults.append(f"line {number} came as {self.lines[number]!r} and as {text!r}")
        else:
            if self.lines:
                self.faults.append("LogStart came after lines")
            self.starts.append(payload)


def judge(
    jobs: Sequence[Job],
    entries: Sequence[Entry],
    histories: Sequence[Sequence[HistoryEntry] | None],
    *,
    deliveries_lost: bool,
) -> Judgement:
    """Everything that is not as it must be. A history is None where a builder remembers nothing.

    ``deliveries_lost``: the round may have taken a delivery from a daemon that had a result of it, or came to one: only
    then may another daemon have one of the same job too.
    """
    bodies: dict[str, list[bytes]] = defaultdict(list)
    logs: dict[str, _Log] = defaultdict(_Log)
    for entry in entries:
        payload = entry.payload
        if entry.exchange == RESULTS:
            bodies[payload["attempt_id"]].append(entry.body)
        elif entry.exchange == LOGS:
            logs[payload["attempt_id"]].take(entry.body, payload)
    results: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry.exchange == RESULTS and entry.payload not in results[entry.payload["request_id"]]:
            results[entry.payload["request_id"]].append(entry.payload)
    ended = {entry.attempt_id: (number, entry) for number, h in enumerate(histories) for entry in h or ()}
    owner = {attempt: number for attempt, (number, _) in ended.items()}
    found = [*_same_bytes(bodies, logs)]
    shared = 0
    for job in jobs:
        owners = [owner.get(attempt, -1) for attempt in {each["attempt_id"] for each in results[job.request_id]}]
        may_be = deliveries_lost and len(owners) == len(set(owners))
        shared += may_be and len(owners) > 1
        if len(owners) > 1 and not may_be:
            found.append(Finding(Sort.DOUBLED, f"{_named(job)} has results of attempts of daemons {owners}"))
        found += _of_job(job, results[job.request_id])
        for result in results[job.request_id]:
            attempt = result["attempt_id"]
            known = ended.get(attempt)
            found += _of_log(job, result, logs.get(attempt, _Log()), None if known is None else known[1])
    if None not in histories:
        found += _of_history(ended, results, jobs)
    found += [
        Finding(Sort.WRONG, f"attempt {attempt}: {fault}") for attempt, log in logs.items() for fault in log.faults
    ]
    return Judgement(sum(1 for job in jobs if results[job.request_id]), shared, tuple(found))


def _same_bytes(bodies: Mapping[str, list[bytes]], logs: Mapping[str, _Log]) -> Iterator[Finding]:
    for attempt, copies in bodies.items():
        if len(set(copies)) > 1:
            yield Finding(Sort.WRONG, f"attempt {attempt} has results that differ")
    for attempt, log in logs.items():
        if len(log.starts) > 1 or len(log.copies) > 1:
            yield Finding(
                Sort.DOUBLED, f"attempt {attempt} has {len(log.starts)} LogStarts and {len(log.copies)} results on LOG"
            )
        if log.copies and not set(log.copies) <= set(bodies.get(attempt, ())):
            yield Finding(Sort.WRONG, f"attempt {attempt}: the result on LOG is not the one on RES")


def _named(job: Job) -> str:
    return f"job {job.plan.number} ({job.plan.kind})"


def _of_job(job: Job, results: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    name = _named(job)
    if not results:
        if job.submitted and not job.silent and not job.gone and not job.optional:
            yield Finding(Sort.LOST, f"{name} has no result")
        return
    if job.silent or not job.submitted:
        yield Finding(Sort.WRONG, f"{name} must have no result and has {[result['status'] for result in results]}")
        return
    for result in results:
        status = _word(result["status"])
        if status not in job.statuses:
            yield Finding(
                Sort.WRONG, f"{name} is {result['status']} and must be of {set(job.statuses)}: {result['output']}"
            )
        named = (result["attempted_attrs"] or []) + (result["skipped_attrs"] or [])
        if named and sorted(named) != sorted(job.attrs):
            yield Finding(Sort.WRONG, f"{name}: its attrs are {named}")
        if result["pr"]["number"] != job.pr or result["system"] != job.plan.system:
            yield Finding(Sort.WRONG, f"{name}: its result is for {result['pr']} on {result['system']}")


def _of_log(job: Job, result: Mapping[str, Any], log: _Log, known: HistoryEntry | None) -> Iterator[Finding]:
    """The lines of an attempt that has a result: of its pull request, and complete."""
    name = f"{_named(job)}, attempt {result['attempt_id']}"
    lines = [log.lines[number] for number in sorted(log.lines)]
    said = {int(number) for line in (*lines, *result["output"]) for number in _TOKEN.findall(line)}
    if said - {job.plan.number}:
        yield Finding(Sort.WRONG, f"{name}: lines of pull requests {sorted(said)}")
    if job.plan.kind in _WITHOUT_LINES or _word(result["status"]) == "UnexpectedError":
        return
    if not said and not (job.log_incomplete and not result["output"]):
        yield Finding(Sort.WRONG, f"{name}: no line has its token: {lines[:5]}")
    if job.log_incomplete:
        return
    if sorted(log.lines) != list(range(1, len(log.lines) + 1)):
        yield Finding(Sort.LOST, f"{name}: of {max(log.lines)} lines there are {len(log.lines)}")
    if known is not None and known.lines != len(log.lines):
        yield Finding(Sort.LOST, f"{name}: {len(log.lines)} lines came, and {known.lines} were made")
    if result["output"] != lines[-10:]:
        yield Finding(Sort.WRONG, f"{name}: its output is not its last lines: {result['output'][-2:]}, {lines[-2:]}")


def _of_history(
    ended: Mapping[str, tuple[int, HistoryEntry]],
    results: Mapping[str, list[Mapping[str, Any]]],
    jobs: Sequence[Job],
) -> Iterator[Finding]:
    """What the journals say was reported is on the wire, and nothing else is."""
    wire = {result["attempt_id"]: _word(result["status"]) for each in results.values() for result in each}
    for attempt, (number, entry) in ended.items():
        if entry.status not in _UNREPORTED and wire.get(attempt) != entry.status:
            yield Finding(
                Sort.LOST, f"attempt {attempt} (job {entry.pr}) ended as {entry.status} at daemon {number}, not on RES"
            )
    for attempt, status in wire.items():
        if attempt not in ended or ended[attempt][1].status != status:
            of = ended[attempt][1].status if attempt in ended else "nothing"
            yield Finding(Sort.WRONG, f"attempt {attempt} is {status} on RES and {of} in the journal")
    silenced = {entry.pr: entry.reason for _, entry in ended.values() if entry.status == "Silent"}
    for job in jobs:
        if job.pr in silenced and not job.silent and not job.gone:
            yield Finding(Sort.WRONG, f"{_named(job)} ended in silence: {silenced[job.pr]}")
        if job.pr not in silenced and not results[job.request_id] and _must_have_an_end(job):
            yield Finding(Sort.LOST, f"{_named(job)} has no result, and no journal knows its end")


def _must_have_an_end(job: Job) -> bool:
    """What may have no result all the same ends in a journal; a message that is no job never comes so far."""
    return job.submitted and (job.silent or job.gone) and not job.optional and job.plan.kind is not JobKind.NONSENSE


def _word(status: Any) -> str:
    return status if isinstance(status, str) else str(next(iter(status)))
