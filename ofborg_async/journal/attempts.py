"""Operations on attempts and on what is remembered of their deliveries. Each runs inside a transaction."""

from __future__ import annotations

import json
import sqlite3

from attrs import frozen

from ofborg_async.journal.agetime import Moment, from_ms, to_ms
from ofborg_async.journal.records import (
    FAILED_OUTCOMES,
    INTERRUPTED,
    OK_OUTCOMES,
    REQUEUED,
    Attempt,
    AttemptStateError,
    DuplicateAttemptError,
    Durations,
    Interrupted,
    JobKey,
    Milliseconds,
    OutboxResult,
    Seen,
    SeenState,
)

TALLY_STEP_MS = 10 * 60 * 1000
_SIGNED = 1 << 64

_LOOKUP = """
SELECT job.state, job.starts, job.host_faults, job.touched_age_ms, attempt.attempt_id, attempt.identity, attempt.system
FROM job LEFT JOIN attempt ON attempt.seq = job.attempt
WHERE job.queue = ? AND job.request_id = ? AND job.body_sha256 = ?
"""
_REMEMBER = """
INSERT INTO job (queue, request_id, body_sha256, state, attempt, starts, host_faults, touched_age_ms, touched_at_ms)
VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET state = 1, attempt = excluded.attempt, starts = excluded.starts,
  host_faults = excluded.host_faults, touched_age_ms = excluded.touched_age_ms, touched_at_ms = excluded.touched_at_ms
"""
_BEGIN = """
INSERT INTO attempt (attempt_id, identity, system, request_id, repo, pr, head_sha, attrs, started_at_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_RUNNING = """
SELECT attempt.seq, attempt.identity FROM attempt JOIN running ON running.seq = attempt.seq WHERE attempt.attempt_id = ?
"""
_ENDED_SO = "SELECT 1 FROM attempt WHERE attempt_id = ? AND status = ? AND finished_at_ms IS NOT NULL"
_END = """
UPDATE attempt SET finished_at_ms = ?, status = ?, reason = ?, durations = ?, lines = ?, peak_memory_bytes = ?
WHERE seq = ?
"""
_INTERRUPTED = """
SELECT attempt.seq, attempt.attempt_id, attempt.identity, attempt.system, job.queue, job.request_id, job.body_sha256,
  running.body, attempt.repo, attempt.pr, attempt.head_sha, attempt.attrs, attempt.started_at_ms, attempt.phase,
  job.starts
FROM running JOIN attempt ON attempt.seq = running.seq JOIN job ON job.attempt = running.seq ORDER BY running.seq
"""
_ENQUEUE = """
INSERT INTO outbox (seq, log, lines, res_exchange, res_key, log_exchange, log_key, body, message)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_TALLY = """
INSERT INTO tally (identity, step, ok, failed) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET ok = ok + excluded.ok, failed = failed + excluded.failed
"""


@frozen
class Ending:
    """How an attempt ended, for the history."""

    status: str
    reason: str
    durations: Durations
    lines: int
    peak_memory_bytes: int


def to_signed(number: int) -> int:
    """A number of 64 bits without a sign, as a pull request's is on the wire, as SQLite has them: with one."""
    return number - _SIGNED if number >= _SIGNED // 2 else number


def from_signed(number: int) -> int:
    """What ``to_signed`` was given."""
    return number % _SIGNED


def last_moment(connection: sqlite3.Connection) -> Moment | None:
    """The latest moment that a remembered delivery holds."""
    row = connection.execute(
        "SELECT touched_age_ms, touched_at_ms FROM job ORDER BY touched_age_ms DESC LIMIT 1"
    ).fetchone()
    return None if row is None else Moment(*row)


def lookup(connection: sqlite3.Connection, key: JobKey, moment: Moment, expiry_ms: int) -> tuple[Seen | None, bool]:
    """What is known of a job, and whether what was known has expired (then it is not told)."""
    row = connection.execute(_LOOKUP, (key.queue, key.request_id, key.body_sha256)).fetchone()
    if row is None:
        return None, False
    state, starts, host_faults, touched_age_ms, attempt_id, identity, system = row
    if state != SeenState.RUNNING.value and moment.age_ms - touched_age_ms >= expiry_ms:
        return None, True
    return Seen(SeenState(state), attempt_id or "", identity or "", system or "", starts, host_faults), False


