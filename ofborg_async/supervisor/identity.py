"""One builder identity: its state machine, its lanes, and the one place that catches everything.

An identity knows no sibling. What it cannot handle ends its lanes, is shown, and is followed by a restart after a
pause; too many restarts in a period end it until the operator starts it again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import anyio

from ofborg_async.clock import rfc3339
from ofborg_async.errors import CancelReason, HostFault
from ofborg_async.model.identity import DaemonSettings, IdentitySettings
from ofborg_async.model.status import AmqpState, IdentitySnapshot, IdentityState, Phase, SystemSnapshot
from ofborg_async.supervisor.backoff import Backoff, RestartIntensity
from ofborg_async.supervisor.lane import Lane
from ofborg_async.supervisor.lifecycle import MAY_CONSUME, Event, advance
from ofborg_async.supervisor.services import Services
from ofborg_async.supervisor.task import Given
from ofborg_async.waiting import idle

log = logging.getLogger(__name__)

UNWELL = frozenset({IdentityState.BACKOFF, IdentityState.FAILED, IdentityState.QUARANTINED})


class Identity:
    """One identity under supervision. ``prepare`` makes its root usable and gives its lanes; it may raise HostFault."""

    def __init__(
        self,
        settings: IdentitySettings,
        daemon: DaemonSettings,
        services: Services,
        prepare: Callable[[Identity], Awaitable[Sequence[Lane]]],
    ) -> None:
        self.settings = settings
        self.state = IdentityState.STARTING
        self.lanes: Sequence[Lane] = ()
        self.last_error = ""
        self.remedy = ""
        self.reason = ""
        self.settled = anyio.Event()
        """Set once it consumes, may not, or failed to for the first time: the daemon counts as started then."""
        self.ended = anyio.Event()
        """Set once ``run`` is over: nothing of it is at work any more."""
        self._services = services
        self._prepare = prepare
        self._since: datetime = services.clock.now()
        self._changed = anyio.Event()
        self._life = anyio.CancelScope()
        self._working: anyio.CancelScope | None = None
        self._jobs = 0
        self._host_faults = 0
        self._quarantined_at = 0.0
        self._drain: object = None
        self._intensity = RestartIntensity(daemon.restart_intensity, daemon.restart_period_seconds)
        self._backoff = Backoff(daemon.backoff_first_seconds, daemon.backoff_max_seconds)

    # --- what lanes use -------------------------------------------------------------------------------------------

    @property
    def may_consume(self) -> bool:
        """Whether new work may be taken now."""
        return self.state in MAY_CONSUME

    async def until_may_consume(self) -> None:
        """Wait until ``may_consume``."""
        with idle("paused, drained, quarantined or stopped until an operator or a timer says otherwise"):
            while not self.may_consume:
                await self._changed.wait()

    def on(self, event: Event, reason: str = "", *, remedy: str = "") -> None:
        """Move by the table. ``reason`` is shown with the new state; broker trouble and crashes are errors too."""
        before, self.state = self.state, advance(self.state, event)
        if event in {Event.UNABLE, Event.CRASHED, Event.GAVE_UP, Event.QUARANTINE}:
            self.last_error, self.remedy = reason, remedy
            self.settled.set()
        elif event is Event.CONSUMING:
            self.settled.set()
            self._backoff.reset()
            if before in {IdentityState.STARTING, IdentityState.BACKOFF}:
                self.last_error = self.remedy = ""
        if self._jobs and self.state in {IdentityState.IDLE, IdentityState.STARTING}:
            self.state = advance(self.state, Event.JOB_STARTED)
        if self.state is not before:
            self.reason, self._since = reason, self._services.clock.now()
            if self.state is IdentityState.QUARANTINED:
                self._quarantined_at = self._services.clock.monotonic()
            log.log(
                logging.WARNING if self.state in UNWELL else logging.INFO,
                "%s is %s: %s%s",
                self.settings.name,
                self.state,
                reason or event.value,
                f" ({remedy})" if remedy and remedy not in reason else "",
            )
        if not self.may_consume:
            self.settled.set()
            for lane in self.lanes:
                lane.stop_listening()
        self._changed.set()
        self._changed = anyio.Event()

    def job_started(self) -> None:
        """A lane took a job."""
        self._jobs += 1
        if self._jobs == 1 and self.state is not IdentityState.BUSY:
            self.on(Event.JOB_STARTED)

    def job_ended(self, given: Given | None) -> None:
        """A lane's job is over. Host faults in a row lead to quarantine; a result proves that the host works."""
        self._jobs -= 1
        if self._jobs == 0:
            self.on(Event.JOBS_DONE)
        if given is None:
            return
        if given.fault is not None:
            self._host_faults += 1
            self.last_error, self.remedy = str(given.fault), given.fault.remedy
            if self._host_faults >= self.settings.limits.quarantine_after:
                self.on(
                    Event.QUARANTINE,
                    f"{self._host_faults} jobs in a row failed for a reason of this host: {given.fault}",
                )
        elif given.status:
            self._host_faults = 0
            self._services.counters.ended(given.status)

    # --- supervision ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the lanes at work until cancelled or dismissed."""
        try:
            with self._life:
                await self._live()
        finally:
            self.lanes = ()
            self.ended.set()

    async def _live(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_quarantines)
            while True:
                fault = await self._work()
                if fault is None:  # restarted by the operator
                    continue
                # A fault of the host ends when the host is well again, however long that takes.
                if isinstance(fault, HostFault) or self._intensity.restarted(self._services.clock.monotonic()):
                    self.on(Event.CRASHED, str(fault), remedy=getattr(fault, "remedy", ""))
                    await self._services.clock.sleep(self._backoff.next_seconds())
                else:
                    self.on(Event.GAVE_UP, f"failed too often: {fault}", remedy=getattr(fault, "remedy", ""))
                    await self._until_restarted()

    async def _work(self) -> Exception | None:
        """Run the lanes until they fail (the cause) or the operator restarts them (None)."""
        with anyio.CancelScope() as self._working:
            try:
                self.lanes = await self._prepare(self)
                async with anyio.create_task_group() as group:
                    for lane in self.lanes:
                        group.start_soon(lane.run)
            except HostFault as fault:
                return fault
            except Exception as error:  # the one place that catches everything: a sibling must not suffer
                cause = _first_cause(error)
                if not isinstance(cause, HostFault):
                    log.exception("%s failed unexpectedly", self.settings.name)
                return cause
        return None

    async def _until_restarted(self) -> None:
        with idle("failed until an operator restarts it"):
            while self.state is IdentityState.FAILED:
                await self._changed.wait()
        self._intensity.forgive()

    async def _end_quarantines(self) -> None:
        while True:
            with idle("not quarantined"):
                while self.state is not IdentityState.QUARANTINED:
                    await self._changed.wait()
            # It may be another one by then, when an operator ended the first.
            while self.state is IdentityState.QUARANTINED and (left_seconds := self._quarantine_left_seconds()) > 0:
                await self._services.clock.sleep(left_seconds)
            if self.state is IdentityState.QUARANTINED:
                self._host_faults = 0
                self.on(Event.PROBATION)

    def _quarantine_left_seconds(self) -> float:
        passed_seconds = self._services.clock.monotonic() - self._quarantined_at
        return self.settings.limits.quarantine_seconds - passed_seconds

    def restart(self) -> None:
        """End what it does (jobs go back to their queue) and start anew."""
        self.cancel_jobs(CancelReason.SHUTDOWN)
        self.on(Event.RESTART)
        if self._working is not None:
            self._working.cancel()

    async def dismiss(self) -> None:
        """End it for good. Jobs in hand go back to their queue, results that are recorded go on in the outbox."""
        self._life.cancel()
        with idle("its lanes end: what they do then has deadlines"):
            await self.ended.wait()

    def cancel_jobs(self, reason: CancelReason) -> None:
        """End the jobs that are not reporting yet."""
        for lane in self.lanes:
            if lane.task is not None:
                lane.task.cancel(reason)

    def drain(self, reason: str) -> Callable[[], None]:
        """Take no new job. To be called at its deadline: what still runs goes back then, unless it was drained anew."""
        self.on(Event.DRAIN, reason)
        self._drain = this = object()
        if not self.busy:
            self.on(Event.JOBS_DONE, reason)

        def end() -> None:
            if self._drain is this and self.state is IdentityState.DRAINING:
                self.cancel_jobs(CancelReason.SHUTDOWN)

        return end

    @property
    def busy(self) -> bool:
        """Whether a job is in hand."""
        return self._jobs > 0

    @property
    def reports_only(self) -> bool:
        """Whether every job in hand has its result, and only waits for the broker."""
        return all(lane.task is None or lane.task.progress.phase is Phase.REPORT for lane in self.lanes)

    @property
    def restarts(self) -> int:
        """Restarts since the daemon's start."""
        return self._intensity.total

    async def until_idle(self) -> None:
        """Wait until no job is in hand."""
        with idle("jobs have limits of their own"):
            while self.busy:
                await self._changed.wait()

    def _systems(self) -> tuple[SystemSnapshot, ...]:
        if self.lanes:
            return tuple(lane.snapshot() for lane in self.lanes)
        # Its root cannot be used yet: no lane has been made.
        return tuple(
            SystemSnapshot(system, f"build-inputs-{system}", AmqpState.CONNECTING, None)
            for system in self.settings.nix.systems
        )

    def snapshot(
        self, *, ok_24h: int, failed_24h: int, results_waiting: int, results_detail: str, lock: str
    ) -> IdentitySnapshot:
        """A frozen row for ``status``; the counts come from the journal."""
        return IdentitySnapshot(
            name=self.settings.name,
            state=self.state,
            systems=self._systems(),
            root=str(self.settings.root),
            lock=lock,
            ok_24h=ok_24h,
            failed_24h=failed_24h,
            restarts=self.restarts,
            last_error=self.last_error,
            remedy=self.remedy,
            reason=self.reason,
            state_since=rfc3339(self._since),
            jobs_undecodable=sum(lane.undecodable for lane in self.lanes),
            results_waiting=results_waiting,
            results_detail=results_detail,
        )


def _first_cause(error: Exception) -> Exception:
    """The first plain exception inside a group: what a person wants to read."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
