"""Exit statuses of the commands (interface document)."""

from __future__ import annotations

from ofborg_async.control.problems import AnsweredError, NoDaemonError
from ofborg_async.errors import ConfigError, JournalUnusableError, LockHeldError, OfborgAsyncError

EX_OK = 0
EX_FAILURE = 1
EX_NO_DAEMON = 3
EX_USAGE = 64
EX_TEMPFAIL = 75
EX_CONFIG = 78
EX_INTERRUPTED = 130
EX_BROKEN_PIPE = 141

VERDICT_STATUS = {"ok": 0, "degraded": 1, "down": 2}
"""The exit status of ``status`` for each verdict."""


def status_of(error: OfborgAsyncError) -> int:
    """The exit status that an error ends a command with."""
    match error:
        case NoDaemonError():
            return EX_NO_DAEMON
        case ConfigError() | JournalUnusableError():
            return EX_CONFIG
        case LockHeldError():
            return EX_TEMPFAIL
        case AnsweredError(status=400 | 404):
            return EX_USAGE
    return EX_FAILURE
