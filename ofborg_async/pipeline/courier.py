"""From the local log and the outbox to the wire: LogStart, lines, the result, its copy (wire document, "in order").

One courier serves one attempt, while it runs and after a crash alike: what it sends next is read from the journal and
from the local log, never from memory alone. It waits for the broker as long as it takes; being cancelled loses nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import anyio
from attrs import define, frozen

from ofborg_async.clock import Clock
from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DeadlineExceededError,
    UnroutableError,
)
from ofborg_async.model.job import Address
from ofborg_async.pipeline.ports import Confirmation, Publisher
from ofborg_async.wire.encode import LogLineEncoder

log = logging.getLogger(__name__)

BATCHES_ON_THEIR_WAY = 3
BATCH_BYTES = 128 * 1024
"""Log bytes read for one batch: enough lines to fill frames, few enough to keep memory flat."""

FIRST_PAUSE_SECONDS = 0.25
LAST_PAUSE_SECONDS = 10.0
REDELIVER_PAUSE_SECONDS = 60.0

_TRANSIENT = (BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError)


class LogTail(Protocol):
    """Reads an attempt's local log behind its writer."""

    @property
    def next_line(self) -> int:
        """Number of the line that ``read`` gives next; the first is 1."""
        ...

    def read(self, max_bytes: int) -> list[bytes]:
        """Complete lines that are there, about ``max_bytes`` of them; [] when there is none yet. Sync."""
        ...

    async def seek(self, line: int) -> bool:
        """Go to ``line``; False when the log has fewer lines."""
        ...

    async def wait(self) -> bool:
        """Wait until there is more to read (True) or the log has ended and is read to its end (False)."""
        ...


class Records(Protocol):
    """What the courier asks and tells the journal. The async calls return once it is durable, the others are lazy."""

    async def mark_log_started(self, attempt_id: str) -> bool:
        """True exactly once for an attempt: LogStart may be published now."""
        ...

    def lines_confirmed(self, attempt_id: str, through_line: int) -> None:
        """The broker has every line up to this one. Told again after a crash, it does no harm."""
        ...

    async def confirm_and_mark(self, attempt_id: str) -> bool:
        """RES is confirmed as routed; True when the copy on LOG is to be published now, exactly once."""
        ...

    async def unroutable(self, attempt_id: str, *, permanent: bool) -> None:
        """RES is unroutable and stays in the outbox."""
        ...

    async def mark_log_copy(self, attempt_id: str) -> bool:
        """True when the copy on LOG is to be published now, exactly once."""
        ...

    def log_done(self, attempt_id: str) -> None:
        """Nothing more goes to LOG for this attempt."""
        ...


@frozen
class Parcel:
    """A result in the outbox: ``body`` for ``to`` (RES) and, when ``on_log``, the same bytes for LOG."""

    body: bytes
    to: Address
    on_log: bool


