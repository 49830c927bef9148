"""The tables of the journal, as a list of migrations. A database holds its version in ``PRAGMA user_version``.

A migration is never changed once released: a new one is added at the end.

- ``meta``: one row. ``lineage`` is drawn when the journal is made; ``commits`` grows with each transaction. Both stand
  in the side file too (generation.py), which is how a restored backup is told.
- ``attempt``: every attempt, running or ended; ended ones are the history.
- ``running``: one row for each attempt that runs, with the message itself.
- ``job``: what is remembered of a delivery, from its first attempt until its ack is known to have been processed.
  ``touched_age_ms`` is the journal's own age (agetime.py), ``touched_at_ms`` the wall clock at the same moment.
- ``outbox``: results on their way. ``res`` 0 pending, 1 confirmed; ``log`` 0 not yet, 1 marked, 2 done.
- ``tally``: ok and failed attempts in steps of ten minutes, so that counts cost the same with any history.
- ``hold``: pauses. ``restarts``: by identity.
"""

from __future__ import annotations

import sqlite3

from ofborg_async.errors import JournalUnusableError

APPLICATION_ID = 0x0FB0_9A51

_V1 = """
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  lineage TEXT NOT NULL,
  commits INTEGER NOT NULL
);
INSERT INTO meta VALUES (1, lower(hex(randomblob(16))), 0);

CREATE TABLE attempt (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  attempt_id TEXT NOT NULL UNIQUE,
  identity TEXT NOT NULL,
  system TEXT NOT NULL,
  request_id TEXT NOT NULL,
  repo TEXT NOT NULL,
  pr INTEGER NOT NULL,
  head_sha TEXT NOT NULL,
  attrs TEXT NOT NULL,
  started_at_ms INTEGER NOT NULL,
  phase TEXT NOT NULL DEFAULT '',
  log_started INTEGER NOT NULL DEFAULT 0,
  lines_confirmed INTEGER NOT NULL DEFAULT 0,
  finished_at_ms INTEGER,
  status TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '',
  durations TEXT NOT NULL DEFAULT '{}',
  lines INTEGER NOT NULL DEFAULT 0,
  peak_memory_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX history_of_all ON attempt (finished_at_ms, seq) WHERE finished_at_ms IS NOT NULL;
CREATE INDEX history_of_identity ON attempt (identity, finished_at_ms, seq) WHERE finished_at_ms IS NOT NULL;

CREATE TABLE running (
  seq INTEGER PRIMARY KEY REFERENCES attempt (seq),
  body BLOB NOT NULL
);

CREATE TABLE job (
  queue TEXT NOT NULL,
  request_id TEXT NOT NULL,
  body_sha256 TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
  attempt INTEGER UNIQUE REFERENCES attempt (seq),
  starts INTEGER NOT NULL DEFAULT 0,
  host_faults INTEGER NOT NULL DEFAULT 0,
  touched_age_ms INTEGER NOT NULL,
  touched_at_ms INTEGER NOT NULL,
  PRIMARY KEY (queue, request_id, body_sha256),
  CHECK ((state = 0) = (attempt IS NULL))
);
CREATE INDEX job_age ON job (touched_age_ms);

CREATE TABLE outbox (
  position INTEGER PRIMARY KEY,
  seq INTEGER NOT NULL UNIQUE REFERENCES attempt (seq),
  res INTEGER NOT NULL DEFAULT 0 CHECK (res IN (0, 1)),
  log INTEGER NOT NULL DEFAULT 0 CHECK (log IN (0, 1, 2)),
  unroutable INTEGER NOT NULL DEFAULT 0 CHECK (unroutable IN (0, 1, 2)),
  acked INTEGER NOT NULL DEFAULT 0 CHECK (acked IN (0, 1)),
  lines INTEGER NOT NULL,
  res_exchange TEXT NOT NULL,
  res_key TEXT NOT NULL,
  log_exchange TEXT,
  log_key TEXT,
  body BLOB NOT NULL,
  message BLOB NOT NULL
);

CREATE TABLE tally (
  identity TEXT NOT NULL,
  step INTEGER NOT NULL,
  ok INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  PRIMARY KEY (identity, step)
) WITHOUT ROWID;

CREATE TABLE hold (
  kind TEXT NOT NULL,
  identity TEXT NOT NULL,
  reason TEXT NOT NULL,
  since_ms INTEGER NOT NULL,
  until_ms INTEGER,
  PRIMARY KEY (kind, identity)
) WITHOUT ROWID;

CREATE TABLE restarts (
  identity TEXT PRIMARY KEY,
  count INTEGER NOT NULL
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_V1,)


def check_ours(connection: sqlite3.Connection, path: str) -> None:
    """Raise JournalUnusableError when a database belongs to another program or to a newer version of this one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise JournalUnusableError(
            path,
            f"it is a database of another program (application id {application:#x})",
            remedy="Give the daemon a state directory of its own, or move this file away",
        )
    if version > len(MIGRATIONS):
        raise JournalUnusableError(
            path,
            f"it was written by a newer version of this program (schema {version}; this one knows {len(MIGRATIONS)})",
            remedy="Install that version again: results that are still to be reported may be in it",
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database (or an empty one) to this program's version, one transaction for each step.

    Raises sqlite3.Error; the steps before stay then.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version, len(MIGRATIONS)):
        step = f"{MIGRATIONS[number]}PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number + 1};"
        try:
            connection.executescript(f"BEGIN IMMEDIATE;{step}COMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
