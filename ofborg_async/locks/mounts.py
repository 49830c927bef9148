"""Where a directory really is: its mount and the place within the mounted file system.

Linux: proc_pid_mountinfo(5), and the mount's number from ``/proc/self/fdinfo``, which is right whatever was mounted
over what. macOS: statfs(2), for the one question whether it is a network file system.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault

_NETWORK_TYPES = frozenset(
    """
    nfs nfs4 cifs smb smb2 smb3 smbfs ncpfs afs 9p ceph glusterfs lustre gpfs ocfs2 gfs2 beegfs davfs
    fuse.sshfs fuse.glusterfs fuse.ceph fuse.davfs fuse.s3fs fuse.rclone fuse.smbnetfs fuse.curlftpfs
    """.split()  # noqa: SIM905 - a list that is read by people
)


_O_PATH: int = getattr(os, "O_PATH", 0)  # Linux: needs no permission to read the directory


@frozen
class Mount:
    """One line of mountinfo. ``root`` is the directory within the file system on ``device`` that ``point`` shows."""

    number: int
    device: str
    root: str
    point: str
    fs_type: str


def parse_mountinfo(text: str) -> dict[int, Mount]:
    """Mounts by their number."""
    mounts = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        number, _parent, device, root, point = before.split(" ")[:5]
        fs_type = after.split(" ")[0]
        mounts[int(number)] = Mount(int(number), device, _unescape(root), _unescape(point), fs_type)
    return mounts


def visible_paths(directory: Path) -> list[Path]:
    """Every path by which an existing, resolved directory can be reached through a mount; itself first. Raises OSError.

    Where mounts cannot be listed (not Linux, which alone has bind mounts) it is the one path.
    """
    paths = [directory]
    mounts = _mounts()
    mount = mounts.get(_mount_number(directory)) if mounts else None
    if mount is None or not directory.is_relative_to(mount.point):
        return paths
    place = Path(mount.root) / directory.relative_to(mount.point)
    here = directory.stat()
    for other in mounts.values():
        if other.device == mount.device and place.is_relative_to(other.root):
            path = Path(other.point) / place.relative_to(other.root)
            with suppress(OSError):  # hidden below another mount, or not to be looked at
                if path not in paths and os.path.samestat(path.stat(), here):
                    paths.append(path)
    return paths


def _mounts() -> dict[int, Mount]:
    listed = Path("/proc/self/mountinfo")
    return parse_mountinfo(listed.read_text("utf-8", "surrogateescape")) if sys.platform == "linux" else {}


def _mount_number(directory: Path) -> int:
    descriptor = os.open(directory, os.O_DIRECTORY | _O_PATH | os.O_CLOEXEC)
    try:
        fdinfo = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii")
    finally:
        os.close(descriptor)
    return int(fdinfo.partition("mnt_id:")[2].split()[0])


def refuse_network_file_system(directory: Path) -> None:
    """Raise HostFault (LOCK) if an existing directory is on a network file system, whose locks are not to be trusted.

    Raises HostFault (PERMISSION) if it cannot be looked at.
    """
    try:
        fs_type = _network_type(directory)
    except OSError as error:
        raise HostFault(FaultKind.PERMISSION, f"{directory} cannot be looked at: {error.strerror}") from error
    if fs_type is not None:
        remedy = "put it on a local disk"
        raise HostFault(FaultKind.LOCK, f"{directory} is on a network file system ({fs_type})", remedy=remedy)


def _network_type(directory: Path) -> str | None:
    if sys.platform == "darwin":
        return _network_type_darwin(directory)
    else:  # noqa: RET505 - mypy judges each platform's branch by itself
        mounts = _mounts()
        mount = mounts.get(_mount_number(directory)) if mounts else None
        return mount.fs_type if mount is not None and mount.fs_type in _NETWORK_TYPES else None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


if sys.platform == "darwin":

    def _network_type_darwin(directory: Path) -> str | None:
        import ctypes

        # struct statfs with 64-bit inodes: f_flags at 64, f_fstypename (16 bytes) at 72; sys/mount.h has MNT_LOCAL.
        buffer = ctypes.create_string_buffer(4096)
        libc = ctypes.CDLL(None, use_errno=True)
        call = getattr(libc, "statfs$INODE64", libc.statfs)
        if call(os.fsencode(directory), buffer) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        local = int.from_bytes(buffer.raw[64:68], sys.byteorder) & 0x1000
        return None if local else buffer.raw[72:88].split(b"\0")[0].decode(errors="replace")
