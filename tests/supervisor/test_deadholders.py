"""A lock is broken when its holder is dead, and only then: real lock files, holders and what they leave behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from taken import taken
from waits import eventually

from ofborg_async.clock import SystemClock
from ofborg_async.control.problems import ConflictError, UnknownNameError
from ofborg_async.locks import LockManager, holder_of, keepers_of
from ofborg_async.model.status import LockSnapshot
from ofborg_async.supervisor.deadholders import free_lock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who has a lock is told by /proc")


def seen(path: Path) -> LockSnapshot:
    """As ``locks`` shows what another process holds, if that left no note."""
    return LockSnapshot("1:2", "file", str(path), "another process", None, None, 5.0, ("lab-a",))


async def test_what_a_dead_holder_left_behind_is_ended(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with taken(lock, marker="attempt-1/x") as processes:
        processes.kill_holder()
        before = lock.stat()
        broken = await free_lock("1:2", [seen(lock)])
        assert broken.ended == (f"process {processes.child} (sleep)",)
        assert holder_of(lock) is None
        assert os.path.samestat(before, lock.stat()), "the lock file itself stays"


async def test_who_waited_for_it_may_have_it_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    manager = LockManager(SystemClock())
    has_it, let_go = anyio.Event(), anyio.Event()

    async def wait_for_it() -> None:
        async with manager.hold_file(lock, holder="lab-a", job="attempt-2", deadline_seconds=30):
            has_it.set()
            await let_go.wait()

    with taken(lock, marker="attempt-1/x") as processes:
        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_it)
            await eventually(
                "the wait", lambda: [one for one in manager.statistics() if one.holder == "another process"]
            )
            processes.kill_holder()
            (waited_for,) = manager.statistics()
            assert (await free_lock(waited_for.key, [waited_for])).ended == (f"process {processes.child} (sleep)",)
            await has_it.wait()
            let_go.set()


async def test_a_living_holder_is_named_and_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with taken(lock, marker="attempt-1/x") as processes:
        with pytest.raises(ConflictError, match=rf"process {processes.holder} \(.+\) holds it and is alive"):
            await free_lock("1:2", [seen(lock)])
        assert set(keepers_of(lock) or ()) == {processes.holder, processes.child}


async def test_a_stranger_that_a_dead_holder_left_behind_is_named_and_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with taken(lock) as processes:
        processes.kill_holder()
        with pytest.raises(ConflictError, match=rf"its holder(, process {processes.holder},)? is gone") as caught:
            await free_lock("1:2", [seen(lock)])
        assert f"process {processes.child} (sleep)" in str(caught.value)
        assert caught.value.remedy == f"if nothing needs it, end it: kill {processes.child}"
        assert keepers_of(lock) == (processes.child,)
        os.kill(processes.child, signal.SIGKILL)
        await eventually("the lock to be free", lambda: holder_of(lock) is None)
        assert (await free_lock("1:2", [seen(lock)])).ended == ()


async def test_what_this_daemon_holds_is_not_broken(tmp_path: Path) -> None:
    manager = LockManager(SystemClock())
    async with manager.hold_file(tmp_path / "lock", holder="lab-a", job="attempt-1", deadline_seconds=5) as lock:
        with pytest.raises(ConflictError, match="lab-a holds it for attempt attempt-1 and is alive") as caught:
            await free_lock(lock.key, manager.statistics())
        assert caught.value.remedy == "ofborg-async cancel attempt-1"
        with pytest.raises(UnknownNameError, match=r"no lock is called 'x'"):
            await free_lock("x", manager.statistics())
