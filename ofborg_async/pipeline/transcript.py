"""The lines of one attempt on their way into its local log, which is also the queue for the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio

from ofborg_async.model.evaluation import SkippedAttr
from ofborg_async.model.result import LogStart
from ofborg_async.pipeline.ports import LineSink
from ofborg_async.pipeline.progress import Progress


class LogFile(LineSink, Protocol):
    """The local log of an attempt, as the journal room keeps it."""

    @property
    def last_lines(self) -> tuple[bytes, ...]:
        """The last ten lines written."""
        ...


class Transcript:
    """Takes an attempt's lines; knows when its log has been opened on the wire (LogStart) and with what."""

    def __init__(self, file: LogFile, progress: Progress, *, hide: bytes = b"") -> None:
        self._file = file
        self._progress = progress
        self._hide = hide
        self.start: LogStart | None = None
        self.started = anyio.Event()

    def open(self, start: LogStart) -> None:
        """Say what is attempted; what is written from now on may be published."""
        self.start = start
        self.started.set()

    def write(self, lines: Sequence[bytes]) -> None:
        """Append ``lines``. Never blocks on the broker, never raises for a full disk (the file marks the loss)."""
        if self._hide:
            lines = [line.replace(self._hide, b"<checkout>") for line in lines]
        self._file.write(lines)
        self._progress.count_lines(len(lines))

    def write_skipped(self, skipped: Sequence[SkippedAttr]) -> None:
        """Append the error lines of attrs that cannot be instantiated (wire document, "Error lines of one attr")."""
        for item in skipped:
            header = f"Cannot nix-instantiate `{item.attr}` because:".replace("\n", " ").encode("utf-8", "replace")
            self.write([header, *item.lines, b""])

    @property
    def last_lines(self) -> tuple[bytes, ...]:
        """The last ten lines, for the result's output."""
        return self._file.last_lines
