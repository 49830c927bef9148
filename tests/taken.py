"""A lock file that another process has taken, and a child of that process which has inherited it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.process.children import MARKER


@frozen
class Taken:
    """Both by their numbers; ``kill_holder`` leaves the child behind."""

    process: subprocess.Popen[str]
    child: int

    @property
    def holder(self) -> int:
        return self.process.pid

    def kill_holder(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def taken(path: Path, *, marker: str = "") -> Iterator[Taken]:
    """With a ``marker`` the two look as if a daemon had started them."""
    environment = {**os.environ, MARKER: marker} if marker else os.environ
    program = Path(__file__).with_name("left_behind.py")
    with subprocess.Popen(
        [sys.executable, program, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            yield Taken(holder, child)
        finally:
            holder.kill()
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
