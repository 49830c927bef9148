"""Named points at which a test makes the daemon die, so that no death can lose or double anything (promises 1, 2, 9).

Every step that changes what is on record (the journal's transactions, the list of processes, a build's log) or what
the broker knows (messages, acknowledgements) is a ``Step``, and each has two points: before it, and after it. A step
that is new gets its points by being named; the acceptance tests visit every name there is.

In production nothing is armed, and a point is one comparison. A test names a file in the environment (``VARIABLE``):
when the file holds the name of the point that is reached, the file is removed, and the process kills itself with
SIGKILL: no handler, no ``finally``, no flush runs, as in a crash.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import define, frozen

VARIABLE = "OFBORG_CRASHPOINT_FILE"
"""Names the file that names a point. Not one of ``OFBORG_ASYNC_...``: it is no key of the configuration."""


class Step(enum.StrEnum):
    """What a death can cut in two. ``journal.*`` are transactions: their points lie right before and behind COMMIT."""

    JOURNAL_BEGIN = "journal.begin"
    JOURNAL_TAKE_BACK = "journal.take_back"
    JOURNAL_PHASE = "journal.phase"
    JOURNAL_LOG_STARTED = "journal.log_started"
    JOURNAL_LINES_CONFIRMED = "journal.lines_confirmed"
    JOURNAL_FINISH = "journal.finish"
    JOURNAL_REQUEUED = "journal.requeued"
    JOURNAL_INTERRUPTED = "journal.interrupted"
    JOURNAL_RES_CONFIRMED = "journal.res_confirmed"
    JOURNAL_UNROUTABLE = "journal.unroutable"
    JOURNAL_LOG_COPY = "journal.log_copy"
    JOURNAL_LOG_DONE = "journal.log_done"
    JOURNAL_ACKED = "journal.acked"
    JOURNAL_HOLD = "journal.hold"
    JOURNAL_HOLD_CLEARED = "journal.hold_cleared"
    JOURNAL_RESTARTED = "journal.restarted"
    JOURNAL_EXPIRED = "journal.expired"
    JOURNAL_PRUNED = "journal.pruned"
    JOURNAL_FLUSH = "journal.flush"

    PROCESS_STARTED = "process.started"
    PROCESS_ENDED = "process.ended"

    LOG_CREATED = "log.created"
    LOG_WRITTEN = "log.written"
    LOG_FINISHED = "log.finished"

    PUBLISH_CHANNEL = "publish.channel"
    PUBLISH_LOG_START = "publish.log_start"
    PUBLISH_LINES = "publish.lines"
    CONFIRM_LINES = "confirm.lines"
    PUBLISH_RESULT = "publish.result"
    PUBLISH_COPY = "publish.copy"

    DELIVERY_TAKEN = "delivery.taken"
    DELIVERY_ACK = "delivery.ack"
    DELIVERY_REJECT = "delivery.reject"
    DELIVERY_REQUEUE = "delivery.requeue"
    DELIVERY_PROCESSED = "delivery.processed"
    DELIVERIES_LEFT = "deliveries.left"


class Side(enum.StrEnum):
    """On which side of its step a point lies."""

    BEFORE = "before"
    AFTER = "after"


@frozen
class CrashPoint:
    """One point. As text: its name, as it stands in the file."""

    side: Side
    step: Step

    def __str__(self) -> str:
        """Its name, such as ``before journal.finish``."""
        return f"{self.side} {self.step}"


def every_point() -> tuple[CrashPoint, ...]:
    """All points that there are."""
    return tuple(CrashPoint(side, step) for step in Step for side in Side)


@define
class _Arming:
    file: Path | None = None


_arming = _Arming()


def arm(environ: Mapping[str, str]) -> Path | None:
    """Watch the file that ``environ`` names, from now on; the file, or None when nothing is armed."""
    _arming.file = Path(environ[VARIABLE]) if environ.get(VARIABLE) else None
    return _arming.file


@contextmanager
def around(*steps: Step) -> Iterator[None]:
    """Say that the body is these steps: their points are before it and, when it did not fail, after it."""
    if _arming.file is None:
        yield
        return
    for step in steps:
        _reach(CrashPoint(Side.BEFORE, step), _arming.file)
    yield
    for step in steps:
        _reach(CrashPoint(Side.AFTER, step), _arming.file)


def _reach(point: CrashPoint, file: Path) -> None:
    try:
        named = file.read_text("utf-8")
    except FileNotFoundError:
        return
    if named.strip() == str(point):
        file.unlink()  # proves that this point was reached, and lets the next daemon live
        os.kill(os.getpid(), signal.SIGKILL)
