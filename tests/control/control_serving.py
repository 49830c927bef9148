"""Serve a FakeDaemon inside a test, and speak raw bytes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fake_daemon import FakeDaemon

from ofborg_async.clock import SystemClock
from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.control.http import DEFAULT_LIMITS, Limits
from ofborg_async.control.server import ControlServer

PATIENCE_SECONDS = 20.0


@asynccontextmanager
async def serving(path: Path, daemon: FakeDaemon, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[ControlClient]:
    """A server on ``path``, and a client of it. Enter it inside a test, never in a fixture."""
    server = ControlServer(daemon, SystemClock(), limits)
    async with anyio.create_task_group() as group:
        await group.start(lambda task_status: server.serve_socket(path, task_status=task_status))
        yield ControlClient(unix_connector(path), where=str(path), call_seconds=PATIENCE_SECONDS)
        group.cancel_scope.cancel()


async def raw(path: Path, request: bytes, *, then_eof: bool = False) -> bytes:
    """Everything the server sends for these bytes, until it closes."""
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await anyio.connect_unix(path) as stream:
            try:
                await stream.send(request)
                if then_eof:
                    await stream.send_eof()
            except anyio.BrokenResourceError:
                pass  # it refused before it had read everything
            received = b""
            try:
                while True:
                    received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return received
