"""One job in the hands of a lane: journal, attempt, report, acknowledgement, in this order and no other."""

from __future__ import annotations

import logging
import uuid
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio
from attrs import evolve, frozen

from ofborg_async.errors import (
    CancelReason,
    DeadlineExceededError,
    HostFault,
)
from ofborg_async.journal import Attempt as AttemptRecord
from ofborg_async.journal import AttemptStateError, LogMissingError, OutboxResult, Seen, SeenState
from ofborg_async.model.job import BuildJob
from ofborg_async.model.result import BuildResult, status_name
from ofborg_async.model.status import JobSnapshot, Phase
from ofborg_async.pipeline.attempt import Attempt, RetryPolicy
from ofborg_async.pipeline.courier import Courier, Parcel
from ofborg_async.pipeline.outcome import HostTrouble, Outcome, Report, Silent, unexpected
from ofborg_async.pipeline.progress import Progress
from ofborg_async.pipeline.transcript import Transcript
from ofborg_async.supervisor.settlement import acknowledge, reported, returns_spent
from ofborg_async.waiting import at_most, idle, within
from ofborg_async.wire.encode import encode_log_start, encode_result

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ofborg_async.journal import JobKey, LogWriter
    from ofborg_async.model.identity import IdentitySettings
    from ofborg_async.pipeline.ports import Delivery, Nix, Publisher, Workspace
    from ofborg_async.supervisor.services import Services

log = logging.getLogger(__name__)

SLOT_PATIENCE_SECONDS = 60.0
"""How long a job may wait for a slot of the host before its message goes back, so that another host can take it."""

CLEANUP_SECONDS = 30.0
"""Bound on the last journal entries of a job that is being cut off."""


NEVER_SEEN = Seen(SeenState.IDLE, "", "", "", starts=0, host_faults=0)


@frozen
class Withdrawn:
    """The attempt ended before its end for ``reason`` and without a result: the message goes back, nobody is blamed."""

    reason: str


@frozen
class Given:
    """What became of a job, as far as the lane must act: ``back`` means its message must return to the queue.

    ``fault`` is the host's fault that ended it; ``status`` the result's status in one word ("" without a result);
    ``reason`` why there is none, or why it went back.
    """

    back: bool = False
    fault: HostFault | None = None
    status: str = ""
    reason: str = ""

    @property
    def outcome(self) -> str:
        """In words, for the log."""
        if self.back:
            return f"goes back to its queue ({self.reason})"
        return f"nothing to send ({self.reason})" if self.reason else self.status


class Station(Protocol):
    """What a job needs of the lane it runs on."""

    @property
    def system(self) -> str:
        """The system it builds for."""
        ...

    @property
    def workspace(self) -> Workspace:
        """Its work trees."""
        ...

    @property
    def nix(self) -> Nix:
        """Its evaluations and builds."""
        ...

    @property
    def publisher(self) -> Publisher:
        """Its way to the broker."""
        ...


