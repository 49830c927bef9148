"""The history, its counts and pruning, and that their cost does not follow its length."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from journal_helpers import EPOCH, FakeClock, finish, make_attempt, opened

from ofborg_async.crashpoints import Step
from ofborg_async.journal import AttemptStateError, Counters, Journal, attempts, history, outbox
from ofborg_async.model.status import HistoryEntry, Phase

ROWS = 1_000_000


async def ended(journal: Journal, attempt_id: str, outcome: str = "Success", **changes: str | int) -> None:
    await journal.begin(make_attempt(attempt_id, request_id=attempt_id, **changes))
    await finish(journal, attempt_id, outcome, result=None)
    await journal.acked(attempt_id)


async def test_an_entry_says_everything(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as journal:
        await journal.begin(make_attempt("a", pr=2**63 - 1))
        clock.advance(12.75)
        await finish(journal, "a", "Failure", reason="1 of 2", durations={Phase.FETCH: 0.12345, Phase.BUILD: 12.0})
        assert await journal.history() == (
            HistoryEntry(
                attempt_id="a",
                identity="mac1-a",
                system="x86_64-linux",
                repo="NixOS/nixpkgs",
                pr=2**63 - 1,
                attrs=("hello", "git"),
                status="Failure",
                reason="1 of 2",
                started_at="2026-01-01T00:00:00.000Z",
                finished_at="2026-01-01T00:00:12.750Z",
                durations_seconds={"fetch": 0.123, "build": 12.0},
                lines=3,
                peak_memory_bytes=4096,
            ),
        )


@pytest.mark.parametrize("number", [0, 2**63 - 1, 2**63, 2**64 - 1])
async def test_any_number_that_the_wire_allows_comes_back(tmp_path: Path, number: int) -> None:
    """One that SQLite has no integer for would end one identity after another: the message would come back to each."""
    async with opened(tmp_path) as journal:
        await ended(journal, "a", pr=number)
        assert [entry.pr for entry in await journal.history()] == [number]
        await journal.begin(make_attempt("b", request_id="b", pr=number))
        assert [left.attempt.pr for left in await journal.interrupted()] == [number]


async def test_pages_are_newest_first_and_lose_none_of_the_same_moment(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as journal:
        for number in range(10):
            await ended(journal, f"a{number}", identity="even" if number % 2 == 0 else "odd")
            if number % 3 == 0:
                clock.advance(60)
        await journal.begin(make_attempt("running"))
        for identity, expected in ((None, range(9, -1, -1)), ("odd", range(9, 0, -2)), ("nobody", ())):
            found: list[str] = []
            while page := await journal.history(identity, limit=3, before=found[-1] if found else None):
                found += [entry.attempt_id for entry in page]
            assert found == [f"a{number}" for number in expected]
        since = await journal.history(since=EPOCH + timedelta(seconds=120))
        assert [entry.attempt_id for entry in since] == ["a9", "a8", "a7", "a6", "a5", "a4"]
        for unknown in ("nobody", "running"):
            with pytest.raises(AttemptStateError, match="not in the history"):
                await journal.history(before=unknown)


async def test_counts_of_the_last_day(tmp_path: Path) -> None:
    clock = FakeClock()
    outcomes = ("Success", "Success", "Failure", "TimedOut", "HashMismatch", "UnexpectedError", "Skipped", "Gone")
    async with opened(tmp_path, clock) as journal:
        for number, outcome in enumerate(outcomes):
            await ended(journal, f"a{number}", outcome)
        await journal.restarted("mac1-a")
        await journal.restarted("mac1-a")
        await journal.restarted("mac1-b")
        assert await journal.counters() == {
            "mac1-a": Counters(ok_24h=2, failed_24h=4, restarts=2),
            "mac1-b": Counters(restarts=1),
        }
        clock.advance(23 * 3600)
        await ended(journal, "later")
        assert (await journal.counters())["mac1-a"].ok_24h == 3
        clock.advance(3600)
        assert (await journal.counters())["mac1-a"] == Counters(ok_24h=1, failed_24h=0, restarts=2)
    async with opened(tmp_path, clock) as journal:
        assert (await journal.counters())["mac1-a"].ok_24h == 1


async def test_pruning_leaves_what_is_on_its_way(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock, expiry_seconds=1e9) as journal:
        for number in range(history.PRUNE_BATCH_ROWS + 3):
            await ended(journal, f"old{number}")
        await journal.begin(make_attempt("outbox", request_id="1"))
        await finish(journal, "outbox")
        await journal.acked("outbox")
        await journal.begin(make_attempt("unacked", request_id="2"))
        await finish(journal, "unacked", result=None)
        await journal.begin(make_attempt("running", request_id="3"))
        clock.advance(10 * 24 * 3600)
        await ended(journal, "new")
        assert await journal.prune(11) == 0
        assert await journal.prune(10) == 0
        clock.advance(1)
        assert await journal.prune(10) == history.PRUNE_BATCH_ROWS + 3
        assert {entry.attempt_id for entry in await journal.history()} == {"new", "unacked", "outbox"}
        assert await journal.confirm_and_mark("outbox")
        journal.log_done("outbox")
        await journal.acked("unacked")
        await finish(journal, "running")
        assert await journal.prune(10) == 2
        assert {entry.attempt_id for entry in await journal.history()} == {"new", "running"}


async def test_pruning_lets_other_calls_pass(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as journal:
        await journal._writer.write(Step.JOURNAL_FLUSH, lambda db: fill(db, history.PRUNE_BATCH_ROWS * 5))
        clock.advance(100 * 24 * 3600)
        before = journal.statistics.commits
        assert await journal.prune(1) == history.PRUNE_BATCH_ROWS * 5
        assert journal.statistics.commits - before >= 5


def fill(connection: sqlite3.Connection, rows: int) -> None:
    """Many ended attempts of four identities, one each second, made by SQLite itself."""
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1) "
        "INSERT INTO attempt (attempt_id, identity, system, request_id, repo, pr, head_sha, attrs, started_at_ms,"
        " finished_at_ms, status) "
        "SELECT 'a' || i, 'mac1-' || (i % 4), 'x86_64-linux', i, 'NixOS/nixpkgs', i, 'f', '[]', ? + i * 1000,"
        " ? + i * 1000, 'Success' FROM n",
        (rows, int(EPOCH.timestamp()) * 1000, int(EPOCH.timestamp()) * 1000),
    )


LARGE_TABLES = {"attempt"}
QUERIES = {
    "page of all": (history.PAGE_OF_ALL, (0, 1 << 62, 1 << 62, 100)),
    "page of an identity": (history.PAGE_OF_IDENTITY, ("mac1-1", 0, 1 << 62, 1 << 62, 100)),
    "page of an identity without any": (history.PAGE_OF_IDENTITY, ("nobody", 0, 1 << 62, 1 << 62, 100)),
    "cursor": (history.CURSOR, ("a5",)),
    "tallies": (history.TALLIES, (0,)),
    "waiting": (history.WAITING, ()),
    "prunable": (history.PRUNABLE, (0, 500)),
    "lookup": (attempts._LOOKUP, ("q", "r", "s")),
    "running": (attempts._RUNNING, ("a5",)),
    "interrupted": (attempts._INTERRUPTED, ()),
    "outbox": (outbox._ENTRIES, (0, 100)),
    "one": (outbox._ONE, ("a5",)),
    "live": (outbox._LIVE, ()),
}


async def test_a_million_rows_are_reached_by_indexes_only(tmp_path: Path) -> None:
    """No query may scan or sort the large table; small ones (outbox, running, tally) may be scanned."""
    plans: dict[str, list[str]] = {}
    steps: dict[str, int] = {}

    def explain(connection: sqlite3.Connection) -> None:
        for name, (query, arguments) in QUERIES.items():
            plans[name] = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", arguments)]

    def count_steps(connection: sqlite3.Connection) -> None:
        for name, (query, arguments) in QUERIES.items():
            ticks = 0

            def tick() -> int:
                nonlocal ticks
                ticks += 1
                return 0

            connection.set_progress_handler(tick, 100)
            connection.execute(query, arguments).fetchall()
            connection.set_progress_handler(None, 100)
            steps[name] = ticks * 100

    async with opened(tmp_path) as journal:
        await journal._writer.write(Step.JOURNAL_FLUSH, lambda db: fill(db, ROWS))
        await journal._writer.read(explain)
        await journal._writer.read(count_steps)
        assert len(await journal.history("mac1-1", limit=7)) == 7
    for name, plan in plans.items():
        for step in plan:
            words = step.split()
            assert not (words[0] == "SCAN" and words[1] in LARGE_TABLES), f"{name}: {step}"
            if any(table in " ".join(plan) for table in LARGE_TABLES) and name != "waiting":
                assert "TEMP B-TREE" not in step, f"{name}: {step}"
    # The same said by SQLite's own virtual machine: steps follow the page, not the table.
    assert max(steps.values()) < 20_000, steps
