"""flock(2) on files that are never removed, waited for by asking again: a blocking wait cannot be cancelled safely.

The lock belongs to the open file, not to the process: a child that was given the descriptor keeps it until it is gone
too. Hence a lock is given back by closing the descriptor, never by LOCK_UN, which would take it from such a child.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
from attrs import asdict, frozen

from ofborg_async.clock import Clock, rfc3339
from ofborg_async.errors import FaultKind, HostFault, LockHeldError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.25
_NOTE_BYTES = 4096


@frozen
class HolderNote:
    """What a holder writes into a lock file of ours. ``started_at`` as RFC 3339, ``identity`` "" if shared."""

    pid: int
    host: str
    started_at: str
    identity: str

    @classmethod
    def of_this_process(cls, identity: str, clock: Clock) -> HolderNote:
        """The note of this process, holding from now on."""
        return cls(os.getpid(), socket.gethostname(), rfc3339(clock.now()), identity)

    def to_bytes(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> HolderNote | None:
        """The note in a lock file; None when there is none, as in files of the original builder."""
        try:
            found = json.loads(text)
            return cls(int(found["pid"]), str(found["host"]), str(found["started_at"]), str(found["identity"]))
        except (ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        who = f"identity {self.identity}, " if self.identity else ""
        gone = (
            ""
            if self.host != socket.gethostname() or _exists(self.pid)
            else "; it is gone, a child of it holds the lock"
        )
        return f"{who}on {self.host} since {self.started_at}{gone}"


class FileLock:
    """An open lock file, locked or not. Opening creates it (mode 0600); its contents stay unless a note is given.

    Raises HostFault (PERMISSION, DISK or LOCK) when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)

    @property
    def key(self) -> str:
        """Names the file, whatever path led to it."""
        found = os.fstat(self._descriptor)
        return f"{found.st_dev}:{found.st_ino}"

    def fileno(self) -> int:
        """The descriptor, close-on-exec; pass it to children that should keep the lock."""
        return self._descriptor

    def try_lock(self) -> bool:
        """Take the lock if it is free now. Raises HostFault (LOCK) where the file system has no flock."""
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                raise lock_fault(error, self.path) from error
            if self.is_current():
                return True
            # Somebody removed the file or the directory.
            self.close()
            self._descriptor = _open(self.path)

    async def lock(
        self,
        *,
        deadline_seconds: float,
        note: HolderNote | None = None,
        on_busy: Callable[[HolderNote | None], None] | None = None,
    ) -> None:
        """Take the lock, asking again for at most ``deadline_seconds``, and write ``note`` into the file (ours only).

        ``on_busy`` is told who holds it each time it is not free. Raises LockHeldError at the deadline, HostFault
        (LOCK, DISK, PERMISSION).
        """
        over = anyio.current_time() + deadline_seconds
        pauses = backoff()
        while not self.try_lock():
            holder = self.read_note()
            left = over - anyio.current_time()
            if left <= 0:
                raise held_error(self.path, holder)
            if on_busy is not None:
                on_busy(holder)
            await anyio.sleep(min(next(pauses), left))
        if note is not None:
            self.write_note(note)

    def read_note(self) -> HolderNote | None:
        """What the last holder wrote, if it did."""
        return HolderNote.parse(os.pread(self._descriptor, _NOTE_BYTES, 0))

    def write_note(self, note: HolderNote) -> None:
        """Write who holds the lock into the file, which must be one of ours. Raises HostFault (LOCK, PERMISSION).

        On a full disk the note may be missing: the lock is held all the same.
        """
        written = note.to_bytes()
        try:
            # Over the earlier note before that is cut off: on a full disk the room of it is all there is.
            os.pwrite(self._descriptor, written, 0)
            os.ftruncate(self._descriptor, len(written))
        except OSError as error:
            fault = lock_fault(error, self.path)
            if fault.kind is not FaultKind.DISK:
                raise fault from error
            _log.warning("%s is held, but does not say by whom: %s", self.path, fault)

    def close(self) -> None:
        """Close the file, and with it give the lock back unless a child has it too. More often does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def is_current(self) -> bool:
        """Whether the open file still is what the path leads to: a lock on what is gone excludes nobody."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


async def acquire_file_lock(path: Path, *, deadline_seconds: float, note: HolderNote | None = None) -> FileLock:
    """Open and take a lock file; ``close()`` gives it back. Raises LockHeldError and HostFault as FileLock does."""
    lock = FileLock(path)
    try:
        await lock.lock(deadline_seconds=deadline_seconds, note=note)
    except BaseException:
        lock.close()
        raise
    return lock


def backoff() -> Iterator[float]:
    """How long to wait before each further attempt, in seconds."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def held_error(path: Path, holder: HolderNote | None, why: str = "") -> LockHeldError:
    """The error for a lock whose holder left ``holder`` in its file."""
    words = "; ".join(filter(None, (str(holder) if holder else "", why)))
    return LockHeldError(str(path), holder_pid=holder.pid if holder else None, note=words)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise lock_fault(error, path) from error


def lock_fault(error: OSError, path: Path) -> HostFault:
    """What an operating system's error about a lock file means to an operator."""
    detail = f"the lock file {path} cannot be used: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostFault(FaultKind.PERMISSION, detail, remedy="let the daemon's user own the directory and its files")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostFault(FaultKind.DISK, detail, remedy="free disk space")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return HostFault(FaultKind.LOCK, detail, remedy="raise the limit of open files (LimitNOFILE=, ulimit -n)")
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return HostFault(FaultKind.LOCK, detail, remedy="put it on a local file system that has flock")
    return HostFault(FaultKind.LOCK, detail)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
