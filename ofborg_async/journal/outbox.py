"""Operations on the outbox: results on their way to RES and, as a copy, to LOG. Each runs inside a transaction."""

from __future__ import annotations

import sqlite3

from ofborg_async.journal.agetime import from_ms
from ofborg_async.journal.records import AttemptStateError, OutboxEntry, OutboxResult, OutboxState, Unroutable
from ofborg_async.model.job import Address

_ENTRIES = """
SELECT outbox.position, attempt.attempt_id, attempt.identity, attempt.system, attempt.request_id,
  outbox.res_exchange, outbox.res_key, outbox.log_exchange, outbox.log_key, outbox.body, outbox.message, outbox.lines,
  attempt.finished_at_ms, outbox.res, outbox.log, outbox.unroutable, attempt.log_started, attempt.lines_confirmed,
  outbox.acked
FROM outbox JOIN attempt ON attempt.seq = outbox.seq
WHERE outbox.position > ? ORDER BY outbox.position LIMIT ?
"""
_ONE = """
SELECT outbox.seq, outbox.res, outbox.log, outbox.unroutable
FROM outbox JOIN attempt ON attempt.seq = outbox.seq WHERE attempt.attempt_id = ?
"""
_DROP = "DELETE FROM outbox WHERE seq = ?"
_LIVE = """
SELECT attempt_id FROM attempt WHERE seq IN (SELECT seq FROM outbox UNION ALL SELECT seq FROM running)
"""


def entries(connection: sqlite3.Connection, *, after: int, limit: int) -> tuple[OutboxEntry, ...]:
    """A page of the outbox in the order of finishing."""
    return tuple(_entry(*row) for row in connection.execute(_ENTRIES, (after, limit)))


def live_attempts(connection: sqlite3.Connection) -> frozenset[str]:
    """Attempts that run or whose results are on their way."""
    return frozenset(attempt_id for (attempt_id,) in connection.execute(_LIVE))


def confirm_and_mark(connection: sqlite3.Connection, attempt_id: str) -> bool:
    """The result was confirmed as routed to RES, and the copy on LOG is marked; False as for mark_log_copy.

    Raises AttemptStateError when it is not in the outbox.
    """
    seq, _, log, _ = _find(connection, attempt_id)
    if log == 2:
        connection.execute(_DROP, (seq,))
    else:
        connection.execute("UPDATE outbox SET res = 1, unroutable = 0, log = 1 WHERE seq = ?", (seq,))
    return log == 0


def mark_log_copy(connection: sqlite3.Connection, attempt_id: str) -> bool:
    """Mark the copy on LOG as sent; False when it was before, or when nothing goes to LOG.

    Raises AttemptStateError when it is not in the outbox, or when its turn has not come: RES is neither confirmed nor
    known to be unroutable.
    """
    seq, res, log, returned = _find(connection, attempt_id)
    if not res and not returned:
        raise AttemptStateError(attempt_id, "the copy on LOG comes after the confirmation on RES")
    if log > 0:
        return False
    connection.execute("UPDATE outbox SET log = 1 WHERE seq = ?", (seq,))
    return True


def unroutable(connection: sqlite3.Connection, attempt_id: str, *, permanent: bool) -> None:
    """RES came back. Raises AttemptStateError when it is not in the outbox, or was confirmed before."""
    seq, res, _, _ = _find(connection, attempt_id)
    if res:
        raise AttemptStateError(attempt_id, "its result was confirmed as routed before")
    value = Unroutable.FOR_EVER if permanent else Unroutable.FOR_NOW
    connection.execute("UPDATE outbox SET unroutable = ? WHERE seq = ?", (value.value, seq))


def log_done(connection: sqlite3.Connection, attempt_id: str) -> None:
    """Nothing more goes to LOG. With RES confirmed the entry is done, and leaves the outbox."""
    row = connection.execute(_ONE, (attempt_id,)).fetchone()
    if row is not None:
        seq, res, _, _ = row
        connection.execute(_DROP if res else "UPDATE outbox SET log = 2 WHERE seq = ?", (seq,))


def _find(connection: sqlite3.Connection, attempt_id: str) -> tuple[int, int, int, int]:
    row: tuple[int, int, int, int] | None = connection.execute(_ONE, (attempt_id,)).fetchone()
    if row is None:
        raise AttemptStateError(attempt_id, "it has no result in the outbox")
    return row


def _entry(
    position: int,
    attempt_id: str,
    identity: str,
    system: str,
    request_id: str,
    res_exchange: str,
    res_key: str,
    log_exchange: str | None,
    log_key: str | None,
    body: bytes,
    message: bytes,
    lines: int,
    finished_at_ms: int,
    res: int,
    log: int,
    unroutable_value: int,
    log_started: int,
    lines_confirmed: int,
    acked: int,
) -> OutboxEntry:
    log_address = None if log_exchange is None or log_key is None else Address(log_exchange, log_key)
    return OutboxEntry(
        position=position,
        attempt_id=attempt_id,
        identity=identity,
        system=system,
        request_id=request_id,
        result=OutboxResult(Address(res_exchange, res_key), log_address, body, message, lines),
        finished_at=from_ms(finished_at_ms),
        state=OutboxState.LOG_MARKED if res else OutboxState.PENDING,
        unroutable=Unroutable(unroutable_value),
        log_started=bool(log_started),
        log_marked=log > 0 and log_address is not None,
        lines_confirmed=lines_confirmed,
        acked=bool(acked),
    )
