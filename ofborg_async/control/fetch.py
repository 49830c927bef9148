"""The client's side of one HTTP/1.1 exchange over a byte stream: a request out, an answer in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import h11
from anyio.abc import ByteStream

from ofborg_async.waiting import at_most

Connect = Callable[[], Awaitable[ByteStream]]
"""Opens a fresh stream to the control socket. Raises NoDaemonError."""

BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, h11.RemoteProtocolError)
"""What using a Reply raises when the peer leaves early, or speaks something else than HTTP."""

_READ_BYTES = 64 * 1024
_CLOSE_SECONDS = 1.0


class Reply:
    """An answer that is being read; ``status`` is there once ``fetch`` has entered."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self.status = 0

    async def ask(self, method: str, target: str, body: bytes) -> None:
        """Send the request and read the head of the answer. Raises BROKEN."""
        headers = [
            ("Host", "localhost"),
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ]
        head = h11.Request(method=method, target=target, headers=headers)
        request = b"".join(self._http.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage()))
        # A server that refuses before it has read everything may have answered all the same.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._stream.send(request)
        while not isinstance(event := await self._next_event(), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise anyio.EndOfStream
        self.status = event.status_code

    async def next_chunk(self) -> bytes:
        """The next bytes of the body; empty at its end. Raises BROKEN."""
        while isinstance(event := await self._next_event(), h11.Data):
            if event.data:
                return bytes(event.data)
        return b""

    async def whole(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BROKEN, also when it is longer than the limit."""
        body = bytearray()
        while chunk := await self.next_chunk():
            body += chunk
            if len(body) > limit_bytes:
                raise h11.RemoteProtocolError(f"the answer has more than {limit_bytes} bytes")
        return bytes(body)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                data = await self._stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                data = b""
            self._http.receive_data(data)
        return event


@asynccontextmanager
async def fetch(connect: Connect, method: str, target: str, body: bytes) -> AsyncIterator[Reply]:
    """Connect, ask, and give the answer while it is read. Raises NoDaemonError from ``connect``, and BROKEN."""
    stream = await connect()
    try:
        reply = Reply(stream)
        await reply.ask(method, target, body)
        yield reply
    finally:
        with anyio.CancelScope(shield=True), at_most(_CLOSE_SECONDS):
            await stream.aclose()
