"""The clock, injected everywhere, so that tests set it and durations never follow the wall clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

import anyio


class Clock(Protocol):
    """Time as the daemon sees it."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back. For durations and deadlines."""
        ...

    def now(self) -> datetime:
        """Aware date and time in UTC. For people and the journal; it may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds``; cancellable."""
        ...


class SystemClock:
    """The host's clock."""

    def monotonic(self) -> float:
        """Seconds of the host's monotonic clock."""
        return time.monotonic()

    def now(self) -> datetime:
        """Date and time in UTC."""
        return datetime.now(UTC)  # noqa: TID251 - the one place that reads it

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds``."""
        await anyio.sleep(seconds)


def rfc3339(moment: datetime) -> str:
    """A UTC date and time as RFC 3339 with milliseconds and ``Z``, as every JSON answer has it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
