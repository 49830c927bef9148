"""One system of one identity: listens on its queue and hands one job at a time to a JobTask.

The build is a task of the lane, not of the channel its message came from: a lost channel neither ends nor doubles it.
While a job runs the lane takes nothing; if the job's delivery is lost meanwhile, the lane consumes again only after the
result is out, so that the returning message finds its attempt (architecture, "A lane whose delivery was lost").
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import anyio

from ofborg_async import logs
from ofborg_async.broker.intake import Intake, Subscription
from ofborg_async.broker.link import Link
from ofborg_async.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DeadlineExceededError,
    DeliveryLostError,
    UndecodableError,
)
from ofborg_async.journal import JobKey
from ofborg_async.model.status import AmqpState, SystemSnapshot
from ofborg_async.nix import HostEvidence
from ofborg_async.nix.environment import places_of_builds
from ofborg_async.supervisor.claims import Claim, Standing
from ofborg_async.supervisor.lifecycle import Event
from ofborg_async.supervisor.settlement import acknowledge, returns_spent
from ofborg_async.supervisor.task import Given, JobTask
from ofborg_async.waiting import at_most
from ofborg_async.wire.decode import decode_job

if TYPE_CHECKING:
    from ofborg_async.model.identity import IdentitySettings
    from ofborg_async.pipeline.ports import Delivery, Nix, Workspace
    from ofborg_async.supervisor.services import Services

log = logging.getLogger(__name__)

DISK_LOOK_SECONDS = 5.0
ATTRS_SHOWN = 5
LOOK_SECONDS = 1.0
"""How often a lane without its broker looks whether the reason has changed."""


class Owner(Protocol):
    """The identity, as its lanes see it. All sync but the wait."""

    settings: IdentitySettings

    @property
    def may_consume(self) -> bool:
        """Whether new work may be taken now."""
        ...

    async def until_may_consume(self) -> None:
        """Wait idle until ``may_consume``."""
        ...

    def on(self, event: Event, reason: str = "", *, remedy: str = "") -> None:
        """Tell of an event."""
        ...

    def job_started(self) -> None:
        """A lane took a job."""
        ...

    def job_ended(self, given: Given | None) -> None:
        """A lane's job is over, with what became of it (None when it was cut off)."""
        ...


