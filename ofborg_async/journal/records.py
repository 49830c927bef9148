"""Frozen values that the journal takes and gives. Times are aware dates in UTC, durations seconds, sizes bytes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import NewType

from attrs import field, frozen

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.model.job import Address
from ofborg_async.model.result import BuildStatus

INTERRUPTED = "Interrupted"
REQUEUED = "Requeued"

OK_OUTCOMES = frozenset({BuildStatus.SUCCESS.value})
FAILED_OUTCOMES = frozenset(
    {
        BuildStatus.FAILURE.value,
        BuildStatus.TIMED_OUT.value,
        BuildStatus.HASH_MISMATCH.value,
        "UnexpectedError",
    }
)

Milliseconds = NewType("Milliseconds", int)


@frozen
class JobKey:
    """What makes two deliveries the same job: the queue, the request, and the SHA-256 (hex) of the whole body."""

    queue: str
    request_id: str
    body_sha256: str


@frozen
class Attempt:
    """One attempt at a job, as it begins.

    ``repo`` is the repository's full name, ``pr`` the pull request's number, ``body`` the message as delivered and
    ``body_sha256`` its hash in hex; ``started_at`` is for people.
    """

    attempt_id: str
    identity: str
    system: str
    queue: str
    request_id: str
    body_sha256: str
    body: bytes = field(repr=False)
    repo: str
    pr: int
    head_sha: str
    attrs: tuple[str, ...]
    started_at: datetime

    @property
    def key(self) -> JobKey:
        """The job it is an attempt at."""
        return JobKey(self.queue, self.request_id, self.body_sha256)


class SeenState(enum.Enum):
    """How the journal knows a job. The values are what the database holds."""

    IDLE = 0  # no attempt now: only the counts are known
    RUNNING = 1
    FINISHED = 2  # it has a result (or needs none), and no ack is known to have been processed


@frozen
class Seen:
    """What is known of a job that was delivered before.

    ``attempt_id``, ``identity`` and ``system`` are those of the running or finished attempt, "" when IDLE.
    ``starts`` counts the attempts that began and never ended because the daemon died (promise 9), ``host_faults``
    those that were given back to the queue for a fault of the host.
    """

    state: SeenState
    attempt_id: str
    identity: str
    system: str
    starts: int
    host_faults: int


@frozen
class Interrupted:
    """An attempt that an earlier daemon left running. ``starts`` counts it; ``phase`` is where it was or ""."""

    attempt: Attempt
    phase: str
    starts: int


@frozen
class OutboxResult:
    """The result of an attempt, to be published.

    ``body`` is the BuildResult's bytes for RES and for its copy on LOG; ``log_address`` is None when nothing goes to
    LOG (a merge conflict); ``message`` is opaque to the journal: bytes the caller wants back after a crash; ``lines``
    is the number of log lines that go to LOG before the copy.
    """

    res_address: Address
    log_address: Address | None
    body: bytes = field(repr=False)
    message: bytes = field(default=b"", repr=False)
    lines: int = 0


class OutboxState(enum.Enum):
    """Where an outbox entry is on its way: RES is not confirmed, or it is and the copy on LOG is marked as sent.

    A done entry is no longer in the outbox.
    """

    PENDING = "pending"
    LOG_MARKED = "log_marked"


class Unroutable(enum.Enum):
    """Whether RES has been returned. The values are what the database holds."""

    NO = 0
    FOR_NOW = 1
    FOR_EVER = 2


@frozen
class OutboxEntry:
    """A result on its way, and what is needed to go on with it after a crash.

    ``position`` orders the outbox and pages it. ``lines_confirmed`` is how many lines are known to have arrived (a
    lower bound). ``log_started``: LogStart was marked and must not be sent again. ``log_marked``: the same for the copy
    on LOG; it may be set while RES is still unroutable. ``acked``: the broker processed the ack of its delivery.
    """

    position: int
    attempt_id: str
    identity: str
    system: str
    request_id: str
    result: OutboxResult
    finished_at: datetime
    state: OutboxState
    unroutable: Unroutable
    log_started: bool
    log_marked: bool
    lines_confirmed: int
    acked: bool


@frozen
class Hold:
    """Why an identity takes no work: a pause of the operator. ``until`` None means until cleared."""

    identity: str
    reason: str
    since: datetime
    until: datetime | None


@frozen
class Counters:
    """Counts of one identity.

    ``ok_24h`` and ``failed_24h`` are of the last 24 hours to ten minutes (the oldest, incomplete ten minutes are left
    out): OK_OUTCOMES and FAILED_OUTCOMES say what counts. ``restarts`` is since the journal was made.
    ``results_waiting`` are results whose RES is not confirmed, ``unroutable`` those of them that were returned.
    """

    ok_24h: int = 0
    failed_24h: int = 0
    restarts: int = 0
    results_waiting: int = 0
    unroutable: int = 0


@frozen
class LeftProcess:
    """A process that an earlier daemon started and did not see end; the fields are those of ProcessRecord."""

    attempt_id: str
    pid: int
    start_time: str
    argv0: str


Durations = Mapping[str, float]
"""Seconds by phase."""


class DuplicateAttemptError(OfborgAsyncError):
    """A job must not begin now: an attempt at it runs or has finished. ``seen`` says which."""

    def __init__(self, attempt_id: str, seen: Seen) -> None:
        self.attempt_id = attempt_id
        self.seen = seen
        super().__init__(
            f"attempt {attempt_id} is a second one at the job of {seen.attempt_id} ({seen.state.name.lower()})"
        )


class AttemptStateError(OfborgAsyncError):
    """An attempt was told to make a move that its state does not allow, or is not known (any more)."""

    def __init__(self, attempt_id: str, detail: str) -> None:
        self.attempt_id = attempt_id
        self.detail = detail
        super().__init__(f"attempt {attempt_id}: {detail}")


class LogMissingError(OfborgAsyncError):
    """There is no local log of an attempt: it was removed to make room, or there never was such an attempt."""

    def __init__(self, attempt_id: str) -> None:
        self.attempt_id = attempt_id
        super().__init__(f"there is no local log of attempt {attempt_id!r}: removed to make room, or no such attempt")
