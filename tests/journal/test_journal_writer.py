"""The thread behind the journal: grouped commits, failing calls, cancellation, deadlines."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Self

import anyio
import pytest
from journal_helpers import copy_as_killed, finish, make_attempt, opened

from ofborg_async.crashpoints import Step
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import DuplicateAttemptError, Journal, SeenState


class Gate:
    """Holds the journal's thread inside an operation, so that calls pile up behind it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._entered = threading.Event()
        self._open = threading.Event()

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._hold)
        await anyio.to_thread.run_sync(self._entered.wait, 10)
        return self

    async def _hold(self) -> None:
        await self._journal._writer.read(self._operation)

    def _operation(self, _: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()

    async def __aexit__(self, *error: object) -> None:
        self._open.set()
        await self._tasks.__aexit__(None, None, None)


async def queued(journal: Journal, count: int) -> None:
    """Until so many calls wait behind the gate."""
    with anyio.fail_after(10):
        while journal._writer._calls.qsize() < count:
            await anyio.sleep(0)


async def test_calls_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        before = journal.statistics.commits
        async with Gate(journal) as gate, anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(journal.begin, make_attempt(request_id=str(number)))
            await queued(journal, 64)
            gate.open()
        assert journal.statistics.commits - before == 1
        assert len(await journal.live_attempts()) == 64


async def test_a_failing_call_takes_nothing_of_the_others_with_it(tmp_path: Path) -> None:
    refused: list[DuplicateAttemptError] = []

    async def begin(number: int) -> None:
        try:
            await journal.begin(make_attempt(f"a{number}", request_id=str(number % 5)))
        except DuplicateAttemptError as error:
            refused.append(error)

    async with opened(tmp_path / "state") as journal:
        async with Gate(journal) as gate, anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(begin, number)
            journal.lines_confirmed("a0", 3)
            await queued(journal, 10)
            gate.open()
        assert {error.attempt_id for error in refused} == {f"a{number}" for number in range(5, 10)}
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    async with opened(killed) as journal:
        assert await journal.live_attempts() == {f"a{number}" for number in range(5)}


async def test_only_one_of_many_concurrent_deliveries_begins(tmp_path: Path) -> None:
    begun: list[str] = []
    refused: list[DuplicateAttemptError] = []

    async def begin(attempt_id: str) -> None:
        try:
            await journal.begin(make_attempt(attempt_id))
        except DuplicateAttemptError as error:
            refused.append(error)
        else:
            begun.append(attempt_id)

    async with opened(tmp_path) as journal, anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(begin, f"a{number}")
    assert len(begun) == 1
    assert [error.seen.attempt_id for error in refused] == begun * 49


async def test_log_start_is_marked_by_one_of_many(tmp_path: Path) -> None:
    marked: list[bool] = []

    async def mark() -> None:
        marked.append(await journal.mark_log_started("a"))

    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(mark)
    assert sorted(marked) == [False] * 49 + [True]


async def test_a_cancelled_caller_knows_that_its_call_was_made(tmp_path: Path) -> None:
    returned = False

    async def begin() -> None:
        nonlocal returned
        await journal.begin(make_attempt("a"))
        returned = True
        await anyio.sleep_forever()

    async with opened(tmp_path) as journal:
        async with Gate(journal) as gate, anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            await queued(journal, 1)
            tasks.cancel_scope.cancel()
            await anyio.lowlevel.cancel_shielded_checkpoint()
            gate.open()
        assert returned
        assert await journal.live_attempts() == {"a"}


async def test_a_task_ended_by_asyncio_leaves_a_whole_transaction(tmp_path: Path) -> None:
    """asyncio's own cancellation knows no shield: the call happens all the same, and the thread lives on."""
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        async with Gate(journal) as gate:
            task = asyncio.create_task(finish(journal, "a"))
            await queued(journal, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
        (entry,) = await journal.outbox()
        assert entry.attempt_id == "a"
        assert [entry.status for entry in await journal.history()] == ["Success"]


async def test_a_call_over_its_deadline_is_a_fault_of_the_host_and_is_not_made_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        async with Gate(journal) as gate:
            journal._writer._call_seconds = 0.01
            with pytest.raises(HostFault, match="was not written within") as error:
                await journal.begin(make_attempt())
            assert error.value.kind is FaultKind.DISK
            journal._writer._call_seconds = 60
            gate.open()
        assert await journal.live_attempts() == frozenset()


async def test_an_attempt_that_began_behind_the_deadline_is_taken_back(tmp_path: Path) -> None:
    """The disk hangs in the middle of the commit: the caller gives up, the commit happens all the same."""
    committing, go_on = threading.Event(), threading.Event()

    class SlowDisk:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
            if statement == "COMMIT" and not committing.is_set():
                committing.set()
                assert go_on.wait(30)
            return self._connection.execute(statement, *arguments)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

    attempt = make_attempt("a")
    async with opened(tmp_path) as journal:
        journal._writer._connection = SlowDisk(journal._writer._connection)  # type: ignore[assignment]
        journal._writer._call_seconds = 0.01
        with pytest.raises(HostFault, match="was not written within"):
            await journal.begin(attempt)
        assert committing.is_set()
        journal._writer._call_seconds = 60
        go_on.set()
        seen = await journal.lookup(attempt.key)
        assert seen is not None
        assert (seen.state, seen.starts, seen.host_faults) == (SeenState.IDLE, 0, 0)
        assert await journal.live_attempts() == frozenset()


async def test_lazy_notes_make_no_commit_of_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        await journal.flush()
        before = journal.statistics.commits
        for line in range(1000):
            journal.lines_confirmed("a", line)
        assert len(journal._writer._later) == 1
        await journal.flush()
        assert journal.statistics.commits == before + 1
        await journal.flush()
        assert journal.statistics.commits == before + 1


async def test_close_writes_what_waits_and_is_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        await finish(journal, "a")
        journal.lines_confirmed("a", 2)
        await journal.close()
        with pytest.raises(RuntimeError, match="closed"):
            await journal.lookup(make_attempt().key)
    assert not journal._writer._thread.is_alive()
    async with opened(tmp_path) as journal:
        (entry,) = await journal.outbox()
        assert entry.lines_confirmed == 2


async def test_calls_made_before_close_are_served(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal, Gate(journal) as gate, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(journal.begin, make_attempt(request_id=str(number)))
        await queued(journal, 10)
        tasks.start_soon(journal.close)
        gate.open()
    async with opened(tmp_path) as journal:
        assert len(await journal.interrupted()) == 10


async def test_a_mistake_of_ours_is_raised_as_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        with pytest.raises(sqlite3.IntegrityError):
            await journal.begin(make_attempt("a", request_id="another"))
        assert await journal.live_attempts() == {"a"}


class Recorder:
    """Notes how each commit is synced."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits: list[str] = []

    def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
        if statement == "BEGIN IMMEDIATE":
            (synchronous,) = self._connection.execute("PRAGMA synchronous").fetchone()
            self.commits.append({1: "NORMAL", 2: "FULL"}[synchronous])
        return self._connection.execute(statement, *arguments)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


async def test_what_is_published_is_on_the_disk_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        recorder = Recorder(journal._writer._connection)
        journal._writer._connection = recorder  # type: ignore[assignment]
        await journal.begin(make_attempt("a"))
        await journal.mark_log_started("a")
        assert recorder.commits == ["NORMAL", "NORMAL"]
        await finish(journal, "a")
        await journal.confirm_and_mark("a")
        assert recorder.commits[2:] == ["FULL", "FULL"]
        await journal.acked("a")
        await journal.flush()
        assert recorder.commits[4:] == ["NORMAL", "FULL"]
        async with Gate(journal) as gate, anyio.create_task_group() as tasks:  # in a group the strictest holds
            tasks.start_soon(journal.begin, make_attempt("b", request_id="b"))
            tasks.start_soon(journal.set_pause, "a", "", None)
            tasks.start_soon(journal.begin, make_attempt("c", request_id="c"))
            await queued(journal, 3)
            gate.open()
        assert recorder.commits[6:] == ["FULL"]


async def test_the_side_file_is_never_ahead_of_what_is_on_the_disk(tmp_path: Path) -> None:
    """After a power cut it would make a good journal look like an older copy."""

    def side_file() -> int:
        return int((tmp_path / "journal.generation").read_bytes().split()[1])

    async with opened(tmp_path) as journal:
        await journal.flush()
        before = side_file()
        await journal.begin(make_attempt("a"))
        assert side_file() == before
        await journal.flush()
        assert side_file() == before + 2
        await finish(journal, "a")
        assert side_file() == before + 3


async def test_what_is_just_being_written_still_waits(tmp_path: Path) -> None:
    """Else who asks in that moment, on a disk that is full, takes a message that went back for one that is at work."""
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    async with opened(tmp_path) as journal:
        writer = journal._writer
        writer.later(Step.JOURNAL_REQUEUED, "a", slow)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.flush)
            await anyio.to_thread.run_sync(entered.wait, 10)
            assert writer.waits(Step.JOURNAL_REQUEUED, "a")
            go_on.set()
        assert not writer.waits(Step.JOURNAL_REQUEUED, "a")


@pytest.mark.parametrize("step", [Step.JOURNAL_REQUEUED, Step.JOURNAL_TAKE_BACK])
async def test_a_message_whose_return_cannot_be_written_yet_is_a_fault_of_the_host(tmp_path: Path, step: Step) -> None:
    def failing(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        journal._writer.later(step, "a", failing)
        with pytest.raises(HostFault, match="a went back is not written yet"):
            await journal.begin(make_attempt("b"))
        journal._writer._later.clear()
