"""A job whose end the journal wrote, but too late to tell it, and one that is ended while it waits for its turn."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from waits import eventually

from ofborg_async.clock import SystemClock
from ofborg_async.errors import CancelReason, FaultKind, HostFault
from ofborg_async.journal import JobKey, Journal
from ofborg_async.model.identity import BrokerSettings, IdentitySettings, NixSettings, Secret
from ofborg_async.model.job import Address, BuildJob, PullRequest, Repo
from ofborg_async.supervisor.budget import HostBudget
from ofborg_async.supervisor.claims import Claims
from ofborg_async.supervisor.task import JobTask

JOB = BuildJob(
    repo=Repo("o", "n", "o/n", "/n"),
    pr=PullRequest(1, "0" * 40, None),
    attrs=("ok",),
    request_id="r",
    subset=None,
    logs=Address("logs", "x"),
    statusreport=Address("results", ""),
)


class Given:
    """A station and the outbox of one: they write down what they are given."""

    system = "x86_64-linux"

    def __init__(self) -> None:
        self.nix = self.workspace = self.publisher = self
        self.builds = HostBudget("builds", 1)
        self.taken_over: list[str] = []
        self.results = 0

    async def publish_result(self, *_: object) -> None:
        self.results += 1

    async def open_log(self) -> None: ...

    async def publish_log(self, *_: object) -> None: ...

    async def forget(self, attempt_id: str) -> None: ...

    async def release(self, attempt_id: str) -> None: ...

    def peak_rss_bytes(self, attempt_id: str) -> int:
        return len(attempt_id)

    def take_over(self, attempt_id: str, *_: object) -> None:
        self.taken_over.append(attempt_id)


@asynccontextmanager
async def job(tmp_path: Path, returns: int = 0) -> AsyncIterator[tuple[JobTask, Any, Journal]]:
    """A job in the hands of a lane, what it is given, and a real journal."""

    async def ack() -> None: ...

    journal = await Journal.open(tmp_path, clock=SystemClock())
    try:
        given: Any = Given()
        services: Any = SimpleNamespace(
            clock=SystemClock(),
            journal=journal,
            claims=Claims(),
            outbox=given,
            builds=given.builds,
            root_fault=lambda _: None,
        )
        settings = IdentitySettings(
            name="one",
            root=tmp_path,
            nix=NixSettings(systems=("x86_64-linux",)),
            broker=BrokerSettings(addresses=(("localhost", 1),), vhost="/", username="u", password=Secret("p")),
        )
        delivery: Any = SimpleNamespace(body=b"{}", returns=returns, lost=False, ack=ack)
        key = JobKey("q", "r", hashlib.sha256(b"{}").hexdigest())
        yield JobTask(given, settings, services, JOB, key, delivery), given, journal
    finally:
        await journal.close()


async def test_a_result_that_was_recorded_too_late_to_tell_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk stood still for longer than a call may take. The message must not go back, nor its claim stay."""
    finish = Journal.finish

    async def late(self: Journal, *words: Any, **named: Any) -> None:
        await finish(self, *words, **named)
        raise HostFault(FaultKind.DISK, "not written within 60 s")

    monkeypatch.setattr(Journal, "finish", late)
    # A message that must not go back any more is answered without a build.
    async with job(tmp_path, returns=1000) as (task, given, journal):
        done = await task.run()
        assert not done.back
        assert done.fault is not None
        assert given.taken_over == [task.attempt_id]
        assert [entry.attempt_id for entry in await journal.outbox()] == [task.attempt_id]
        assert task.claim.deliveries == [task._delivery]


async def test_one_that_waits_for_a_slot_is_cancelled_at_once(tmp_path: Path) -> None:
    """It would wait on, and go back to its queue in the end, to be built all the same."""
    async with job(tmp_path) as (task, given, journal), given.builds.slot("another", 1):
        done = []

        async def run() -> None:
            done.append(await task.run())

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await eventually("it waits", lambda: given.builds.statistics().waiting == 1)
            assert task.cancel(CancelReason.OPERATOR)
            await eventually("it is over", lambda: done)
        assert not done[0].back
        assert given.results == 1
        assert [entry.status for entry in await journal.history()] == ["UnexpectedError"]


async def test_one_that_waits_for_a_slot_goes_back_at_once_at_a_stop(tmp_path: Path) -> None:
    async with job(tmp_path) as (task, given, journal), given.builds.slot("another", 1):
        async with anyio.create_task_group() as group:
            group.start_soon(task.run)
            await eventually("it waits", lambda: given.builds.statistics().waiting == 1)
            assert task.cancel(CancelReason.SHUTDOWN)
        assert given.results == 0
        assert await journal.history() == ()