class JobTask:
    """Carries one job from an accepted delivery to its acknowledgement, or gives it back."""

    def __init__(
        self,
        station: Station,
        settings: IdentitySettings,
        services: Services,
        job: BuildJob,
        key: JobKey,
        delivery: Delivery,
    ) -> None:
        self.attempt_id = str(uuid.uuid4())
        self.job = job
        self.progress = Progress(
            job,
            self.attempt_id,
            services.clock,
            limit_seconds=settings.nix.attempt_timeout_seconds,
            on_phase=partial(services.journal.phase, self.attempt_id),
        )
        self.claim = services.claims.claim(key, self.attempt_id, delivery)
        self.courier = Courier(
            system=station.system,
            identity=settings.name,
            attempt_id=self.attempt_id,
            logs=job.logs,
            publisher=station.publisher,
            records=services.journal,
            clock=services.clock,
            hold_seconds=settings.broker.unroutable_hold_seconds,
        )
        self._delivery = delivery
        self._station = station
        self._settings = settings
        self._services = services
        self._building: anyio.CancelScope | None = None
        self._reason: CancelReason | None = None
        self._begun = False
        self._recorded = False
        self._sent = False
        self._log_sent = anyio.Event()
        self._writer: LogWriter | None = None
        self.transcript: Transcript | None = None

    def snapshot(self) -> JobSnapshot:
        """How far it is, and what of the broker it waits for."""
        snapshot = self.progress.snapshot()
        return evolve(snapshot, waiting_for=self.courier.trouble) if self.courier.trouble else snapshot

    def cancel(self, reason: CancelReason) -> bool:
        """End fetching, evaluating or building for ``reason``; False when it is reporting already: that goes on."""
        if self._reason is None and self.progress.phase is not Phase.REPORT:
            self._reason = reason
            if self._building is not None:
                self._building.cancel()
        return self._reason is not None

    async def run(self) -> Given:
        """Do all of it. Cut off, a job without a recorded result is given back; the outbox goes on with one.

        What the state directory does not take (a full disk, mostly) is a fault of the host as any other, not an error.
        """
        try:
            return await self._carry_out()
        except ExceptionGroup as errors:
            faults, others = errors.split(HostFault)
            if faults is None or others is not None:
                raise
            fault = _first_of(faults)
            return Given(back=not self._recorded, fault=fault, reason=str(fault))

    async def _carry_out(self) -> Given:
        try:
            async with anyio.create_task_group() as group:
                outcome = await self._build(group)
                given, parcel = await self._record(outcome)
                self._recorded = not given.back
                if self._recorded:
                    await self._report(parcel)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), at_most(CLEANUP_SECONDS):
                if not self._recorded:
                    await self._give_back(CancelReason.SHUTDOWN, None)
                if self._recorded and not self._sent:
                    self._hand_over()
                elif self._recorded and not self.claim.reported:
                    self.claim.report(self._services.clock.monotonic())
                await self._station.nix.forget(self.attempt_id)
                await self._station.workspace.release(self.attempt_id)
        return given

    async def _build(self, group: TaskGroup) -> Outcome | Withdrawn:
        limits = self._settings.limits
        async with AsyncExitStack() as stack:
            if returns_spent(self._delivery, limits):
                await self._begin()
                reason = f"its message has returned to the queue {self._delivery.returns} times: limits.delivery_limit"
                return unexpected(reason, self.job.attrs)
            self.progress.waiting_for = "build slot"
            try:
                with within(SLOT_PATIENCE_SECONDS, "a build slot") as self._building:
                    slot = self._services.builds.slot(self._settings.name, self._settings.weight)
                    await stack.enter_async_context(slot)
            except DeadlineExceededError as error:
                if self._reason is None or self._reason is CancelReason.SHUTDOWN:
                    return Withdrawn(self._reason or str(error))
                await self._begin()
                return unexpected(self._reason, self.job.attrs)
            self.progress.waiting_for = ""
            earlier = await self._begin()
            if earlier.starts >= limits.max_attempts:
                return unexpected(f"the builder was stopped {earlier.starts} times by this job", self.job.attrs)
            self._writer = self._services.logs.create(
                self.attempt_id, max_bytes=limits.log_bytes, tail_lines=limits.log_tail_lines
            )
            self.transcript = Transcript(self._writer, self.progress, hide=self._hidden_root())
            group.start_soon(self._send_log, self.transcript)
            outcome: Outcome | Withdrawn = await self._build_cancellably(self.transcript)
            # What was built where the tree had gone, or another daemon was at work, says nothing of the pull request.
            if isinstance(outcome, Report) and (fault := self._services.root_fault(self._settings)):
                outcome = HostTrouble(fault, Phase.BUILD)
            if isinstance(outcome, HostTrouble) and earlier.host_faults + 1 >= limits.max_attempts:
                return unexpected(f"this builder could not carry the job out: {outcome.fault.detail}", self.job.attrs)
            return outcome

    async def _build_cancellably(self, transcript: Transcript) -> Outcome | Withdrawn:
        with anyio.CancelScope() as self._building:
            if self._reason is not None:
                self._building.cancel()
            return await self._attempt(transcript).run()
        reason = self._reason or CancelReason.SHUTDOWN
        return Withdrawn(reason) if reason is CancelReason.SHUTDOWN else unexpected(reason, self.job.attrs)

    async def _record(self, outcome: Outcome | Withdrawn) -> tuple[Given, Parcel | None]:
        """Enter the outcome into the journal: from here on a result is never lost."""
        self.progress.enter(Phase.REPORT)
        match outcome:
            case Report():
                parcel = self._parcel(outcome)
                await self._finish(status_name(outcome.status), "", parcel)
                return Given(status=status_name(outcome.status)), parcel
            case Silent(reason):
                await self._finish("Silent", reason, None)
                return Given(status="Silent", reason=reason), None
            case HostTrouble(fault):
                await self._give_back(str(fault), fault)
                return Given(back=True, fault=fault, reason=str(fault)), None
            case Withdrawn(reason):
                await self._give_back(reason, None)
                return Given(back=True, reason=reason), None

    def _parcel(self, report: Report) -> Parcel:
        result = BuildResult(
            repo=self.job.repo,
            pr=self.job.pr,
            system=self._station.system,
            output=report.output,
            attempt_id=self.attempt_id,
            request_id=self.job.request_id,
            status=report.status,
            skipped_attrs=report.skipped,
            attempted_attrs=report.attempted,
        )
        return Parcel(encode_result(result), self.job.statusreport, report.on_log)

    async def _finish(self, outcome: str, reason: str, parcel: Parcel | None) -> None:
        lines = 0
        if self._writer is not None:
            await self._writer.finish()
            lines = self._writer.lines
        result = None
        if parcel is not None:
            start = self.transcript.start if self.transcript else None
            result = OutboxResult(
                res_address=parcel.to,
                log_address=self.job.logs if parcel.on_log else None,
                body=parcel.body,
                message=encode_log_start(start) if start else b"",
                lines=lines,
            )
        await self._services.journal.finish(
            self.attempt_id,
            result=result,
            outcome=outcome,
            reason=reason,
            durations=self.progress.durations(),
            lines=lines,
            peak_memory_bytes=self._station.nix.peak_rss_bytes(self.attempt_id),
        )

    async def _give_back(self, reason: str, fault: HostFault | None) -> None:
        """Record that the message returns; copies of it held elsewhere return at once, this lane's with its channel."""
        if self._begun:
            self._begun = False
            if self._writer is not None:
                await self._writer.finish()
            try:
                await self._services.journal.requeued(
                    self.attempt_id, reason, host_fault=fault is not None, durations=self.progress.durations()
                )
            except HostFault:
                pass  # it is written as soon as it can be
            except AttemptStateError:  # its end was written after all, though not within the deadline of that call
                self._recorded = True
                return
        self._services.claims.settle(self.claim)
        # Once: this may be asked for again at the end of the job.
        deliveries, self.claim.deliveries = self.claim.deliveries, []
        for delivery in deliveries:
            if delivery is not self._delivery:
                await delivery.requeue()

    async def _report(self, parcel: Parcel | None) -> None:
        """Publish, then acknowledge."""
        if parcel is not None:
            if self.transcript is not None and self.transcript.start is not None:
                with idle("the broker takes the lines when it can; the result is safe in the outbox"):
                    await self._log_sent.wait()
            if not await self.courier.deliver(parcel):
                self._services.outbox.keep(self.courier, parcel)
        self._sent = True
        self.claim.report(self._services.clock.monotonic())
        await acknowledge(self.claim, self._services)

    def _hand_over(self) -> None:
        """Cut off on the way to the broker: what is recorded goes out as after a crash; its message is acked then."""
        hold_seconds = self._settings.broker.unroutable_hold_seconds
        sent = partial(reported, services=self._services)
        self._services.outbox.take_over(self.attempt_id, self.claim, hold_seconds, sent)

    async def _begin(self) -> Seen:
        """Enter the attempt into the journal, durably, and tell what is known of earlier ones at this job."""
        journal = self._services.journal
        seen = await journal.lookup(self.claim.journal_key)
        await journal.begin(
            AttemptRecord(
                attempt_id=self.attempt_id,
                identity=self._settings.name,
                system=self._station.system,
                queue=self.claim.journal_key.queue,
                request_id=self.job.request_id,
                body_sha256=self.claim.key.body_sha256,
                body=self._delivery.body,
                repo=self.job.repo.full_name,
                pr=self.job.pr.number,
                head_sha=self.job.pr.head_sha,
                attrs=self.job.attrs,
                started_at=self.progress.started_at,
            )
        )
        self._begun = True
        journal.phase(self.attempt_id, self.progress.phase)
        return seen or NEVER_SEEN

    def _attempt(self, transcript: Transcript) -> Attempt:
        limits = self._settings.limits
        return Attempt(
            identity=self._settings.name,
            weight=self._settings.weight,
            system=self._station.system,
            job=self.job,
            attempt_id=self.attempt_id,
            workspace=self._station.workspace,
            nix=self._station.nix,
            evaluations=self._services.evaluations,
            transcript=transcript,
            progress=self.progress,
            retry=RetryPolicy(limits.host_fault_retries, limits.host_fault_backoff_seconds),
            clock=self._services.clock,
        )

    def _hidden_root(self) -> bytes:
        return str(self._settings.root).encode() if self._settings.replace_root_in_logs else b""

    async def _send_log(self, transcript: Transcript) -> None:
        """LogStart and the lines, while the build runs and after it, until the broker has them all."""
        with idle("the log opens when the evaluation ends, which has a deadline"):
            await transcript.started.wait()
        if transcript.start is not None:
            await self.courier.open_log(encode_log_start(transcript.start))
            try:
                tail = self._services.logs.open_reader(self.attempt_id)
            except LogMissingError:  # removed under the daemon: its lines are lost, its result is not
                log.error("attempt %s: its local log is gone, its last lines cannot be sent", self.attempt_id)  # noqa: TRY400
            else:
                with tail:
                    await self.courier.send_lines(tail)
        self._log_sent.set()


def _first_of(faults: ExceptionGroup[HostFault]) -> HostFault:
    first = faults.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first
