"""The judge of the campaign sees every violation that it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ofborg_async.lab.chaos.jobs import Job
from ofborg_async.lab.chaos.ledger import Entry
from ofborg_async.lab.chaos.plan import JobKind, JobPlan
from ofborg_async.lab.chaos.verdict import Sort, judge
from ofborg_async.lab.wiretap import LOGS, RESULTS
from ofborg_async.model.status import HistoryEntry

ATTEMPT = "attempt-1"


def one_job(**changes: Any) -> Job:
    plan = JobPlan(number=1, kind=JobKind.OK, system="x86_64-linux", at_seconds=0, seconds=0, lines=0)
    job = Job(plan, attrs=("ok",), statuses=frozenset({"Success"}), submitted=True)
    for name, value in changes.items():
        setattr(job, name, value)
    return job


def result(attempt: str = ATTEMPT, **changes: Any) -> dict[str, Any]:
    return {
        "tag": "V1",
        "pr": {"target_branch": "master", "number": 1, "head_sha": "0"},
        "system": "x86_64-linux",
        "output": ["token of-1-x", "end of-1-x"],
        "attempt_id": attempt,
        "request_id": "request-1",
        "status": "Success",
        "skipped_attrs": [],
        "attempted_attrs": ["ok"],
    } | changes


def start(attempt: str = ATTEMPT) -> dict[str, Any]:
    return {"system": "x86_64-linux", "attempt_id": attempt, "attempted_attrs": ["ok"], "skipped_attrs": []}


def line(number: int, text: str, attempt: str = ATTEMPT) -> dict[str, Any]:
    return {"attempt_id": attempt, "line_number": number, "output": text}


def entry(exchange: str, payload: dict[str, Any]) -> Entry:
    return Entry(exchange, json.dumps(payload).encode())


def sound() -> list[Entry]:
    return [
        entry(LOGS, start()),
        entry(LOGS, line(1, "token of-1-x")),
        entry(LOGS, line(2, "end of-1-x")),
        entry(RESULTS, result()),
        entry(LOGS, result()),
    ]


def ended(status: str = "Success", attempt: str = ATTEMPT, lines: int = 2) -> HistoryEntry:
    return HistoryEntry(
        attempt, "chaos-0-0", "x86_64-linux", "lab/packages", 1, ("ok",), status, "", "", "", {}, lines, 0
    )


def sorts(
    entries: list[Entry],
    history: list[HistoryEntry],
    *more: list[HistoryEntry],
    job: Job | None = None,
    deliveries_lost: bool = True,
) -> set[Sort]:
    judged = judge([job or one_job()], entries, [history, *more], deliveries_lost=deliveries_lost)
    return {finding.sort for finding in judged.findings}


def test_what_is_sound_is_not_blamed() -> None:
    assert sorts(sound(), [ended()]) == set()
    assert sorts([*sound()[:4], *sound()[1:]], [ended(), ended("Interrupted", "attempt-0")]) == set()  # repeats
    assert sorts([], [], job=one_job(optional=True)) == set()
    assert sorts([], [ended("Silent")], job=one_job(silent=True)) == set()
    assert sorts([], [ended("Silent")], job=one_job(gone=True)) == set()
    assert sorts(sound(), [ended()], job=one_job(gone=True)) == set()
    assert sorts([], [], job=one_job(gone=True, optional=True)) == set()


def test_a_second_daemons_result_takes_a_lost_delivery() -> None:
    entries = [*sound(), entry(RESULTS, result("attempt-2"))]
    entries += [entry(LOGS, line(1, "token of-1-x", "attempt-2")), entry(LOGS, line(2, "end of-1-x", "attempt-2"))]
    histories = [[ended()], [ended(attempt="attempt-2")]]
    assert sorts(entries, *histories) == set()
    assert judge([one_job()], entries, histories, deliveries_lost=True).shared == 1
    assert sorts(entries, *histories, deliveries_lost=False) == {Sort.DOUBLED}
    assert judge([one_job()], sound(), histories, deliveries_lost=True).shared == 0


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda entries: entries[:0], Sort.LOST),
        (lambda entries: [*entries[:1], *entries[2:]], Sort.LOST),
        (lambda entries: entries[:2] + entries[3:], Sort.LOST),
        (lambda entries: [*entries, entries[0]], Sort.DOUBLED),
        (lambda entries: [*entries, entries[4]], Sort.DOUBLED),
        (lambda entries: [*entries, entry(RESULTS, result("attempt-2"))], Sort.DOUBLED),
        (lambda entries: [*entries, entry(RESULTS, result(status="Failure"))], Sort.WRONG),
        (lambda entries: [entries[1], entries[0], *entries[2:]], Sort.WRONG),
        (lambda entries: [entries[0], entries[2], entries[1], *entries[3:]], Sort.WRONG),
        (lambda entries: [*entries[:2], entry(LOGS, line(2, "end of-2-x")), *entries[3:]], Sort.WRONG),
        (lambda entries: [*entries, entry(LOGS, line(2, "another of-1-x"))], Sort.WRONG),
        (lambda entries: [*entries[:3], *(entry(place, result(system="y")) for place in (RESULTS, LOGS))], Sort.WRONG),
    ],
    ids=[
        "no result",
        "no first line",
        "no last line",
        "a second LogStart",
        "a second copy on LOG",
        "a second attempt",
        "another status",
        "a line before LogStart",
        "lines out of order",
        "a line of another pull request",
        "one line with two texts",
        "another system",
    ],
)  # fmt: skip
def test_every_violation_is_seen(spoil: Callable[[list[Entry]], list[Entry]], expected: Sort) -> None:
    history = [ended(), ended(attempt="attempt-2")] if "attempt-2" in str(spoil(sound())) else [ended()]
    assert expected in sorts(spoil(sound()), history)


@pytest.mark.parametrize("may", ["silent", "gone"])
def test_a_job_that_may_have_no_result_is_missed_all_the_same(may: str) -> None:
    assert sorts([], [], job=one_job(**{may: True})) == {Sort.LOST}
    assert sorts([], [ended("Requeued")], job=one_job(**{may: True})) == {Sort.LOST}


def test_a_queue_that_was_deleted_is_no_reason_for_silence() -> None:
    assert sorts([], [ended("Silent")], job=one_job(optional=True)) == {Sort.WRONG}


def test_a_result_that_must_not_be_is_seen() -> None:
    assert sorts(sound(), [ended()], job=one_job(silent=True)) == {Sort.WRONG}


def test_a_journal_that_disagrees_is_seen() -> None:
    assert Sort.WRONG in sorts(sound(), [ended("Failure")])
    assert Sort.WRONG in sorts(sound(), [])
    assert Sort.LOST in sorts(sound(), [ended(), ended("Failure", "attempt-3")])
    assert Sort.WRONG in sorts(sound(), [ended(), ended("Silent", "attempt-3")])
