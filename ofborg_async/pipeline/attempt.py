"""One job, from an accepted delivery to an Outcome: lease, fetch, merge, evaluate, build. It acknowledges nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import frozen

from ofborg_async.clock import Clock
from ofborg_async.errors import HostFault
from ofborg_async.model.checkout import Gone, MergeConflict, Ready, Refused
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.job import BuildJob
from ofborg_async.model.result import BuildStatus, LogStart
from ofborg_async.model.status import Phase
from ofborg_async.pipeline.outcome import MERGE_FAILED, HostTrouble, Outcome, Report, Silent, unexpected
from ofborg_async.pipeline.ports import Budget, Lease, Nix, Workspace
from ofborg_async.pipeline.progress import Progress
from ofborg_async.pipeline.transcript import Transcript
from ofborg_async.wire.encode import last_lines

log = logging.getLogger(__name__)

T = TypeVar("T")


@frozen
class RetryPolicy:
    """How often and how patiently a fault of the host is retried in place, before the message goes back."""

    retries: int
    backoff_seconds: float

    def pause_seconds(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure (the first is 1): doubling."""
        return float(self.backoff_seconds * 2 ** (failures - 1))


@frozen
class Attempt:
    """Carries one job out for one system of one identity. ``run`` gives the Outcome; cancellation ends it anywhere."""

    identity: str
    weight: int
    system: str
    job: BuildJob
    attempt_id: str
    workspace: Workspace
    nix: Nix
    evaluations: Budget
    transcript: Transcript
    progress: Progress
    retry: RetryPolicy
    clock: Clock

    async def run(self) -> Outcome:
        """Build the job. Raises nothing but cancellation: faults of the host are an Outcome too."""
        if not self.job.attrs:
            return Silent("the job names no attributes")
        try:
            self.progress.waiting_for = "work tree"
            async with self.workspace.lease(self.job, self.attempt_id) as lease:
                self.progress.waiting_for = ""
                return await self._build_under(lease)
        except HostFault as fault:
            return HostTrouble(fault, self.progress.phase)

    async def _build_under(self, lease: Lease) -> Outcome:
        checkout = await self._patiently(
            lambda: self.workspace.prepare(self.job, self.attempt_id, lease, self.progress.enter)
        )
        match checkout:
            case Gone(detail):
                return Silent(detail)
            case Refused(detail):
                return unexpected(detail, self.job.attrs)
            case MergeConflict():
                return MERGE_FAILED
            case Ready(path):
                request = EvalRequest(
                    tree=path,
                    subset=self.job.subset,
                    attrs=self.job.attrs,
                    system=self.system,
                    attempt_id=self.attempt_id,
                    descriptors=lease.descriptors,
                )
                return await self._evaluate_and_build(request)

    async def _evaluate_and_build(self, request: EvalRequest) -> Outcome:
        result: Outcome | HostFault
        async with anyio.create_task_group() as building:
            try:
                result = await self._phases(request, building)
            except HostFault as fault:  # a group would raise it in a group of errors
                result = fault
            building.cancel_scope.cancel()
        if isinstance(result, HostFault):
            raise result
        return result

    async def _phases(self, request: EvalRequest, building: TaskGroup) -> Outcome:
        evaluation = await self._patiently(lambda: self._evaluate(request, building))
        skipped = tuple(item.attr for item in evaluation.skipped)
        self.transcript.open(
            LogStart(
                system=self.system,
                identity=self.identity,
                attempt_id=self.attempt_id,
                attempted_attrs=evaluation.attempted,
                skipped_attrs=skipped,
            )
        )
        self.transcript.write_skipped(evaluation.skipped)
        if not evaluation.attempted:
            return Report(BuildStatus.SKIPPED, None, skipped, last_lines(self.transcript.last_lines))
        self.progress.enter(Phase.BUILD)
        status = await self._patiently(lambda: self.nix.build(request, evaluation, self.transcript), say=True)
        return Report(status, evaluation.attempted, skipped, last_lines(self.transcript.last_lines))

    async def _evaluate(self, request: EvalRequest, building: TaskGroup) -> Evaluation:
        self.progress.enter(Phase.EVALUATE)
        self.progress.waiting_for = "evaluation slot"
        async with self.evaluations.slot(self.identity, self.weight):
            self.progress.waiting_for = ""
            return await self.nix.evaluate(request, building)

    async def _patiently(self, step: Callable[[], Awaitable[T]], *, say: bool = False) -> T:
        """Do ``step``, again after a fault of the host, as often as the policy says; then the fault is raised.

        ``say`` puts a line into the log, so that its readers understand why a build begins twice.
        """
        failures = 0
        while True:
            try:
                done = await step()
            except HostFault as fault:
                failures += 1
                if failures > self.retry.retries:
                    raise
                pause = self.retry.pause_seconds(failures)
                log.warning("%s failed for a reason of this host: %s; again in %g s", self.progress.phase, fault, pause)
                if say:
                    self.transcript.write(
                        [b"[ofborg-async: this host failed (%s); building again]" % fault.kind.encode()]
                    )
                self.progress.waiting_for = f"retry after {fault.kind}"
                self.progress.trouble = str(fault)
                await self.clock.sleep(pause)
                self.progress.waiting_for = ""
            else:
                self.progress.trouble = ""
                return done
