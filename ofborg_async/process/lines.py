r"""Bytes to lines, pure: split on ``\n`` only, each line capped and marked, whatever the chunks were.

Cost: a chunk of short lines is split, measured and kept by one C call each; there is no loop in Python.
"""

from __future__ import annotations

_MARK = b" [... line cut, %d bytes more]"
_MARK_ROOM = len(_MARK % 10**18)
_CARRIAGE_RETURN = 0x0D


class LineSplitter:
    """Cuts a stream into lines of at most ``limit_bytes``, without their newline and one carriage return before it.

    A longer line is cut and ends with a mark that tells how many bytes are missing; the mark counts towards the limit.
    Memory is bounded by ``limit_bytes`` however long a line is. Raises ValueError for a limit without room for the
    mark.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 2 * _MARK_ROOM:
            raise ValueError(f"a line limit of {limit_bytes} bytes is too small: at least {2 * _MARK_ROOM}")
        self._limit = limit_bytes
        # The line under way: its first bytes (at most the limit), how many it has so far, whether the last is a "\r".
        self._head = bytearray()
        self._length = 0
        self._ends_with_return = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes of the stream, return the lines they complete."""
        lines: list[bytes] = []
        if self._length:
            end = chunk.find(b"\n")
            if end < 0:
                self._keep(chunk)
                return lines
            self._keep(chunk[:end])
            lines.append(self._take())
            chunk = chunk[end + 1 :]
        if b"\r\n" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n")
        whole = chunk.split(b"\n")
        self._keep(whole.pop())
        if whole and len(chunk) > self._limit and max(map(len, whole)) > self._limit:
            whole = [self._cut(line, len(line)) for line in whole]
        return lines + whole if lines else whole

    def finish(self) -> list[bytes]:
        """The stream has ended: the last line, if it had no newline."""
        return [self._take()] if self._length else []

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._head += piece[: self._limit - len(self._head)]
            self._length += len(piece)
            self._ends_with_return = piece[-1] == _CARRIAGE_RETURN

    def _take(self) -> bytes:
        length = self._length - self._ends_with_return
        line = self._cut(bytes(self._head[:length]), length)
        self._head.clear()
        self._length = 0
        self._ends_with_return = False
        return line

    def _cut(self, line: bytes, length: int) -> bytes:
        """``line`` (at least the first ``limit`` of its ``length`` bytes), cut and marked if it is too long."""
        if length <= self._limit:
            return line
        kept = self._limit - _MARK_ROOM
        return line[:kept] + _MARK % (length - kept)
