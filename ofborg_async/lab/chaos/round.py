"""One round: ask for jobs, do faults, heal, wait for the end, judge."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
from attrs import field, frozen

from ofborg_async.errors import DeadlineExceededError, OfborgAsyncError
from ofborg_async.lab.chaos import leftovers, verdict
from ofborg_async.lab.chaos.faults import STRIKES
from ofborg_async.lab.chaos.ground import Ground, Stand, open_ground
from ofborg_async.lab.chaos.ledger import read_ledger
from ofborg_async.lab.chaos.plan import SYSTEMS, FaultKind, FaultPlan, JobPlan, RoundPlan
from ofborg_async.lab.chaos.verdict import Finding, Sort
from ofborg_async.lab.wiretap import job_queue
from ofborg_async.model.status import HistoryEntry
from ofborg_async.waiting import within

log = logging.getLogger(__name__)

_FAULT_SECONDS = 180.0
_SETTLE_SECONDS = 150.0
_POLL_SECONDS = 0.25
_QUIET_LOOKS = 3
_WATCH_SECONDS = 0.2

Tell = Callable[[str], None]


@frozen
class RoundReport:
    """What came of a round. ``notes`` say what was done.

    ``done``: the planned faults that had something to strike. ``timeouts``: how often the broker took deliveries back
    that were not acknowledged in time. ``shared``: jobs with results of several daemons, as a lost delivery explains.
    """

    plan: RoundPlan
    done: tuple[FaultPlan, ...] = ()
    results: int = 0
    attempts: int = 0
    timeouts: int = 0
    shared: int = 0
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def count(self) -> Counter[Sort]:
        """Findings by sort."""
        return Counter(finding.sort for finding in self.findings)

    def missed(self) -> Counter[FaultKind]:
        """Planned faults that found nothing to strike, by kind."""
        return kinds(self.plan.faults) - kinds(self.done)


def kinds(faults: Sequence[FaultPlan]) -> Counter[FaultKind]:
    """How many there are of each kind."""
    return Counter(fault.kind for fault in faults)


async def run_round(directory: Path, plan: RoundPlan, against: Path | None, tell: Tell) -> RoundReport:
    """Do it in ``directory``, which must not exist. Raises LabError for what is the lab's own trouble."""
    directory.mkdir(parents=True)
    async with open_ground(directory, plan, against) as ground:
        for stand in ground.stands:
            stand.builder.launch()
        findings = await _storm(ground, tell)
        histories, more = await _settle(ground)
        findings += more
        findings += await leftovers.look(ground)
        entries = await read_ledger(ground.url)
        timeouts = ground.broker.count_timeouts()
        lost = timeouts > 0 or any(fault.kind in verdict.LOSES_DELIVERIES for fault in ground.done)
        judged = verdict.judge(list(ground.jobs.values()), entries, histories, deliveries_lost=lost)
        findings += [Finding(Sort.WRONG, text) for text in ground.broken]
        return RoundReport(
            plan,
            done=tuple(ground.done),
            results=judged.results,
            attempts=sum(len(history) for history in histories if history is not None),
            timeouts=timeouts,
            shared=judged.shared,
            findings=(*findings, *judged.findings),
            notes=tuple(ground.notes),
        )


async def _storm(ground: Ground, tell: Tell) -> list[Finding]:
    """Jobs and faults, each at its time."""
    findings: list[Finding] = []
    began = anyio.current_time()

    async def ask(plan: JobPlan) -> None:
        await anyio.sleep_until(began + plan.at_seconds)
        await ground.submit(ground.jobs[plan.number])

    async def strike(plan: FaultPlan) -> None:
        await anyio.sleep_until(began + plan.at_seconds)
        tell(f"{anyio.current_time() - began:6.1f} s  {plan.kind} (daemon {plan.daemon}, {plan.seconds:g} s)")
        try:
            with within(_FAULT_SECONDS, plan.kind):
                if await STRIKES[plan.kind](ground, plan):
                    ground.done.append(plan)
                else:
                    tell(f"{anyio.current_time() - began:6.1f} s  {plan.kind}: there was nothing to strike")
        except DeadlineExceededError as error:
            findings.append(Finding(Sort.WRONG, f"a fault did not come to its end: {error}"))

    async with anyio.create_task_group() as watching:
        for stand in ground.stands:
            watching.start_soon(_watch, stand, findings)
        async with anyio.create_task_group() as group:
            for job in ground.plan.jobs:
                group.start_soon(ask, job)
            for fault in ground.plan.faults:
                group.start_soon(strike, fault)
        watching.cancel_scope.cancel()
    return findings


async def _watch(stand: Stand, findings: list[Finding]) -> None:
    """A builder that ends by itself is a finding, and started again."""
    while True:
        await anyio.sleep(_WATCH_SECONDS)
        async with stand.lock:
            if words := stand.builder.died():
                findings.append(Finding(Sort.WRONG, f"a daemon ended by itself: {words}"))
                stand.builder.launch()


async def _settle(ground: Ground) -> tuple[list[list[HistoryEntry] | None], list[Finding]]:
    """Wait until everything is over; the histories, and what is not over in time."""
    findings: list[Finding] = []
    async with anyio.create_task_group() as watching:
        for stand in ground.stands:
            watching.start_soon(_watch, stand, findings)
        try:
            with within(_SETTLE_SECONDS, "the end of all jobs"):
                quiet = 0
                while quiet < _QUIET_LOOKS:
                    await anyio.sleep(_POLL_SECONDS)
                    quiet = quiet + 1 if await _is_over(ground) else 0
        except DeadlineExceededError as error:
            findings.append(Finding(Sort.LEFT_BEHIND, f"{error}: {await _state(ground)}"))
        watching.cancel_scope.cancel()
    histories: list[list[HistoryEntry] | None] = []
    for stand in ground.stands:
        try:
            histories.append(await stand.builder.history())
        except OfborgAsyncError as error:
            findings.append(Finding(Sort.WRONG, f"no history: {error}"))
            histories.append([])
    return histories, findings


async def _is_over(ground: Ground) -> bool:
    """No message is in a job queue, in hand or out of it, and no builder has anything to do."""
    queues = await ground.broker.list_queues()
    if any(queues[job_queue(system)].messages for system in SYSTEMS if job_queue(system) in queues):
        return False
    return all([await stand.builder.settled() for stand in ground.stands])


async def _state(ground: Ground) -> str:
    queues = await ground.broker.list_queues()
    words = [
        f"{queue.name} {queue.ready} ready {queue.unacked} unacked {queue.consumers} consumers"
        for queue in queues.values()
    ]
    words += [f"settled: {[await stand.builder.settled() for stand in ground.stands]}"]
    words += [f"unfinished: {[job.plan.number for job in await ground.unfinished()]}"]
    return "; ".join(words)
