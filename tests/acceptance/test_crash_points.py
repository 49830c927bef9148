"""SIGKILL at every named point: nothing is lost, nothing is doubled, nothing is left (promises 1, 2 and 9).

Each point is visited in the scenario that leads there: most lie on the way of any job, the others have one of their
own. A new point without a scenario is one that the daemon does not die of, and fails here.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from crash_place import IDENTITIES, MAX_ATTEMPTS, SYSTEM, CrashPlace, Visit
from running import needs_own_builds
from waits import eventually

from ofborg_async.control.problems import NoDaemonError
from ofborg_async.crashpoints import CrashPoint, Side, Step, every_point
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.status import IdentityState
from ofborg_async.process.table import read_proc
from ofborg_async.supervisor.daemon import SETTLE_SECONDS

pytestmark = needs_own_builds

T = TypeVar("T")

Scenario = Callable[[Visit, CrashPoint], Awaitable[None]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[CrashPlace]:
    directory = tmp_path_factory.mktemp("crash")
    made = outside(lambda: CrashPlace.make(directory, broker))
    yield made
    outside(made.remove)


# --- the ways to the points -------------------------------------------------------------------------------------------


async def any_job(visit: Visit, point: CrashPoint) -> None:
    """The way of every job, from the broker to the last notes behind its acknowledgement."""
    visit.arm(point)
    job = await visit.submit()
    await visit.died()
    await visit.daemon.start()
    await visit.assert_one_result(job)


async def no_job(visit: Visit, point: CrashPoint) -> None:
    """What the daemon does by itself."""
    visit.arm(point)
    await visit.died()
    await visit.daemon.start()
    await visit.assert_it_works()


async def undecodable(visit: Visit, point: CrashPoint) -> None:
    """A message that is no job is rejected."""
    visit.arm(point)
    await visit.farm.submit(SYSTEM, b"no job")
    await visit.died()
    await visit.daemon.start()
    await visit.farm.until_settled()
    assert visit.tap.messages == []
    await visit.assert_it_works()


async def host_fault(visit: Visit, point: CrashPoint) -> None:
    """A build that the host ended goes back to its queue, and its identity into quarantine."""
    job = await visit.submit("gated")
    await visit.until_building(job)
    visit.arm(point)
    kill_the_build(visit)
    await visit.died()
    visit.open_gate(job)
    await visit.daemon.start()
    await visit.assert_one_result(job)


async def host_fault_with_a_copy(visit: Visit, point: CrashPoint) -> None:
    """The same for a job whose message has come back meanwhile, to a sibling, which gives it back."""
    job = await visit.submit("gated")
    await visit.until_building(job)
    before = visit.daemon.log.read_text().count("came back while it runs")
    await visit.place.broker.close_all_connections()
    await visit.tap.connect()
    await eventually("adoption", lambda: visit.daemon.log.read_text().count("came back while it runs") > before)
    visit.arm(point)
    kill_the_build(visit)
    await visit.died()
    visit.open_gate(job)
    await visit.daemon.start()
    await visit.assert_one_result(job)


async def unroutable(visit: Visit, point: CrashPoint) -> None:
    """A result that nobody takes for now stays in the outbox, and its message is acknowledged."""
    exchange = f"late-{next(visit.place.numbers)}"
    visit.arm(point)
    job = await visit.submit(statusreport=[exchange, ""])
    await visit.died()
    await visit.daemon.start()
    await visit.farm.until_settled()
    await eventually("a result that is kept", lambda: visit.rows("outbox WHERE unroutable > 0 AND log = 2"))
    await visit.tap.listen_to(exchange)
    await visit.assert_one_result(job)


async def locked_journal(visit: Visit, point: CrashPoint) -> None:
    """An attempt whose beginning could not be written is taken back, and its message is built as another attempt."""
    with closing(sqlite3.connect(visit.daemon.state_dir / "journal.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        job = await visit.submit()
        await eventually("a failure", lambda: failure_of(visit))
        visit.arm(point)
        other.execute("ROLLBACK")
    await visit.died()
    await visit.daemon.start()
    await visit.assert_one_result(job)


async def interrupted(visit: Visit, point: CrashPoint) -> None:
    """A start that finds an attempt which was running when its daemon died."""
    visit.arm(CrashPoint(Side.AFTER, Step.LOG_WRITTEN))
    job = await visit.submit()
    await visit.died()
    visit.arm(point)
    await visit.die_at_start()
    await visit.daemon.start()
    await visit.assert_one_result(job)


async def pause(visit: Visit, point: CrashPoint) -> None:
    """The operator's word survives once it is written."""
    visit.arm(point)
    with suppress(NoDaemonError):
        await visit.daemon.client.pause(IDENTITIES, reason="test")
    await visit.died()
    await visit.daemon.start()
    # One entry for each identity; the daemon died of the first.
    assert await paused(visit) == (1 if point.side is Side.AFTER else 0)
    await visit.daemon.client.resume(IDENTITIES)
    await visit.assert_it_works()


