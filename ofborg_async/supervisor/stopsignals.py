"""The signals that ask for a stop or a reload, held back from the first moment of ``run`` until somebody takes them.

A service manager may stop what it has just started: that is a stop on request like any other, not a death by a signal.
Imports nothing of the daemon, which takes a while to import.
"""

from __future__ import annotations

import os
import signal

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,  # a reload, or the terminal of a daemon in the foreground is gone: see TerminalWatch
)


def hold_stop_signals() -> None:
    """Keep them pending. Before any thread or child is started, for each would inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_stop_signals() -> None:
    """Deliver what is pending, and what comes: their handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class TerminalWatch:
    """Tells what a SIGHUP means: a daemon whose terminal is gone is to stop, any other is to reload."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._had_one = os.isatty(descriptor)

    def is_lost(self) -> bool:
        """Whether there was a terminal (on standard input) that has hung up."""
        return self._had_one and not os.isatty(self._descriptor)
