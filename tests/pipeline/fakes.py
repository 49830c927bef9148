"""Stand-ins for the pipeline's ports: what they are told to do, they do, and they write down what was asked of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from ofborg_async.model.checkout import CheckoutOutcome, Ready
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.job import Address, BuildJob, PullRequest, Repo
from ofborg_async.model.result import BuildStatus, Status
from ofborg_async.pipeline.ports import Lease, LineSink, PhaseSink

JOB = BuildJob(
    repo=Repo("o", "n", "o/n", "https://example.org/o/n"),
    pr=PullRequest(7, "a" * 40, "master"),
    attrs=("good", "bad"),
    request_id="r",
)


@define
class FakeClock:
    """Sleeps take no time and are written down; with ``stands_still`` they never end."""

    at: float = 0.0
    slept: list[float] = field(factory=list)
    stands_still: bool = False

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.stands_still:
            await anyio.sleep_forever()
        self.at += seconds


@define
class FakeLease:
    descriptors: tuple[int, ...] = (9,)


@define
class FakeWorkspace:
    """Gives outcomes (or raises faults) one after the other; the last one again and again."""

    outcomes: list[CheckoutOutcome | Exception] = field(factory=lambda: [Ready(Path("/tree"), "c" * 40)])
    calls: int = 0
    held: bool = False

    @asynccontextmanager
    async def lease(self, job: BuildJob, attempt_id: str) -> AsyncIterator[Lease]:
        self.held = True
        try:
            yield FakeLease()
        finally:
            self.held = False

    async def prepare(self, job: BuildJob, attempt_id: str, lease: Lease, on_phase: PhaseSink) -> CheckoutOutcome:
        assert self.held
        outcome = self.outcomes[min(self.calls, len(self.outcomes) - 1)]
        self.calls += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def release(self, attempt_id: str) -> None: ...


@define
class FakeNix:
    evaluation: Evaluation = field(factory=lambda: Evaluation(("good", "bad"), (), ("/nix/store/x.drv",)))
    statuses: list[Status | Exception] = field(factory=lambda: [BuildStatus.SUCCESS])
    lines: Sequence[bytes] = (b"building",)
    builds: int = 0

    async def evaluate(self, request: EvalRequest, building: TaskGroup | None = None) -> Evaluation:
        assert request.descriptors == (9,)
        return self.evaluation

    async def build(self, request: EvalRequest, evaluation: Evaluation, sink: LineSink) -> Status:
        sink.write(self.lines)
        status = self.statuses[min(self.builds, len(self.statuses) - 1)]
        self.builds += 1
        if isinstance(status, Exception):
            raise status
        return status

    def peak_rss_bytes(self, attempt_id: str) -> int:
        return 0

    async def forget(self, attempt_id: str) -> None: ...


@define
class FakeLogFile:
    lines: list[bytes] = field(factory=list)

    def write(self, lines: Sequence[bytes]) -> None:
        self.lines.extend(lines)

    @property
    def last_lines(self) -> tuple[bytes, ...]:
        return tuple(self.lines[-10:])


@define
class FakeConfirmation:
    """A batch arrives when it is waited for, unless the plan for "confirm" says otherwise."""

    publisher: FakePublisher
    to: Address
    bodies: tuple[bytes, ...]

    async def wait(self) -> None:
        self.publisher.plan("confirm")
        self.publisher.sent.append(("log", self.to, self.bodies))


@define
class FakePublisher:
    """Writes down what arrives. ``plan`` is asked before each call and may raise. ``back`` is a new connection."""

    sent: list[tuple[str, Address | None, tuple[bytes, ...]]] = field(factory=list)
    plan: Callable[[str], None] = field(default=lambda what: None)
    back: anyio.Event = field(factory=anyio.Event)

    async def publish_result(self, to: Address, body: bytes) -> None:
        self.plan("result")
        self.sent.append(("result", to, (body,)))

    async def open_log(self) -> None:
        self.plan("open")

    async def send_log(self, to: Address, bodies: Sequence[bytes]) -> FakeConfirmation:
        self.plan("log")
        return FakeConfirmation(self, to, tuple(bodies))

    async def publish_log(self, to: Address, bodies: Sequence[bytes]) -> None:
        self.plan("log")
        self.sent.append(("log", to, tuple(bodies)))

    async def wait_back(self) -> None:
        await self.back.wait()

    async def close(self) -> None: ...


@define
class FakeTail:
    lines: list[bytes] = field(factory=list)
    next_line: int = 1
    batch: int = 2

    def read(self, max_bytes: int) -> list[bytes]:
        taken = self.lines[self.next_line - 1 : self.next_line - 1 + self.batch]
        self.next_line += len(taken)
        return taken

    async def seek(self, line: int) -> bool:
        self.next_line = line
        return line <= len(self.lines)

    async def wait(self) -> bool:
        return self.next_line <= len(self.lines)


@define
class FakeRecords:
    marks: set[str] = field(factory=set)
    told: list[str] = field(factory=list)
    confirmed: int = 0
    on_log: bool = True

    def _mark(self, name: str, *, wanted: bool = True) -> bool:
        fresh = wanted and name not in self.marks
        if wanted:
            self.marks.add(name)
        return fresh

    async def mark_log_started(self, attempt_id: str) -> bool:
        return self._mark("start")

    def lines_confirmed(self, attempt_id: str, through_line: int) -> None:
        self.confirmed = through_line

    async def confirm_and_mark(self, attempt_id: str) -> bool:
        self.told.append("confirmed")
        return self._mark("copy", wanted=self.on_log)

    async def unroutable(self, attempt_id: str, *, permanent: bool) -> None:
        self.told.append("unroutable for ever" if permanent else "unroutable")

    async def mark_log_copy(self, attempt_id: str) -> bool:
        return self._mark("copy", wanted=self.on_log)

    def log_done(self, attempt_id: str) -> None:
        self.told.append("done")