class Lane:
    """One system of one identity. ``run`` goes on until cancelled; an error it does not know ends it (caught above)."""

    def __init__(
        self, system: str, owner: Owner, link: Link, services: Services, workspace: Workspace, nix: Nix
    ) -> None:
        self.system = system
        self.task: JobTask | None = None
        self.amqp = AmqpState.CONNECTING
        self.amqp_detail = ""
        self.undecodable = 0
        self.workspace = workspace
        self.nix = nix
        self.publisher = link.publisher(owner.settings.name, system)
        self._owner = owner
        self._link = link
        self._services = services
        self._listening: anyio.CancelScope | None = None
        self._backoff = services.new_backoff()
        settings = owner.settings
        limits = settings.limits
        self._evidence = HostEvidence(
            (settings.root, services.state_dir, *places_of_builds(settings.nix)),
            limits.disk_floor_bytes,
            limits.disk_floor_inodes,
        )
        hosts = ",".join(f"{host}:{port}" for host, port in settings.broker.addresses)
        self._scope = f"{hosts}/{settings.broker.vhost}"
        self._subscription = Subscription(
            system=system,
            queue=f"build-inputs-{system}",
            consumer_tag=settings.consumer_tag,
            build_all_jobs=settings.build_all_jobs,
            identity=settings.name,
        )

    def snapshot(self) -> SystemSnapshot:
        """A frozen copy for ``status``."""
        state, detail = self.amqp, self.amqp_detail
        if state in {AmqpState.CONSUMING, AmqpState.HOLDING}:
            # While a job runs nobody listens, so that the link knows first when the broker is gone.
            broker = self._link.snapshot(())
            if broker.state not in {AmqpState.CONSUMING, state}:
                state, detail = broker.state, broker.error
        job = self.task.snapshot() if self.task else None
        return SystemSnapshot(self.system, self._subscription.queue, state, job, detail)

    def stop_listening(self) -> None:
        """Stop waiting for the next message; a job under way goes on."""
        if self._listening is not None:
            self._listening.cancel()

    async def run(self) -> None:
        """Take jobs while the identity may."""
        try:
            await self._take_jobs()
        finally:
            await self.publisher.close()

    async def _take_jobs(self) -> None:
        while True:
            if not self._owner.may_consume:
                self.amqp = AmqpState.HOLDING
                await self._owner.until_may_consume()
            await self._until_room()
            await self._until_linked()
            try:
                intake = await self._link.open_intake(self._subscription)
            except (BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError) as error:
                await self._broker_trouble(error)
                continue
            self.amqp, self.amqp_detail = AmqpState.CONSUMING, "; ".join(intake.warnings)
            self._owner.on(Event.CONSUMING)
            given = Given()
            try:
                given = await self._consume(intake)
            except BrokerUnavailableError as error:
                await self._broker_trouble(error)
            finally:
                # Closing gives back what is not acknowledged: always before a pause, or the broker would hand the
                # same message over again at once.
                await intake.close()
            if given.back:
                await self._pause_after(given)

    async def _until_room(self) -> None:
        """Wait while a disk that builds need is below its floor: no job is taken that could not be finished."""
        while (place := self._evidence.full_place()) is not None:
            self.amqp = AmqpState.HOLDING
            self._owner.on(
                Event.UNABLE,
                f"the disk of {place} has less free than its floor (limits.disk_floor_bytes, limits.disk_floor_inodes)",
                remedy="free some space: old store paths, logs, other roots",
            )
            await self._services.clock.sleep(DISK_LOOK_SECONDS)

    async def _until_linked(self) -> None:
        """Wait until the link is up, telling what keeps it from being."""
        while True:
            with at_most(LOOK_SECONDS) as scope:
                await self._link.wait_ready()
            if not scope.cancelled_caught:
                return
            broker = self._link.snapshot(())
            self.amqp = broker.state
            if broker.error and broker.error != self.amqp_detail:
                self.amqp_detail = broker.error
                self._owner.on(Event.UNABLE, broker.error)

    async def _pause_after(self, given: Given) -> None:
        self.amqp, self.amqp_detail = AmqpState.HOLDING, given.reason
        if given.fault is None:
            async with self._services.builds.slot(self._owner.settings.name, self._owner.settings.weight):
                return  # a slot is free: others on this host or elsewhere had their turn
        await self._services.clock.sleep(self._backoff.next_seconds())

    async def _broker_trouble(self, error: Exception) -> None:
        refused = isinstance(error, BrokerRefusedError)
        self.amqp = AmqpState.REFUSED if refused else AmqpState.DOWN
        self.amqp_detail = str(error)
        remedy = error.remedy if isinstance(error, BrokerRefusedError) else ""
        self._owner.on(Event.UNABLE, str(error), remedy=remedy)
        await self._services.clock.sleep(self._backoff.next_seconds())

    async def _consume(self, intake: Intake) -> Given:
        """Take messages until told to stop, until one went back, or until a job's delivery was lost."""
        while self._owner.may_consume:
            delivery = await self._next(intake)
            # It may have come in the same moment: closing gives it back.
            if delivery is None or not self._owner.may_consume:
                break
            given = await self._take(delivery, intake)
            if given.back:
                return given
            self._backoff.reset()
            if delivery.lost:
                break
        return Given()

    async def _next(self, intake: Intake) -> Delivery | None:
        with anyio.CancelScope() as scope:
            self._listening = scope
            try:
                return await intake.next()
            finally:
                self._listening = None
        return None

    async def _take(self, delivery: Delivery, intake: Intake) -> Given:
        try:
            job = decode_job(delivery.body, max_bytes=self._owner.settings.limits.message_bytes)
        except UndecodableError as error:
            await self._reject(delivery, error)
            return Given()
        digest = hashlib.sha256(delivery.body).hexdigest()
        key = JobKey(f"{self._scope}/{delivery.queue}", job.request_id, digest)
        standing, known = self._services.claims.judge(key, redelivered=delivery.redelivered)
        if known is not None:
            await self._returned(standing, known, delivery, intake)
            return Given()
        if self._evidence.full_place() is not None and not returns_spent(delivery, self._owner.settings.limits):
            return Given(back=True)
        if fault := self._services.root_fault(self._owner.settings):
            raise fault  # the identity takes it anew, or tells why it cannot
        # The claim is made here, before anything is awaited: see claims.
        task = JobTask(self, self._owner.settings, self._services, job, key, delivery)
        self.task = task
        self._owner.job_started()
        given = None
        pull = f"{job.repo.full_name}#{job.pr.number}"
        with logs.bind(identity=self._owner.settings.name, system=self.system, pr=pull, attempt=task.attempt_id):
            log.info("takes %s", " ".join(job.attrs[:ATTRS_SHOWN]) or "a job without attributes")
            try:
                given = await task.run()
                log.info("%s after %.1f s", given.outcome, task.progress.snapshot().elapsed_seconds)
            finally:
                self.task = None
                self._owner.job_ended(given)
        return given

    async def _returned(self, standing: Standing, claim: Claim, delivery: Delivery, intake: Intake) -> None:
        """A message that came back: its attempt has it already."""
        self._services.claims.adopt(claim, delivery)
        if standing is Standing.RUNNING:
            log.info("a message of attempt %s came back while it runs: handed over to it", claim.attempt_id)
            await intake.park()
        else:
            log.info("a message of attempt %s came back after its result: acknowledged", claim.attempt_id)
            await acknowledge(claim, self._services)

    async def _reject(self, delivery: Delivery, error: UndecodableError) -> None:
        self.undecodable += 1
        self._services.counters.undecodable += 1
        log.error("a message on %s is no build job and is rejected: %s", delivery.queue, error)
        with suppress(DeliveryLostError):
            await delivery.reject()
