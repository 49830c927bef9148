"""Streams to the control socket of another host, through OpenSSH's forwarding to Unix sockets.

The only module that imports asyncssh. The protocol is direct-streamlocal@openssh.com (OpenSSH's PROTOCOL, 2.4). Host
keys are checked against the user's and the system's known_hosts; a host that is in none is refused.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import asyncssh  # noqa: TID251 - this is the one module that may
from anyio.abc import ByteStream
from attrs import frozen

from ofborg_async.control.fetch import Connect
from ofborg_async.control.problems import NoDaemonError
from ofborg_async.errors import DeadlineExceededError
from ofborg_async.remote.hosts import HostSpec
from ofborg_async.waiting import at_most, within

_KEEPALIVE_SECONDS = 15
_KEEPALIVES_LOST = 3
_CLOSE_SECONDS = 2.0
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


@frozen
class SshAccess:
    """What proves who is who, where it is not the user's own SSH configuration that says.

    ``known_hosts`` None: the files of the configuration, else ``~/.ssh/known_hosts`` and the system's. ``client_keys``
    None: the configuration's, the agent's and the default keys.
    """

    known_hosts: Path | None = None
    client_keys: tuple[Path, ...] | None = None


DEFAULT_ACCESS = SshAccess()


@asynccontextmanager
async def open_remote(
    spec: HostSpec, socket_path: str, *, connect_seconds: float, access: SshAccess = DEFAULT_ACCESS
) -> AsyncIterator[Connect]:
    """Log in to a host; what is given opens a fresh stream to the control socket there each time it is called.

    Raises NoDaemonError, which says whether the name, the network, the host key, the log-in or time was the trouble;
    the connector raises it for a missing socket or a server that does not forward.
    """
    with _translated(spec), within(connect_seconds, f"logging in to {spec}"):
        connection = await _log_in(spec, access)
    try:

        async def connect() -> ByteStream:
            with _translated(spec), within(connect_seconds, f"reaching {socket_path} on {spec}"):
                return await _open_channel(connection, spec, socket_path)

        yield connect
    finally:
        with anyio.CancelScope(shield=True), at_most(_CLOSE_SECONDS):
            connection.close()
            await connection.wait_closed()
        connection.abort()


async def _log_in(spec: HostSpec, access: SshAccess) -> asyncssh.SSHClientConnection:
    options = asyncssh.SSHClientConnectionOptions(
        config=(),  # the user's own, ~/.ssh/config
        host=spec.host,
        port=spec.port if spec.port is not None else (),
        username=spec.user if spec.user is not None else (),
        client_keys=[str(key) for key in access.client_keys] if access.client_keys is not None else (),
        keepalive_interval=_KEEPALIVE_SECONDS,
        keepalive_count_max=_KEEPALIVES_LOST,
    )
    known_hosts = _known_hosts(access.known_hosts, options.known_hosts)
    port = () if spec.port is None else spec.port
    return await asyncssh.connect(spec.host, port, options=options, known_hosts=known_hosts)


def _known_hosts(given: Path | None, configured: object) -> list[str] | bytes:
    """The files to check host keys against; empty bytes (nobody is known) when there are none.

    Never None and never an empty list: asyncssh takes None, which it makes of ``UserKnownHostsFile none``, for "trust
    everybody", and an empty list for "the default".
    """
    if given is not None:
        files = [given]
    elif isinstance(configured, Sequence) and configured:
        files = [Path(str(name)).expanduser() for name in configured]
    elif configured is None:
        files = []
    else:
        files = [Path("~/.ssh/known_hosts").expanduser(), _SYSTEM_KNOWN_HOSTS]
    readable = [str(file) for file in files if os.access(file, os.R_OK)]
    return readable or b""


async def _open_channel(connection: asyncssh.SSHClientConnection, spec: HostSpec, socket_path: str) -> ByteStream:
    try:
        reader, writer = await connection.open_unix_connection(socket_path)
    except asyncssh.ChannelOpenError as error:
        # OpenSSH says "open failed" whatever the reason is, so the remedy names them all.
        detail = f"nothing answers at {socket_path} there: {error.reason}"
        remedy = (
            "start the daemon there, or name its socket with --socket; log in as the daemon's user, root or a member "
            "of daemon.control_group; sshd_config must not say AllowStreamLocalForwarding no"
        )
        raise NoDaemonError(str(spec), detail, remedy=remedy) from error
    return _SshStream(reader, writer)


class _SshStream(ByteStream):
    """An SSH channel as anyio's byte stream."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Bytes as they come. Raises anyio.EndOfStream and anyio.BrokenResourceError."""
        with _broken():
            data = await self._reader.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of ``item``. Raises anyio.BrokenResourceError."""
        with _broken():
            self._writer.write(item)
            await self._writer.drain()

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes. Raises anyio.BrokenResourceError."""
        with _broken():
            self._writer.write_eof()

    async def aclose(self) -> None:
        """Close the channel; the connection stays."""
        self._writer.close()


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (asyncssh.Error, OSError) as error:
        raise anyio.BrokenResourceError from error


@contextmanager
def _translated(spec: HostSpec) -> Iterator[None]:
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        remedy = (
            f"compare the fingerprint that `ssh {spec.host}` shows with the one its administrator gives, then accept it"
        )
        raise NoDaemonError(str(spec), f"its host key cannot be trusted: {error.reason}", remedy=remedy) from error
    except asyncssh.PermissionDenied as error:
        remedy = "offer a key that it knows (ssh-add, or IdentityFile in ~/.ssh/config) and name the right user"
        raise NoDaemonError(str(spec), f"it refused the log-in: {error.reason}", remedy=remedy) from error
    except asyncssh.Error as error:
        raise NoDaemonError(str(spec), f"SSH failed: {error.reason}", remedy=f"try `ssh {spec.host}`") from error
    except DeadlineExceededError as error:
        raise NoDaemonError(str(spec), str(error), remedy="see whether the host is up and reachable") from error
    except OSError as error:
        remedy = "see whether the name is right, the host is up and its SSH server runs"
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        raise NoDaemonError(str(spec), f"it cannot be reached: {reason}", remedy=remedy) from error
    except ValueError as error:
        raise NoDaemonError(
            str(spec), f"the SSH configuration or a key is unusable: {error}", remedy="see ~/.ssh"
        ) from error
