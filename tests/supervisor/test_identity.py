"""A crash loop ends one identity and is told; it never reaches whoever runs beside it (promise 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio
import pytest
from waits import eventually

from ofborg_async.clock import SystemClock
from ofborg_async.model.identity import BrokerSettings, DaemonSettings, IdentitySettings, NixSettings, Secret
from ofborg_async.model.status import IdentityState
from ofborg_async.supervisor.identity import Identity
from ofborg_async.supervisor.lane import Lane
from ofborg_async.supervisor.services import Services

DAEMON = DaemonSettings(
    Path("/state"), Path("/socket"), restart_intensity=3, backoff_first_seconds=0.0, backoff_max_seconds=0.0
)


class Clocked:
    """What an identity itself needs of the services."""

    clock = SystemClock()


class FakeLane:
    """Crashes ``crashes`` times, then works until it is cancelled."""

    task = None

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


def identity(name: str, lane: FakeLane) -> Identity:
    async def prepare(_: Identity) -> Sequence[Lane]:
        return (cast("Lane", lane),)

    settings = IdentitySettings(
        name=name,
        root=Path("/root") / name,
        nix=NixSettings(systems=("x86_64-linux",)),
        broker=BrokerSettings(addresses=(("localhost", 1),), vhost="/", username="u", password=Secret("p")),
    )
    return Identity(settings, DAEMON, cast("Services", Clocked()), prepare)


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
