"""The one thread that owns the connection, and how calls reach it.

Calls that wait at the same time share one transaction (group commit): one sync for all of them. Each call's semantics
stay its own: it returns after the commit that holds it, and one that raises takes nothing of the others with it (the
group is rolled back and its calls are run one by one). So an operation may run more than once and must do nothing but
read and write the database.

What was committed survives the death of the daemon. What must survive a power cut as well is synced: that is the rule,
and it covers every commit before. A few calls on the way of every job need only the first (``synced=False``); they are
synced with the next call that is, or by ``flush`` a second later.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
from attrs import define, field

from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import DeadlineExceededError, FaultKind, HostFault, JournalUnusableError
from ofborg_async.journal.generation import Generation
from ofborg_async.journal.opening import DATABASE, FREE_SPACE, FULL_DISK_CODES, Opened, open_database
from ofborg_async.journal.reserve import Reserve
from ofborg_async.waiting import within

_log = logging.getLogger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

RESERVE = "journal.reserve"
_GROUP_CALLS = 256
_OPEN_SECONDS = 600.0  # a migration of a large journal


@define(eq=False)
class _Call:
    operation: Operation[Any] | None  # None closes
    step: Step | None = None  # None writes nothing
    synced: bool = True
    value: Any = None
    error: BaseException | None = None
    abandoned: bool = False
    done: anyio.Event = field(factory=anyio.Event)


@define(eq=False)
class WriterStatistics:
    """What the thread has done since it was opened: write transactions, those of them synced, and the calls in them."""

    commits: int = 0
    syncs: int = 0
    calls: int = 0


class Writer:
    """Runs operations on the journal's database. Make it with ``open``; one event loop uses it.

    ``write`` waits for the commit; ``later`` joins the next one. Each write has the name of its step, so that none can
    be without its crash points. ``disk_full`` is True from the moment the reserve was given up until it is whole again.
    """

    def __init__(self, directory: Path, *, reserve_bytes: int, call_seconds: float) -> None:
        self.statistics = WriterStatistics()
        self.disk_full = False
        self._directory = directory
        self._path = directory / DATABASE
        self._reserve = Reserve(directory / RESERVE, reserve_bytes)
        self._call_seconds = call_seconds
        # The thread wakes tasks through the loop: anyio's own bridge would make the thread wait for the loop.
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._later: dict[tuple[Step, str], Operation[Any]] = {}
        self._writing: frozenset[tuple[Step, str]] = frozenset()  # what the thread has taken of it, until it is written
        self._later_lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread
        self._connection: sqlite3.Connection
        self._opened: Opened
        self._commits = 0
        self._unsynced = False
        self._mode = ""
        self._flush_failed = False

    @classmethod
    async def open(cls, directory: Path, *, reserve_bytes: int, call_seconds: float) -> Writer:
        """Start the thread and open the database. Raises JournalUnusableError, HostFault (DISK, LOCK)."""
        writer = cls(directory, reserve_bytes=reserve_bytes, call_seconds=call_seconds)
        ready = _Call(None)
        # A daemon thread: a program that ends without close() must not hang; what was committed is safe.
        writer._thread = threading.Thread(target=writer._run, args=(ready,), name="journal", daemon=True)
        writer._thread.start()
        await writer._wait(ready, _OPEN_SECONDS)
        return writer

    async def read(self, operation: Operation[T]) -> T:
        """Run ``operation``, which changes nothing, behind all writes before it, and return what it returned.

        Otherwise like ``write``.
        """
        return await self._call(_Call(operation))  # type: ignore[no-any-return]

    async def write(self, step: Step, operation: Operation[T], *, synced: bool = True) -> T:
        """Run ``operation`` in a transaction and return what it returned, once that is durable.

        ``synced`` False: durable against the end of the daemon, not yet against a power cut.

        Not cancellable: a cancelled caller still learns here whether it happened, and is cancelled at its next wait.
        Raises what the operation raises; HostFault (DISK) when it could not be written; JournalUnusableError when the
        file turns out damaged. After a deadline (HostFault too) whether it happened is unknown.
        """
        return await self._call(_Call(operation, step, synced))  # type: ignore[no-any-return]

    async def _call(self, call: _Call) -> Any:
        if self._closed:
            raise RuntimeError("the journal is closed")
        self._calls.put(call)
        return await self._wait(call, self._call_seconds)

    def later(self, step: Step, attempt_id: str, operation: Operation[Any]) -> None:
        """Run ``operation`` with the next transaction. Replaces an earlier one of this step and attempt."""
        with self._later_lock:
            self._later[step, attempt_id] = operation

    def waits(self, step: Step, attempt_id: str) -> bool:
        """Whether an operation handed to ``later`` is not written yet. Sync."""
        with self._later_lock:
            return (step, attempt_id) in self._later or (step, attempt_id) in self._writing

    async def flush(self) -> None:
        """Write what waits for the next transaction and sync what is not, if anything is so.

        Also tries to fill the reserve when it was given up. A failure is logged, once: what waits goes on waiting.
        """
        try:
            if self._later or self._unsynced:
                await self.write(Step.JOURNAL_FLUSH, _nothing)
            if self.disk_full:
                await self.read(self._refill)
            self._flush_failed = False
        except HostFault as fault:
            if not self._flush_failed:
                _log.warning("kept in memory until it can be written: %s", fault)
            self._flush_failed = True

    async def close(self) -> None:
        """Run every call made before, write what waits, close the database. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        call = _Call(None)
        self._calls.put(call)
        await self._wait(call, self._call_seconds)
        self._thread.join(1)  # it has nothing left to do but to end

    async def _wait(self, call: _Call, seconds: float) -> Any:
        try:
            with anyio.CancelScope(shield=True), within(seconds, "the journal"):
                await call.done.wait()
        except DeadlineExceededError as error:
            call.abandoned = True
            detail = f"{self._path} was not written within {seconds:g} s"
            raise HostFault(FaultKind.DISK, detail, remedy="look at the disk of the state directory") from error
        if call.error is not None:
            raise call.error
        return call.value

    # --- on the thread ------------------------------------------------------------------------------------------------

    def _run(self, ready: _Call) -> None:
        try:
            self._open()
        except BaseException as error:  # noqa: BLE001 - it is raised in the task that opens
            ready.error = error
            self._wake([ready])
            return
        self._wake([ready])
        closing: _Call | None = None
        while closing is None:
            calls, closing = self._take()
            self._serve(calls)
            self._wake(calls)
        self._close(closing)

    def _open(self) -> None:
        try:
            self._opened = open_database(self._directory)
        except HostFault as error:
            if error.kind is not FaultKind.DISK or not self._reserve.release():
                raise
            self.disk_full = True
            self._opened = open_database(self._directory)
        self._connection = self._opened.connection
        self._commits = self._opened.generation.commits
        self.disk_full = self.disk_full or not self._reserve.fill()

    def _close(self, closing: _Call) -> None:
        try:
            self._serve([_Call(_nothing, Step.JOURNAL_FLUSH)] if self._unsynced else [])
            self._connection.execute("PRAGMA optimize")
            self._connection.close()
            self._opened.generation_file.close()
        except sqlite3.Error as error:
            closing.error = self._translate(error)
        self._wake([closing])

    def _take(self) -> tuple[list[_Call], _Call | None]:
        """Wait for a call, take those that wait with it; the second is the call to close, if it came."""
        calls: list[_Call] = []
        call = self._calls.get()
        while call.operation is not None:
            if not call.abandoned:
                calls.append(call)
            if len(calls) == _GROUP_CALLS:
                return calls, None
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return calls, None
        return calls, call

    def _serve(self, calls: Sequence[_Call]) -> None:
        with self._later_lock:
            later, self._later = self._later, {}
            self._writing = frozenset(later)
        if not calls and not later:
            return
        try:
            self._commit_with_reserve(calls, later)
        except Exception as error:  # noqa: BLE001 - it belongs to one of the calls
            if len(calls) == 1 and not later:
                calls[0].error = self._translate(error)
                return
            self._serve_one_by_one(calls, later)
        self._writing = frozenset()

    def _serve_one_by_one(self, calls: Sequence[_Call], later: dict[tuple[Step, str], Operation[Any]]) -> None:
        if later:
            try:
                self._commit_with_reserve((), later)
            except sqlite3.Error as error:
                _log.debug("%s: kept for the next transaction: %s", self._path, error)
                with self._later_lock:
                    self._later = later | self._later
        for call in calls:
            try:
                self._commit_with_reserve((call,), {})
            except Exception as error:  # noqa: BLE001 - it is raised in the task that called
                call.error = self._translate(error)

    def _commit_with_reserve(self, calls: Sequence[_Call], later: Mapping[tuple[Step, str], Operation[Any]]) -> None:
        try:
            self._commit(calls, later)
        except sqlite3.Error as error:
            if _code(error) not in FULL_DISK_CODES:
                raise
            self.disk_full = True
            if not self._reserve.release():
                raise
            _log.error("%s: %s; the reserve is used now", self._path, error)
            self._commit(calls, later)

    def _commit(self, calls: Sequence[_Call], later: Mapping[tuple[Step, str], Operation[Any]]) -> None:
        connection = self._connection
        steps = [*(step for step, _ in later), *(call.step for call in calls if call.step is not None)]
        writes = bool(steps)
        synced = any(call.step is not None and call.synced for call in calls)
        if writes:
            self._sync_commits("FULL" if synced else "NORMAL")
        connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            for operation in later.values():
                operation(connection)
            values = [call.operation(connection) for call in calls if call.operation is not None]
            if writes:
                connection.execute("UPDATE meta SET commits = ?", (self._commits + 1,))
            with around(*steps):
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for call, value in zip(calls, values, strict=True):
            call.value = value
        if writes:
            self._commits += 1
            self.statistics.commits += 1
            self.statistics.calls += len(calls)
            self._unsynced = not synced
            if synced:  # the side file must never be ahead of the database, after a power cut either
                self.statistics.syncs += 1
                self._opened.generation_file.note(Generation(self._opened.generation.lineage, self._commits))

    def _sync_commits(self, mode: str) -> None:
        # In WAL mode FULL syncs the log at each commit, with all commits before; NORMAL only before a checkpoint.
        if mode != self._mode:
            self._connection.execute(f"PRAGMA synchronous = {mode}")
            self._mode = mode

    def _refill(self, _connection: sqlite3.Connection) -> None:
        if self.disk_full and self._reserve.fill():
            self.disk_full = False
            _log.info("%s: there is room on the disk again", self._path)

    def _translate(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.DatabaseError) or isinstance(
            error, sqlite3.IntegrityError | sqlite3.ProgrammingError
        ):
            return error
        if _code(error) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            remedy = "Stop the daemon and restore the journal from a backup"
            return JournalUnusableError(str(self._path), f"it is damaged ({error})", remedy=remedy)
        return HostFault(FaultKind.DISK, f"{self._path}: {error}", remedy=FREE_SPACE if self.disk_full else "")

    def _wake(self, calls: Sequence[_Call]) -> None:
        def wake() -> None:
            for call in calls:
                call.done.set()

        try:
            self._loop.call_soon_threadsafe(wake)
        except RuntimeError:
            _log.debug("the event loop has ended; nobody waits for the journal any more")


def _nothing(_: sqlite3.Connection) -> None:
    """An operation that is there for its commit."""


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR))
