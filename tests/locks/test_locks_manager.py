from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_helpers import held_elsewhere, is_free, open_descriptors, until

from ofborg_async.clock import SystemClock
from ofborg_async.errors import HostFault, LockHeldError
from ofborg_async.locks import HolderNote, LockManager


@pytest.fixture
def manager() -> LockManager:
    return LockManager(SystemClock())


class Holder:
    """A task that wants a key, and holds it until told."""

    def __init__(self, manager: LockManager, name: str, order: list[str]) -> None:
        self.name = name
        self.scope = anyio.CancelScope()
        self.let_go = anyio.Event()
        self._manager = manager
        self._order = order

    async def run(self, key: str = "k") -> None:
        with self.scope:
            async with self._manager.hold(key, holder=self.name, job=f"job of {self.name}"):
                self._order.append(self.name)
                await self.let_go.wait()


async def settle() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


async def test_first_come_first_served(manager: LockManager) -> None:
    order: list[str] = []
    holders = [Holder(manager, name, order) for name in "abcd"]
    async with anyio.create_task_group() as tasks:
        for holder in holders:
            tasks.start_soon(holder.run)
            await settle()
        (snapshot,) = manager.statistics()
        assert (snapshot.key, snapshot.holder, snapshot.waiters) == ("k", "a", ("b", "c", "d"))
        assert (snapshot.job, snapshot.holder_pid) == ("job of a", os.getpid())
        assert snapshot.held_seconds >= 0
        for number, holder in enumerate(holders, 1):
            assert order == list("abcd")[:number]
            holder.let_go.set()
            await settle()
    assert manager.statistics() == ()


