"""Why an identity does not build, from snapshots: the sentence for each state of things, and which comes first."""

from __future__ import annotations

from typing import Any

import pytest

from ofborg_async.model.status import (
    AmqpState,
    DaemonSnapshot,
    IdentitySnapshot,
    IdentityState,
    JobSnapshot,
    Phase,
    SystemSnapshot,
)
from ofborg_async.supervisor.reasons import why_not_building

IDLE = "Its queues are empty: it waits for work."
BUILDS = "It builds: NixOS/nixpkgs#7 is in phase fetch, 12 s after its start, quiet for 5 s"


def job(**changes: Any) -> JobSnapshot:
    values: dict[str, Any] = {
        "attempt_id": "attempt",
        "request_id": "request",
        "repo": "NixOS/nixpkgs",
        "pr": 7,
        "attrs": ("hello",),
        "phase": Phase.FETCH,
        "started_at": "2026-01-01T00:00:00Z",
        "elapsed_seconds": 12.3,
        "limit_seconds": 3600.0,
        "quiet_seconds": 5.4,
        "lines": 0,
    }
    return JobSnapshot(**(values | changes))


def system(amqp: AmqpState = AmqpState.CONSUMING, detail: str = "", job: JobSnapshot | None = None) -> SystemSnapshot:
    return SystemSnapshot("x86_64-linux", "build-inputs-x86_64-linux", amqp, job, detail)


def identity(state: IdentityState, *systems: SystemSnapshot, **changes: Any) -> IdentitySnapshot:
    values: dict[str, Any] = {
        "name": "lab-a",
        "state": state,
        "systems": systems or (system(),),
        "root": "/root",
        "lock": "held",
        "ok_24h": 0,
        "failed_24h": 0,
        "restarts": 0,
        "last_error": "",
        "remedy": "",
        "reason": "",
        "state_since": "2026-01-01T00:00:00Z",
    }
    return IdentitySnapshot(**(values | changes))


def daemon(**changes: Any) -> DaemonSnapshot:
    values: dict[str, Any] = {
        "schema": 1,
        "host": "host",
        "version": "1",
        "pid": 1,
        "started_at": "2026-01-01T00:00:00Z",
        "uptime_seconds": 60.0,
        "fingerprint": "f",
        "config_changed": False,
        "slots": (),
        "brokers": (),
        "disk_free_bytes": 100,
        "disk_floor_bytes": 10,
        "locks_held": 0,
        "locks_waiting": 0,
        "verdict": "ok",
        "identities": (),
    }
    return DaemonSnapshot(**(values | changes))


S = IdentityState
REASONS: dict[str, tuple[IdentitySnapshot, str]] = {
    "no work": (identity(S.IDLE), IDLE),
    "results kept": (
        identity(S.IDLE, results_waiting=2, results_detail="no exchange 'x'"),
        f"{IDLE} 2 of its results wait: no exchange 'x'.",
    ),
    "results of another daemon": (identity(S.IDLE, results_waiting=1), f"{IDLE} 1 of its results wait."),
    "an error that is over": (identity(S.IDLE, last_error="once it failed", remedy="do this"), IDLE),
    "paused": (identity(S.PAUSED, reason="lunch (until 13:00)"), "It is paused: lunch (until 13:00)"),
    "drained": (identity(S.DRAINING, reason="by the operator"), "It is being drained: by the operator."),
    "stopped": (identity(S.STOPPED), "It is stopped until it is resumed."),
    "quarantined": (
        identity(S.QUARANTINED, reason="3 jobs in a row failed", remedy="free some space"),
        "It is quarantined: 3 jobs in a row failed (free some space)",
    ),
    "failed": (identity(S.FAILED, last_error="a mistake"), "It failed and was given up: a mistake."),
    "a remedy that was said": (
        identity(S.FAILED, reason="it is full: free some space", remedy="free some space"),
        "It failed and was given up: it is full: free some space.",
    ),
    "builds": (identity(S.BUSY, system(AmqpState.HOLDING, job=job())), f"{BUILDS}."),
    "waits": (
        identity(S.BUSY, system(AmqpState.HOLDING, job=job(waiting_for="build slot"))),
        "It builds: NixOS/nixpkgs#7 waits for build slot, 12 s after its start, quiet for 5 s.",
    ),
    "builds again": (
        identity(S.BUSY, system(AmqpState.HOLDING, job=job(trouble="git fetch took longer than 5 s"))),
        f"{BUILDS}; this host failed, and it is tried again: git fetch took longer than 5 s.",
    ),
    "builds without a broker": (
        identity(S.BUSY, system(AmqpState.DOWN, "connection refused", job())),
        f"{BUILDS}; the broker cannot be reached: connection refused.",
    ),
    "builds for its second system": (
        identity(S.BUSY, system(), system(AmqpState.BLOCKED, job=job())),
        f"{BUILDS}; the broker takes no messages for now: its memory or disk is used up.",
    ),
    "pauses": (
        identity(S.IDLE, system(), system(AmqpState.HOLDING, "a full disk")),
        "It pauses, as its last job went back to the queue: a full disk.",
    ),
    "refused": (
        identity(S.BACKOFF, system(AmqpState.REFUSED, "no right (ask for it)"), last_error="older"),
        "The broker refuses it: no right (ask for it)",
    ),
    "blocked": (
        identity(S.IDLE, system(AmqpState.BLOCKED)),
        "The broker takes no messages for now: its memory or disk is used up.",
    ),
    "down": (identity(S.BACKOFF, system(AmqpState.DOWN, "no route")), "The broker cannot be reached: no route."),
    "connects": (identity(S.STARTING, system(AmqpState.CONNECTING)), "It is connecting to the broker."),
    "connects after an error": (
        identity(S.BACKOFF, system(AmqpState.CONNECTING), last_error="it was cut"),
        "It cannot take work: it was cut.",
    ),
    "no root": (
        identity(S.BACKOFF, system(AmqpState.CONNECTING), last_error="no such folder", remedy="make it"),
        "It cannot take work: no such folder (make it)",
    ),
    "starts": (identity(S.STARTING, system()), "It starts."),
}


@pytest.mark.parametrize("case", REASONS)
def test_the_reason(case: str) -> None:
    row, sentence = REASONS[case]
    assert why_not_building(row, daemon()) == sentence


def test_every_state_has_a_reason() -> None:
    assert {row.state for row, _ in REASONS.values()} == set(IdentityState)
    assert {each.amqp for row, _ in REASONS.values() for each in row.systems} == set(AmqpState)


def test_what_comes_first() -> None:
    """The daemon's stop, what an operator did, the job, the disk, the broker."""
    everything = daemon(stopping=True, disk_free_bytes=9)
    full = daemon(disk_free_bytes=9)
    down, building = system(AmqpState.DOWN, "away"), system(AmqpState.DOWN, "away", job())
    said = [
        why_not_building(identity(S.PAUSED, building), everything),
        why_not_building(identity(S.PAUSED, building), full),
        why_not_building(identity(S.BUSY, building), full),
        why_not_building(identity(S.BACKOFF, down), full),
        why_not_building(identity(S.BACKOFF, down), daemon()),
    ]
    begins = ["The daemon is stopping", "It is paused", "It builds", "The disk has 9 bytes", "The broker cannot be"]
    assert [text[: len(begin)] for text, begin in zip(said, begins, strict=True)] == begins