async def resume(visit: Visit, point: CrashPoint) -> None:
    """So does its opposite."""
    await visit.daemon.client.pause(IDENTITIES, reason="test")
    visit.arm(point)
    with suppress(NoDaemonError):
        await visit.daemon.client.resume(IDENTITIES)
    await visit.died()
    await visit.daemon.start(PROMPTLY_SECONDS)
    assert await paused(visit) == (1 if point.side is Side.AFTER else 2)
    await visit.daemon.client.resume(IDENTITIES)
    await visit.assert_it_works()


async def restart(visit: Visit, point: CrashPoint) -> None:
    """An identity is started anew."""
    visit.arm(point)
    with suppress(NoDaemonError):
        await visit.daemon.client.restart(IDENTITIES[0])
    await visit.died()
    await visit.daemon.start()
    await visit.assert_it_works()


PROMPTLY_SECONDS = SETTLE_SECONDS * 2 / 3
"""A daemon whose identities are all paused is ready without waiting for them to consume."""

SCENARIOS: Mapping[Step, Scenario] = {
    Step.JOURNAL_TAKE_BACK: locked_journal,
    Step.JOURNAL_REQUEUED: host_fault,
    Step.JOURNAL_INTERRUPTED: interrupted,
    Step.JOURNAL_UNROUTABLE: unroutable,
    Step.JOURNAL_LOG_COPY: unroutable,
    Step.JOURNAL_HOLD: pause,
    Step.JOURNAL_HOLD_CLEARED: resume,
    Step.JOURNAL_RESTARTED: restart,
    Step.JOURNAL_EXPIRED: no_job,
    Step.JOURNAL_PRUNED: no_job,
    Step.DELIVERY_REJECT: undecodable,
    Step.DELIVERY_REQUEUE: host_fault_with_a_copy,
    Step.DELIVERIES_LEFT: host_fault,
}
"""What leads to a step that does not lie on the way of any job."""

RESENT = (
    Step.JOURNAL_RES_CONFIRMED,
    Step.JOURNAL_LOG_DONE,
    Step.JOURNAL_ACKED,
    Step.PUBLISH_CHANNEL,
    Step.PUBLISH_RESULT,
    Step.PUBLISH_COPY,
    Step.DELIVERY_TAKEN,
    Step.DELIVERY_ACK,
    Step.DELIVERY_PROCESSED,
)
"""What a daemon does that finds a result in its outbox, and then the message come back."""


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", every_point(), ids=str)
async def test_a_death_at_any_point_loses_and_doubles_nothing(place: CrashPlace, point: CrashPoint) -> None:
    async with place.visit() as visit:
        await SCENARIOS.get(point.step, any_job)(visit, point)


@pytest.mark.parametrize("step", RESENT)
@pytest.mark.parametrize("side", Side)
async def test_a_second_death_while_a_result_is_sent_after_the_first(place: CrashPlace, side: Side, step: Step) -> None:
    async with place.visit() as visit:
        visit.arm(CrashPoint(Side.AFTER, Step.JOURNAL_FINISH))
        job = await visit.submit()
        await visit.died()
        visit.arm(CrashPoint(side, step))
        await visit.die_at_start()
        await visit.daemon.start()
        await visit.assert_one_result(job)
        assert len([entry for entry in await visit.daemon.client.history() if entry.pr == job.number]) == 1


async def test_a_job_that_kills_the_daemon_each_time_gets_an_error_and_is_acknowledged(place: CrashPlace) -> None:
    async with place.visit() as visit:
        point = CrashPoint(Side.AFTER, Step.LOG_WRITTEN)
        visit.arm(point)
        job = await visit.submit()
        await visit.died()
        for _ in range(MAX_ATTEMPTS - 1):
            visit.arm(point)
            await visit.die_at_start()
        visit.arm(point)
        await visit.daemon.start()
        (result,) = await visit.tap.wait_for_results(1)
        assert result["status"] == {"UnexpectedError": {"err": "the builder was stopped 3 times by this job"}}
        assert result["attempted_attrs"] == ["quick"]
        await visit.farm.until_settled()
        ends = [entry.status for entry in await visit.daemon.client.history() if entry.pr == job.number]
        assert ends == ["UnexpectedError"] + ["Interrupted"] * MAX_ATTEMPTS


# --- helpers ----------------------------------------------------------------------------------------------------------


def kill_the_build(visit: Visit) -> None:
    (build,) = [
        info.pid
        for info in read_proc().values()
        if info.ppid == visit.daemon.pid and b"nix-build" in Path(f"/proc/{info.pid}/cmdline").read_bytes()
    ]
    os.kill(build, signal.SIGKILL)


async def failure_of(visit: Visit) -> str:
    return next((identity.last_error for identity in (await visit.daemon.status()).identities), "")


async def paused(visit: Visit) -> int:
    states = [identity.state for identity in (await visit.daemon.status()).identities]
    return states.count(IdentityState.PAUSED)


def outside(function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function to its end on an event loop of its own: a fixture of a module has none."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, function).result()
