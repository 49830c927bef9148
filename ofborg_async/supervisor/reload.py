"""A changed configuration, applied identity by identity: those that are as before are not touched.

An identity that is to go or to change is *moved*: it takes no new job, its running one ends, it is dismissed with its
root's lock if it leaves that root, and what the newest configuration says under its name is started. Each move is a
task of its own. A reload in the meantime only says anew what comes at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
from attrs import evolve

from ofborg_async import logs
from ofborg_async.config import changed_daemon_keys, changed_identity_keys, fingerprint, running_daemon_settings
from ofborg_async.control.problems import ConflictError
from ofborg_async.errors import CancelReason, ConfigError, HostFault
from ofborg_async.locks import find_conflicts
from ofborg_async.model.identity import IdentitySettings, Settings
from ofborg_async.model.reload import Change, FaultReport, IdentityChange, ReloadReport
from ofborg_async.model.status import AmqpState, IdentityState
from ofborg_async.supervisor.lifecycle import Event
from ofborg_async.waiting import at_most, idle, in_thread

if TYPE_CHECKING:
    from ofborg_async.supervisor.daemon import Daemon
    from ofborg_async.supervisor.identity import Identity

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often a move looks whether what it waits for has come."""
REPORT_SECONDS = 15.0
"""How long a removed identity may take to publish what it has; then the outbox goes on with it."""

UNREACHABLE = frozenset({AmqpState.DOWN, AmqpState.REFUSED})


