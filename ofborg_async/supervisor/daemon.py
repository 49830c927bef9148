"""The daemon: wires the rooms together, keeps identities running, stops in order. The composition root."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ofborg_async import __version__, crashpoints, logs
from ofborg_async.checkout import GitWorkspace, MirrorMaintenance, MirrorStore
from ofborg_async.clock import Clock, SystemClock
from ofborg_async.control.server import ControlServer
from ofborg_async.errors import (
    CancelReason,
    ConfigError,
    DeadlineExceededError,
    FaultKind,
    HostFault,
    JournalUnusableError,
    LockHeldError,
    OfborgAsyncError,
)
from ofborg_async.journal import Journal, LogStore
from ofborg_async.locks import LockManager
from ofborg_async.model.identity import BrokerSettings, IdentitySettings, LimitSettings, Settings
from ofborg_async.nix import NixEngine
from ofborg_async.pipeline.ports import Publisher
from ofborg_async.process import Spawner
from ofborg_async.supervisor import startup
from ofborg_async.supervisor.backoff import Backoff
from ofborg_async.supervisor.budget import HostBudget
from ofborg_async.supervisor.claims import SURE_SECONDS, Claim, Claims
from ofborg_async.supervisor.heldroots import HeldRoots
from ofborg_async.supervisor.identity import Identity
from ofborg_async.supervisor.lane import Lane
from ofborg_async.supervisor.lifecycle import Event
from ofborg_async.supervisor.links import Links
from ofborg_async.supervisor.notify import Notifier
from ofborg_async.supervisor.outbox import Outbox
from ofborg_async.supervisor.reload import Reloader
from ofborg_async.supervisor.services import Services
from ofborg_async.supervisor.settlement import reported
from ofborg_async.supervisor.stopsignals import STOP_SIGNALS, TerminalWatch, release_stop_signals
from ofborg_async.supervisor.view import View
from ofborg_async.waiting import at_most, idle

log = logging.getLogger(__name__)

EX_OK, EX_FAILURE, EX_TEMPFAIL, EX_CONFIG = 0, 1, 75, 78
TICK_SECONDS = 1.0
PRUNE_SECONDS = 3600.0
MIRROR_SECONDS = 15.0
"""How often is looked whether a mirror needs packing."""
REMEMBER_SECONDS = 24 * 3600.0
"""How long a message whose acknowledgement is not known is expected to return."""
SETTLE_SECONDS = 30.0
"""How long identities may take to consume before the daemon says that it is ready all the same."""
REPORT_SECONDS = 15.0
"""How long a stop waits for results that are being published; what is not out by then stays in the outbox."""


def run_daemon(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Run until stopped. The exit status of ``run`` (interface document), with its cause on standard error.

    ``read_again`` gives what the same files say at the time of a reload; it blocks, and raises ConfigError.
    """
    logs.configure(settings.daemon.log_level, settings.daemon.log_format)
    if file := crashpoints.arm(os.environ):
        log.warning("this daemon kills itself at the point that %s names (%s)", file, crashpoints.VARIABLE)
    try:
        startup.refuse_root(settings, os.geteuid())
        anyio.run(Daemon(settings, SystemClock(), read_again).run)
    except Exception as error:  # noqa: BLE001 - the end of the process: what is not known is shown in full
        return _exit_status(error)
    return EX_OK


def _exit_status(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, OfborgAsyncError):
        log.critical("the daemon ended by an error that it does not know", exc_info=error)
        return EX_FAILURE
    for line in str(error).splitlines():
        sys.stderr.write(f"ofborg-async: {line}\n")
    if isinstance(error, ConfigError | JournalUnusableError):
        return EX_CONFIG
    return EX_TEMPFAIL if isinstance(error, LockHeldError) else EX_FAILURE


