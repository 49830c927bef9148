"""The signals that ask for a stop, held back from the first moment of ``run`` until there is somebody to take them.

A service manager may stop what it has just started: that is a stop on request like any other, not a death by a signal.
Imports nothing of the daemon, which takes a while to import.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,  # the terminal of a daemon in the foreground is gone
)


def hold_stop_signals() -> None:
    """Keep them pending. Before any thread or child is started, for each would inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_stop_signals() -> None:
    """Deliver what is pending, and what comes: their handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
