"""Attempts and what is remembered of their deliveries."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from journal_helpers import EPOCH, FakeClock, copy_as_killed, finish, make_attempt, make_result, opened

from ofborg_async.journal import AttemptStateError, DuplicateAttemptError, Journal, Seen, SeenState
from ofborg_async.model.status import Phase


async def trace(journal: Journal) -> list[str]:
    """Every SQL statement from now on."""
    statements: list[str] = []

    def start(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(statements.append)

    await journal._writer.read(start)
    statements.clear()
    return statements


async def test_an_attempt_is_on_disk_once_begin_returns(tmp_path: Path) -> None:
    attempt = make_attempt(attrs=("hello", "schöner-stern"))
    async with opened(tmp_path / "state") as journal:
        await journal.begin(attempt)
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    async with opened(killed) as journal:
        (found,) = await journal.interrupted()
        assert found.attempt == attempt
        assert found.starts == 1


async def test_ordinary_attempt_takes_five_transactions(tmp_path: Path) -> None:
    """These five must survive a kill one after the other, and all else (phases, lines, log_done) must join them.

    Before anything starts; before LogStart is published; before the result is; before its copy on LOG is; and after the
    ack. Two of them wait for the disk: the result and the mark of its copy.
    """
    attempt = make_attempt()
    async with opened(tmp_path) as journal:
        statements = await trace(journal)
        assert await journal.lookup(attempt.key) is None
        before, syncs = journal.statistics.commits, journal.statistics.syncs
        await journal.begin(attempt)
        for phase in Phase:
            journal.phase(attempt.attempt_id, phase)
        assert await journal.mark_log_started(attempt.attempt_id)
        for line in range(100):
            journal.lines_confirmed(attempt.attempt_id, line)
        await finish(journal, attempt.attempt_id)
        assert await journal.confirm_and_mark(attempt.attempt_id)
        journal.log_done(attempt.attempt_id)
        await journal.acked(attempt.attempt_id)
        assert journal.statistics.commits - before == 5
        assert journal.statistics.syncs - syncs == 2
        # What is left is only work: bound it, so that nobody adds a statement unnoticed.
        assert len([text for text in statements if not text.startswith("--")]) <= 42
        assert await journal.outbox() == ()
        await journal.flush()  # a second later: the ack is brought to the disk
        await journal.flush()
        assert journal.statistics.commits - before == 6


async def test_log_start_is_marked_once(tmp_path: Path) -> None:
    attempt = make_attempt()
    async with opened(tmp_path / "state") as journal:
        await journal.begin(attempt)
        assert await journal.mark_log_started(attempt.attempt_id)
        assert not await journal.mark_log_started(attempt.attempt_id)
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
        with pytest.raises(AttemptStateError, match="not in the journal"):
            await journal.mark_log_started("nobody")
    async with opened(killed) as journal:
        assert not await journal.mark_log_started(attempt.attempt_id)


async def test_a_delivery_is_remembered_until_its_ack_is_processed(tmp_path: Path) -> None:
    attempt = make_attempt(identity="a")
    again = make_attempt(identity="b", attempt_id="second")
    async with opened(tmp_path) as journal:
        await journal.begin(attempt)
        running = Seen(SeenState.RUNNING, attempt.attempt_id, "a", "x86_64-linux", 0, 0)
        assert await journal.lookup(again.key) == running
        with pytest.raises(DuplicateAttemptError) as duplicate:
            await journal.begin(again)
        assert duplicate.value.seen == running
        with pytest.raises(AttemptStateError, match="still running"):
            await journal.acked(attempt.attempt_id)

        await finish(journal, attempt.attempt_id)
        finished = Seen(SeenState.FINISHED, attempt.attempt_id, "a", "x86_64-linux", 0, 0)
        assert await journal.lookup(again.key) == finished
        with pytest.raises(DuplicateAttemptError):
            await journal.begin(again)

        await journal.acked(attempt.attempt_id)
        assert await journal.lookup(again.key) is None
        await journal.acked(attempt.attempt_id)
        await journal.begin(again)


async def test_another_body_queue_or_request_is_another_job(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt())
        await journal.begin(make_attempt(body=b"other"))
        await journal.begin(make_attempt(queue="build-inputs-aarch64-linux"))
        await journal.begin(make_attempt(request_id="r2"))
        assert len(await journal.live_attempts()) == 4


async def test_an_attempt_ends_once(tmp_path: Path) -> None:
    attempt = make_attempt()
    async with opened(tmp_path) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id)
        await finish(journal, attempt.attempt_id)  # a caller that does not know whether it happened asks again
        for ending in (finish(journal, attempt.attempt_id, "Failure"), journal.requeued(attempt.attempt_id, "again")):
            with pytest.raises(AttemptStateError, match="not running"):
                await ending
        assert len(await journal.outbox()) == 1
        assert (await journal.counters())["mac1-a"].ok_24h == 1


async def test_an_attempt_without_a_result_is_remembered_until_its_ack(tmp_path: Path) -> None:
    attempt = make_attempt()
    async with opened(tmp_path) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id, "Gone", result=None)
        assert await journal.outbox() == ()
        seen = await journal.lookup(attempt.key)
        assert seen is not None
        assert seen.state is SeenState.FINISHED


async def test_requeues_are_counted_when_they_are_for_a_fault_of_the_host(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for host_fault in (True, False, True):
            attempt = make_attempt()
            await journal.begin(attempt)
            await journal.requeued(attempt.attempt_id, "no space", host_fault=host_fault)
        assert await journal.lookup(attempt.key) == Seen(SeenState.IDLE, "", "", "", 0, 2)
        last, _, first = await journal.history()
        assert (first.status, first.reason, last.attempt_id) == ("Requeued", "no space", attempt.attempt_id)
        await journal.begin(attempt := make_attempt())
        assert await journal.lookup(attempt.key) == Seen(
            SeenState.RUNNING, attempt.attempt_id, "mac1-a", "x86_64-linux", 0, 2
        )


async def test_crashes_are_counted_until_the_job_is_acknowledged(tmp_path: Path) -> None:
    directory = tmp_path / "0"
    for crash in range(3):
        attempt = make_attempt()
        async with opened(directory) as journal:
            assert len(await journal.interrupted()) == min(crash, 1)
            seen = await journal.lookup(attempt.key)
            assert (seen.starts if seen else 0) == crash
            await journal.begin(attempt)
            journal.phase(attempt.attempt_id, Phase.BUILD)
            await journal.flush()
            directory = copy_as_killed(directory, tmp_path / str(crash + 1))
    async with opened(directory) as journal:
        (found,) = await journal.interrupted()
        assert (found.starts, found.phase) == (3, "build")
        assert await journal.interrupted() == ()
        entry, *_ = await journal.history()
        assert (entry.status, entry.reason) == ("Interrupted", "the daemon died during build")
        assert (await journal.counters()) == {}
        await journal.begin(attempt := make_attempt())
        await finish(journal, attempt.attempt_id, "UnexpectedError")
        await journal.acked(attempt.attempt_id)
        assert await journal.lookup(attempt.key) is None


async def test_finished_deliveries_expire(tmp_path: Path) -> None:
    clock = FakeClock()
    attempt = make_attempt()
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        await journal.begin(attempt)
        clock.advance(1000)
        assert await journal.lookup(attempt.key) is not None  # running ones never do
        await finish(journal, attempt.attempt_id)
        clock.advance(99)
        assert await journal.lookup(attempt.key) is not None
        clock.advance(1)
        assert await journal.lookup(attempt.key) is None
        assert len(await journal.outbox()) == 1  # the result does not expire


async def test_steps_of_the_wall_clock_neither_kill_nor_revive_while_the_daemon_runs(tmp_path: Path) -> None:
    clock = FakeClock()
    attempt = make_attempt()
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id)
        clock.jump(10_000_000)
        assert await journal.lookup(attempt.key) is not None
        clock.jump(-20_000_000)
        clock.advance(100)
        assert await journal.lookup(attempt.key) is None


async def test_a_wall_clock_set_back_across_a_restart_does_not_revive(tmp_path: Path) -> None:
    clock = FakeClock()
    attempt, other = make_attempt(), make_attempt(request_id="r2")
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id)
        clock.advance(60)
        await journal.begin(other)
        await finish(journal, other.attempt_id)
        clock.advance(50)
        assert await journal.lookup(attempt.key) is None
    restarted = FakeClock(EPOCH)  # 110 s back, and a monotonic clock that starts anew
    async with opened(tmp_path, restarted, expiry_seconds=100) as journal:
        assert await journal.lookup(attempt.key) is None
        assert await journal.lookup(other.key) is not None
        restarted.advance(100)
        assert await journal.lookup(other.key) is None


async def test_time_that_passed_while_the_daemon_was_down_counts(tmp_path: Path) -> None:
    clock = FakeClock()
    attempt = make_attempt()
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id)
    clock.jump(99)
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        assert await journal.lookup(attempt.key) is not None
    clock.jump(1)
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        assert await journal.lookup(attempt.key) is None


async def test_expired_counts_do_not_pass_to_a_new_attempt(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock, expiry_seconds=100) as journal:
        await journal.begin(attempt := make_attempt())
        await journal.requeued(attempt.attempt_id, "no space")
        clock.advance(200)
        await journal.begin(attempt := make_attempt())
        seen = await journal.lookup(attempt.key)
        assert seen is not None
        assert (seen.state, seen.host_faults) == (SeenState.RUNNING, 0)


async def test_a_result_survives_the_ack_while_it_cannot_be_routed(tmp_path: Path) -> None:
    attempt = make_attempt()
    async with opened(tmp_path) as journal:
        await journal.begin(attempt)
        await finish(journal, attempt.attempt_id, result=make_result(b"first"))
        await journal.unroutable(attempt.attempt_id, permanent=False)
        await journal.acked(attempt.attempt_id)
        await journal.begin(again := make_attempt())
        await finish(journal, again.attempt_id, result=make_result(b"second"))
        first, second = await journal.outbox()
        assert (first.result.body, first.acked) == (b"first", True)
        assert (second.result.body, second.acked) == (b"second", False)
