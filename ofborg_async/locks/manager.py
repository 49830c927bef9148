"""Fair queues inside the process, one for each key, and the same in front of a lock file.

A lock is handed from its holder to the first waiter directly, so nobody can overtake; both happen without a wait in
between, so there is no moment at which a cancellation could lose it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from attrs import Factory, define

from ofborg_async.clock import Clock
from ofborg_async.locks.filelock import FileLock, HolderNote
from ofborg_async.model.status import LockSnapshot
from ofborg_async.waiting import idle


@define(eq=False)
class _Ticket:
    """A place in a queue. ``busy`` is set while the lock file in front of it is another process's."""

    holder: str
    job: str | None
    since: float = 0.0
    turn: anyio.Event = Factory(anyio.Event)
    busy: bool = False
    busy_pid: int | None = None


@define(eq=False)
class _Queue:
    """One key: the first ticket holds the lock, the others wait in turn."""

    kind: str
    path: str
    tickets: deque[_Ticket] = Factory(deque)


class LockManager:
    """The locks of this process. A key exists only while somebody holds it or waits for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def hold(
        self, key: str, *, holder: str, job: str | None, kind: str = "memory", path: str = ""
    ) -> AsyncIterator[None]:
        """Wait in turn for ``key`` and hold it. ``holder``, ``job``, ``kind``, ``path`` are for ``statistics`` only."""
        async with self._in_turn(key, _Ticket(holder, job), kind, path):
            yield

    @asynccontextmanager
    async def hold_file(
        self, path: Path, *, holder: str, job: str | None, deadline_seconds: float, note: HolderNote | None = None
    ) -> AsyncIterator[FileLock]:
        """Wait in turn for a lock file within the process, then ``deadline_seconds`` for other processes; hold both.

        Paths that lead to the same file share a queue. Raises LockHeldError, HostFault (PERMISSION, DISK, LOCK).
        """
        lock = FileLock(path)
        try:
            ticket = _Ticket(holder, job)

            def on_busy(note_of_holder: HolderNote | None) -> None:
                ticket.busy = True
                ticket.busy_pid = note_of_holder.pid if note_of_holder else None

            async with self._in_turn(lock.key, ticket, "file", str(path)):
                await lock.lock(deadline_seconds=deadline_seconds, note=note, on_busy=on_busy)
                ticket.busy = False
                ticket.since = self._clock.monotonic()
                yield lock
        finally:
            lock.close()  # the next in turn was told, but runs only after this

    def statistics(self) -> tuple[LockSnapshot, ...]:
        """Every lock that is held or waited for, oldest key first."""
        return tuple(self._snapshot(key, queue) for key, queue in self._queues.items())

    @asynccontextmanager
    async def _in_turn(self, key: str, ticket: _Ticket, kind: str, path: str) -> AsyncIterator[None]:
        queue = self._queues.setdefault(key, _Queue(kind, path))
        queue.tickets.append(ticket)
        if queue.tickets[0] is ticket:
            self._begin_turn(queue)
        try:
            with idle("the holders before it end their jobs, each of which has a deadline"):
                await ticket.turn.wait()
            yield
        finally:
            was_first = queue.tickets[0] is ticket
            queue.tickets.remove(ticket)
            if not queue.tickets:
                del self._queues[key]
            elif was_first:
                self._begin_turn(queue)

    def _begin_turn(self, queue: _Queue) -> None:
        first = queue.tickets[0]
        first.since = self._clock.monotonic()
        first.turn.set()

    def _snapshot(self, key: str, queue: _Queue) -> LockSnapshot:
        first = queue.tickets[0]
        waiters = [ticket.holder for ticket in queue.tickets]
        return LockSnapshot(
            key=key,
            kind=queue.kind,
            path=queue.path,
            holder="another process" if first.busy else waiters.pop(0),
            holder_pid=first.busy_pid if first.busy else os.getpid(),
            job=None if first.busy else first.job,
            held_seconds=self._clock.monotonic() - first.since,
            waiters=tuple(waiters),
        )
