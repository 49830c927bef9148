"""A file that becomes readable when a child has exited: no thread, no SIGCHLD, and the child stays ours to reap.

Linux: pidfd_open(2). BSD and macOS: kqueue(2) with EVFILT_PROC. Where neither works the caller polls.
"""

from __future__ import annotations

import os
import select
import sys


class ExitWatch:
    """Watches one child of this process that nobody else reaps. ``fileno()`` turns readable with its exit."""

    def __init__(self, pid: int) -> None:
        """Raises OSError where the system cannot watch ``pid``; poll then."""
        if sys.platform == "linux":
            self._fd = os.pidfd_open(pid)
        else:
            self._queue = select.kqueue()
            self._fd = self._queue.fileno()
            exits = select.kevent(
                pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
            )
            try:
                self._queue.control([exits], 0)
            except OSError:  # ESRCH: it is a zombie already
                self._queue.close()
                raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._fd

    def close(self) -> None:
        """Give the descriptor back."""
        if sys.platform == "linux":
            os.close(self._fd)
        else:
            self._queue.close()
