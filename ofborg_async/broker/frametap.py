"""Whole AMQP frames on their way from the socket to aiormq.

aiormq parses everything it receives with pamqp, and hides some of what the broker says. This reader stands before it:

- A message property or routing key that pamqp cannot decode (a timestamp beyond the year 9999, bytes that are not
  UTF-8) ends aiormq's reader and so the connection, with the consumers of every identity; the broker delivers the
  message again and the next connection ends too. Of properties and routing keys of a message that was delivered only
  one header is read here, the count of a quorum queue: the rest is emptied before aiormq sees it.
- The reason of a ``connection.close`` during the handshake (a vhost that does not exist) is lost in aiormq's error; it
  is kept in ``closed``.
- ``connection.blocked`` and ``connection.unblocked`` have no callback in aiormq; they have one here.
- Bytes that are no AMQP frame (the port speaks TLS, HTTP ...) are kept in ``garbage``.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import SupportsIndex

from attrs import frozen

_FRAME_HEAD = struct.Struct(">BHI")  # type, channel, payload size; then the payload and one end octet
_FRAME_OVERHEAD_BYTES = _FRAME_HEAD.size + 1
_CLOSE_REASON = struct.Struct(">HB")  # reply code, length of the reply text

_METHOD = 1
_CONTENT_HEADER = 2
_FRAME_TYPES = frozenset({_METHOD, _CONTENT_HEADER, 3, 8})  # with content body and heartbeat

_CONNECTION_CLOSE = struct.pack(">HH", 10, 50)
_CONNECTION_BLOCKED = struct.pack(">HH", 10, 60)
_CONNECTION_UNBLOCKED = struct.pack(">HH", 10, 61)
_BASIC_DELIVER = struct.pack(">HH", 60, 60)
_BASIC_GET_OK = struct.pack(">HH", 60, 71)

_BODY_SIZE_END = 12  # class, weight and body size of a content header; then flags and properties
_NO_FLAGS = b"\0\0"
_HEADERS_FLAG = b"\x20\0"
_COUNT_FIELD = b"\x10x-delivery-countl"  # as RabbitMQ writes it: a short string, "l", 64 bits
_COUNT_BYTES = 8
_DELIVERY_TAG_AND_FLAG_BYTES = 8 + 1
_MESSAGE_COUNT_BYTES = 4
_TWO_EMPTY_STRINGS = b"\0\0"  # for exchange and routing key


@frozen
class ConnectionClosedByBroker:
    """Why the broker closed the connection: its reply code and its own words."""

    code: int
    text: str


class FrameTap(asyncio.StreamReader):
    """A stream reader that looks at whole frames and then hands them on. ``on_blocked``: called with True and False."""

    def __init__(self, *, on_blocked: Callable[[bool], None]) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.closed: ConnectionClosedByBroker | None = None
        self.garbage = b""
        self._delivering: set[int] = set()  # channels on which the content of a delivery comes next
        self._on_blocked = on_blocked
        self._rest = b""

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take bytes from the socket; hand on the frames that are complete."""
        if self.garbage:
            return
        chunk = self._rest + bytes(data)
        self._rest = b""
        handed_on: list[bytes] = []
        start = position = 0  # chunk[start:position] goes on as it is
        while position < len(chunk):
            if chunk[position] not in _FRAME_TYPES:
                self._end_with(chunk[position:])
                return
            if len(chunk) - position < _FRAME_OVERHEAD_BYTES:
                break
            kind, channel, size = _FRAME_HEAD.unpack_from(chunk, position)
            end = position + size + _FRAME_OVERHEAD_BYTES
            if end > len(chunk):
                break
            if kind in {_METHOD, _CONTENT_HEADER}:
                payload = chunk[position + _FRAME_HEAD.size : end - 1]
                changed = self._look_at(kind, channel, payload)
                if changed is not None:
                    handed_on += (chunk[start:position], _FRAME_HEAD.pack(kind, channel, len(changed)), changed)
                    start = end - 1  # the end octet is the original's
            position = end
        handed_on.append(chunk[start:position])
        self._rest = chunk[position:]
        super().feed_data(b"".join(handed_on))

    def _end_with(self, garbage: bytes) -> None:
        """End the stream: aiormq would wait for the rest of what it takes for a frame."""
        self.garbage = garbage
        super().feed_eof()

    def feed_eof(self) -> None:
        """The peer is gone; what is left of a frame goes on, so that aiormq can say what was missing."""
        if self.garbage:
            return
        if self._rest:
            super().feed_data(self._rest)
            self._rest = b""
        super().feed_eof()

    def _look_at(self, kind: int, channel: int, payload: bytes) -> bytes | None:
        """Note what a frame says; the payload that goes on in its place, None for its own."""
        if kind == _CONTENT_HEADER:
            if channel not in self._delivering:
                return None
            self._delivering.discard(channel)
            return payload[:_BODY_SIZE_END] + _delivery_count(payload)
        method = payload[:4]
        if channel == 0:
            self._look_at_connection_method(method, payload)
        elif method == _BASIC_DELIVER:
            self._delivering.add(channel)
            kept = 4 + 1 + payload[4] + _DELIVERY_TAG_AND_FLAG_BYTES  # with the consumer tag and its length
            return payload[:kept] + _TWO_EMPTY_STRINGS
        elif method == _BASIC_GET_OK:
            self._delivering.add(channel)
            return payload[: 4 + _DELIVERY_TAG_AND_FLAG_BYTES] + _TWO_EMPTY_STRINGS + payload[-_MESSAGE_COUNT_BYTES:]
        return None

    def _look_at_connection_method(self, method: bytes, payload: bytes) -> None:
        if method == _CONNECTION_CLOSE:
            code, length = _CLOSE_REASON.unpack_from(payload, 4)
            self.closed = ConnectionClosedByBroker(code, payload[7 : 7 + length].decode(errors="replace"))
        elif method == _CONNECTION_BLOCKED:
            self._on_blocked(True)  # noqa: FBT003 - the callback has this one argument
        elif method == _CONNECTION_UNBLOCKED:
            self._on_blocked(False)  # noqa: FBT003 - the callback has this one argument


def _delivery_count(payload: bytes) -> bytes:
    """The properties that go on: with the header that counts deliveries, if there is one.

    The bytes are searched, not decoded. Who sends such a header by itself may have its own message refused.
    """
    start = payload.find(_COUNT_FIELD, _BODY_SIZE_END)
    field = payload[start : start + len(_COUNT_FIELD) + _COUNT_BYTES]
    if start < 0 or len(field) < len(_COUNT_FIELD) + _COUNT_BYTES:
        return _NO_FLAGS
    return _HEADERS_FLAG + struct.pack(">I", len(field)) + field
