"""One HTTP/1.1 request and its answer over a byte stream, with limits on everything a peer decides.

A connection carries one exchange: the callers are commands and scrapers, and a closed connection holds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus

import anyio
import h11
from anyio.abc import ByteStream
from attrs import frozen

from ofborg_async.control.problems import RequestError
from ofborg_async.control.values import encode
from ofborg_async.errors import OfborgAsyncError
from ofborg_async.waiting import at_most, idle, within

logger = logging.getLogger(__name__)

JSON = "application/json"
_READ_BYTES = 16 * 1024
_LINGER_BYTES = 256 * 1024
_LINGER_SECONDS = 1.0
_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@frozen
class Limits:
    """Bounds of one listener. ``read_seconds`` is for a whole request, ``write_seconds`` for a whole answer.

    ``stall_seconds`` is how long a reader of a stream may stand still (a person behind a pager) before it is cut off.
    """

    connections: int = 32
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    read_seconds: float = 10.0
    handle_seconds: float = 60.0
    write_seconds: float = 10.0
    stall_seconds: float = 600.0


DEFAULT_LIMITS = Limits()


@frozen
class Request:
    """A request, read in full. ``target`` is the path with its query, as sent; ``host`` the Host header."""

    method: str
    target: str
    host: str
    body: bytes


@frozen
class Answer:
    """An answer that is known in full."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@frozen
class Streamed:
    """An answer of unknown length, sent as it comes."""

    chunks: AsyncGenerator[bytes, None]
    content_type: str


def problem(status: int, error: str, *, remedy: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer that says what is wrong and what to do: ``{"error": ..., "remedy": ...}``."""
    return Answer(status, encode({"error": error, "remedy": remedy}), headers=headers)


class Exchange:
    """The server's side of one connection: ``read`` once, then ``answer`` or ``stream`` once.

    ``answer`` and ``stream`` raise DeadlineExceededError when the peer does not take what is sent, and anyio's
    BrokenResourceError when it has gone.
    """

    def __init__(self, stream: ByteStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._method = ""

    async def read(self) -> Request | None:
        """The request; None when the peer left without one.

        Raises RequestError (malformed, too large), DeadlineExceededError, anyio.BrokenResourceError.
        """
        with within(self._limits.read_seconds, "reading the request"):
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return None
            head = event
            self._method = head.method.decode("ascii")
            host = next((value for name, value in head.headers if name == b"host"), b"")
            body = bytearray()
            while isinstance(event := await self._next_event(), h11.Data):
                body += event.data
                if len(body) > self._limits.body_bytes:
                    raise RequestError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"the request's body has more than {self._limits.body_bytes} bytes",
                    )
            return Request(
                method=self._method,
                target=head.target.decode("ascii", "replace"),
                host=host.decode("latin-1"),
                body=bytes(body),
            )

    async def answer(self, answer: Answer) -> None:
        """Send an answer and end the connection in good order. Goes on when the caller is cancelled meanwhile."""
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *_FIXED_HEADERS,
            *answer.headers,
        ]
        reason = HTTPStatus(answer.status).phrase
        parts = [self._encode(h11.Response(status_code=answer.status, headers=headers, reason=reason))]
        if self._method != "HEAD":
            parts.append(self._encode(h11.Data(data=answer.body)))
        parts.append(self._encode(h11.EndOfMessage()))
        # A daemon told to stop still answers who told it, so its shutdown does not cut an answer short.
        with anyio.CancelScope(shield=True):
            await self._send(b"".join(parts), self._limits.write_seconds)
            await self._linger()

    async def stream(self, streamed: Streamed) -> None:
        """Send chunks as they come until they end or the peer leaves; an error among them cuts the answer short."""
        headers = [("Content-Type", streamed.content_type), *_FIXED_HEADERS]
        head = self._encode(h11.Response(status_code=200, headers=headers, reason="OK"))
        async with aclosing(streamed.chunks):
            await self._send(head, self._limits.write_seconds)
            complete = self._method == "HEAD" or await self._send_chunks(streamed.chunks)
        if complete:
            await self._send(self._encode(h11.EndOfMessage()), self._limits.write_seconds)
            await self._linger()

    async def _send_chunks(self, chunks: AsyncIterator[bytes]) -> bool:
        """Send all of them; False when the peer left or an error cut them short."""
        complete = False
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_for_leaving, group.cancel_scope)
            try:
                with idle("the next lines of a log: ended by the attempt's end, or by the peer's leaving"):
                    async for chunk in chunks:
                        await self._send(self._encode(h11.Data(data=chunk)), self._limits.stall_seconds)
                complete = True
            except OfborgAsyncError as error:
                logger.warning("a streamed answer was cut short: %s", error)
            except _GONE:
                logger.debug("the reader of a streamed answer left")
            group.cancel_scope.cancel()
        return complete

    async def _next_event(self) -> object:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise RequestError(error.error_status_hint, f"this is no request that HTTP knows: {error}") from None
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._stream.send(self._encode(h11.InformationalResponse(status_code=100, headers=[])))
            try:
                data = await self._stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                data = b""
            self._http.receive_data(data)

    async def _send(self, data: bytes, seconds: float) -> None:
        with within(seconds, "sending an answer"):
            await self._stream.send(data)

    async def _watch_for_leaving(self, scope: anyio.CancelScope) -> None:
        try:
            with idle("the peer's leaving: ended by the end of the stream"):
                while True:
                    await self._stream.receive(_READ_BYTES)
        except _GONE:
            scope.cancel()

    async def _linger(self) -> None:
        # Closing with unread bytes in the socket resets it, and the peer would lose the answer.
        seen = 0
        with at_most(_LINGER_SECONDS):
            try:
                await self._stream.send_eof()
                while seen < _LINGER_BYTES:
                    seen += len(await self._stream.receive(_READ_BYTES))
            except _GONE:
                return

    def _encode(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""


_FIXED_HEADERS = (
    ("Connection", "close"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)
