"""Operations on ended attempts: pages, counts and pruning. Their cost does not grow with the length of the history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import datetime

from ofborg_async.clock import rfc3339
from ofborg_async.journal.agetime import from_ms, to_ms
from ofborg_async.journal.attempts import TALLY_STEP_MS, from_signed
from ofborg_async.journal.records import AttemptStateError, Counters, Milliseconds
from ofborg_async.model.status import HistoryEntry

PRUNE_BATCH_ROWS = 500
DAY_MS = 24 * 3600 * 1000
_END_OF_TIME = (1 << 62, 1 << 62)

_COLUMNS = """
SELECT attempt_id, identity, system, repo, pr, attrs, status, reason, started_at_ms, finished_at_ms, durations, lines,
  peak_memory_bytes
FROM attempt
"""
_RANGE = "finished_at_ms >= ? AND (finished_at_ms, seq) < (?, ?) ORDER BY finished_at_ms DESC, seq DESC LIMIT ?"
PAGE_OF_ALL = f"{_COLUMNS} WHERE {_RANGE}"
PAGE_OF_IDENTITY = f"{_COLUMNS} WHERE identity = ? AND {_RANGE}"
CURSOR = "SELECT finished_at_ms, seq FROM attempt WHERE attempt_id = ? AND finished_at_ms IS NOT NULL"
TALLIES = "SELECT identity, sum(ok), sum(failed) FROM tally WHERE step > ? GROUP BY identity"
RESTARTS = "SELECT identity, count FROM restarts"
WAITING = """
SELECT attempt.identity, count(*), sum(outbox.unroutable <> 0)
FROM outbox CROSS JOIN attempt ON attempt.seq = outbox.seq WHERE outbox.res = 0 GROUP BY attempt.identity
"""
PRUNABLE = """
SELECT seq FROM attempt WHERE finished_at_ms < ?
  AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.seq = attempt.seq)
  AND NOT EXISTS (SELECT 1 FROM job WHERE job.attempt = attempt.seq)
ORDER BY finished_at_ms LIMIT ?
"""


def page(
    connection: sqlite3.Connection, *, identity: str | None, since: datetime | None, before: str | None, limit: int
) -> tuple[HistoryEntry, ...]:
    """Ended attempts, newest first. Raises AttemptStateError when ``before`` is no ended attempt."""
    since_ms = -_END_OF_TIME[0] if since is None else to_ms(since)
    cursor = _END_OF_TIME
    if before is not None:
        cursor = connection.execute(CURSOR, (before,)).fetchone()
        if cursor is None:
            raise AttemptStateError(before, "it is not in the history (any more)")
    if identity is None:
        rows = connection.execute(PAGE_OF_ALL, (since_ms, *cursor, limit))
    else:
        rows = connection.execute(PAGE_OF_IDENTITY, (identity, since_ms, *cursor, limit))
    return tuple(_entry(*row) for row in rows)


def counters(connection: sqlite3.Connection, wall_ms: Milliseconds) -> Mapping[str, Counters]:
    """Counts by identity, of every identity that has any."""
    found: dict[str, dict[str, int]] = {}
    for identity, ok, failed in connection.execute(TALLIES, ((wall_ms - DAY_MS) // TALLY_STEP_MS,)):
        found.setdefault(identity, {}).update(ok_24h=ok, failed_24h=failed)
    for identity, count in connection.execute(RESTARTS):
        found.setdefault(identity, {}).update(restarts=count)
    for identity, waiting, unroutable in connection.execute(WAITING):
        found.setdefault(identity, {}).update(results_waiting=waiting, unroutable=unroutable)
    return {identity: Counters(**counts) for identity, counts in found.items()}


def prune_batch(connection: sqlite3.Connection, before_ms: int, tallies_before_ms: int) -> int:
    """Remove the oldest ended attempts, at most PRUNE_BATCH_ROWS; returns how many. What is on its way stays."""
    rows = connection.execute(PRUNABLE, (before_ms, PRUNE_BATCH_ROWS)).fetchall()
    connection.executemany("DELETE FROM attempt WHERE seq = ?", rows)
    connection.execute("DELETE FROM tally WHERE step < ?", (tallies_before_ms // TALLY_STEP_MS,))
    return len(rows)


def _entry(
    attempt_id: str,
    identity: str,
    system: str,
    repo: str,
    pr: int,
    attrs: str,
    status: str,
    reason: str,
    started_at_ms: int,
    finished_at_ms: int,
    durations: str,
    lines: int,
    peak_memory_bytes: int,
) -> HistoryEntry:
    return HistoryEntry(
        attempt_id=attempt_id,
        identity=identity,
        system=system,
        repo=repo,
        pr=from_signed(pr),
        attrs=tuple(json.loads(attrs)),
        status=status,
        reason=reason,
        started_at=rfc3339(from_ms(started_at_ms)),
        finished_at=rfc3339(from_ms(finished_at_ms)),
        durations_seconds=json.loads(durations),
        lines=lines,
        peak_memory_bytes=peak_memory_bytes,
    )
