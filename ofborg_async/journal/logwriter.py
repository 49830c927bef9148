"""Writes the log of one attempt: the append-only file that is the queue to the broker (docs/architecture.md)."""

from __future__ import annotations

import logging
import os
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

import anyio

from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import HostFault
from ofborg_async.waiting import at_most, idle, in_thread

_log = logging.getLogger(__name__)

LAST_LINES = 10  # the output of a BuildResult
_INDEX_BYTES = 256 * 1024
_SYNC_SECONDS = 60.0


class LogWriter:
    """The log of a running attempt. A line's number is its position in the file, from 1. Made by LogStore.

    What is in the file is exactly what is published. Up to ``max_bytes`` every line is written; of those behind only
    the last ``tail_lines`` are kept, in memory, and written by ``finish`` behind a line that says how many were left
    out. A full disk does the same. Used on the event loop's thread.
    """

    def __init__(self, descriptor: int, *, max_bytes: int, tail_lines: int, on_finish: Callable[[], object]) -> None:
        self.lines = 0
        """Lines in the file."""
        self.size_bytes = 0
        """Length of these lines in the file, with their newlines."""
        self.disk_full = False
        """True once a line could not be written."""
        self.finished = False
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._on_finish = on_finish
        self._over = False
        self._beyond = 0  # lines that came after the head
        self._tail: deque[bytes] = deque(maxlen=tail_lines)
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)
        self._index_lines = array("Q")
        self._index_offsets = array("Q")
        self._next_index_bytes = _INDEX_BYTES
        self._grown: anyio.Event | None = None

    @property
    def last_lines(self) -> tuple[bytes, ...]:
        """The last ten lines of the attempt, whether they are in the file or not."""
        return tuple(self._last)

    def write(self, lines: Sequence[bytes]) -> None:
        """Append ``lines`` (each without newline) with one system call. Never raises for the disk, never waits.

        What comes after ``finish`` is dropped.
        """
        if not lines or self.finished:
            return
        data = b"\n".join((*lines, b""))
        if data.count(b"\n") != len(lines):
            lines = [line.replace(b"\n", b" ") for line in lines]
            data = b"\n".join((*lines, b""))
        self._last.extend(lines[-LAST_LINES:])
        with around(Step.LOG_WRITTEN):
            if self._over:
                self._put_beyond(lines)
            elif self.size_bytes + len(data) <= self._max_bytes:
                self._append(lines, data)
            else:
                self._cross(lines)
        self._wake()

    async def finish(self) -> None:
        """Write what is kept of the tail, bring the file to the disk and end the log. Does nothing the second time.

        Never raises for the disk.
        """
        if self.finished:
            return
        with around(Step.LOG_FINISHED):
            await self._finish()

    async def _finish(self) -> None:
        if self._beyond:
            self._write_tail()
        self.finished = True
        self._on_finish()
        self._wake()
        with anyio.CancelScope(shield=True), at_most(_SYNC_SECONDS) as scope:
            try:
                await in_thread(self._close, abandon_on_cancel=True)
            except HostFault:  # no thread: then here and now
                self._close()
        if scope.cancelled_caught:
            _log.warning("the log of a build was not on the disk after %g s; going on", _SYNC_SECONDS)

    async def wait_beyond(self, offset: int) -> None:
        """Wait until the file has lines behind byte ``offset``, or is finished."""
        while self.size_bytes <= offset and not self.finished:
            if self._grown is None:
                self._grown = anyio.Event()
            with idle("the build prints a line, or ends"):
                await self._grown.wait()

    def position_before(self, line: int) -> tuple[int, int]:
        """A line number at or before ``line`` and the byte where it starts, from the index."""
        place = bisect_right(self._index_lines, line) - 1
        return (1, 0) if place < 0 else (self._index_lines[place], self._index_offsets[place])

    def _cross(self, lines: Sequence[bytes]) -> None:
        """Write what fits under the cap of lines that do not all fit."""
        room = self._max_bytes - self.size_bytes
        fitting = 0
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            fitting += 1
        if fitting:
            self._append(lines[:fitting], b"\n".join((*lines[:fitting], b"")))
        self._over = True
        self._put_beyond(lines[fitting:])

    def _put_beyond(self, lines: Sequence[bytes]) -> None:
        self._beyond += len(lines)
        self._tail.extend(lines)

    def _append(self, lines: Sequence[bytes], data: bytes) -> None:
        written = self._write_all(data)
        if written < len(data):
            # Cut back to whole lines; readers never saw more than that.
            written = data.rfind(b"\n", 0, written) + 1
            kept = data.count(b"\n", 0, written)
            self._truncate(self.size_bytes + written)
            self._over = True
            self._put_beyond(lines[kept:])
            self.lines += kept
        else:
            self.lines += len(lines)
        self.size_bytes += written
        if self.size_bytes >= self._next_index_bytes:
            self._index_lines.append(self.lines + 1)
            self._index_offsets.append(self.size_bytes)
            self._next_index_bytes = self.size_bytes + _INDEX_BYTES

    def _write_all(self, data: bytes) -> int:
        """Write and return how many bytes were: fewer than all when the disk is full."""
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):  # a full disk takes a part first and says so at the next attempt
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            if not self.disk_full:
                _log.warning("the log of a build cannot be written, the rest of it is left out: %s", error)
            self.disk_full = True
            return self._length() - self.size_bytes
        return written

    def _write_tail(self) -> None:
        left_out = self._beyond - len(self._tail)
        tail = [*self._tail]
        self._beyond = 0
        if left_out:
            why = "the disk was full" if self.disk_full else f"the log is over its limit of {self._max_bytes} bytes"
            tail.insert(0, f"[... {left_out} lines left out: {why} ...]".encode())
        self._append(tail, b"\n".join((*tail, b"")))

    def _length(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _truncate(self, size_bytes: int) -> None:
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            _log.warning("a cut line stays in the log of a build: %s", error)

    def _close(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("the log of a build may be lost in a power cut: %s", error)
        os.close(self._descriptor)

    def _wake(self) -> None:
        if self._grown is not None:
            self._grown.set()
            self._grown = None
