"""The path of the lab: bytes pass, stand still, come late, and connections end, as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from ofborg_async.lab.proxy import Proxy, Way, proxy


async def echo(stream: SocketStream) -> None:
    async with stream:
        try:
            async for chunk in stream:
                await stream.send(chunk)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[Proxy, SocketStream]]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        target = listener.extra(SocketAttribute.local_port)
        async with proxy("127.0.0.1", target) as path, await anyio.connect_tcp("127.0.0.1", path.port) as client:
            yield path, client
        group.cancel_scope.cancel()


async def said(client: SocketStream, text: bytes, seconds: float = 5.0) -> bytes:
    await client.send(text)
    with anyio.move_on_after(seconds):
        return await client.receive()
    return b""


async def test_bytes_pass_and_stand_still_while_frozen() -> None:
    async with joined() as (path, client):
        assert await said(client, b"one") == b"one"
        for ways in ((), (Way.UP,), (Way.DOWN,)):
            path.freeze(*ways)
            assert await said(client, b"two", 0.2) == b""
            path.heal()
            assert await client.receive() == b"two"


async def test_slow_bytes_come_late() -> None:
    async with joined() as (path, client):
        path.slow(0.1)
        began = monotonic()
        assert await said(client, b"one") == b"one"
        assert monotonic() - began >= 0.2


async def test_a_cut_ends_connections_and_takes_new_ones() -> None:
    async with joined() as (path, client):
        assert await said(client, b"one") == b"one"
        path.cut()
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await client.receive()
        async with await anyio.connect_tcp("127.0.0.1", path.port) as again:
            assert await said(again, b"two") == b"two"


async def test_refused_connections_end_at_once() -> None:
    async with joined() as (path, _):
        path.refuse()
        async with await anyio.connect_tcp("127.0.0.1", path.port) as again:
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                await again.receive()
        path.heal()
        async with await anyio.connect_tcp("127.0.0.1", path.port) as again:
            assert await said(again, b"two") == b"two"
