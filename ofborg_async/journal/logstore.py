"""The local logs: one file for each attempt, ``logs/<attempt_id>.log`` in the state directory."""

from __future__ import annotations

import errno
import heapq
import logging
import os
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal.logreader import LogReader
from ofborg_async.journal.logwriter import LogWriter
from ofborg_async.journal.records import LogMissingError
from ofborg_async.model.identity import LimitSettings
from ofborg_async.waiting import in_thread, within

_log = logging.getLogger(__name__)

_SUFFIX = ".log"
_ATTEMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_PRUNE_SECONDS = 600.0
_PRUNE_BATCH_FILES = 1000
_SURPLUS = 0.125
_SMALLEST_BYTES = 512  # an empty log costs an inode, so that a heap of them is cleared away too


class LogStore:
    """Makes writers and readers of logs, and keeps their size on the disk within bounds. One for the daemon.

    ``directory`` is the state directory; ``limits`` says how long a log may be where ``create`` is not told. Used on
    the event loop's thread.
    """

    def __init__(self, directory: Path, *, limits: LimitSettings) -> None:
        """Make the folder. Raises HostFault (DISK, PERMISSION)."""
        self._directory = directory / "logs"
        self._limits = limits
        self._writers: dict[str, LogWriter] = {}
        self._finished_bytes = 0
        self._make_directory()

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _fault(error, self._directory) from error

    @property
    def disk_full(self) -> bool:
        """True while a running attempt's log is short of lines because the disk was full."""
        return any(writer.disk_full for writer in self._writers.values())

    def path(self, attempt_id: str) -> Path:
        """Where an attempt's log is. Raises LogMissingError for what is no attempt id."""
        if not _ATTEMPT_ID.fullmatch(attempt_id):  # it may come from a person, and becomes a path
            raise LogMissingError(attempt_id)
        return self._directory / (attempt_id + _SUFFIX)

    def create(self, attempt_id: str, max_bytes: int | None = None, tail_lines: int | None = None) -> LogWriter:
        """Start the log of a new attempt. Raises HostFault (DISK, PERMISSION)."""
        path = self.path(attempt_id)
        try:
            with around(Step.LOG_CREATED):
                descriptor = self._open_new(path)
        except OSError as error:
            raise _fault(error, path) from error
        writer = LogWriter(
            descriptor,
            max_bytes=self._limits.log_bytes if max_bytes is None else max_bytes,
            tail_lines=self._limits.log_tail_lines if tail_lines is None else tail_lines,
            on_finish=lambda: self._finished(attempt_id),
        )
        self._writers[attempt_id] = writer
        return writer

    def _open_new(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # the folder was removed under the daemon
            self._make_directory()
            return os.open(path, flags, 0o600)

    def _finished(self, attempt_id: str) -> None:
        self._finished_bytes += _size_on_disk(self._writers.pop(attempt_id).size_bytes)

    def is_due(self, keep_bytes: int) -> bool:
        """Whether so much was written since the last ``prune`` that it should not wait any longer. Sync."""
        return self._finished_bytes > keep_bytes * _SURPLUS

    def open_reader(self, attempt_id: str) -> LogReader:
        """Read an attempt's log, running or ended, from its start. Raises LogMissingError, HostFault."""
        path = self.path(attempt_id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LogMissingError(attempt_id) from None
        except OSError as error:
            raise _fault(error, path) from error
        return LogReader(descriptor, self._writers.get(attempt_id))

    async def prune(self, keep_bytes: int, protected: Collection[str]) -> int:
        """Remove the oldest logs until the rest takes at most ``keep_bytes`` on the disk; returns how many.

        Those of ``protected`` attempts (Journal.live_attempts) and of attempts that are written now stay, and count.
        Raises HostFault (DISK, PERMISSION, PROCESS), DeadlineExceededError.
        """
        self._finished_bytes = 0
        with within(_PRUNE_SECONDS, "clearing old build logs"):
            try:
                work = partial(self._prune, keep_bytes, frozenset(protected))
                return await in_thread(work, abandon_on_cancel=True)
            except OSError as error:
                raise _fault(error, self._directory) from error

    def _prune(self, keep_bytes: int, protected: Collection[str]) -> int:
        def removable(file: tuple[int, int, str]) -> bool:
            attempt_id = file[2].removesuffix(_SUFFIX)
            return attempt_id not in protected and attempt_id not in self._writers

        excess = sum(size for _, size, _ in self._files()) - keep_bytes
        removed = 0
        while excess > 0:
            # Few at a time, so that memory stays small with any number of files.
            oldest = heapq.nsmallest(_PRUNE_BATCH_FILES, filter(removable, self._files()))
            for _, size, name in oldest:
                if excess <= 0:
                    break
                (self._directory / name).unlink(missing_ok=True)
                excess -= size
                removed += 1
            if len(oldest) < _PRUNE_BATCH_FILES:
                break
        return removed

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Of each log: when it was last written (ns), its size on the disk, its name."""
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield status.st_mtime_ns, max(status.st_blocks * 512, _SMALLEST_BYTES), entry.name


def _size_on_disk(length_bytes: int) -> int:
    return max(-(-length_bytes // 4096) * 4096, _SMALLEST_BYTES)


def _fault(error: OSError, path: Path) -> HostFault:
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        remedy = "give the state directory to the user that runs the daemon"
        return HostFault(FaultKind.PERMISSION, f"{path}: {error.strerror}", remedy=remedy)
    return HostFault(FaultKind.DISK, f"{path}: {error.strerror}", remedy="free some space")
