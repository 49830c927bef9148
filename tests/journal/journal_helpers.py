"""What the journal's tests share: a settable clock, attempts, and a copy of the files as SIGKILL would leave them."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ofborg_async.journal import Attempt, Journal, OutboxResult
from ofborg_async.model.job import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
RES = Address("build-results", "")
LOG = Address("logs", "nixos/nixpkgs.1")


class FakeClock:
    """Stands still until it is moved. The wall clock can also jump by itself."""

    def __init__(self, wall: datetime = EPOCH) -> None:
        self.wall = wall
        self.passed_seconds = 0.0

    def monotonic(self) -> float:
        return self.passed_seconds

    def now(self) -> datetime:
        return self.wall

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await anyio.lowlevel.checkpoint()

    def advance(self, seconds: float) -> None:
        self.passed_seconds += seconds
        self.wall += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)


def make_attempt(attempt_id: str = "", **changes: Any) -> Attempt:
    body = changes.pop("body", b'{"request_id": "r1"}')
    values: dict[str, Any] = {
        "attempt_id": attempt_id or str(uuid.uuid4()),
        "identity": "mac1-a",
        "system": "x86_64-linux",
        "queue": "build-inputs-x86_64-linux",
        "request_id": "r1",
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "body": body,
        "repo": "NixOS/nixpkgs",
        "pr": 1,
        "head_sha": "a" * 40,
        "attrs": ("hello", "git"),
        "started_at": EPOCH,
    }
    return Attempt(**values | changes)


def make_result(body: bytes = b'{"tag":"V1"}', log: Address | None = LOG, lines: int = 3) -> OutboxResult:
    return OutboxResult(RES, log, body, b"message", lines)


async def finish(journal: Journal, attempt_id: str, outcome: str = "Success", **changes: Any) -> None:
    values: dict[str, Any] = {
        "result": make_result(),
        "outcome": outcome,
        "reason": "",
        "durations": {"fetch": 0.25, "build": 12.5},
        "lines": 3,
        "peak_memory_bytes": 4096,
    }
    await journal.finish(attempt_id, **values | changes)


@asynccontextmanager
async def opened(directory: Path, clock: FakeClock | None = None, **options: Any) -> AsyncIterator[Journal]:
    """A journal that is closed at the end. Its reserve is small unless said."""
    options.setdefault("reserve_bytes", 1 << 16)
    journal = await Journal.open(directory, clock=clock or FakeClock(), **options)
    try:
        yield journal
    finally:
        await journal.close()


def copy_as_killed(directory: Path, target: Path) -> Path:
    """The files as they would be had the daemon been killed now. The shared-memory file is rebuilt from the WAL."""
    target.mkdir()
    for path in directory.iterdir():
        if path.is_file() and not path.name.endswith("-shm"):
            shutil.copy2(path, target / path.name)
    return target
