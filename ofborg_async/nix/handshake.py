"""Asks a nix-daemon who it is: the opening of nix's worker protocol (nix, ``worker-protocol.hh``), and no more of it.

The client's command line tells the version of the client only; after an update the daemon that runs may be the old one.
"""

from __future__ import annotations

import struct
from pathlib import Path

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.waiting import within

_CLIENT_MAGIC = 0x6E697863
_DAEMON_MAGIC = 0x6478696F
_OUR_PROTOCOL = 1 << 8 | 35  # 1.35: the last before features are exchanged; the daemon then speaks ours or its own
_VERSION_SINCE = 1 << 8 | 33
_TRUST_SINCE = 1 << 8 | 35
_VERSION_BYTES_MOST = 256
_TRUSTED = 1
_SECONDS = 10.0


@frozen
class NixDaemon:
    """What a nix-daemon says. ``version`` is "" and ``trusts_us`` None where it is too old to tell."""

    version: str
    trusts_us: bool | None


async def greet_daemon(path: Path) -> NixDaemon:
    """Connect to the socket at ``path``. Raises HostFault (NIX_DAEMON), DeadlineExceededError."""
    with within(_SECONDS, f"the greeting of the nix-daemon at {path}"):
        try:
            async with await anyio.connect_unix(path) as stream:
                return await _greet(stream)
        except (OSError, anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as error:
            why = (isinstance(error, OSError) and error.strerror) or "it closed the connection"
            raise HostFault(FaultKind.NIX_DAEMON, f"no nix-daemon answers at {path}: {why}") from error


async def _greet(stream: ByteStream) -> NixDaemon:
    receiving = BufferedByteReceiveStream(stream)
    await stream.send(struct.pack("<Q", _CLIENT_MAGIC))
    if await _number(receiving) != _DAEMON_MAGIC:
        raise HostFault(FaultKind.NIX_DAEMON, "what listens there is no nix-daemon")
    protocol = min(await _number(receiving), _OUR_PROTOCOL)
    # Our protocol, no processor affinity, no reserved space.
    await stream.send(struct.pack("<QQQ", _OUR_PROTOCOL, 0, 0))
    version, trusts_us = "", None
    if protocol >= _VERSION_SINCE:
        size = await _number(receiving)
        if size > _VERSION_BYTES_MOST:
            raise HostFault(FaultKind.NIX_DAEMON, "what listens there is no nix-daemon")
        padded = await receiving.receive_exactly(-(-size // 8) * 8)
        version = padded[:size].decode(errors="replace")
    if protocol >= _TRUST_SINCE:
        trusts_us = await _number(receiving) == _TRUSTED
    return NixDaemon(version, trusts_us)


async def _number(receiving: BufferedByteReceiveStream) -> int:
    (number,) = struct.unpack("<Q", await receiving.receive_exactly(8))
    return int(number)
