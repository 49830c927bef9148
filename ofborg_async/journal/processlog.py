"""Which processes run, in a plain file beside the journal.

Not in the database: a record must be on file before its process can outlive the daemon, and a commit for each process
would cost a sync. One ``write`` to a file survives SIGKILL of the daemon as it is, and after a power cut there is no
process left to find. Each line is a JSON array: ``["+", attempt_id, pid, start_time, argv0]`` or ``["-", pid]``.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from ofborg_async.journal.records import LeftProcess

_log = logging.getLogger(__name__)
_REWRITE_BYTES = 256 * 1024


class ProcessLog:
    """The file at ``path``; used by one thread. A full disk costs the records' safety, never the build."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier daemon left. Raises OSError when the file cannot be read or written."""
        self._path = path
        self._live: dict[int, LeftProcess] = {}
        self._size_bytes = 0
        self._stale = False  # the file lacks something that memory has
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                self._replay(line)
        self._left = tuple(self._live.values())
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._rewrite()

    def started(self, attempt_id: str, pid: int, start_time: str, argv0: str) -> None:
        """A process runs from now on."""
        self._live[pid] = LeftProcess(attempt_id, pid, start_time, argv0)
        self._append(["+", attempt_id, pid, start_time, argv0])

    def ended(self, pid: int) -> None:
        """A process is gone."""
        if self._live.pop(pid, None) is not None:
            self._append(["-", pid])

    def leftovers(self) -> tuple[LeftProcess, ...]:
        """Processes of an earlier daemon that have not been said to have ended since."""
        return tuple(process for process in self._left if self._live.get(process.pid) is process)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, event: list[Any]) -> None:
        if self._stale or self._size_bytes > _REWRITE_BYTES:
            self._rewrite()
            return
        data = json.dumps(event).encode() + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._failed(error)
            return
        self._size_bytes += written
        self._stale = written < len(data)  # a cut line: the next event writes the file anew

    def _rewrite(self) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        events = (["+", left.attempt_id, left.pid, left.start_time, left.argv0] for left in self._live.values())
        data = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError("short write")
                fresh.rename(self._path)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            self._failed(error)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._size_bytes = len(data)
        self._stale = False

    def _failed(self, error: OSError) -> None:
        if not self._stale:
            _log.warning("%s: a process is not recorded until there is room: %s", self._path, error)
        self._stale = True

    def _replay(self, line: bytes) -> None:
        if not line:
            return
        try:
            match json.loads(line):
                case ["+", str() as attempt_id, int() as pid, str() as start_time, str() as argv0]:
                    self._live[pid] = LeftProcess(attempt_id, pid, start_time, argv0)
                case ["-", int() as pid]:
                    self._live.pop(pid, None)
                case _:
                    _log.warning("%s: ignored: %r", self._path, line[:200])
        except ValueError:  # the last line of a daemon that was killed while it wrote
            _log.warning("%s: ignored: %r", self._path, line[:200])
