"""Costs of parts by themselves, where a whole daemon would hide them: locks and the journal.

The one module of the lab that reaches into these rooms (pyproject.toml says so too): no daemon on this machine can be
given ten thousand waiters or a million jobs.
"""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import anyio
from attrs import frozen

from ofborg_async.clock import SystemClock
from ofborg_async.journal import Attempt, Journal, OutboxResult
from ofborg_async.lab.bench.model import Series
from ofborg_async.locks import LockManager
from ofborg_async.model.job import Address

_REPETITIONS = 15
_PAGE_ROWS = 100

_FILL = """
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
INSERT INTO attempt (attempt_id, identity, system, request_id, repo, pr, head_sha, attrs, started_at_ms,
  finished_at_ms, status, durations, lines)
SELECT printf('%08x-0000-4000-8000-000000000000', n), printf('bench-%02d', n % 16), 'x86_64-linux',
  printf('request-%d', n), 'NixOS/nixpkgs', n, printf('%040x', n), '["hello"]', 1700000000000 + 1000 * n,
  1700000000500 + 1000 * n, 'Success', '{"fetch": 0.1, "checkout": 0.2, "evaluate": 1.5, "build": 60.0}', 120
FROM number
"""


async def lock_cpu_seconds(waiters: int) -> float:
    """CPU seconds until so many waiters for one lock have all had it."""
    manager = LockManager(SystemClock())

    async def wait(number: int) -> None:
        async with manager.hold("key", holder=f"bench-{number}", job=None):
            await anyio.lowlevel.checkpoint()

    began = thread_time()
    async with anyio.create_task_group() as group:
        for number in range(waiters):
            group.start_soon(wait, number)
    return thread_time() - began


@frozen
class JournalCosts:
    """Milliseconds to open it, to read its newest page, to enter an attempt from beginning to end; bytes of a row."""

    open_ms: Series
    page_ms: Series
    attempt_ms: Series
    row_bytes: float


async def journal_costs(directory: Path, rows: int, runs: int) -> JournalCosts:
    """What a journal with so many ended attempts costs; each value but the last is measured ``runs`` times."""
    directory.mkdir()
    journal = await _open(directory)
    await journal.close()
    file = directory / "journal.sqlite3"
    empty_bytes = file.stat().st_size
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(_FILL, (rows,))
    row_bytes = (file.stat().st_size - empty_bytes) / rows
    costs: list[tuple[float, float, float]] = []
    for _run in range(runs):
        began = perf_counter()
        journal = await _open(directory)
        open_ms = 1e3 * (perf_counter() - began)
        try:
            page_ms = await _median_ms(partial(journal.history, "bench-01", limit=_PAGE_ROWS))
            attempt_ms = await _median_ms(partial(_one_attempt, journal))
        finally:
            await journal.close()
        costs.append((open_ms, page_ms, attempt_ms))
    opens, pages, attempts = zip(*costs, strict=True)
    return JournalCosts(opens, pages, attempts, row_bytes)


async def _open(directory: Path) -> Journal:
    return await Journal.open(directory, clock=SystemClock())


async def _one_attempt(journal: Journal) -> None:
    """The five transactions of an ordinary attempt (Journal)."""
    attempt_id = str(uuid.uuid4())
    body = attempt_id.encode()
    attempt = Attempt(
        attempt_id=attempt_id,
        identity="bench-01",
        system="x86_64-linux",
        queue="build-inputs-x86_64-linux",
        request_id=attempt_id,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body=body,
        repo="NixOS/nixpkgs",
        pr=1,
        head_sha="a" * 40,
        attrs=("hello",),
        started_at=SystemClock().now(),
    )
    await journal.lookup(attempt.key)
    await journal.begin(attempt)
    await journal.mark_log_started(attempt_id)
    result = OutboxResult(Address("build-results", ""), Address("logs", "nixos/nixpkgs.1"), body)
    await journal.finish(attempt_id, result=result, outcome="Success", durations={"build": 1.0})
    await journal.confirm_and_mark(attempt_id)
    journal.log_done(attempt_id)
    await journal.acked(attempt_id)


async def _median_ms(call: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(_REPETITIONS):
        began = perf_counter()
        await call()
        times.append(1e3 * (perf_counter() - began))
    return median(times)
