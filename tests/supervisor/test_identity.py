"""A crash loop ends one identity and is told; it never reaches whoever runs beside it (promise 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio
import pytest
from waits import eventually

from ofborg_async.clock import Clock, SystemClock
from ofborg_async.errors import CancelReason
from ofborg_async.model.identity import BrokerSettings, DaemonSettings, IdentitySettings, NixSettings, Secret
from ofborg_async.model.status import IdentityState
from ofborg_async.supervisor.identity import Identity
from ofborg_async.supervisor.lane import Lane
from ofborg_async.supervisor.lifecycle import Event
from ofborg_async.supervisor.services import Services

DAEMON = DaemonSettings(
    Path("/state"), Path("/socket"), restart_intensity=3, backoff_first_seconds=0.0, backoff_max_seconds=0.0
)


class Clocked:
    """What an identity itself needs of the services."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()


class SetClock(SystemClock):
    """Stands still but for ``advance``; who sleeps is counted."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sleepers = 0
        self._moved = anyio.Event()

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        end = self.seconds + seconds
        self.sleepers += 1
        while self.seconds < end:
            await self._moved.wait()
        self.sleepers -= 1

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self._moved.set()
        self._moved = anyio.Event()


class FakeLane:
    """Crashes ``crashes`` times, then works until it is cancelled."""

    task: Cancelled | None = None

    def __init__(self, crashes: int) -> None:
        self.crashes = crashes
        self.at_work = anyio.Event()

    async def run(self) -> None:
        if self.crashes:
            self.crashes -= 1
            raise ZeroDivisionError("a mistake of ours")
        self.at_work.set()
        await anyio.sleep_forever()

    def stop_listening(self) -> None: ...


def identity(name: str, lane: FakeLane, clock: Clock | None = None) -> Identity:
    async def prepare(_: Identity) -> Sequence[Lane]:
        return (cast("Lane", lane),)

    settings = IdentitySettings(
        name=name,
        root=Path("/root") / name,
        nix=NixSettings(systems=("x86_64-linux",)),
        broker=BrokerSettings(addresses=(("localhost", 1),), vhost="/", username="u", password=Secret("p")),
    )
    return Identity(settings, DAEMON, cast("Services", Clocked(clock)), prepare)


async def test_a_crash_is_followed_by_a_restart() -> None:
    lane = FakeLane(crashes=2)
    one = identity("one", lane)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        with anyio.fail_after(30):
            await lane.at_work.wait()
        assert one.restarts == 2
        assert "a mistake of ours" in one.last_error
        group.cancel_scope.cancel()


async def test_too_many_crashes_end_it_alone_until_an_operator_restarts_it(caplog: pytest.LogCaptureFixture) -> None:
    poor, good = FakeLane(crashes=4), FakeLane(crashes=0)
    one, other = identity("poor", poor), identity("good", good)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        group.start_soon(other.run)
        await eventually("it is given up", lambda: one.state is IdentityState.FAILED)
        assert "failed too often: a mistake of ours" in one.reason
        assert "ZeroDivisionError" in caplog.text  # where it happened is in the log
        assert good.at_work.is_set()
        assert other.state is not IdentityState.FAILED
        one.restart()
        with anyio.fail_after(30):
            await poor.at_work.wait()
        group.cancel_scope.cancel()


async def test_the_end_of_a_quarantine_that_an_operator_ended_is_not_the_next_ones() -> None:
    clock = SetClock()
    one = identity("one", FakeLane(crashes=0), clock)
    period_seconds = one.settings.limits.quarantine_seconds
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        one.on(Event.QUARANTINE, "first")
        await eventually("its end is waited for", lambda: clock.sleepers == 1)
        clock.seconds += period_seconds - 1  # nobody wakes up yet
        one.on(Event.RESUME)
        one.on(Event.QUARANTINE, "second")
        clock.advance(2)
        await anyio.wait_all_tasks_blocked()
        assert one.state is IdentityState.QUARANTINED
        clock.advance(period_seconds)
        await eventually("the second ends", lambda: one.state is not IdentityState.QUARANTINED)
        group.cancel_scope.cancel()


class Cancelled:
    """A lane's job: for what it was cancelled."""

    def __init__(self) -> None:
        self.reasons: list[CancelReason] = []

    def cancel(self, reason: CancelReason) -> None:
        self.reasons.append(reason)


async def test_the_deadline_of_a_drain_is_not_the_next_ones() -> None:
    lane = FakeLane(crashes=0)
    job = lane.task = Cancelled()
    one = identity("one", lane)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        await eventually("it works", lambda: one.lanes != ())
        one.job_started()
        first = one.drain("first")
        one.on(Event.RESUME)
        second = one.drain("second")
        first()
        assert job.reasons == []
        second()
        assert job.reasons == [CancelReason.SHUTDOWN]
        group.cancel_scope.cancel()
