"""Results without their lane: sent until the broker has them, also after faults of this host, with a real journal."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup
from attrs import define, field
from waits import eventually

from ofborg_async.clock import SystemClock
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import Attempt, Journal, LogStore, OutboxEntry, OutboxResult
from ofborg_async.model.identity import LimitSettings
from ofborg_async.model.job import Address
from ofborg_async.pipeline.courier import Courier, Parcel
from ofborg_async.supervisor import outbox as module
from ofborg_async.supervisor.claims import Claim, Claims
from ofborg_async.supervisor.outbox import Outbox

RES, LOG = Address("build-results", ""), Address("logs", "o/n.1")


@define
class Sink:
    """Takes everything, as a broker that works."""

    results: list[bytes] = field(factory=list)
    logged: list[bytes] = field(factory=list)
    closed: int = 0

    async def publish_result(self, to: Address, body: bytes) -> None:
        self.results.append(body)

    async def open_log(self) -> None: ...

    async def send_log(self, to: Address, bodies: Sequence[bytes]) -> Sink:
        self.logged += bodies
        return self

    async def wait(self) -> None: ...

    async def publish_log(self, to: Address, bodies: Sequence[bytes]) -> None:
        self.logged += bodies

    async def wait_back(self) -> None:
        await anyio.sleep_forever()

    async def close(self) -> None:
        self.closed += 1


@define
class Stage:
    journal: Journal
    outbox: Outbox
    sink: Sink
    claim: Claim
    group: TaskGroup
    reported: list[Claim | None] = field(factory=list)

    async def note(self, claim: Claim | None) -> None:
        self.reported.append(claim)

    async def is_empty(self) -> bool:
        return not await self.journal.outbox()


@asynccontextmanager
async def stage(tmp_path: Path, attempt_id: str = "a1", log: Address | None = LOG) -> AsyncIterator[Stage]:
    clock = SystemClock()
    journal = await Journal.open(tmp_path, clock=clock)
    body = b"{}"
    attempt = Attempt(
        attempt_id=attempt_id, identity="i", system="s", queue="q", request_id="r",
        body_sha256=hashlib.sha256(body).hexdigest(), body=body, repo="o/n", pr=1, head_sha="0" * 40, attrs=("x",),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    await journal.begin(attempt)
    result = OutboxResult(RES, log, b"result", b"start", 0)
    await journal.finish(attempt_id, result=result, outcome="Success", durations={})
    claim = Claims().claim(attempt.key, attempt_id)
    sink = Sink()
    try:
        async with anyio.create_task_group() as group:
            logs = LogStore(tmp_path, limits=LimitSettings())
            yield Stage(journal, Outbox(group, journal, logs, clock, lambda *_: sink), sink, claim, group)
            group.cancel_scope.cancel()
    finally:
        await journal.close()


async def test_a_result_of_a_job_that_was_cut_off_goes_out(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        on.outbox.take_over("a1", on.claim, 1.0, on.note)
        await eventually("it is reported", lambda: on.reported)
        assert on.reported == [on.claim]
        assert (on.sink.results, on.sink.logged) == ([b"result"], [b"start", b"result"])
        await on.journal.flush()
        assert await on.is_empty()
        on.outbox.take_over("a1", on.claim, 1.0, on.note)  # cut off between the confirmation and the report
        await eventually("it is reported again", lambda: len(on.reported) == 2)
        assert on.sink.results == [b"result"]


async def test_a_result_that_is_out_gives_its_channels_back(tmp_path: Path) -> None:
    """Else a thousand results that an earlier daemon left would use up all channels that a connection may have."""
    async with stage(tmp_path) as on:
        on.outbox.take_over("a1", on.claim, 1.0, on.note)
        await eventually("it is reported", lambda: on.reported)
        await eventually("its channels are closed", lambda: on.sink.closed == 1)


async def test_a_result_that_is_kept_has_channels_of_its_own(tmp_path: Path) -> None:
    """The lane goes on to its next job with its own: to close these would cost it what it has under way."""
    async with stage(tmp_path) as on:
        lanes = Sink()
        courier = Courier("s", "i", "a1", LOG, lanes, on.journal, SystemClock(), 1.0)
        on.outbox.keep(courier, Parcel(b"result", RES, on_log=True))
        await eventually("its channels are closed", lambda: on.sink.closed == 1)
        assert (on.sink.results, lanes.results, lanes.closed) == ([b"result"], [], 0)


async def test_a_journal_that_cannot_be_read_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSE_SECONDS", 0.01)
    faults = [HostFault(FaultKind.DISK, "input/output error")] * 2
    read = Journal.outbox

    async def failing(self: Journal, *, after: int = 0, limit: int = 1000) -> tuple[OutboxEntry, ...]:
        if faults:
            raise faults.pop()
        return await read(self, after=after, limit=limit)

    monkeypatch.setattr(Journal, "outbox", failing)
    async with stage(tmp_path) as on:
        on.outbox.take_over("a1", on.claim, 1.0, on.note)
        await eventually("it is reported", lambda: on.reported)
        assert on.sink.results == [b"result"]
        assert faults == []


async def test_what_is_out_is_not_published_again(tmp_path: Path) -> None:
    """Killed between the confirmation and its end: by now the broker may have nowhere to route it to."""
    async with stage(tmp_path) as on:
        assert await on.journal.confirm_and_mark("a1")
        on.outbox.take_over("a1", on.claim, 1.0, on.note)
        await eventually("it is reported", lambda: on.reported)
        assert (on.sink.results, on.sink.logged) == ([], [])
        await on.journal.flush()
        assert await on.is_empty()


@pytest.mark.parametrize("log", [LOG, None])
@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_confirmation_that_was_written_too_late_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_kept: bool, log: Address | None
) -> None:
    """The disk stood still for longer than a call may take. Where nothing goes to LOG, the entry is gone by now."""
    monkeypatch.setattr(module, "FAULT_PAUSE_SECONDS", 0.01)
    late = [HostFault(FaultKind.DISK, "not written within 60 s")]
    confirm = Journal.confirm_and_mark

    async def failing(self: Journal, attempt_id: str) -> bool:
        done = await confirm(self, attempt_id)
        if late:
            raise late.pop()
        return done

    monkeypatch.setattr(Journal, "confirm_and_mark", failing)
    async with stage(tmp_path, log=log) as on:
        if is_kept:
            courier = Courier("s", "i", "a1", LOG, on.sink, on.journal, SystemClock(), 1.0)
            on.outbox.keep(courier, Parcel(b"result", RES, on_log=log is not None))
        else:
            on.outbox.take_over("a1", on.claim, 1.0, on.note)
            await eventually("it is reported", lambda: on.reported)
        await eventually("it is over", lambda: on.sink.closed == 1)
        assert on.sink.results == [b"result"]


async def test_a_full_disk_does_not_end_the_outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSE_SECONDS", 0.01)
    faults = [HostFault(FaultKind.DISK, "full")] * 2
    confirm = Journal.confirm_and_mark

    async def failing(self: Journal, attempt_id: str) -> bool:
        if faults:
            raise faults.pop()
        return await confirm(self, attempt_id)

    monkeypatch.setattr(Journal, "confirm_and_mark", failing)
    async with stage(tmp_path) as on:
        assert not on.outbox.trouble_of("i")
        on.outbox.take_over("a1", on.claim, 1.0, on.note)
        await eventually("trouble", lambda: on.outbox.trouble_of("i") or on.reported)
        await eventually("it is reported", lambda: on.reported)
        await eventually("no trouble", lambda: not on.outbox.trouble_of("i"))
        assert (on.sink.results, on.sink.logged) == ([b"result"] * 3, [b"start", b"result"])