def begin(connection: sqlite3.Connection, attempt: Attempt, moment: Moment, expiry_ms: int) -> None:
    """Record an attempt as running. Raises DuplicateAttemptError."""
    seen, _ = lookup(connection, attempt.key, moment, expiry_ms)
    if seen is not None and seen.state is not SeenState.IDLE:
        raise DuplicateAttemptError(attempt.attempt_id, seen)
    cursor = connection.execute(
        _BEGIN,
        (
            attempt.attempt_id,
            attempt.identity,
            attempt.system,
            attempt.request_id,
            attempt.repo,
            to_signed(attempt.pr),
            attempt.head_sha,
            json.dumps(attempt.attrs),
            to_ms(attempt.started_at),
        ),
    )
    seq = cursor.lastrowid
    connection.execute("INSERT INTO running (seq, body) VALUES (?, ?)", (seq, attempt.body))
    starts, host_faults = (seen.starts, seen.host_faults) if seen is not None else (0, 0)
    connection.execute(
        _REMEMBER,
        (
            attempt.queue,
            attempt.request_id,
            attempt.body_sha256,
            seq,
            starts,
            host_faults,
            moment.age_ms,
            moment.wall_ms,
        ),
    )


def set_phase(connection: sqlite3.Connection, attempt_id: str, phase: str) -> None:
    """Note where a running attempt is."""
    connection.execute(
        "UPDATE attempt SET phase = ? WHERE attempt_id = ? AND finished_at_ms IS NULL", (phase, attempt_id)
    )


def set_lines_confirmed(connection: sqlite3.Connection, attempt_id: str, through_line: int) -> None:
    """Note how many lines have arrived."""
    connection.execute(
        "UPDATE attempt SET lines_confirmed = max(lines_confirmed, ?) WHERE attempt_id = ?", (through_line, attempt_id)
    )


def mark_log_started(connection: sqlite3.Connection, attempt_id: str) -> bool:
    """Mark LogStart as sent; False when it was marked before. Raises AttemptStateError for an unknown attempt."""
    changed = connection.execute(
        "UPDATE attempt SET log_started = 1 WHERE attempt_id = ? AND log_started = 0", (attempt_id,)
    ).rowcount
    if (
        changed == 0
        and connection.execute("SELECT 1 FROM attempt WHERE attempt_id = ?", (attempt_id,)).fetchone() is None
    ):
        raise AttemptStateError(attempt_id, "it is not in the journal")
    return changed == 1


