"""Who holds a lock file, asked without keeping it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.locks.filelock import HolderNote

_LISTED = Path("/proc/locks")
_PROCESSES = Path("/proc")
_NOTE_BYTES = 4096


@frozen
class Holder:
    """The holder of a lock file. ``pid`` None: the system does not tell. ``note`` is its own, None if it left none."""

    pid: int | None
    note: HolderNote | None


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock file at ``path``; None when nobody does, or there is no such file.

    Asks with a shared lock that is given back at once; an exclusive attempt at that moment is made again by its maker.
    Raises OSError for a file that cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise
        return Holder(_holding_process(os.fstat(descriptor).st_ino), HolderNote.parse(os.read(descriptor, _NOTE_BYTES)))
    finally:
        os.close(descriptor)
    return None


def keepers_of(path: Path) -> tuple[int, ...] | None:
    """The processes that have a locked descriptor of the lock file at ``path``: whoever took it, who inherited it.

    By fdinfo (proc_pid_fdinfo(5)), which is Linux'; None elsewhere. Processes of other users are seen by root alone.
    Looks at every descriptor on the host, so call it in a thread. Raises OSError for a file that is not there.
    """
    if not _LISTED.exists():
        return None
    found = path.stat()
    return tuple(
        int(process.name) for process in _PROCESSES.iterdir() if process.name.isdecimal() and _keeps(process, found)
    )


def _keeps(process: Path, lock_file: os.stat_result) -> bool:
    with suppress(OSError):  # it has gone, or is another user's
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                is_it = os.path.samestat(link.stat(), lock_file)
                if is_it and "FLOCK" in (process / "fdinfo" / link.name).read_text():
                    return True
    return False


def _holding_process(inode: int) -> int | None:
    """By Linux's list of locks (proc_locks(5)), which names the device too, but not as stat(2) does for every kind."""
    with suppress(OSError):
        for line in _LISTED.read_text().splitlines():
            _number, kind, *words = line.split()
            if kind == "FLOCK" and words[3].rpartition(":")[2] == str(inode) and int(words[2]) > 0:
                return int(words[2])
    return None
