"""Operations on what keeps an identity from working across restarts (pauses, quarantines), and on restart counts."""

from __future__ import annotations

import enum
import sqlite3
from datetime import datetime

from ofborg_async.journal.agetime import from_ms, to_ms
from ofborg_async.journal.records import Hold, Milliseconds


class HoldKind(enum.StrEnum):
    """Who holds an identity back: the operator or the daemon. The values are what the database holds."""

    PAUSE = "pause"
    QUARANTINE = "quarantine"


def put(
    connection: sqlite3.Connection,
    kind: HoldKind,
    identity: str,
    reason: str,
    until: datetime | None,
    wall_ms: Milliseconds,
) -> None:
    """Hold an identity, in place of an earlier hold of this kind."""
    until_ms = None if until is None else to_ms(until)
    connection.execute(
        "INSERT OR REPLACE INTO hold (kind, identity, reason, since_ms, until_ms) VALUES (?, ?, ?, ?, ?)",
        (kind.value, identity, reason, wall_ms, until_ms),
    )


def clear(connection: sqlite3.Connection, kind: HoldKind, identity: str) -> bool:
    """End a hold; False when there was none."""
    where = (kind.value, identity)
    return connection.execute("DELETE FROM hold WHERE kind = ? AND identity = ?", where).rowcount > 0


def active(connection: sqlite3.Connection, kind: HoldKind, wall_ms: Milliseconds) -> tuple[Hold, ...]:
    """Holds of one kind that are not over, by identity."""
    rows = connection.execute(
        "SELECT identity, reason, since_ms, until_ms FROM hold "
        "WHERE kind = ? AND (until_ms IS NULL OR until_ms > ?) ORDER BY identity",
        (kind.value, wall_ms),
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
