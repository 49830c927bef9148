"""A wall clock that can be set while a daemon runs: the host's, moved by so many seconds as a file says.

``python -m ofborg_async.lab.chaos.shiftedclock FILE WORDS...`` is the daemon of these words with such a clock injected.
The monotonic clock stays the host's, as it does when somebody sets the time.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import frozen

from ofborg_async.clock import SystemClock
from ofborg_async.lab.altered import altered, become_daemon


@frozen
class ShiftedClock:
    """The clock of one daemon, which the words of ``prefix`` before its own make it follow."""

    file: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """For ``DaemonProcess``."""
        return altered("ofborg_async.lab.chaos.shiftedclock", str(self.file))

    def shift(self, seconds: float) -> None:
        """Set the wall clock to so many seconds after the host's, also of a daemon that starts later."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.file)


def main(arguments: list[str]) -> int:
    """Become the daemon. Returns its exit status."""
    file = Path(arguments[0])

    def now(self: SystemClock) -> datetime:  # noqa: ARG001 - a method
        try:
            shift_seconds = float(file.read_text())
        except FileNotFoundError:
            shift_seconds = 0.0
        return datetime.now(UTC) + timedelta(seconds=shift_seconds)  # noqa: TID251 - it is a clock itself

    SystemClock.now = now  # type: ignore[method-assign] # the injection
    return become_daemon(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
