"""Results on their way: what is told of each, and which moves are refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from journal_helpers import LOG, RES, copy_as_killed, finish, make_attempt, make_result, opened

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import AttemptStateError, Journal, OutboxState, Unroutable, opening


async def finished(journal: Journal, attempt_id: str, **changes: object) -> None:
    await journal.begin(make_attempt(attempt_id, request_id=attempt_id))
    await finish(journal, attempt_id, result=make_result(**changes))  # type: ignore[arg-type]


async def states(journal: Journal) -> dict[str, OutboxState]:
    return {entry.attempt_id: entry.state for entry in await journal.outbox()}


async def test_a_result_is_found_again_after_a_crash(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as journal:
        await journal.begin(make_attempt("a"))
        await journal.mark_log_started("a")
        journal.lines_confirmed("a", 17)
        await finish(journal, "a", result=make_result(b"\0\xff", lines=20))
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    async with opened(killed) as journal:
        (entry,) = await journal.outbox()
        assert entry.result == make_result(b"\0\xff", lines=20)
        assert entry.result.res_address == RES
        assert entry.result.log_address == LOG
        assert (entry.identity, entry.system, entry.request_id) == ("mac1-a", "x86_64-linux", "r1")
        assert (entry.state, entry.unroutable) == (OutboxState.PENDING, Unroutable.NO)
        assert (entry.log_started, entry.log_marked, entry.acked) == (True, False, False)
        assert entry.lines_confirmed == 17


async def test_a_result_while_another_program_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the host: the message goes back, which is noted later, and the job can be done again."""
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.1)
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt("a"))
        with closing(sqlite3.connect(tmp_path / "journal.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(HostFault, match="locked") as raised:
                await finish(journal, "a")
            assert raised.value.kind is FaultKind.DISK
            with pytest.raises(HostFault, match="locked"):
                await journal.requeued("a", "no result could be kept")
        await journal.begin(make_attempt("b"))
        await finish(journal, "b")
        assert [(entry.attempt_id, entry.status) for entry in await journal.history()] == [
            ("b", "Success"),
            ("a", "Requeued"),
        ]
        assert list(await states(journal)) == ["b"]


async def test_confirmed_lines_never_go_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "a")
        for line in (5, 9, 7):
            journal.lines_confirmed("a", line)
            await journal.flush()
        (entry,) = await journal.outbox()
        assert entry.lines_confirmed == 9


async def test_the_way_step_by_step(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "a")
        with pytest.raises(AttemptStateError, match="after the confirmation"):
            await journal.mark_log_copy("a")
        assert await journal.confirm_and_mark("a")
        assert not await journal.confirm_and_mark("a")  # at least once means maybe twice
        assert not await journal.mark_log_copy("a")
        assert await states(journal) == {"a": OutboxState.LOG_MARKED}
        with pytest.raises(AttemptStateError, match="confirmed as routed before"):
            await journal.unroutable("a", permanent=True)
        journal.log_done("a")
        assert await states(journal) == {}
        journal.log_done("a")
        with pytest.raises(AttemptStateError, match="no result in the outbox"):
            await journal.confirm_and_mark("a")


async def test_confirmation_and_mark_in_one_transaction(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as journal:
        await finished(journal, "a")
        before = journal.statistics.commits
        assert await journal.confirm_and_mark("a")
        assert journal.statistics.commits == before + 1
        assert not await journal.confirm_and_mark("a")
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    async with opened(killed) as journal:
        assert await states(journal) == {"a": OutboxState.LOG_MARKED}
        assert not await journal.confirm_and_mark("a")


async def test_where_nothing_goes_to_log_the_confirmation_is_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "a", log=None)
        (entry,) = await journal.outbox()
        assert (entry.result.log_address, entry.log_marked) == (None, False)
        assert not await journal.confirm_and_mark("a")
        assert await states(journal) == {}


async def test_an_unroutable_result_stays_and_its_copy_on_log_goes_out_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "a")
        await journal.unroutable("a", permanent=False)
        await journal.unroutable("a", permanent=True)
        assert await journal.mark_log_copy("a")
        journal.log_done("a")
        await journal.acked("a")
        (entry,) = await journal.outbox()
        assert (entry.state, entry.unroutable) == (OutboxState.PENDING, Unroutable.FOR_EVER)
        assert (entry.log_marked, entry.acked) == (True, True)
        counters = (await journal.counters())["mac1-a"]
        assert (counters.results_waiting, counters.unroutable) == (1, 1)
        assert not await journal.confirm_and_mark("a")  # rebound: it goes out, the copy does not go again
        assert await states(journal) == {}


async def test_a_confirmation_ends_being_unroutable(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "a")
        await journal.unroutable("a", permanent=False)
        assert await journal.confirm_and_mark("a")
        (entry,) = await journal.outbox()
        assert (entry.state, entry.unroutable) == (OutboxState.LOG_MARKED, Unroutable.NO)


async def test_the_outbox_is_in_the_order_of_finishing_and_comes_in_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        names = [f"a{number}" for number in range(7)]
        for name in names:
            await journal.begin(make_attempt(name, request_id=name))
        for name in reversed(names):
            await finish(journal, name)
        found = []
        after = 0
        while page := await journal.outbox(after=after, limit=3):
            assert len(page) <= 3
            found += [entry.attempt_id for entry in page]
            after = page[-1].position
        assert found == list(reversed(names))


async def test_live_attempts_are_those_that_run_or_wait(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await finished(journal, "done")
        assert await journal.confirm_and_mark("done")
        journal.log_done("done")
        await finished(journal, "waits")
        await journal.begin(make_attempt("runs"))
        assert await journal.live_attempts() == {"waits", "runs"}
