"""What the control server needs of the daemon, as a protocol. The contracts, with every error callers may see."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Protocol

from attrs import frozen

from ofborg_async.model.reload import ReloadReport
from ofborg_async.model.status import BrokenLock, DaemonSnapshot, HistoryEntry, LockSnapshot


class MetricKind(enum.StrEnum):
    """The types of Prometheus' text format that are used."""

    COUNTER = "counter"
    GAUGE = "gauge"


@frozen
class Sample:
    """One value of a metric; ``labels`` are pairs of name and value."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()


@frozen
class Metric:
    """One metric with all its samples. ``name`` is complete, with its unit and ``_total`` for counters."""

    name: str
    kind: MetricKind
    help: str
    samples: tuple[Sample, ...]


class DaemonControl(Protocol):
    """The daemon as the control API sees it.

    Names of identities come from people: each method that takes one raises UnknownNameError, with all known names.
    An empty tuple of identities means all of them. The server bounds each call with a deadline of its own.
    """

    def snapshot(self) -> DaemonSnapshot:
        """Sync. Everything ``status`` shows."""
        ...

    def locks(self) -> tuple[LockSnapshot, ...]:
        """Sync. Every lock that is held or waited for."""
        ...

    def metrics(self) -> tuple[Metric, ...]:
        """Sync. Counters that no snapshot holds; what the snapshot holds is rendered from it by the server."""
        ...

    def why(self, identity: str) -> str:
        """Sync. The one reason why it is not building now, as a sentence. Raises UnknownNameError."""
        ...

    async def history(
        self, identity: str | None, since: datetime | None, limit: int, before: str | None
    ) -> tuple[HistoryEntry, ...]:
        """Finished attempts, newest first, at most ``limit``. Raises UnknownNameError.

        ``since`` (aware) bounds ``finished_at`` from below; ``before`` is the ``attempt_id`` of the last entry of the
        page before this one.
        """
        ...

    async def read_log(self, selector: str, follow: bool) -> AsyncGenerator[bytes, None]:
        """The log of an attempt in chunks of any size, its bytes as they were kept.

        ``selector`` is an attempt id, a prefix of one that is unique, or an identity (its running attempt, or else its
        newest). Raises UnknownNameError and ConflictError (an ambiguous prefix, a log no longer kept) before the first
        chunk. With ``follow`` the generator ends when the attempt has ended; else at what is there now. The caller
        closes it (``aclose``) when it has had enough; no cancel scope of the generator may span a ``yield``.
        """
        ...

    async def drain(self, identities: tuple[str, ...], deadline_seconds: float | None) -> None:
        """Take no new job and let the running ones finish; after the deadline they are ended and requeued.

        Returns at once. Raises UnknownNameError.
        """
        ...

    async def wait_drained(self, identities: tuple[str, ...]) -> None:
        """Return once none of these identities has a job and none takes one. Raises UnknownNameError, ConflictError."""
        ...

    async def stop(self) -> None:
        """Ask the daemon to stop; returns at once, and the answer to the caller is still sent."""
        ...

    async def pause(self, identities: tuple[str, ...], reason: str, until: datetime | None) -> None:
        """Take no new job until resumed or until that time; survives a restart. Raises UnknownNameError."""
        ...

    async def resume(self, identities: tuple[str, ...]) -> None:
        """Undo pause, drain and quarantine. Raises UnknownNameError."""
        ...

    async def cancel(self, attempt_id: str) -> None:
        """End one running build, its whole process tree, and report it. A unique prefix will do.

        Returns once it is being ended. Raises UnknownNameError, ConflictError (it has ended, or the prefix is
        ambiguous).
        """
        ...

    async def restart(self, identity: str) -> None:
        """Start an identity anew; its running jobs are ended and requeued. Raises UnknownNameError."""
        ...

    async def reload(self) -> ReloadReport:
        """Read the configuration again and do what it says; faults change nothing and are in the report.

        Returns once it is decided what happens, not when it has. Raises ConflictError while the daemon stops.
        """
        ...

    async def break_lock(self, key: str) -> BrokenLock:
        """Free a lock whose holder is dead, by ending what the holder left behind. Never removes a lock file.

        Raises UnknownNameError; ConflictError when the holder is alive, or is not known to be dead; HostFault.
        """
        ...