class Daemon:
    """One daemon with its identities. ``run`` raises what keeps it from starting; a stop on request returns."""

    def __init__(self, settings: Settings, clock: Clock, read_again: Callable[[], Settings]) -> None:
        self.settings = settings
        self.clock = clock
        self.started_at = clock.now()
        self.started = clock.monotonic()
        self.stopping = anyio.Event()
        self.hurry = anyio.Event()
        self.hangup = anyio.Event()
        self.identities: dict[str, Identity] = {}
        self.brokers: dict[str, BrokerSettings] = {}
        """The broker of each identity that there is or was: results of one that is gone still have to go there."""
        self.locks = LockManager(clock)
        self.roots = HeldRoots(clock)
        self.builds, self.evaluations = HostBudget("builds", 0), HostBudget("evaluations", 0)
        self.notifier = Notifier(os.environ)
        self.reloader = Reloader(self, read_again)
        self.view = View(self)
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Do from now on what ``settings`` say of the host; identities are the reloader's affair. Sync."""
        self.settings = settings
        cores = os.cpu_count() or 1
        self.builds.resize(settings.daemon.max_builds or max(4, 2 * cores))
        self.evaluations.resize(settings.daemon.max_evaluations or cores)
        self.brokers |= {identity.name: identity.broker for identity in settings.identities}

    async def run(self) -> None:
        """Start, serve, stop. Raises ConfigError, JournalUnusableError, LockHeldError, HostFault before it serves."""
        async with anyio.create_task_group() as group:
            await group.start(self._watch_signals)
            await self._start()
            group.cancel_scope.cancel()
        log.info("stopped")

    async def _start(self) -> None:
        state_dir = self.settings.daemon.state_dir
        async with AsyncExitStack() as stack:
            stack.callback((await startup.lock_state(state_dir, self.clock)).close)
            self.journal = await Journal.open(state_dir, clock=self.clock)
            stack.push_async_callback(self._close_journal)
            await startup.sweep(self.journal, state_dir / "gcroots")
            stack.callback(self.roots.close)
            await self._take_roots()
            self.logs = LogStore(state_dir, limits=LimitSettings())
            self.spawner = Spawner(self.clock, self.journal)
            self.mirrors = MirrorStore(state_dir / "mirrors", locks=self.locks, clock=self.clock)
            if not self.stopping.is_set():
                await self._serve()

    async def _close_journal(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.journal.close()

    async def _take_roots(self) -> None:
        """Take every root that can be used; the others are their identity's trouble. LockHeldError ends the start."""
        for identity in self.settings.identities:
            try:
                await self.roots.take(identity)
            except HostFault as fault:
                log.error("%s cannot start yet: %s", identity.name, fault)  # noqa: TRY400 - the fault says it all

    # --- serving --------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        async with anyio.create_task_group() as around:
            self._around = around
            self.links = Links(around, self.clock, self._connect_pause)
            outbox = Outbox(around, self.journal, self.logs, self.clock, self._publisher_for)
            self.services = Services(
                clock=self.clock,
                state_dir=self.settings.daemon.state_dir,
                journal=self.journal,
                logs=self.logs,
                claims=Claims(),
                builds=self.builds,
                evaluations=self.evaluations,
                outbox=outbox,
                new_backoff=self._new_backoff,
                root_fault=self.roots.fault,
            )
            for settings in self.settings.identities:
                self.links.to(settings.broker)
                self.identities[settings.name] = self.new_identity(settings)
            await self.view.refresh()
            await self._recover(outbox)
            await self.view.restore_holds()
            await self._open_control(around)
            around.start_soon(self._tick)
            around.start_soon(self._pack_mirrors)
            async with anyio.create_task_group() as identities:
                self.group = identities
                for identity in self.identities.values():
                    identities.start_soon(identity.run)
                identities.start_soon(self.reloader.on_hangups)
                await self._until_started()
                with idle("the daemon runs until it is told to stop"):
                    await self.stopping.wait()
                await self._stop()
                identities.cancel_scope.cancel()
            around.cancel_scope.cancel()

    async def _open_control(self, group: TaskGroup) -> None:
        daemon = self.settings.daemon
        server = ControlServer(self.view, self.clock)
        await group.start(partial(server.serve_socket, daemon.control_socket, group=daemon.control_group))
        if daemon.metrics_listen is not None:
            host, port = daemon.metrics_listen
            port = await group.start(server.serve_loopback, host, port)
            log.info("metrics and the status page on http://%s:%d/", host, port)

    def _new_backoff(self) -> Backoff:
        daemon = self.settings.daemon
        return Backoff(daemon.backoff_first_seconds, daemon.backoff_max_seconds)

    def _connect_pause(self, failures: int) -> float:
        backoff = self._new_backoff()
        backoff.skip(failures - 1)
        return backoff.next_seconds()

    def new_identity(self, settings: IdentitySettings) -> Identity:
        """An identity to be run, in the daemon's surroundings."""
        return Identity(settings, self.settings.daemon, self.services, self._prepare)

    async def _prepare(self, identity: Identity) -> Sequence[Lane]:
        """The lanes of an identity, its root taken. Raises HostFault."""
        settings = identity.settings
        try:
            await self.roots.take(settings)
        except LockHeldError as error:
            raise HostFault(FaultKind.LOCK, str(error), remedy="stop the other daemon") from error
        link = self.links.to(settings.broker)
        nix = NixEngine(
            settings.nix,
            limits=settings.limits,
            spawner=self.spawner,
            clock=self.clock,
            roots=self.settings.daemon.state_dir / "gcroots",
            path=os.environ.get("PATH", os.defpath),
            parallel=lambda: 1 + self.evaluations.free,
        )
        return [
            Lane(system, identity, link, self.services, self._workspace(settings, system), nix)
            for system in settings.nix.systems
        ]

    def _workspace(self, settings: IdentitySettings, system: str) -> GitWorkspace:
        return GitWorkspace(
            settings,
            system,
            mirrors=self.mirrors,
            spawner=self.spawner,
            locks=self.locks,
            clock=self.clock,
            environment=os.environ,
        )

    def _publisher_for(self, identity: str, system: str) -> Publisher | None:
        broker = self.brokers.get(identity)
        return None if broker is None else self.links.to(broker).publisher(identity, system)

    # --- what an earlier daemon left ------------------------------------------------------------------------------

    async def _recover(self, outbox: Outbox) -> None:
        """Interrupted attempts are counted; results in the outbox go out; unacknowledged messages are remembered."""
        for interrupted in await self.journal.interrupted():
            log.warning(
                "attempt %s was interrupted in phase %s: its message comes back",
                interrupted.attempt.attempt_id,
                interrupted.phase or "unknown",
            )
        claims: dict[str, Claim] = {}
        for key, attempt_id in await self.journal.unacknowledged():
            claims[attempt_id] = self.services.claims.claim(key, attempt_id, reported_at=self.clock.monotonic())
        holds = {settings.name: settings.broker.unroutable_hold_seconds for settings in self.settings.identities}
        after = 0
        while entries := await self.journal.outbox(after=after):
            for entry in entries:
                claim = claims.get(entry.attempt_id)
                if claim is not None:
                    claim.reported = False
                sent = partial(reported, services=self.services)
                outbox.recover(entry, claim, holds.get(entry.identity, 0.0), sent)
            after = entries[-1].position

    # --- running and stopping -------------------------------------------------------------------------------------

    async def _until_started(self) -> None:
        with at_most(SETTLE_SECONDS):
            async with self._unless(self.stopping):
                for identity in list(self.identities.values()):
                    await identity.settled.wait()
        self.notifier.ready(f"{len(self.identities)} identities")
        log.info("ofborg-async %s runs %d identities as process %d", __version__, len(self.identities), os.getpid())

    async def _watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        terminal = TerminalWatch()
        with anyio.open_signal_receiver(*STOP_SIGNALS) as signals:
            release_stop_signals()
            task_status.started()
            with idle("a signal comes"):
                async for number in signals:
                    self._heed(number, terminal)

    def _heed(self, number: signal.Signals, terminal: TerminalWatch) -> None:
        if number == signal.SIGHUP and not terminal.is_lost():
            self.hangup.set()
        elif self.stopping.is_set():
            log.warning("a second signal: not waiting any longer")
            self.hurry.set()
        else:
            log.info("stopping on %s", signal.Signals(number).name)
            self.stopping.set()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call ``call`` after ``seconds``, unless the daemon has stopped by then. Sync."""

        async def wait() -> None:
            await self.clock.sleep(seconds)
            call()

        self._around.start_soon(wait)

    async def _tick(self) -> None:
        """Feed the watchdog, bring lazy entries to the disk, refresh counts, prune."""
        pruned = self.clock.monotonic()
        every_seconds = min(TICK_SECONDS, self.notifier.watchdog_seconds or TICK_SECONDS)
        while True:
            await self.clock.sleep(every_seconds)
            self.notifier.alive()
            await self.journal.flush()
            prune = self.clock.monotonic() - pruned >= PRUNE_SECONDS
            if prune:
                pruned = self.clock.monotonic()
            try:
                await self._keep_house(prune=prune)
            except (HostFault, DeadlineExceededError) as fault:  # a full disk, mostly: no reason to end what runs
                log.warning("left for later: %s", fault)

    async def _keep_house(self, *, prune: bool) -> None:
        """Raises HostFault, DeadlineExceededError. What the journal could not be told to forget expires there."""
        self.reloader.close_links()
        for attempt_id in self.services.claims.sure(self.clock.monotonic() - SURE_SECONDS):
            await self.journal.acked(attempt_id)
            self.services.claims.forgotten(attempt_id)
        await self.view.refresh()
        if prune:
            self.services.claims.expire(self.clock.monotonic() - REMEMBER_SECONDS)
            await self.journal.prune(self.settings.daemon.history_keep_days)
        keep_bytes = self.settings.daemon.log_keep_bytes
        if prune or self.logs.is_due(keep_bytes):
            await self.logs.prune(keep_bytes, await self.journal.live_attempts())

    async def _pack_mirrors(self) -> None:
        maintenance = MirrorMaintenance(
            self.mirrors, spawner=self.spawner, locks=self.locks, clock=self.clock, environment=os.environ
        )
        while True:
            await self.clock.sleep(MIRROR_SECONDS)
            await maintenance.look(quiet=not any(identity.busy for identity in self.identities.values()))

    async def _stop(self) -> None:
        """No new job; running builds get the configured grace, then go back to their queues; results are published."""
        self.notifier.stopping()
        for identity in self.identities.values():
            identity.on(Event.STOP, "the daemon stops")
        async with self._unless(self.hurry):
            with at_most(self.settings.daemon.shutdown_grace_seconds):
                await self._until_idle()
            for identity in self.identities.values():
                identity.cancel_jobs(CancelReason.SHUTDOWN)
            with at_most(REPORT_SECONDS):
                await self._until_idle()

    @asynccontextmanager
    async def _unless(self, event: anyio.Event) -> AsyncIterator[None]:
        """Cut the body short when ``event`` comes."""
        async with anyio.create_task_group() as group:

            async def cut() -> None:
                with idle("what would cut the body short: ended with the body"):
                    await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(cut)
            yield
            group.cancel_scope.cancel()

    async def _until_idle(self) -> None:
        for identity in list(self.identities.values()):  # a reload may take one out meanwhile
            await identity.until_idle()