class SetClock(SystemClock):
    """A clock that stands."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


async def test_how_long_it_is_held_counts_from_the_turn_of_its_holder() -> None:
    clock = SetClock()
    manager = LockManager(clock)
    order: list[str] = []
    a, b, c = (Holder(manager, name, order) for name in "abc")
    async with anyio.create_task_group() as tasks:
        for holder in (a, b, c):
            tasks.start_soon(holder.run)
        await settle()
        for moment, leaving, expected in ((10.0, c, ("a", 10.0)), (15.0, a, ("b", 0.0)), (17.0, None, ("b", 2.0))):
            clock.seconds = moment
            if leaving is not None:
                leaving.scope.cancel()
            await settle()
            (snapshot,) = manager.statistics()
            assert (snapshot.holder, snapshot.held_seconds) == expected
        b.let_go.set()


async def test_keys_do_not_wait_for_each_other(manager: LockManager) -> None:
    order: list[str] = []
    holders = [Holder(manager, name, order) for name in "ab"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(holders[0].run, "k1")
        tasks.start_soon(holders[1].run, "k2")
        await settle()
        assert sorted(order) == ["a", "b"]
        for holder in holders:
            holder.let_go.set()


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_waiter_cancelled_at_the_moment_of_its_turn_passes_it_on(
    manager: LockManager, cancelled_first: bool
) -> None:
    order: list[str] = []
    a, b, c = (Holder(manager, name, order) for name in "abc")
    async with anyio.create_task_group() as tasks:
        for holder in (a, b, c):
            tasks.start_soon(holder.run)
            await settle()
        if cancelled_first:
            b.scope.cancel()
            a.let_go.set()
        else:
            a.let_go.set()
            while manager.statistics()[0].holder != "b":
                await anyio.lowlevel.checkpoint()
            assert order == ["a"], "b was given the lock and has not run yet"
            b.scope.cancel()
        await settle()
        # b may still get as far as its next wait, where it is cancelled.
        assert order in (["a", "c"], ["a", "b", "c"])
        assert manager.statistics()[0].holder == "c"
        c.let_go.set()
    assert manager.statistics() == ()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["cancel", "let go", "tick"])), max_size=30))
async def test_whoever_is_cancelled_whenever_nobody_waits_for_ever(steps: list[tuple[int, str]]) -> None:
    manager = LockManager(SystemClock())
    order: list[str] = []
    holders = [Holder(manager, str(number), order) for number in range(6)]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for holder in holders:
                tasks.start_soon(holder.run)
            for number, what in steps:
                if what == "cancel":
                    holders[number].scope.cancel()
                elif what == "let go":
                    holders[number].let_go.set()
                else:
                    await anyio.lowlevel.checkpoint()
            for holder in holders:
                holder.let_go.set()
    assert order == sorted(order)
    assert set(order) >= {holder.name for holder in holders if not holder.scope.cancel_called}
    assert manager.statistics() == ()


async def test_paths_of_one_file_share_a_queue(manager: LockManager, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    order: list[str] = []
    first_may_go = anyio.Event()

    async def want(name: str, path: Path) -> None:
        async with manager.hold_file(path, holder=name, job=None, deadline_seconds=20) as lock:
            order.append(name)
            assert not os.get_inheritable(lock.fileno())
            await first_may_go.wait()

    async with anyio.create_task_group() as tasks:
        for name, path in (("a", "real/l"), ("b", "link/l"), ("c", "real/../link/l")):
            tasks.start_soon(want, name, tmp_path / path)
            await settle()
        (snapshot,) = manager.statistics()
        assert (snapshot.kind, snapshot.holder, snapshot.waiters) == ("file", "a", ("b", "c"))
        assert snapshot.path == str(tmp_path / "real/l")
        first_may_go.set()
    assert order == ["a", "b", "c"]
    assert manager.statistics() == ()
    assert is_free(tmp_path / "real/l")


async def test_a_file_held_by_another_process(manager: LockManager, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    note = HolderNote(4242, "elsewhere", "2025-01-01T00:00:00.000Z", "mac1-a")
    before = open_descriptors()
    with held_elsewhere(path, note.to_bytes()) as other:
        with pytest.raises(LockHeldError) as held:
            async with manager.hold_file(path, holder="a", job="j", deadline_seconds=0):
                raise AssertionError
        assert (held.value.holder_pid, held.value.path) == (4242, str(path))
        assert "identity mac1-a, on elsewhere since 2025-01-01T00:00:00.000Z" in str(held.value)
        assert open_descriptors() == before + 2  # the other process's pipes
        assert manager.statistics() == ()
        async with anyio.create_task_group() as tasks:
            got = anyio.Event()

            async def want() -> None:
                async with manager.hold_file(path, holder="a", job="j", deadline_seconds=30):
                    got.set()
                    await anyio.sleep_forever()

            tasks.start_soon(want)
            await until(lambda: [s.holder_pid for s in manager.statistics()] == [4242], "it is seen as busy")
            (snapshot,) = manager.statistics()
            assert (snapshot.holder, snapshot.waiters, snapshot.job) == ("another process", ("a",), None)
            other.kill()
            await got.wait()
            (snapshot,) = manager.statistics()
            assert (snapshot.holder, snapshot.waiters, snapshot.job) == ("a", (), "j")
            assert not is_free(path)
            tasks.cancel_scope.cancel()
    assert is_free(path)
    assert manager.statistics() == ()
    assert open_descriptors() == before


async def test_a_cancelled_wait_for_another_process_leaves_nothing(manager: LockManager, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path):
        before = open_descriptors()
        with anyio.move_on_after(0.05) as scope:
            async with manager.hold_file(path, holder="a", job=None, deadline_seconds=30):
                raise AssertionError
        assert scope.cancelled_caught
        assert manager.statistics() == ()
        assert open_descriptors() == before
    assert is_free(path)


async def test_what_a_holder_raises_gives_the_lock_back(manager: LockManager, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError):
            async with manager.hold_file(tmp_path / "lock", holder="a", job=None, deadline_seconds=0):
                raise KeyError
    assert manager.statistics() == ()


async def test_a_lock_file_that_cannot_be_made(manager: LockManager, tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="gone/lock cannot be used: No such file or directory"):
        async with manager.hold_file(tmp_path / "gone/lock", holder="a", job=None, deadline_seconds=0):
            raise AssertionError
    assert manager.statistics() == ()