def finish(
    connection: sqlite3.Connection, attempt_id: str, result: OutboxResult | None, ending: Ending, moment: Moment
) -> None:
    """End a running attempt and put its result in the outbox; nothing when it has ended so before.

    Raises AttemptStateError when it does not run.
    """
    if connection.execute(_ENDED_SO, (attempt_id, ending.status)).fetchone() is not None:
        return
    seq, identity = _end(connection, attempt_id, ending, moment.wall_ms)
    if result is not None:
        log = result.log_address
        connection.execute(
            _ENQUEUE,
            (
                seq,
                2 if log is None else 0,  # where nothing goes to LOG, LOG is done
                result.lines,
                result.res_address.exchange,
                result.res_address.routing_key,
                None if log is None else log.exchange,
                None if log is None else log.routing_key,
                result.body,
                result.message,
            ),
        )
    connection.execute(
        "UPDATE job SET state = 2, touched_age_ms = ?, touched_at_ms = ? WHERE attempt = ?",
        (moment.age_ms, moment.wall_ms, seq),
    )
    ok, failed = ending.status in OK_OUTCOMES, ending.status in FAILED_OUTCOMES
    if ok or failed:
        connection.execute(_TALLY, (identity, moment.wall_ms // TALLY_STEP_MS, ok, failed))


def requeued(
    connection: sqlite3.Connection, attempt_id: str, ending: Ending, moment: Moment, *, host_fault: bool
) -> None:
    """End a running attempt whose message goes back to the queue. Raises AttemptStateError when it does not run."""
    seq, _ = _end(connection, attempt_id, ending, moment.wall_ms)
    _rest(connection, seq, moment, starts=0, host_faults=int(host_fault))


def take_back(
    connection: sqlite3.Connection, attempt_id: str, ending: Ending, moment: Moment, *, host_fault: bool = False
) -> None:
    """End an attempt whose message goes back, if it runs: its caller does not know."""
    if connection.execute(_RUNNING, (attempt_id,)).fetchone() is not None:
        requeued(connection, attempt_id, ending, moment, host_fault=host_fault)


def interrupted(connection: sqlite3.Connection, moment: Moment) -> tuple[Interrupted, ...]:
    """End every attempt that is running in the journal: its daemon died. Counts that for its job."""
    found = []
    for row in connection.execute(_INTERRUPTED).fetchall():
        (
            seq,
            attempt_id,
            identity,
            system,
            queue,
            request_id,
            sha,
            body,
            repo,
            pr,
            head_sha,
            attrs,
            started,
            phase,
            starts,
        ) = row
        reason = f"the daemon died during {phase}" if phase else "the daemon died"
        ending = Ending(INTERRUPTED, reason, {}, 0, 0)
        _end(connection, attempt_id, ending, moment.wall_ms)
        _rest(connection, seq, moment, starts=1, host_faults=0)
        attempt = Attempt(
            attempt_id=attempt_id,
            identity=identity,
            system=system,
            queue=queue,
            request_id=request_id,
            body_sha256=sha,
            body=body,
            repo=repo,
            pr=from_signed(pr),
            head_sha=head_sha,
            attrs=tuple(json.loads(attrs)),
            started_at=from_ms(started),
        )
        found.append(Interrupted(attempt, phase, starts + 1))
    return tuple(found)


def acked(connection: sqlite3.Connection, attempt_id: str) -> None:
    """Forget the delivery of a finished attempt. Raises AttemptStateError while it runs."""
    row = connection.execute(_RUNNING, (attempt_id,)).fetchone()
    if row is not None:
        raise AttemptStateError(attempt_id, "it is still running, so its delivery cannot have been acknowledged")
    of_attempt = "(SELECT seq FROM attempt WHERE attempt_id = ?)"
    connection.execute(f"DELETE FROM job WHERE attempt = {of_attempt}", (attempt_id,))  # noqa: S608 - a constant
    connection.execute(f"UPDATE outbox SET acked = 1 WHERE seq = {of_attempt}", (attempt_id,))  # noqa: S608 - a constant


def unacknowledged(connection: sqlite3.Connection, moment: Moment, expiry_ms: int) -> tuple[tuple[JobKey, str], ...]:
    """Jobs that are finished and whose ack is not known to have been processed, with their attempts' ids."""
    rows = connection.execute(
        "SELECT queue, job.request_id, body_sha256, attempt_id FROM job JOIN attempt ON attempt.seq = job.attempt"
        " WHERE state = ? AND touched_age_ms > ? ORDER BY seq",
        (SeenState.FINISHED.value, moment.age_ms - expiry_ms),
    )
    return tuple((JobKey(queue, request_id, digest), attempt_id) for queue, request_id, digest, attempt_id in rows)


def with_prefix(connection: sqlite3.Connection, prefix: str, limit: int) -> tuple[str, ...]:
    """Ids of attempts that begin with ``prefix``, at most ``limit`` of them."""
    rows = connection.execute(
        "SELECT attempt_id FROM attempt WHERE attempt_id >= ? AND attempt_id < ? LIMIT ?",
        (prefix, prefix + "\U0010ffff", limit),
    )
    return tuple(attempt_id for (attempt_id,) in rows)


def forget_expired(connection: sqlite3.Connection, moment: Moment, expiry_ms: int) -> int:
    """Forget deliveries that nobody has seen for so long; returns how many."""
    return connection.execute(
        "DELETE FROM job WHERE touched_age_ms <= ? AND state <> 1", (moment.age_ms - expiry_ms,)
    ).rowcount


def requeue_ending(reason: str, durations: Durations) -> Ending:
    """The ending of an attempt whose message goes back."""
    return Ending(REQUEUED, reason, durations, 0, 0)


def _end(connection: sqlite3.Connection, attempt_id: str, ending: Ending, wall_ms: Milliseconds) -> tuple[int, str]:
    row = connection.execute(_RUNNING, (attempt_id,)).fetchone()
    if row is None:
        raise AttemptStateError(attempt_id, "it is not running, so it cannot end")
    seq, identity = row
    durations = json.dumps({str(phase): round(seconds, 3) for phase, seconds in ending.durations.items()})
    connection.execute(
        _END,
        (wall_ms, ending.status, ending.reason, durations, ending.lines, ending.peak_memory_bytes, seq),
    )
    connection.execute("DELETE FROM running WHERE seq = ?", (seq,))
    return seq, identity


def _rest(connection: sqlite3.Connection, seq: int, moment: Moment, *, starts: int, host_faults: int) -> None:
    """Leave a job without an attempt, and count why."""
    connection.execute(
        "UPDATE job SET state = 0, attempt = NULL, starts = starts + ?, host_faults = host_faults + ?, "
        "touched_age_ms = ?, touched_at_ms = ? WHERE attempt = ?",
        (starts, host_faults, moment.age_ms, moment.wall_ms, seq),
    )
