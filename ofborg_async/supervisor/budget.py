"""A budget of the host: a number of slots, given to identities in turn by weight (stride scheduling)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from ofborg_async.model.status import SlotSnapshot
from ofborg_async.waiting import idle


class FairQueue:
    """Who is next, purely: each identity has a queue; the one that has had least, by its weight, goes first.

    An identity that was away does not save up turns: it joins at the pace of those who wait.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[anyio.Event]] = {}
        self._passed: dict[str, float] = {}
        self._weights: dict[str, int] = {}
        self._pace = 0.0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def push(self, identity: str, weight: int, ticket: anyio.Event) -> None:
        """Queue a ticket."""
        if not self._queues.get(identity):
            self._queues[identity] = deque()
            self._passed[identity] = max(self._passed.get(identity, 0.0), self._pace)
        self._weights[identity] = max(1, weight)
        self._queues[identity].append(ticket)

    def pop(self) -> anyio.Event | None:
        """Take the ticket that is next; None when nobody waits."""
        waiting = [identity for identity, queue in self._queues.items() if queue]
        if not waiting:
            return None
        identity = min(waiting, key=lambda name: (self._passed[name], name))
        self.book(identity, self._weights[identity])
        return self._queues[identity].popleft()

    def book(self, identity: str, weight: int) -> None:
        """Count a turn for an identity."""
        self._pace = max(self._pace, self._passed.get(identity, 0.0))
        self._passed[identity] = self._pace + 1.0 / max(1, weight)

    def discard(self, identity: str, ticket: anyio.Event) -> bool:
        """Forget a ticket; False when it is no longer queued."""
        queue = self._queues.get(identity)
        if queue and ticket in queue:
            queue.remove(ticket)
            return True
        return False


class HostBudget:
    """``total`` slots named ``name``; implements pipeline.ports.Budget."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self._used = 0
        self._queue = FairQueue()

    @asynccontextmanager
    async def slot(self, identity: str, weight: int) -> AsyncIterator[None]:
        """Wait in turn for a slot and hold it. The wait is idle: whoever has a deadline puts it around this."""
        await self._acquire(identity, weight)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, identity: str, weight: int) -> None:
        if self._used < self.total and not len(self._queue):
            self._used += 1
            self._queue.book(identity, weight)
            return
        ticket = anyio.Event()
        self._queue.push(identity, weight, ticket)
        try:
            with idle("a slot is given in turn; the holder's own deadlines bound it"):
                await ticket.wait()
        except BaseException:
            if not self._queue.discard(identity, ticket):
                self._release()  # the slot was given in the moment of the cancellation: pass it on
            raise

    def _release(self) -> None:
        ticket = self._queue.pop() if self._used <= self.total else None
        if ticket is None:
            self._used -= 1
        else:
            ticket.set()

    def resize(self, total: int) -> None:
        """Have ``total`` slots from now on. Fewer: what is held stays so until it is given back."""
        self.total = total
        while self._used < self.total and (ticket := self._queue.pop()) is not None:
            self._used += 1
            ticket.set()

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return max(0, self.total - self._used)

    def statistics(self) -> SlotSnapshot:
        """A frozen snapshot."""
        return SlotSnapshot(self.name, self._used, self.total, len(self._queue))
