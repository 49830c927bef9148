"""Operations on what keeps an identity from working across restarts (pauses), and on restart counts.

A quarantine is not among it: a new start of the daemon is a new try, and the same faults bring it about again.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from ofborg_async.journal.agetime import from_ms, to_ms
from ofborg_async.journal.records import Hold, Milliseconds

_PAUSE = "pause"
"""The one kind that the database holds."""


def put(
    connection: sqlite3.Connection, identity: str, reason: str, until: datetime | None, wall_ms: Milliseconds
) -> None:
    """Pause an identity, in place of an earlier pause."""
    until_ms = None if until is None else to_ms(until)
    connection.execute(
        "INSERT OR REPLACE INTO hold (kind, identity, reason, since_ms, until_ms) VALUES (?, ?, ?, ?, ?)",
        (_PAUSE, identity, reason, wall_ms, until_ms),
    )


def clear(connection: sqlite3.Connection, identity: str) -> bool:
    """End a pause; False when there was none."""
    where = (_PAUSE, identity)
    return connection.execute("DELETE FROM hold WHERE kind = ? AND identity = ?", where).rowcount > 0


def active(connection: sqlite3.Connection, wall_ms: Milliseconds) -> tuple[Hold, ...]:
    """Pauses that are not over, by identity."""
    rows = connection.execute(
        "SELECT identity, reason, since_ms, until_ms FROM hold "
        "WHERE kind = ? AND (until_ms IS NULL OR until_ms > ?) ORDER BY identity",
        (_PAUSE, wall_ms),
    )
    return tuple(
        Hold(identity, reason, from_ms(since_ms), None if until_ms is None else from_ms(until_ms))
        for identity, reason, since_ms, until_ms in rows
    )


def restarted(connection: sqlite3.Connection, identity: str) -> None:
    """Count a restart of an identity."""
    connection.execute(
        "INSERT INTO restarts (identity, count) VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (identity,)
    )
