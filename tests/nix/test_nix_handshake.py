"""The greeting of a nix-daemon: a real one, and what is none."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from ofborg_async.errors import HostFault
from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import base_environment
from ofborg_async.lab.store import Store, private_nix_daemon
from ofborg_async.nix.handshake import greet_daemon

MAGIC = 0x6478696F


async def test_a_real_daemon_tells_its_version(store: Store) -> None:
    told = (await run("nix", "--version", env=base_environment())).decode()
    async with private_nix_daemon(store) as daemon:
        found = await greet_daemon(Path(daemon.environment["NIX_DAEMON_SOCKET_PATH"]))
    assert found.version == told.split()[-1]


async def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match=r"no nix-daemon answers at .*: No such file"):
        await greet_daemon(tmp_path / "none")


@asynccontextmanager
async def answering(path: Path, answer: bytes) -> AsyncIterator[None]:
    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)
            await stream.send_eof()
            async for _ in stream:
                pass

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield
        group.cancel_scope.cancel()


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


ANSWERS: dict[str, tuple[bytes, str]] = {
    "something else": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no nix-daemon"),
    "cut short": (numbers(MAGIC), "it closed the connection"),
    "a version without end": (numbers(MAGIC, 0x123, 1 << 40), "no nix-daemon"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_is_no_nix_daemon(name: str, tmp_path: Path) -> None:
    answer, why = ANSWERS[name]
    async with answering(tmp_path / "socket", answer):
        with pytest.raises(HostFault, match=why):
            await greet_daemon(tmp_path / "socket")


NEWER: dict[str, tuple[bytes, Callable[[bool | None], bool]]] = {
    "trusted": (numbers(MAGIC, 0x126, 6) + b"2.18.1\0\0" + numbers(1), lambda trusts: trusts is True),
    "not trusted": (numbers(MAGIC, 0x126, 6) + b"2.18.1\0\0" + numbers(2), lambda trusts: trusts is False),
}


@pytest.mark.parametrize("name", NEWER)
async def test_newer_daemons_tell_whether_they_trust_us(name: str, tmp_path: Path) -> None:
    answer, expected = NEWER[name]
    async with answering(tmp_path / "socket", answer):
        found = await greet_daemon(tmp_path / "socket")
    assert found.version == "2.18.1"
    assert expected(found.trusts_us)


async def test_an_old_daemon_tells_nothing(tmp_path: Path) -> None:
    async with answering(tmp_path / "socket", numbers(MAGIC, 0x115)):
        found = await greet_daemon(tmp_path / "socket")
    assert (found.version, found.trusts_us) == ("", None)
