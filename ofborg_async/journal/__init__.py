"""What survives the daemon: attempts, outbox, remembered deliveries, history, holds, processes, logs of builds."""

from ofborg_async.journal.journal import Journal
from ofborg_async.journal.logreader import LogReader
from ofborg_async.journal.logstore import LogStore
from ofborg_async.journal.logwriter import LogWriter
from ofborg_async.journal.records import (
    FAILED_OUTCOMES,
    INTERRUPTED,
    OK_OUTCOMES,
    REQUEUED,
    Attempt,
    AttemptStateError,
    Counters,
    DuplicateAttemptError,
    Hold,
    Interrupted,
    JobKey,
    LeftProcess,
    LogMissingError,
    OutboxEntry,
    OutboxResult,
    OutboxState,
    Seen,
    SeenState,
    Unroutable,
)

__all__ = [
    "FAILED_OUTCOMES",
    "INTERRUPTED",
    "OK_OUTCOMES",
    "REQUEUED",
    "Attempt",
    "AttemptStateError",
    "Counters",
    "DuplicateAttemptError",
    "Hold",
    "Interrupted",
    "JobKey",
    "Journal",
    "LeftProcess",
    "LogMissingError",
    "LogReader",
    "LogStore",
    "LogWriter",
    "OutboxEntry",
    "OutboxResult",
    "OutboxState",
    "Seen",
    "SeenState",
    "Unroutable",
]
