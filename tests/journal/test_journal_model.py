"""The journal against a model of a few dictionaries, with kills, restarts and jumps of the wall clock in between."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journal_helpers import FakeClock, copy_as_killed, finish, make_attempt, make_result

from ofborg_async.journal import (
    AttemptStateError,
    DuplicateAttemptError,
    Journal,
    OutboxState,
    Seen,
    SeenState,
    Unroutable,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
EXPIRY_SECONDS = 100.0
MOSTLY = st.sampled_from([True, True, True, True, False])
REQUESTS = ("r0", "r1", "r2")


@define
class ModelAttempt:
    request: str
    log_started: bool = False
    lines_confirmed: int = 0
    status: str = ""


@define
class ModelJob:
    attempt: str = ""
    state: SeenState = SeenState.IDLE
    starts: int = 0
    host_faults: int = 0
    touched: float = 0.0


@define
class ModelEntry:
    has_log: bool
    res: bool = False
    log: str = ""  # "", "marked", "done"
    unroutable: Unroutable = Unroutable.NO
    acked: bool = False

    @property
    def state(self) -> OutboxState:
        return OutboxState.LOG_MARKED if self.res else OutboxState.PENDING


@define
class Model:
    attempts: dict[str, ModelAttempt] = field(factory=dict)
    jobs: dict[str, ModelJob] = field(factory=dict)
    outbox: dict[str, ModelEntry] = field(factory=dict)
    history: list[str] = field(factory=list)
    now: float = 0.0

    def job(self, request: str) -> ModelJob | None:
        """What is remembered, without what has expired."""
        job = self.jobs.get(request)
        if job is not None and job.state is not SeenState.RUNNING and self.now - job.touched >= EXPIRY_SECONDS:
            return None
        return job

    def touch(self, job: ModelJob, state: SeenState, attempt: str = "") -> None:
        job.state, job.attempt, job.touched = state, attempt, self.now

    def drop_if_done(self, attempt: str) -> None:
        entry = self.outbox[attempt]
        if entry.res and (entry.log == "done" or not entry.has_log):
            del self.outbox[attempt]


class JournalMachine(RuleBasedStateMachine):
    """Each rule does the same to both; the invariant compares all that can be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="journal-model-"))
        self.generation = 0
        self.clock = FakeClock()
        self.model = Model()
        self.names = (f"a{number}" for number in itertools.count())
        self.known = ["nobody"]

    def run(self, call: Coroutine[object, object, T]) -> T:
        return self.runner.run(call)

    def state_dir(self) -> Path:
        return self.directory / str(self.generation)

    def open(self) -> None:
        self.journal = self.run(
            Journal.open(self.state_dir(), clock=self.clock, expiry_seconds=EXPIRY_SECONDS, reserve_bytes=0)
        )

    @initialize()
    def start(self) -> None:
        self.open()

    def teardown(self) -> None:
        try:
            self.run(self.journal.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)

    def refused(self, call: Coroutine[object, object, object]) -> None:
        try:
            self.run(call)
        except AttemptStateError:
            return
        msg = "the move should have been refused"
        raise AssertionError(msg)

    def running(self) -> list[str]:
        return [name for name, attempt in self.model.attempts.items() if not attempt.status]

    def pick(self, data: st.DataObject, likely: list[str]) -> str:
        """Mostly one for which the move makes sense, sometimes any."""
        sensible = bool(likely) and data.draw(MOSTLY)
        return data.draw(st.sampled_from(likely if sensible else self.known))

    # --- attempts -----------------------------------------------------------------------------------------------------

    @rule(request=st.sampled_from(REQUESTS))
    def begin(self, request: str) -> None:
        name = next(self.names)
        attempt = make_attempt(name, request_id=request)
        job = self.model.job(request)
        if job is not None and job.state is not SeenState.IDLE:
            try:
                self.run(self.journal.begin(attempt))
            except DuplicateAttemptError as error:
                assert error.seen.attempt_id == job.attempt  # noqa: PT017 - not under pytest here
                return
            msg = "a second attempt at the same job began"
            raise AssertionError(msg)
        self.run(self.journal.begin(attempt))
        if job is None:
            job = self.model.jobs[request] = ModelJob()
        self.model.touch(job, SeenState.RUNNING, name)
        self.model.attempts[name] = ModelAttempt(request)
        self.known.append(name)

    @rule(data=st.data())
    def mark_log_started(self, data: st.DataObject) -> None:
        name = self.pick(data, self.running())
        attempt = self.model.attempts.get(name)
        if attempt is None:
            self.refused(self.journal.mark_log_started(name))
            return
        assert self.run(self.journal.mark_log_started(name)) is not attempt.log_started
        attempt.log_started = True

    @rule(data=st.data(), line=st.integers(0, 1000))
    def lines_confirmed(self, data: st.DataObject, line: int) -> None:
        name = self.pick(data, self.running())
        self.journal.lines_confirmed(name, line)
        self.run(self.journal.flush())
        if name in self.model.attempts:
            attempt = self.model.attempts[name]
            attempt.lines_confirmed = max(attempt.lines_confirmed, line)

    @rule(data=st.data(), status=st.sampled_from(["Success", "Failure", "Gone"]), has_log=st.booleans())
    def finish(self, data: st.DataObject, status: str, *, has_log: bool) -> None:
        name = self.pick(data, self.running())
        result = None if status == "Gone" else make_result(name.encode())
        if result is not None and not has_log:
            result = make_result(name.encode(), log=None)
        call = finish(self.journal, name, status, result=result)
        attempt = self.model.attempts.get(name)
        if attempt is None or attempt.status not in ("", status):
            self.refused(call)
            return
        self.run(call)
        if attempt.status:
            return
        attempt.status = status
        self.model.touch(self.model.jobs[attempt.request], SeenState.FINISHED, name)
        self.model.history.append(name)
        if result is not None:
            self.model.outbox[name] = ModelEntry(has_log)

    @rule(data=st.data(), host_fault=st.booleans())
    def requeued(self, data: st.DataObject, *, host_fault: bool) -> None:
        name = self.pick(data, self.running())
        attempt = self.model.attempts.get(name)
        call = self.journal.requeued(name, "no space", host_fault=host_fault)
        if attempt is None or attempt.status:
            self.refused(call)
            return
        self.run(call)
        attempt.status = "Requeued"
        job = self.model.jobs[attempt.request]
        job.host_faults += host_fault
        self.model.touch(job, SeenState.IDLE)
        self.model.history.append(name)

    @rule(data=st.data())
    def acked(self, data: st.DataObject) -> None:
        name = self.pick(data, [job.attempt for job in self.model.jobs.values() if job.state is SeenState.FINISHED])
        attempt = self.model.attempts.get(name)
        if attempt is not None and not attempt.status:
            self.refused(self.journal.acked(name))
            return
        self.run(self.journal.acked(name))
        if attempt is not None:
            job = self.model.jobs.get(attempt.request)
            if job is not None and job.attempt == name:
                del self.model.jobs[attempt.request]
        if name in self.model.outbox:
            self.model.outbox[name].acked = True

    # --- outbox -------------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def mark_log_copy(self, data: st.DataObject) -> None:
        name = self.pick(data, list(self.model.outbox))
        entry = self.model.outbox.get(name)
        if entry is None or (not entry.res and entry.unroutable is Unroutable.NO):
            self.refused(self.journal.mark_log_copy(name))
            return
        assert self.run(self.journal.mark_log_copy(name)) is (entry.has_log and not entry.log)
        entry.log = entry.log or "marked"

    @rule(data=st.data())
    def confirm_and_mark(self, data: st.DataObject) -> None:
        name = self.pick(data, list(self.model.outbox))
        entry = self.model.outbox.get(name)
        if entry is None:
            self.refused(self.journal.confirm_and_mark(name))
            return
        assert self.run(self.journal.confirm_and_mark(name)) is (entry.has_log and not entry.log)
        entry.res, entry.unroutable, entry.log = True, Unroutable.NO, entry.log or "marked"
        self.model.drop_if_done(name)

    @rule(data=st.data(), permanent=st.booleans())
    def unroutable(self, data: st.DataObject, *, permanent: bool) -> None:
        name = self.pick(data, list(self.model.outbox))
        entry = self.model.outbox.get(name)
        if entry is None or entry.res:
            self.refused(self.journal.unroutable(name, permanent=permanent))
            return
        self.run(self.journal.unroutable(name, permanent=permanent))
        entry.unroutable = Unroutable.FOR_EVER if permanent else Unroutable.FOR_NOW

    @rule(data=st.data())
    def log_done(self, data: st.DataObject) -> None:
        name = self.pick(data, list(self.model.outbox))
        self.journal.log_done(name)
        self.run(self.journal.flush())
        if name in self.model.outbox:
            self.model.outbox[name].log = "done"
            self.model.drop_if_done(name)

    # --- time and death -----------------------------------------------------------------------------------------------

    @rule(seconds=st.floats(0, 80))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(round(seconds))
        self.model.now += round(seconds)

    @precondition(lambda self: len(self.known) % 3 == 0)
    @rule(seconds=st.integers(-1000, 1000))
    def jump_the_wall_clock(self, seconds: int) -> None:
        """While the daemon runs this changes nothing; it is put right before the next restart."""
        self.clock.jump(seconds)
        self.compare()
        self.clock.jump(-seconds)

    @rule()
    def restart(self) -> None:
        self.run(self.journal.close())
        self.open()
        self.recover()

    @rule()
    def die(self) -> None:
        killed = copy_as_killed(self.state_dir(), self.directory / str(self.generation + 1))
        self.run(self.journal.close())
        self.generation += 1
        assert killed == self.state_dir()
        self.open()
        self.recover()

    def recover(self) -> None:
        running = self.running()
        found = self.run(self.journal.interrupted())
        assert [left.attempt.attempt_id for left in found] == running
        for name, left in zip(running, found, strict=True):
            attempt = self.model.attempts[name]
            attempt.status = "Interrupted"
            job = self.model.jobs[attempt.request]
            job.starts += 1
            assert left.starts == job.starts
            self.model.touch(job, SeenState.IDLE)
            self.model.history.append(name)

    @precondition(lambda self: len(self.model.history) % 5 == 4)
    @rule()
    def prune(self) -> None:
        """Nothing is as old as that: it must change nothing but what has expired."""
        assert self.run(self.journal.prune(1)) == 0

    # --- comparison ---------------------------------------------------------------------------------------------------

    def seen(self, request: str) -> Seen | None:
        job = self.model.job(request)
        if job is None:
            return None
        if job.state is SeenState.IDLE:
            return Seen(SeenState.IDLE, "", "", "", job.starts, job.host_faults)
        return Seen(job.state, job.attempt, "mac1-a", "x86_64-linux", job.starts, job.host_faults)

    @invariant()
    def compare(self) -> None:
        self.run(self.compare_all())

    async def compare_all(self) -> None:
        for request in REQUESTS:
            key = make_attempt(request_id=request).key
            assert await self.journal.lookup(key) == self.seen(request)
            if self.seen(request) is None:
                self.model.jobs.pop(request, None)
        entries = await self.journal.outbox()
        assert [entry.attempt_id for entry in entries] == list(self.model.outbox)
        for entry, expected in zip(entries, self.model.outbox.values(), strict=True):
            attempt = self.model.attempts[entry.attempt_id]
            assert entry.result.body == entry.attempt_id.encode()
            assert (entry.result.log_address is not None) is expected.has_log
            assert entry.unroutable is expected.unroutable
            assert entry.acked is expected.acked
            assert entry.log_started is attempt.log_started
            assert entry.lines_confirmed == attempt.lines_confirmed
            if expected.has_log:
                assert entry.state is expected.state
                assert entry.log_marked is bool(expected.log)
        history = await self.journal.history(limit=10_000)
        assert {entry.attempt_id: entry.status for entry in history} == {
            name: self.model.attempts[name].status for name in self.model.history
        }
        assert await self.journal.live_attempts() == {*self.running(), *self.model.outbox}


TestJournalModel = JournalMachine.TestCase
TestJournalModel.settings = settings(
    max_examples=50, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