@define(eq=False)
class Courier:
    """Sends what belongs to one attempt. ``trouble`` says what it waits for, "" when nothing is in its way."""

    system: str
    identity: str
    attempt_id: str
    logs: Address
    publisher: Publisher
    records: Records
    clock: Clock
    hold_seconds: float
    trouble: str = ""
    log_refused: bool = False
    _confirmed: int = 0

    async def open_log(self, log_start: bytes) -> None:
        """Publish LogStart, at most once in the life of the attempt."""
        await self._ready_for_log()
        if await self.records.mark_log_started(self.attempt_id):
            await self._once(Step.PUBLISH_LOG_START, log_start)

    async def send_lines(self, tail: LogTail) -> None:
        """Publish the lines from ``tail``'s position until the log has ended and the broker has them all."""
        pauses = _Pauses()
        while not self.log_refused:
            first = tail.next_line
            try:
                await self._send_on(tail, pauses)
            except _TRANSIENT as error:
                if _is_of_the_pair(error):
                    self._refused(error)
                else:
                    await tail.seek(max(first, self._confirmed + 1))
                    await self._pause(error, pauses)
            else:
                return

    async def _send_on(self, tail: LogTail, pauses: _Pauses) -> None:
        """Keep a few batches on their way, so that the next is made while the broker takes the last."""
        encoder = LogLineEncoder(system=self.system, identity=self.identity, attempt_id=self.attempt_id)
        on_their_way: deque[tuple[Confirmation, int]] = deque()
        while True:
            first = tail.next_line
            lines = tail.read(BATCH_BYTES) if len(on_their_way) < BATCHES_ON_THEIR_WAY else []
            if lines:
                with around(Step.PUBLISH_LINES):
                    sent = await self.publisher.send_log(self.logs, encoder.encode(first, lines))
                on_their_way.append((sent, tail.next_line - 1))
            elif on_their_way:
                sent, through = on_their_way.popleft()
                with around(Step.CONFIRM_LINES):
                    await sent.wait()
                self._confirmed = through
                self.records.lines_confirmed(self.attempt_id, through)
                pauses.reset()
                self.trouble = ""
            elif not await tail.wait():
                return

    async def deliver(self, parcel: Parcel) -> bool:
        """Publish the result on RES until confirmed as routed, then its copy on LOG.

        False when it is unroutable for good or for longer than ``hold_seconds``: the copy on LOG was sent all the same,
        the result stays in the outbox (``redeliver`` goes on with it) and the delivery may be acknowledged.
        """
        unroutable = await self._publish_result(parcel, hold_seconds=self.hold_seconds)
        if unroutable is None:
            copy = await self.records.confirm_and_mark(self.attempt_id)
        else:
            await self.records.unroutable(self.attempt_id, permanent=unroutable.permanent)
            copy = await self.records.mark_log_copy(self.attempt_id)
        if copy and not self.log_refused:
            await self._ready_for_log()
            await self._once(Step.PUBLISH_COPY, parcel.body)
        if parcel.on_log:
            self.records.log_done(self.attempt_id)
        return unroutable is None

    async def redeliver(self, parcel: Parcel) -> None:
        """Go on publishing a held result, rarely, until it is routed."""
        await self._publish_result(parcel, hold_seconds=None)
        await self.records.confirm_and_mark(self.attempt_id)

    async def _publish_result(self, parcel: Parcel, *, hold_seconds: float | None) -> UnroutableError | None:
        pauses = _Pauses(LAST_PAUSE_SECONDS if hold_seconds is not None else REDELIVER_PAUSE_SECONDS)
        unroutable_since: float | None = None
        while True:
            try:
                with around(Step.PUBLISH_RESULT):
                    await self.publisher.publish_result(parcel.to, parcel.body)
            except UnroutableError as error:
                now = self.clock.monotonic()
                unroutable_since = now if unroutable_since is None else unroutable_since
                if hold_seconds is not None and (error.permanent or now - unroutable_since >= hold_seconds):
                    self.trouble = str(error)
                    log.warning("the result of attempt %s is kept in the outbox: %s", self.attempt_id, error)
                    return error
                await self._pause(error, pauses)
            except _TRANSIENT as error:
                unroutable_since = None
                await self._pause(error, pauses)
            else:
                self.trouble = ""
                return None

    async def _ready_for_log(self) -> None:
        pauses, before = _Pauses(), self.trouble
        while True:
            try:
                with around(Step.PUBLISH_CHANNEL):
                    await self.publisher.open_log()
            except _TRANSIENT as error:
                await self._pause(error, pauses)
            else:
                self.trouble = before
                return

    async def _once(self, step: Step, body: bytes) -> None:
        """Publish on LOG what must not come twice: a failure here may have arrived, so it is never repeated."""
        try:
            with around(step):
                await self.publisher.publish_log(self.logs, [body])
        except _TRANSIENT as error:
            if _is_of_the_pair(error):
                self._refused(error)
                return
            log.warning("attempt %s: a message on LOG may be missing: %s", self.attempt_id, error)

    def _refused(self, error: Exception) -> None:
        # The job's own pair names an exchange that nobody can publish to: its lines have no reader, its result has one.
        log.warning("attempt %s: nothing more goes to LOG: %s", self.attempt_id, error)
        self.log_refused = True

    async def _pause(self, error: Exception, pauses: _Pauses) -> None:
        level = logging.DEBUG if self.trouble == str(error) else logging.WARNING
        self.trouble = str(error)
        seconds = pauses.next()
        log.log(level, "attempt %s waits for the broker: %s", self.attempt_id, error)
        async with anyio.create_task_group() as group:

            async def end_when_back() -> None:
                await self.publisher.wait_back()
                pauses.reset()
                group.cancel_scope.cancel()

            group.start_soon(end_when_back)
            await self.clock.sleep(seconds)
            group.cancel_scope.cancel()


def _is_of_the_pair(error: Exception) -> bool:
    """Whether the broker refused a job's LOG itself, and not login, TLS or the host: those can be repaired."""
    return isinstance(error, BrokerRefusedError) and error.resource.startswith("exchange ")


class _Pauses:
    """Doubling pauses between tries, up to a longest one; a new connection ends one early."""

    def __init__(self, longest_seconds: float = LAST_PAUSE_SECONDS) -> None:
        self._longest = longest_seconds
        self._next = FIRST_PAUSE_SECONDS

    def next(self) -> float:
        seconds, self._next = self._next, min(self._longest, self._next * 2)
        return seconds

    def reset(self) -> None:
        self._next = FIRST_PAUSE_SECONDS
