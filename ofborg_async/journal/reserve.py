"""The reserve file: room on the disk that is given up when it is full, so that results can still be recorded."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 16


class Reserve:
    """The file at ``path``, ``size_bytes`` long when the disk has room for it. Used by one thread."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def release(self) -> bool:
        """Give the room back. True when there was some to give."""
        try:
            held_bytes = self._path.stat().st_size
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("%s: cannot be released: %s", self._path, error)
            return False
        return held_bytes > 0

    def fill(self) -> bool:
        """Make the file whole, unless that would leave less than its own size free. True when it is whole."""
        try:
            if self._path.exists() and self._path.stat().st_size >= self._size_bytes:
                return True
            free = os.statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < 2 * self._size_bytes:
                return False
            self._write()
        except OSError as error:
            _log.warning("%s: cannot be filled: %s", self._path, error)
            self.release()
            return False
        return True

    def _write(self) -> None:
        # Real bytes that do not compress: a hole, or zeros on a compressing file system, would reserve nothing.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(0, self._size_bytes, _CHUNK_BYTES):
                written = os.write(descriptor, os.urandom(_CHUNK_BYTES))
                if written < _CHUNK_BYTES:
                    raise OSError(errno.ENOSPC, "short write")
        finally:
            os.close(descriptor)
