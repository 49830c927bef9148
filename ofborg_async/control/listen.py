"""Listening sockets: the control socket with its permissions, the loopback listener, and who is at the other end."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import socket
import stat
import struct
import sys
from pathlib import Path

from anyio.abc import SocketListener
from attrs import frozen

from ofborg_async.errors import ConfigError, ConfigFault, FaultKind, HostFault, LockHeldError

logger = logging.getLogger(__name__)

_BACKLOG = 64
_PATH_BYTES = 103
"""The longest path of a Unix socket that Linux (107) and macOS (103) both take."""

_KEY = "daemon.control_socket"


@frozen
class Peer:
    """Who is at the other end of a Unix socket, as the kernel says; ``pid`` None where it does not say."""

    uid: int
    gid: int
    pid: int | None


class ControlSocket:
    """The bound Unix socket. Made for the owner alone (0600), or for a group too (0660), and never wider on the way.

    The constructor raises LockHeldError when a living daemon answers there, ConfigError when the path or the group
    cannot be one, HostFault when the system refuses.
    """

    def __init__(self, path: Path, *, group: str | None = None) -> None:
        self.path = path
        self.gid = _gid(group)
        new = path.with_name("~" + path.name[1:])
        if len(os.fsencode(path)) > _PATH_BYTES:
            raise _config_fault(f"{path} is too long for a Unix socket; choose one of at most {_PATH_BYTES} bytes")
        try:
            _make_parent(path.parent, self.gid)
            _refuse_living(path)
            self._socket = _bind(new, self.gid)
            # Renamed into place, so that there is never a moment without a socket and never one that is not ready.
            new.rename(path)
            self._inode = _inode(path)
        except OSError as error:
            raise HostFault(
                FaultKind.PERMISSION,
                f"the control socket {path} cannot be made: {error.strerror or error}",
                remedy="set daemon.control_socket to a path in a folder that this user may write",
            ) from error

    async def listen(self) -> SocketListener:
        """The listener, which owns the socket from now on."""
        return await SocketListener.from_socket(self._socket)

    def remove(self) -> None:
        """Remove the file, if it is still ours: a successor may have put its own there."""
        try:
            if _inode(self.path) == self._inode:
                self.path.unlink()
        except OSError as error:
            logger.debug("the control socket %s was not removed: %s", self.path, error)

    def admits(self, peer: Peer) -> bool:
        """Whether the peer may use the API: this user, root, or a member of the configured group."""
        if peer.uid in {0, os.geteuid()}:
            return True
        return self.gid is not None and (peer.gid == self.gid or self.gid in _groups_of(peer))


def bind_loopback(host: str, port: int) -> socket.socket:
    """A listening TCP socket for the read-only pages. Raises HostFault."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise HostFault(
            FaultKind.NETWORK,
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            remedy="set daemon.metrics_listen to a free port of this host",
        ) from error
    sock.settimeout(0)
    return sock


def peer_of(sock: socket.socket) -> Peer:
    """The credentials of the peer of a Unix socket (unix(7) SO_PEERCRED; unix(4) LOCAL_PEERCRED). Raises OSError."""
    if sys.platform == "linux":
        form = "3i"
        pid, uid, gid = struct.unpack(
            form, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
        )
        peer = Peer(uid, gid, pid or None)
    else:
        # struct xucred of <sys/ucred.h>: version, uid, number of groups (a short, padded), the groups.
        form = "IIhxx16I"
        _, uid, count, *groups = struct.unpack(form, sock.getsockopt(0, 1, struct.calcsize(form)))
        peer = Peer(uid, groups[0] if count else -1, None)
    return peer


def _refuse_living(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _config_fault(f"{path} exists and is no socket; choose another path or move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
            pid = peer_of(probe).pid
        except (ConnectionRefusedError, FileNotFoundError):
            return  # left behind by a daemon that is dead
        except BlockingIOError:
            pid = None  # its backlog is full, so somebody listens
    raise LockHeldError(str(path), holder_pid=pid, note="its control socket answers")


def _bind(path: Path, gid: int | None) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        sock.listen(_BACKLOG)
        sock.settimeout(0)
    except BaseException:
        sock.close()
        path.unlink(missing_ok=True)
        raise
    return sock


def _make_parent(folder: Path, gid: int | None) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True)
    if gid is not None:
        os.chown(folder, -1, gid)
        folder.chmod(0o710)


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            [
                ConfigFault(
                    "configuration", "daemon.control_group", f"there is no group {group!r} on this host; create it"
                )
            ]
        ) from None


def _groups_of(peer: Peer) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid)
    except KeyError:
        return []


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _config_fault(message: str) -> ConfigError:
    return ConfigError([ConfigFault("configuration", _KEY, message)])
