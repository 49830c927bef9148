"""Reads the log of one attempt, behind its writer or from an ended one."""

from __future__ import annotations

import os
from typing import Self

from anyio.lowlevel import checkpoint

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal.logwriter import LogWriter

_SCAN_BYTES = 1 << 20


class LogReader:
    """Reads whole lines from ``offset`` on; ``next_line`` is the number of the line there. Made by LogStore.

    A line that a crash cut off at the end of a file is not read. Every method but ``close`` raises HostFault (DISK) for
    a disk that does not give back what is on it. Used on the event loop's thread.
    """

    def __init__(self, descriptor: int, writer: LogWriter | None) -> None:
        self.offset = 0
        self.next_line = 1
        self._descriptor = descriptor
        self._writer = writer

    def read(self, max_bytes: int) -> list[bytes]:
        """The next lines without their newlines: about ``max_bytes`` of them, at least one if there is one.

        [] when there is no whole line (yet). The first one is number ``next_line`` as it was before.
        """
        size = max_bytes
        data = self._read_at(size)
        while b"\n" not in data:
            if len(data) < size:
                return []
            size *= 2
            data = self._read_at(size)
        lines = data.split(b"\n")
        self.offset += len(data) - len(lines.pop())
        self.next_line += len(lines)
        return lines

    async def wait(self) -> bool:
        """Wait for lines behind ``offset``. False when none will come: the log is finished and read to its end."""
        if self._writer is not None:
            await self._writer.wait_beyond(self.offset)
            return self._writer.size_bytes > self.offset
        return b"\n" in self._read_at(_SCAN_BYTES)

    async def seek(self, line: int) -> bool:
        """Go to the start of line number ``line``, so that it is read next when it is there.

        False when there are fewer lines before it; ``next_line`` then says where the log ends.
        """
        self.next_line, self.offset = (1, 0) if self._writer is None else self._writer.position_before(line)
        size = _SCAN_BYTES
        while self.next_line < line:
            data = self._read_at(size)
            whole = data.count(b"\n")
            if whole == 0:
                if len(data) < size:
                    return False
                size *= 2  # a line longer than a scan
                continue
            missing = line - self.next_line
            end = data.rindex(b"\n") if whole <= missing else _nth_newline(data, missing)
            self.offset += end + 1
            self.next_line += min(whole, missing)
            await checkpoint()
        return True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_at(self, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self.offset)
        except OSError as error:
            detail = f"the log of a build cannot be read: {error.strerror}"
            raise HostFault(FaultKind.DISK, detail, remedy="look at the disk of the state directory") from error


def _nth_newline(data: bytes, number: int) -> int:
    place = -1
    for _ in range(number):
        place = data.index(b"\n", place + 1)
    return place
