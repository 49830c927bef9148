"""Snapshots as JSON documents: the field names are the attributes', enumerations their texts, tuples lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import attrs

from ofborg_async.model.reload import ReloadReport
from ofborg_async.model.status import BrokenLock, DaemonSnapshot, HistoryEntry, LockSnapshot

SCHEMA = 1
"""The version of every document; raised when a field changes its meaning or goes."""

LONG_POLL_SECONDS = 20.0
"""The longest wait of one request for a drain to end; the caller asks again."""

REFUSED = HTTPStatus(422)
"""The status of a reload that found faults; its document is that of any reload."""


BREAK_SECONDS = 60.0
"""How long ``locks --break`` may take: the processes that it ends have a grace."""


def status_document(snapshot: DaemonSnapshot) -> dict[str, Any]:
    """The answer to ``status`` (interface document)."""
    return attrs.asdict(snapshot)


def locks_document(locks: Sequence[LockSnapshot]) -> dict[str, Any]:
    """The answer to ``locks``."""
    return {"schema": SCHEMA, "locks": [attrs.asdict(lock) for lock in locks]}


def broken_lock_document(broken: BrokenLock) -> dict[str, Any]:
    """The answer to ``locks --break``."""
    return {"schema": SCHEMA, "lock": attrs.asdict(broken)}


def history_document(entries: Sequence[HistoryEntry]) -> dict[str, Any]:
    """The answer to ``history``."""
    return {"schema": SCHEMA, "entries": [attrs.asdict(entry) for entry in entries]}


def reload_document(report: ReloadReport) -> dict[str, Any]:
    """The answer to ``reload``."""
    return attrs.asdict(report)


def encode(document: Any) -> bytes:
    """A JSON document as one line of ASCII: what others wrote cannot reach a terminal as a control character."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
