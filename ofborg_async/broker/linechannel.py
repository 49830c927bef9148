"""Log lines to the broker in bulk: one buffer per batch, confirms counted, a bounded window.

The channel is opened by aio-pika and used below it, through ``get_underlay_channel``: a publish of aio-pika's, and of
aiormq's below, makes several objects and a future for each message. Here the frames of a batch (method, content header
and body for each message) are joined into one buffer, handed to aiormq's writer as one piece, and the broker's confirms
are counted by number. The channel is opened without confirms of the library and put into confirm mode by a plain call;
aiormq's reader passes each confirm frame to ``_on_confirm_frame`` of the channel object, which is replaced on that
object: the one place where this package depends on the inside of aiormq. The broker confirms many messages with one
frame, so confirms cost next to nothing for each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import anyio
from aio_pika.abc import AbstractChannel  # noqa: TID251 - this is that room
from aiormq.abc import ChannelFrame, ConfirmationFrameType  # noqa: TID251 - below aio-pika: see the module
from aiormq.channel import Channel  # noqa: TID251 - below aio-pika: see the module
from pamqp import commands, frame

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.kept import KeptConnection, reason_of
from ofborg_async.broker.refusals import Doing, Phase, translate
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.model.job import Address

WINDOW_MESSAGES = 4000
WINDOW_BYTES = 2 * 1024 * 1024

_CLOSE_SECONDS = 5.0
_FRAME_OVERHEAD_BYTES = 8
_HEADER, _BODY = 2, 3
_FRAME_END = b"\xce"

# content type and delivery mode 2, as bits 15 and 12 of the property flags (AMQP 0-9-1, 4.2.6.1): no other property
_PROPERTIES = struct.pack(">H", 1 << 15 | 1 << 12) + b"\x10application/json" + b"\x02"


class BulkFrames:
    """Marshals publishes to one address on one channel. Pure.

    A message is: method frame, header frame, body frames of at most ``frame_max`` bytes (0: no limit).
    """

    def __init__(self, to: Address, channel_number: int, frame_max: int) -> None:
        method = frame.marshal(commands.Basic.Publish(exchange=to.exchange, routing_key=to.routing_key), channel_number)
        header_bytes = 2 + 2 + 8 + len(_PROPERTIES)  # class, weight, body size, properties
        self._start = method + struct.pack(">BHIHH", _HEADER, channel_number, header_bytes, commands.Basic.frame_id, 0)
        self._body_head = struct.pack(">BH", _BODY, channel_number)
        self._after_size = _PROPERTIES + _FRAME_END
        self._most = frame_max - _FRAME_OVERHEAD_BYTES if frame_max else None
        # body size, the rest of the header frame, the head of the one body frame: what most messages need
        self._middle = self._after_size + self._body_head
        self._pack_middle = struct.Struct(f">Q{len(self._middle)}sI").pack

    def marshal(self, bodies: Sequence[bytes]) -> bytes:
        """All frames of ``bodies`` in one buffer."""
        pieces: list[bytes] = []
        start, middle, pack_middle = self._start, self._middle, self._pack_middle
        for body in bodies:
            size = len(body)
            if size and (self._most is None or size <= self._most):
                pieces += (start, pack_middle(size, middle, size), body, _FRAME_END)
            else:
                pieces += (start, struct.pack(">Q", size), self._after_size, *self._split(body))
        return b"".join(pieces)

    def _split(self, body: bytes) -> list[bytes]:
        """The body frames of an empty or a large body."""
        pieces: list[bytes] = []
        for offset in range(0, len(body), self._most or len(body) or 1):
            part = body[offset : offset + self._most] if self._most else body
            pieces += (self._body_head, struct.pack(">I", len(part)), part, _FRAME_END)
        return pieces


class Window:
    """Which publishes of a channel the broker has not confirmed yet. Pure.

    Tags count from 1 in the order of publishing. Everything up to ``confirmed`` is confirmed; a single confirm beyond
    it is kept aside until the gap is closed.
    """

    def __init__(self) -> None:
        self.published = 0
        self.confirmed = 0
        self._beyond: set[int] = set()

    def publish(self, count: int) -> int:
        """Count messages that are written now; the tag of the last."""
        self.published += count
        return self.published

    def confirm(self, tag: int, *, multiple: bool) -> None:
        """The broker confirmed ``tag``, with ``multiple`` also everything before it."""
        if multiple:
            self.confirmed = max(self.confirmed, tag)
            if self._beyond:
                self._beyond = {beyond for beyond in self._beyond if beyond > self.confirmed}
        elif tag > self.confirmed:
            self._beyond.add(tag)
        while self.confirmed + 1 in self._beyond:
            self.confirmed += 1
            self._beyond.discard(self.confirmed)


class Confirmation:
    """A batch that was written; ``wait`` tells whether the broker took it."""

    def __init__(self, channel: LineChannel, to: Address, last_tag: int, size_bytes: int) -> None:
        self._channel = channel
        self.to = to
        self.last_tag = last_tag
        self.size_bytes = size_bytes
        self.done = False
        self.error: BrokerUnavailableError | BrokerRefusedError | None = None

    async def wait(self) -> None:
        """Wait until the broker has confirmed all of the batch and all before it on the channel.

        Raises BrokerUnavailableError (some or none arrived: send again from this batch on), BrokerRefusedError (its
        address cannot be published to), DeadlineExceededError (no confirm at all for as long as a call may take).
        """
        await self._channel.wait_until(lambda: self.done, "confirms of log lines")
        if self.error is not None:
            self._channel.failure_seen = True
            raise self.error


class LineChannel:
    """A channel in confirm mode that publishes batches. Made by ``open``; of no use after its first failure.

    ``failure_seen``: whatever was lost with it, the sender knows.
    """

    def __init__(
        self, connection: KeptConnection, settings: BrokerSettings, opened: AbstractChannel, channel: Channel
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._opened = opened
        self._channel = channel
        self._window = Window()
        self._unconfirmed: deque[Confirmation] = deque()
        self._unconfirmed_bytes = 0
        self._frames: tuple[Address, BulkFrames] | None = None
        self._changed = anyio.Event()
        self._failure: BaseException | None = None
        self.failure_seen = False

        async def on_confirm_frame(confirm: ConfirmationFrameType) -> None:
            self._on_confirm(confirm)

        channel._on_confirm_frame = on_confirm_frame  # type: ignore[method-assign, assignment]  # noqa: SLF001 - see the module
        closing = channel.closing
        closing.add_done_callback(lambda _: self._fail(reason_of(closing) or Exception()))

    @classmethod
    async def open(cls, connection: KeptConnection, settings: BrokerSettings) -> LineChannel:
        """Open a channel in confirm mode. Raises BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError."""
        doing = Doing(settings, Phase.PUBLISH)
        opened = await connection.open_channel(doing)
        selected = False
        try:
            with translated(doing), connection.patience(settings.call_timeout_seconds, "switching confirms on"):
                channel = await opened.get_underlay_channel()
                assert isinstance(channel, Channel)  # noqa: S101 - the abstract one lacks what it has
                await channel.confirm_delivery()
            selected = True
        finally:
            if not selected:
                await close_quietly(opened.close, _CLOSE_SECONDS)
        return cls(connection, settings, opened, channel)

    async def send(self, to: Address, bodies: Sequence[bytes]) -> Confirmation:
        """Write a batch behind what was sent before. Waits while the window is full or the broker is blocked.

        Raises BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError: the batch must be sent again.
        """
        with translated(Doing(self._settings, Phase.PUBLISH, "exchange", to.exchange)):
            if self._frames is None or self._frames[0] != to:
                connection = self._channel.connection
                self._frames = to, BulkFrames(to, self._channel.number, connection.connection_tune.frame_max)
        confirmation = Confirmation(self, to, self._window.published, 0)
        confirmation.done = not bodies
        for part in _parts(bodies):
            confirmation = await self._send_part(to, self._frames[1], part)
        return confirmation

    async def _send_part(self, to: Address, frames: BulkFrames, part: Sequence[bytes]) -> Confirmation:
        size_bytes = sum(map(len, part))
        await self.wait_until(lambda: self._has_room(len(part), size_bytes), "room for log lines")
        await self._connection.wait_unblocked()
        if self._failure is not None:
            self.failure_seen = True
            raise self._error_for(to, self._failure)
        confirmation = Confirmation(self, to, self._window.publish(len(part)), size_bytes)
        self._unconfirmed.append(confirmation)
        self._unconfirmed_bytes += size_bytes
        what = "writing log lines"
        written = False
        try:
            with translated(Doing(self._settings, Phase.PUBLISH)), self._connection.patience(self._call_seconds, what):
                # no drain: the window bounds what is buffered, and a writer that waits for a blocked broker could not
                # send heartbeats, upon which aiormq would give up the connection
                await self._channel.write_queue.put(ChannelFrame(frames.marshal(part), should_close=False))
            written = True
        finally:
            if not written:
                self._fail(BrokerUnavailableError("a batch of log lines was not written"))
        return confirmation

    @property
    def _call_seconds(self) -> float:
        return self._settings.call_timeout_seconds

    def _has_room(self, messages: int, size_bytes: int) -> bool:
        if not self._unconfirmed:
            return True
        unconfirmed = self._window.published - self._window.confirmed
        return unconfirmed + messages <= WINDOW_MESSAGES and self._unconfirmed_bytes + size_bytes <= WINDOW_BYTES

    @property
    def failed(self) -> bool:
        """Whether it is of no use any more."""
        return self._failure is not None

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for ``condition`` or a failure, as long as confirms come; time while the broker is blocked is free.

        Raises DeadlineExceededError: no confirm for ``call_timeout_seconds``; the channel is given up.
        """
        while not condition() and not self.failed:
            before = self._window.confirmed
            try:
                with self._connection.patience(self._call_seconds, what):
                    while not condition() and not self.failed:
                        await self._changed.wait()
            except DeadlineExceededError as error:
                if self._window.confirmed == before:
                    self.failure_seen = True
                    self._fail(error)
                    raise

    def _on_confirm(self, confirm: ConfirmationFrameType) -> None:
        if not isinstance(confirm, commands.Basic.Ack):
            self._fail(
                BrokerUnavailableError("the broker did not take a log line: a queue is full, or a fault of its own")
            )
            return
        self._window.confirm(confirm.delivery_tag, multiple=confirm.multiple)
        while self._unconfirmed and self._unconfirmed[0].last_tag <= self._window.confirmed:
            confirmation = self._unconfirmed.popleft()
            self._unconfirmed_bytes -= confirmation.size_bytes
            confirmation.done = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _fail(self, reason: BaseException) -> None:
        """Everything unconfirmed is lost: a batch after a gap must not count, or lines would be out of order."""
        if self._failure is not None:
            return
        self._failure = reason
        self.failure_seen = self.failure_seen or not self._unconfirmed
        while self._unconfirmed:
            confirmation = self._unconfirmed.popleft()
            confirmation.error = self._error_for(confirmation.to, reason)
            confirmation.done = True
        self._notify()

    def _error_for(self, to: Address, reason: BaseException) -> BrokerUnavailableError | BrokerRefusedError:
        if isinstance(reason, BrokerUnavailableError):
            return reason
        if isinstance(reason, DeadlineExceededError):
            return BrokerUnavailableError(str(reason))
        error = translate(reason, Doing(self._settings, Phase.PUBLISH, "exchange", to.exchange))
        if isinstance(error, BrokerRefusedError) and f"exchange '{to.exchange}'" not in error.said:
            return BrokerUnavailableError(f"the channel went with a message to another address: {error.said}")
        return error

    async def close(self) -> None:
        """Close the channel. Bounded; raises nothing."""
        self._fail(BrokerUnavailableError("the channel for log lines was closed on this side"))
        await close_quietly(self._opened.close, _CLOSE_SECONDS)


def _parts(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """``bodies`` in pieces that fit half a window, so that one is written while another is confirmed."""
    start = size_bytes = 0
    for index, body in enumerate(bodies):
        if index > start and (index - start >= WINDOW_MESSAGES // 2 or size_bytes + len(body) > WINDOW_BYTES // 2):
            yield bodies[start:index]
            start, size_bytes = index, 0
        size_bytes += len(body)
    if bodies:
        yield bodies[start:]