class Reloader:
    """Reads the configuration again (``read``: blocks, raises ConfigError) and brings the daemon to what it says."""

    def __init__(self, daemon: Daemon, read: Callable[[], Settings]) -> None:
        self._daemon = daemon
        self._read = read
        self._turn = anyio.Lock()
        self._moving: set[str] = set()
        self._has_links_to_close = False
        self._leaving: dict[str, IdentitySettings] = {}

    async def on_hangups(self) -> None:
        """Reload whenever the daemon gets a SIGHUP, until cancelled."""
        while True:
            with idle("a SIGHUP asks for a reload"):
                await self._daemon.hangup.wait()
            self._daemon.hangup = anyio.Event()
            try:
                await self.reload()
            except ConflictError as error:  # told to stop meanwhile: nobody waits for an answer, and it is no fault
                log.info("no reload: %s", error)
            except HostFault as fault:
                log.error("no reload: %s", fault)  # noqa: TRY400 - the fault says it all

    async def reload(self) -> ReloadReport:
        """Read and apply. Returns once it is decided what happens; running jobs are not waited for.

        Faults change nothing and are all in the report. Raises ConflictError while the daemon stops, HostFault.
        """
        async with self._turn:
            try:
                settings = await in_thread(self._read)
            except ConfigError as error:
                report = self._refused(error)
            else:
                report = self._apply(settings)
        for sentence in report.sentences():
            log.log(logging.INFO if report.ok else logging.ERROR, "reload: %s", sentence)
        return report

    def _refused(self, error: ConfigError) -> ReloadReport:
        faults = tuple(FaultReport(fault.file, fault.line, fault.key, fault.message) for fault in error.faults)
        return ReloadReport(1, ok=False, fingerprint=self._daemon.settings.fingerprint, faults=faults)

    def _apply(self, new: Settings) -> ReloadReport:
        """From here to its end nothing is awaited: another reload or a stop finds all of it or nothing."""
        daemon = self._daemon
        if daemon.stopping.is_set():
            raise ConflictError("the daemon stops", remedy="it reads its configuration when it starts again")
        old = daemon.settings
        at_once, at_restart = changed_daemon_keys(old.daemon, new.daemon)
        new = evolve(new, daemon=running_daemon_settings(old.daemon, new.daemon))
        new = evolve(new, fingerprint=fingerprint(new))
        daemon.adopt(new)
        logs.configure(new.daemon.log_level, new.daemon.log_format)
        daemon.services.outbox.reroute()
        self._has_links_to_close = True
        changes = tuple(self._changes(old, new))
        for change in changes:
            if change.change is not Change.UNCHANGED and change.name not in self._moving:
                self._moving.add(change.name)
                daemon.group.start_soon(self._move, change)
        return ReloadReport(
            1,
            ok=True,
            fingerprint=new.fingerprint,
            warnings=new.warnings,
            identities=changes,
            daemon_keys=at_once,
            restart_keys=at_restart,
        )

    def _changes(self, old: Settings, new: Settings) -> list[IdentityChange]:
        before = {identity.name: identity for identity in old.identities}
        after = {identity.name: identity for identity in new.identities}
        changes = []
        for name in dict.fromkeys((*before, *after)):
            if name not in after:
                effect = f"its job has {new.daemon.shutdown_grace_seconds:g} s to end" if self._is_busy(name) else ""
                changes.append(IdentityChange(name, Change.REMOVED, (), effect))
            elif name not in before:
                changes.append(IdentityChange(name, Change.ADDED))
            elif keys := changed_identity_keys(before[name], after[name]):
                effect = "it restarts once its job is over" if self._is_busy(name) else ""
                changes.append(IdentityChange(name, Change.CHANGED, keys, effect))
            else:
                changes.append(IdentityChange(name, Change.UNCHANGED))
        return changes

    def close_links(self) -> None:
        """Close the links that nobody uses since the last reload: no identity, and no result on its way. Sync."""
        daemon = self._daemon
        if self._has_links_to_close:
            results_of = daemon.services.outbox.identities
            used = {identity.settings.broker for identity in daemon.identities.values()}
            used |= {identity.broker for identity in daemon.settings.identities}
            used |= {daemon.brokers[name] for name in results_of}
            daemon.links.close_unused(used)
            self._has_links_to_close = bool(self._moving or results_of)

    def _is_busy(self, name: str) -> bool:
        return name in self._daemon.identities and self._daemon.identities[name].busy

    def _wanted(self, name: str) -> IdentitySettings | None:
        found = (identity for identity in self._daemon.settings.identities if identity.name == name)
        return None if self._daemon.stopping.is_set() else next(found, None)

    # --- moving -----------------------------------------------------------------------------------------------------

    async def _move(self, change: IdentityChange) -> None:
        name = change.name
        drained = False
        try:
            if (running := self._daemon.identities.get(name)) is not None:
                drained = running.state in {IdentityState.DRAINING, IdentityState.STOPPED}
                await self._end(running, change)
            while (wanted := self._wanted(name)) is not None:
                if (other := self._who_leaves(wanted)) is None:
                    self._start(wanted, drained=drained)
                    return
                if running is not None:
                    running.reason = f"it waits for its new root, which {other} leaves once its job is over"
                await self._daemon.clock.sleep(LOOK_SECONDS)
            self._daemon.identities.pop(name, None)
        finally:
            self._moving.discard(name)

    async def _end(self, running: Identity, change: IdentityChange) -> None:
        """Let its job end, or go back; then nothing of it is left but what waits in the outbox."""
        name = running.settings.name
        self._leaving[name] = running.settings
        keys = ", ".join(change.keys)
        running.on(
            Event.DRAIN, f"its configuration changed ({keys})" if keys else "it was removed from the configuration"
        )
        while running.busy:
            wanted = self._wanted(name)
            if wanted is None:
                await self._let_go(running)
                break
            if self._is_cut_off(running, wanted):
                break
            with at_most(LOOK_SECONDS):
                await running.until_idle()
        await running.dismiss()
        del self._leaving[name]
        wanted = self._wanted(name)
        if wanted is None or wanted.root != running.settings.root:
            self._daemon.roots.leave(name)

    async def _let_go(self, running: Identity) -> None:
        """As at a stop of the daemon: the grace, then what still runs goes back to its queue."""
        with at_most(self._daemon.settings.daemon.shutdown_grace_seconds):
            await running.until_idle()
        running.cancel_jobs(CancelReason.SHUTDOWN)
        with at_most(REPORT_SECONDS):
            await running.until_idle()

    def _is_cut_off(self, running: Identity, wanted: IdentitySettings) -> bool:
        """Whether results wait for a broker that it had, as with an old password: the outbox takes the new way."""
        broker = running.settings.broker
        state = self._daemon.links.to(broker).snapshot(()).state
        return broker != wanted.broker and state in UNREACHABLE and running.reports_only

    def _who_leaves(self, wanted: IdentitySettings) -> str | None:
        """Who is about to leave this root but still has it, as when two identities swap theirs. Sync."""
        others = [(name, settings.root) for name, settings in self._leaving.items()]
        try:
            conflicts = find_conflicts([(wanted.name, wanted.root), *others])
        except HostFault:
            return None  # what is wrong with a root its identity tells when it starts
        return next((conflict.second for conflict in conflicts if conflict.first == wanted.name), None)

    def _start(self, settings: IdentitySettings, *, drained: bool) -> None:
        """Start it as the operator left it: paused or drained, if it was. Sync."""
        identity = self._daemon.new_identity(settings)
        self._daemon.identities[settings.name] = identity
        self._daemon.view.hold(identity)
        if drained:
            identity.drain("drained by the operator")
        self._daemon.group.start_soon(identity.run)
