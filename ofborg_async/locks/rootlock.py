"""A root taken by one daemon for its life: nobody else may take it, anything inside it, or a directory around it.

The lock file in the root carries a note that tells who has it. Nested roots exclude each other by flock(2) on
directories: exclusive on the root, shared on its ancestors, which are found by what is on disk (roots.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import anyio

from ofborg_async.clock import Clock
from ofborg_async.errors import LockHeldError
from ofborg_async.locks.filelock import FileLock, HolderNote, backoff, held_error, lock_fault
from ofborg_async.locks.mounts import refuse_network_file_system
from ofborg_async.locks.roots import identify_root

_log = logging.getLogger(__name__)

ROOT_LOCK_NAME = ".ofborg-async.lock"


class RootLock(FileLock):
    """The lock file of an existing root, and with it the directories that nested roots exclude each other by."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / ROOT_LOCK_NAME)
        self._root = root
        self._directories = ExitStack()

    def take(self, note: HolderNote) -> None:
        """Take all of it or raise LockHeldError; no wait, so that two daemons never wait for each other's half.

        Raises HostFault (PERMISSION, DISK, LOCK).
        """
        if not self.try_lock():
            raise held_error(self.path, self.read_note())
        if not _lock_directory(self._root, fcntl.LOCK_EX, self._directories):
            raise held_error(self._root, None, "a root inside it is in use")
        for directory in identify_root(self._root).ancestors.values():
            if _may_be_a_root(directory) and not _lock_directory(directory, fcntl.LOCK_SH, self._directories):
                raise held_error(directory, _note_in(directory), f"it is a root around {self._root}")
        self.write_note(note)

    def close(self) -> None:
        """Give the root back. More often does nothing."""
        self._directories.close()
        super().close()


async def acquire_root_lock(root: Path, *, identity: str, clock: Clock, deadline_seconds: float) -> RootLock:
    """Take the existing directory ``root`` for ``identity``, asking again for at most ``deadline_seconds``.

    Raises LockHeldError; HostFault (LOCK: also for a network file system, whose flock is not to be relied on;
    PERMISSION, DISK).
    """
    refuse_network_file_system(root)
    over = anyio.current_time() + deadline_seconds
    pauses = backoff()
    while True:
        with ExitStack() as on_error:
            lock = RootLock(root)
            on_error.callback(lock.close)
            try:
                lock.take(HolderNote.of_this_process(identity, clock))
            except LockHeldError:
                left = over - anyio.current_time()
                if left <= 0:
                    raise
            else:
                on_error.pop_all()
                return lock
        await anyio.sleep(min(next(pauses), left))


def _may_be_a_root(directory: Path) -> bool:
    """Not the directories that everybody shares: locks on these mean something to other programs (tmpfiles.d(5))."""
    return directory != Path("/") and not directory.stat().st_mode & stat.S_IWOTH


def _lock_directory(directory: Path, operation: int, closing: ExitStack) -> bool:
    """False when another process's lock excludes this one. What cannot be locked at all is passed over."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        _log.debug("%s cannot be read: no lock there", directory)
        return True
    except OSError as error:
        raise lock_fault(error, directory) from error
    closing.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("%s cannot be locked: %s", directory, error)
    return True


def _note_in(root: Path) -> HolderNote | None:
    try:
        return HolderNote.parse((root / ROOT_LOCK_NAME).read_bytes())
    except OSError:
        return None
