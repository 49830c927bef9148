"""A fault that is over before anybody can ask is told of afterwards, by what docs/reliability.md says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from asked import command
from attrs import frozen
from gated import SYSTEM
from test_telling import NAME, TOLD_AFTERWARDS, F, Network, network, telling
from waits import eventually

from ofborg_async.lab.chaos.ledger import delete_exchange
from ofborg_async.lab.chaos.plan import FaultKind
from ofborg_async.lab.chaos.processfaults import descendants
from ofborg_async.lab.wiretap import LOGS
from ofborg_async.process.table import ProcessInfo

NOTHING_TO_TELL = {F.PATH_SLOW, F.BRANCH_RENAMED, F.STALE_LOCKS, F.COLLECTED, F.CLOCK_SET_BACK}
"""It works: by the tests that docs/reliability.md names."""


# --- what is done ------------------------------------------------------------------------------------------------


async def ask_for_a_job(it: Network) -> None:
    await it.submit()
    await it.until_reported()


async def until_it_stops(it: Network) -> None:
    """It has been asked to, and waits for its build."""
    it.daemon.signal(signal.SIGTERM)

    async def stopping() -> bool:
        return (await it.daemon.status()).stopping

    await eventually("it stops", stopping)


async def cut_short(it: Network) -> None:
    async with it.build():
        await until_it_stops(it)
        it.daemon.kill()
        await it.daemon.wait()
        await it.daemon.start()


async def hurried(it: Network) -> None:
    async with it.build():
        await until_it_stops(it)
        it.daemon.signal(signal.SIGTERM)
        assert await it.daemon.wait() == 0
        await it.daemon.start()


async def connections_closed(it: Network) -> None:
    await it.broker.close_all_connections()
    await it.farm.tap.connect()


async def path_cut(it: Network) -> None:
    it.broker_path.cut()


async def logs_deleted(it: Network) -> None:
    async with it.build():
        await delete_exchange(it.broker.url(vhost=it.farm.vhost), LOGS)
        it.open_gate()
        await it.until_reported()
    await it.farm.tap.connect()


async def gone(it: Network, spoil: Callable[[int], Awaitable[object]]) -> None:
    """Ask for the build of a head that is nowhere any more. There is no result to wait for."""
    number = 1000 + it.jobs
    head = await it.farm.upstream.open_pr(number, {"doc/x": f"{number}"})
    await spoil(number)
    await it.farm.submit(SYSTEM, it.farm.upstream.job(number, head, ["ok"]))


async def force_pushed(it: Network) -> None:
    await gone(it, lambda number: it.farm.upstream.force_push(number, {"doc/x": "another"}))


async def deleted(it: Network) -> None:
    await gone(it, it.farm.upstream.delete_pr)


async def truncated(it: Network) -> None:
    """Of the mirror, whatever is not in a pack."""
    for file in it.daemon.state_dir.glob("mirrors/*/objects/??/*"):
        file.chmod(0o644)  # git's are read-only, which counts for all but root
        os.truncate(file, file.stat().st_size // 2)
    await ask_for_a_job(it)


async def half_clone(it: Network) -> None:
    """The mirror, as a killed git leaves it that was making it. A daemon makes one anew once an hour only."""
    assert await it.daemon.stop() == 0
    (head,) = it.daemon.state_dir.glob("mirrors/*/HEAD")
    head.unlink()
    await it.daemon.start()
    await ask_for_a_job(it)


async def identity_restarted(it: Network) -> None:
    await it.daemon.client.restart(NAME)


async def kill_below(it: Network, above: int, fits: Callable[[bytes], bool]) -> None:
    """SIGKILL to what runs below a process and has such words, in the middle of a build."""

    def found() -> list[ProcessInfo]:
        return [info for info in descendants((above,)) if fits(words_of(info))]

    async with it.build():
        for info in await eventually("what is to be killed", found):
            os.kill(info.pid, signal.SIGKILL)
        it.open_gate()


async def child_killed(it: Network) -> None:
    await kill_below(it, it.daemon.pid, lambda words: b"nix-build" in words)


async def builder_killed(it: Network) -> None:
    await kill_below(it, it.nix_daemon.pid, lambda words: b"the build begins" in words)


def words_of(info: ProcessInfo) -> bytes:
    try:
        return (Path("/proc") / str(info.pid) / "cmdline").read_bytes()
    except OSError:
        return b""


# --- what is said ------------------------------------------------------------------------------------------------


async def of_history(it: Network) -> str:
    return (await command(it.daemon, "history"))[1]


async def of_the_builds_log(it: Network) -> str:
    (newest, *_) = await it.daemon.client.history()
    return (await command(it.daemon, "logs", newest.attempt_id))[1]


async def of_the_log(it: Network) -> str:
    return it.daemon.log.read_text()


@frozen
class Told:
    """After ``strike`` every one of ``words`` is in what is ``asked``, more often than before it."""

    strike: Callable[[Network], Awaitable[None]]
    asked: Callable[[Network], Awaitable[str]]
    words: tuple[str, ...]


TOLD: Mapping[FaultKind, Told] = {
    F.DAEMON_CUT_SHORT: Told(cut_short, of_history, ("Interrupted",)),
    F.HURRIED: Told(hurried, of_history, ("Requeued",)),
    F.CONNECTIONS_CLOSED: Told(connections_closed, of_the_log, ("closed by the lab",)),
    F.PATH_CUT: Told(path_cut, of_the_log, ("lost",)),
    F.LOGS_DELETED: Told(logs_deleted, of_the_log, ("nothing more goes to LOG", f"no exchange '{LOGS}'")),
    F.FORCE_PUSHED: Told(
        force_pushed, of_history, ("Silent", "is neither in the pull request nor in anything this root had")
    ),
    F.PR_DELETED: Told(deleted, of_history, ("Silent", "the remote has no refs/pull/")),
    F.TRUNCATED: Told(truncated, of_the_log, ("the mirror of", "was broken and is made anew")),
    F.HALF_CLONE: Told(half_clone, of_the_log, ("the mirror of", "was broken and is made anew")),
    F.IDENTITY_RESTARTED: Told(identity_restarted, of_the_log, (f"{NAME} is starting: the operator restarted it",)),
    F.CHILD_KILLED: Told(child_killed, of_the_builds_log, ("this host failed (memory)",)),
    F.BUILDER_KILLED: Told(builder_killed, of_the_builds_log, ("a builder was killed (signal 9)",)),
}


def test_every_such_fault_has_its_words_or_nothing_to_tell() -> None:
    assert TOLD.keys() | NOTHING_TO_TELL == TOLD_AFTERWARDS.keys()
    assert not TOLD.keys() & NOTHING_TO_TELL


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
@pytest.mark.timeout(300)
async def test_a_fault_that_is_over_is_told_afterwards(tmp_path: Path) -> None:
    async with network(tmp_path) as it:
        await ask_for_a_job(it)
        for kind, told in TOLD.items():
            await it.until_well(kind)
            before = after = await told.asked(it)
            await told.strike(it)

            async def is_told(told: Told = told, before: str = before) -> bool:
                nonlocal after
                after = await told.asked(it)
                return all(after.count(word) > before.count(word) for word in told.words)

            with telling(lambda: after.removeprefix(before)):  # noqa: B023 - used in this turn of the loop
                await eventually(f"{kind} is told by {told.words}", is_told)
        await it.until_well("the last")
