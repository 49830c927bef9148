"""The wall clock is set back under a daemon, and before the next one starts: durations, order and pauses stay right."""

from __future__ import annotations

from pathlib import Path

import pytest
from gated import SYSTEM, gated
from waits import eventually

from ofborg_async.control.problems import NoDaemonError
from ofborg_async.lab.chaos.shiftedclock import ShiftedClock
from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.status import IdentityState

YEAR_SECONDS = 365 * 86400.0
LONGER_THAN_THE_TEST_SECONDS = 240.0


async def is_working(daemon: DaemonProcess) -> bool:
    """Whether the daemon answers and its identity takes jobs."""
    try:
        return (await daemon.status()).identities[0].state is IdentityState.IDLE
    except NoDaemonError:  # it is starting
        return False


@pytest.mark.timeout(240)
async def test_neither_durations_nor_the_order_follow_it(tmp_path: Path, broker: Broker) -> None:
    clock = ShiftedClock(tmp_path / "clock")
    async with gated(tmp_path, broker) as stage:
        upstream = stage.farm.upstream
        async with stage.farm.daemon(stage.farm.configuration("lab-a"), prefix=clock.prefix) as daemon:
            await stage.start_job()
            clock.shift(-YEAR_SECONDS)
            (job,) = [system.job for system in (await daemon.status()).identities[0].systems]
            assert job is not None
            assert 0 <= job.quiet_seconds <= job.elapsed_seconds < LONGER_THAN_THE_TEST_SECONDS
            stage.open()
            await stage.assert_one_result()
            head = await upstream.open_pr(2, {"doc/x": "x"})
            await stage.farm.submit(SYSTEM, upstream.job(2, head, ["ok"]))
            await stage.farm.tap.wait_for_results(2)
            await stage.farm.until_settled()
            newer, older = await daemon.client.history()
            assert (newer.pr, older.pr) == (2, 1)
            assert newer.finished_at < older.started_at  # so it was the daemon's clock
            for entry in (newer, older):
                assert all(0 <= each < LONGER_THAN_THE_TEST_SECONDS for each in entry.durations_seconds.values())
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_pause_ends_after_its_time_by_whatever_clock(tmp_path: Path, broker: Broker) -> None:
    clock = ShiftedClock(tmp_path / "clock")
    async with gated(tmp_path, broker) as stage:
        file = stage.farm.configuration("lab-a")
        async with stage.farm.daemon(file, prefix=clock.prefix) as daemon:
            await daemon.client.pause(["lab-a"], reason="test", for_seconds=3)
            clock.shift(-YEAR_SECONDS)
            await eventually("the end of the pause", lambda: is_working(daemon))
            await daemon.client.pause(["lab-a"], reason="test", for_seconds=3)
            clock.shift(-2 * YEAR_SECONDS)
            assert await daemon.stop() == 0
            daemon.launch()
            await eventually("the end of the pause", lambda: is_working(daemon))
            assert await daemon.stop() == 0
