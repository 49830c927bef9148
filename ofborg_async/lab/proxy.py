"""A TCP path between a daemon and its broker that can be frozen, slowed, cut and refused, as networks are."""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.abc import SocketAttribute, SocketStream

from ofborg_async.lab.servers import LOOPBACK
from ofborg_async.waiting import idle, within

_CHUNK_BYTES = 16 * 1024
_CONNECT_SECONDS = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close(2) sends RST, what is unsent is lost
_GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Way(enum.Enum):
    """A direction through the proxy."""

    UP = "from the client to the server"
    DOWN = "from the server to the client"


class Proxy:
    """Passes bytes on to ``host:port``. ``port`` of its own once it serves; made by ``proxy``.

    Everything takes effect at once, also on connections that are open; bytes of a frozen way are kept, and go on
    after ``heal``.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.passed_bytes = dict.fromkeys(Way, 0)
        """What was passed on in each way so far, on all connections."""
        self._target = (host, port)
        self._frozen: set[Way] = set()
        self._thawed = anyio.Event()
        self._pause_seconds = 0.0
        self._refusing = False
        self._connections: set[anyio.CancelScope] = set()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def freeze(self, *ways: Way) -> None:
        """Pass nothing on any more, in both ways by default; connections stay open and new ones are taken."""
        self._frozen |= set(ways or Way)

    def slow(self, pause_seconds: float) -> None:
        """Let each chunk of at most 16 KiB wait, in each way."""
        self._pause_seconds = pause_seconds

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for scope in tuple(self._connections):
            scope.cancel()

    def refuse(self) -> None:
        """Reset every connection, and each new one at once."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Undo all of it."""
        self._frozen.clear()
        self._thawed.set()
        self._thawed = anyio.Event()
        self._pause_seconds = 0.0
        self._refusing = False

    async def handle(self, client: SocketStream) -> None:
        """One connection, until either side ends it or it is cut."""
        with suppress(*_GONE), anyio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                async with client:
                    raw: socket.socket = client.extra(SocketAttribute.raw_socket)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    if not self._refusing:
                        await self._join(client)
            finally:
                self._connections.discard(scope)

    async def _join(self, client: SocketStream) -> None:
        with within(_CONNECT_SECONDS, "the proxy's own connection"):
            server = await anyio.connect_tcp(*self._target)
        async with server, anyio.create_task_group() as group:
            for source, sink, way in ((client, server, Way.UP), (server, client, Way.DOWN)):
                group.start_soon(self._pump, source, sink, way, group.cancel_scope)

    async def _pump(self, source: SocketStream, sink: SocketStream, way: Way, both: anyio.CancelScope) -> None:
        with suppress(*_GONE), idle("a connection of the lab: its ends decide"):
            while True:
                chunk = await source.receive(_CHUNK_BYTES)
                if self._pause_seconds:
                    await anyio.sleep(self._pause_seconds)
                while way in self._frozen:
                    await self._thawed.wait()
                await sink.send(chunk)
                self.passed_bytes[way] += len(chunk)
        both.cancel()


@asynccontextmanager
async def proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    """A Proxy that serves while the block runs."""
    made = Proxy(host, port)
    listener = await anyio.create_tcp_listener(local_host=LOOPBACK)
    made.port = int(listener.extra(SocketAttribute.local_port))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(partial(listener.serve, made.handle))
        yield made
        group.cancel_scope.cancel()
