"""The daemon as the control API sees it: frozen snapshots out, a few commands in (control.port.DaemonControl)."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
from attrs import evolve, frozen

from ofborg_async import __version__
from ofborg_async.clock import rfc3339
from ofborg_async.config import files_changed_since
from ofborg_async.control.port import Metric, MetricKind, Sample
from ofborg_async.control.problems import ConflictError, UnknownNameError
from ofborg_async.control.verdict import overall_verdict
from ofborg_async.errors import CancelReason
from ofborg_async.journal import AttemptStateError, Counters, LogMissingError, LogReader
from ofborg_async.model.reload import ReloadReport
from ofborg_async.model.status import (
    BrokenLock,
    DaemonSnapshot,
    HistoryEntry,
    IdentitySnapshot,
    IdentityState,
    LockSnapshot,
)
from ofborg_async.nix.environment import places_of_builds
from ofborg_async.supervisor.lifecycle import Event
from ofborg_async.supervisor.reasons import why_not_building

if TYPE_CHECKING:
    from pathlib import Path

    from ofborg_async.supervisor.daemon import Daemon
    from ofborg_async.supervisor.identity import Identity
    from ofborg_async.supervisor.task import JobTask

log = logging.getLogger(__name__)

LOG_CHUNK_BYTES = 64 * 1024
NO_COUNTERS = Counters()


@frozen
class _Pause:
    """``until`` is what the operator sees; ``ends_at``, by the monotonic clock in seconds, is when it is over."""

    reason: str
    until: datetime | None
    ends_at: float | None


@frozen
class _Disk:
    place: str
    free_bytes: int
    floor_bytes: int


class View:
    """Implements DaemonControl for one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._counters: Mapping[str, Counters] = {}
        self._seen_commits = -1
        self._pauses: dict[str, _Pause] = {}

    async def refresh(self) -> None:
        """Read anew the counts that snapshots show, if the journal changed; end pauses whose time has come."""
        journal = self._daemon.journal
        commits = journal.statistics.commits
        if commits != self._seen_commits:
            self._seen_commits = commits
            self._counters = await journal.counters()
        now = self._daemon.clock.monotonic()
        for name, pause in [*self._pauses.items()]:
            if pause.ends_at is not None and pause.ends_at <= now and self._pauses.get(name) is pause:
                await self._end_pause(name)
                identity = self._daemon.identities.get(name)  # it may not be configured any more
                if identity is not None and identity.state is IdentityState.PAUSED:
                    identity.on(Event.RESUME, "its pause is over")

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self) -> DaemonSnapshot:
        """Everything ``status`` shows."""
        daemon = self._daemon
        identities = tuple(self._identity(identity) for identity in daemon.identities.values())
        locks = daemon.locks.statistics()
        disk = self._tightest_disk(daemon.identities.values())
        return DaemonSnapshot(
            schema=1,
            host=socket.gethostname(),
            version=__version__,
            pid=os.getpid(),
            started_at=rfc3339(daemon.started_at),
            uptime_seconds=round(daemon.clock.monotonic() - daemon.started, 3),
            fingerprint=daemon.settings.fingerprint,
            config_changed=bool(files_changed_since(daemon.settings)),
            slots=(daemon.builds.statistics(), daemon.evaluations.statistics()),
            brokers=tuple(
                link.snapshot(
                    tuple(name for name, identity in daemon.identities.items() if identity.settings.broker == broker)
                )
                for broker, link in daemon.links.by_settings.items()
            ),
            disk_free_bytes=disk.free_bytes,
            disk_floor_bytes=disk.floor_bytes,
            locks_held=sum(lock.holder is not None for lock in locks) + len(daemon.roots.locks),
            locks_waiting=sum(len(lock.waiters) for lock in locks),
            verdict=str(
                overall_verdict(identities, disk_free_bytes=disk.free_bytes, disk_floor_bytes=disk.floor_bytes)
            ),
            identities=identities,
            stopping=daemon.stopping.is_set(),
            disk_place=disk.place,
        )

    def _tightest_disk(self, identities: Iterable[Identity]) -> _Disk:
        """The one of those that jobs of these write to which is nearest to its floor.

        A place that cannot be asked (not made yet, no permission) is left out: its identity tells of it, and others'
        status does not depend on it.
        """
        state_dir = self._daemon.settings.daemon.state_dir
        floors: dict[Path, int] = {state_dir: 0}
        for identity in identities:
            settings = identity.settings
            for place in (state_dir, settings.root, *places_of_builds(settings.nix)):
                floors[place] = max(floors.get(place, 0), settings.limits.disk_floor_bytes)
        disks = []
        for place, floor in floors.items():
            with suppress(OSError):
                disks.append(_Disk(str(place), shutil.disk_usage(place).free, floor))
        return min(disks, key=lambda disk: disk.free_bytes - disk.floor_bytes, default=_Disk(str(state_dir), 0, 0))

    def _identity(self, identity: Identity) -> IdentitySnapshot:
        counters = self._counters.get(identity.settings.name, NO_COUNTERS)
        # A result that is just being published is no news; one that the broker does not take is.
        troubles = [lane.task.courier.trouble for lane in identity.lanes if lane.task is not None]
        troubles.append(self._daemon.services.outbox.trouble_of(identity.settings.name))
        trouble = next(filter(None, troubles), "")
        return identity.snapshot(
            ok_24h=counters.ok_24h,
            failed_24h=counters.failed_24h,
            results_waiting=counters.results_waiting if trouble else counters.unroutable,
            results_detail=trouble,
            lock="held" if identity.settings.name in self._daemon.roots.locks else "not held",
        )

    def locks(self) -> tuple[LockSnapshot, ...]:
        """Roots held for the life of the daemon, then what jobs hold and wait for."""
        uptime = self._daemon.clock.monotonic() - self._daemon.started
        roots = tuple(
            LockSnapshot(
                key=lock.key,
                kind="root",
                path=str(lock.path),
                holder=name,
                holder_pid=os.getpid(),
                job=None,
                held_seconds=round(uptime, 3),
                waiters=(),
            )
            for name, lock in self._daemon.roots.locks.items()
        )
        return roots + self._daemon.locks.statistics()

    async def break_lock(self, key: str) -> BrokenLock:
        """Free a lock whose holder is dead."""
        from ofborg_async.supervisor.deadholders import free_lock  # imported once somebody asks

        return await free_lock(key, self.locks())

    def metrics(self) -> tuple[Metric, ...]:
        """Counters since the start."""
        tally = self._daemon.services.counters
        return (
            Metric(
                "ofborg_async_jobs_total",
                MetricKind.COUNTER,
                "Finished attempts by status.",
                tuple(Sample(count, (("status", status),)) for status, count in sorted(tally.jobs_by_status.items())),
            ),
            Metric(
                "ofborg_async_undecodable_messages_total",
                MetricKind.COUNTER,
                "Messages that were no build job and were rejected.",
                (Sample(tally.undecodable),),
            ),
            Metric(
                "ofborg_async_tasks",
                MetricKind.GAUGE,
                "Tasks of the event loop: more with each job in hand, and no more once it is over.",
                (Sample(len(anyio.get_running_tasks())),),
            ),
        )

    def why(self, identity: str) -> str:
        """The one reason why an identity does not build now."""
        found = self._find(identity)
        disk = self._tightest_disk([found])  # not another's
        daemon = evolve(
            self.snapshot(),
            disk_place=disk.place,
            disk_free_bytes=disk.free_bytes,
            disk_floor_bytes=disk.floor_bytes,
        )
        return why_not_building(self._identity(found), daemon)

    async def history(
        self, identity: str | None, since: datetime | None, limit: int, before: str | None
    ) -> tuple[HistoryEntry, ...]:
        """Finished attempts, newest first."""
        if identity is not None:
            self._find(identity)
        try:
            return await self._daemon.journal.history(identity, since, limit=limit, before=before)
        except AttemptStateError as error:
            raise UnknownNameError("attempt", before or "") from error

    # --- logs -----------------------------------------------------------------------------------------------------

    async def read_log(self, selector: str, follow: bool) -> AsyncGenerator[bytes, None]:
        """The local log of an attempt; see the port."""
        attempt_id = await self._attempt(selector)
        try:
            reader = self._daemon.logs.open_reader(attempt_id)
        except LogMissingError as error:
            raise ConflictError(
                f"the log of attempt {attempt_id} is no longer kept", remedy="raise daemon.log_keep_bytes"
            ) from error
        chunks = self._stream(reader, follow)
        await anext(chunks)
        return chunks

    async def _stream(self, reader: LogReader, follow: bool) -> AsyncGenerator[bytes, None]:
        with reader:
            yield b""  # begun: one that is closed before would leave its file open
            while True:
                lines = reader.read(LOG_CHUNK_BYTES)
                if lines:
                    yield b"\n".join(lines) + b"\n"
                elif not follow or not await reader.wait():
                    return

    async def _attempt(self, selector: str) -> str:
        """What a selector means: an id, a unique prefix of one, or an identity's running or newest attempt."""
        identity = self._daemon.identities.get(selector)
        if identity is not None:
            for lane in identity.lanes:
                if lane.task is not None:
                    return lane.task.attempt_id
            newest = await self._daemon.journal.history(selector, limit=1)
            if not newest:
                raise ConflictError(f"{selector} has not built anything yet")
            return newest[0].attempt_id
        matches = {task.attempt_id for task in self._tasks() if task.attempt_id.startswith(selector)}
        matches |= set(await self._daemon.journal.find_attempts(selector, limit=2))
        if not matches:
            raise UnknownNameError("attempt or identity", selector, self._daemon.identities)
        if len(matches) > 1:
            raise ConflictError(f"{selector} is the beginning of several attempts", remedy="give more of the id")
        return matches.pop()

    def _tasks(self) -> list[JobTask]:
        lanes = [lane for identity in self._daemon.identities.values() for lane in identity.lanes]
        return [lane.task for lane in lanes if lane.task is not None]

    # --- commands -------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Identity:
        try:
            return self._daemon.identities[name]
        except KeyError:
            raise UnknownNameError("identity", name, self._daemon.identities) from None

    def _chosen(self, names: Sequence[str]) -> list[Identity]:
        return [self._find(name) for name in names] if names else list(self._daemon.identities.values())

    async def drain(self, identities: tuple[str, ...], deadline_seconds: float | None) -> None:
        """Take no new job; after the deadline what runs goes back to its queue."""
        for identity in self._chosen(identities):
            if identity.state is IdentityState.FAILED:
                continue
            end_drain = identity.drain("drained by the operator")
            if identity.busy and deadline_seconds is not None:
                self._daemon.later(deadline_seconds, end_drain)

    async def wait_drained(self, identities: tuple[str, ...]) -> None:
        """Return once none of these has a job and none takes one."""
        for identity in self._chosen(identities):
            if identity.may_consume:
                raise ConflictError(f"{identity.settings.name} is not being drained")
            await identity.until_idle()

    async def stop(self) -> None:
        """Stop the daemon as a SIGTERM does."""
        self._daemon.stopping.set()

    async def pause(self, identities: tuple[str, ...], reason: str, until: datetime | None) -> None:
        """Take no new job until resumed; survives a restart."""
        since = self._daemon.clock.now()
        for identity in self._chosen(identities):
            await self._daemon.journal.set_pause(identity.settings.name, reason, until)
            self._pauses[identity.settings.name] = self._pause_of(reason, since, until)
            self.hold(identity)

    async def restore_holds(self) -> None:
        """Pause what was paused when the daemon before this one ended; identities that are not there yet, later."""
        holds = await self._daemon.journal.pauses()
        self._pauses = {hold.identity: self._pause_of(hold.reason, hold.since, hold.until) for hold in holds}
        for identity in self._daemon.identities.values():
            self.hold(identity)

    def _pause_of(self, reason: str, since: datetime, until: datetime | None) -> _Pause:
        """What is left of a pause; never more than all of it, also when the wall clock was set back since."""
        clock = self._daemon.clock
        left_seconds = None if until is None else (until - max(clock.now(), since)).total_seconds()
        return _Pause(reason, until, None if left_seconds is None else clock.monotonic() + left_seconds)

    def hold(self, identity: Identity) -> None:
        """Pause an identity if the operator has paused what has its name. Sync."""
        pause = self._pauses.get(identity.settings.name)
        if pause is not None:
            shown = pause.reason or "paused by the operator"
            identity.on(Event.PAUSE, f"{shown} (until {rfc3339(pause.until)})" if pause.until else shown)

    async def resume(self, identities: tuple[str, ...]) -> None:
        """Undo pause, drain and quarantine."""
        for identity in self._chosen(identities):
            await self._end_pause(identity.settings.name)
            if not identity.may_consume:
                identity.on(Event.RESUME, "resumed by the operator")

    async def _end_pause(self, name: str) -> None:
        """Forget a pause, if there is one; after HostFault it is still there."""
        await self._daemon.journal.clear_pause(name)
        self._pauses.pop(name, None)

    async def cancel(self, attempt_id: str) -> None:
        """End one running build and report it."""
        matches = [task for task in self._tasks() if task.attempt_id.startswith(attempt_id)]
        if not matches:
            raise UnknownNameError("running attempt", attempt_id, [task.attempt_id for task in self._tasks()])
        if len(matches) > 1:
            raise ConflictError(f"{attempt_id} is the beginning of several attempts", remedy="give more of the id")
        if not matches[0].cancel(CancelReason.OPERATOR):
            raise ConflictError(f"attempt {matches[0].attempt_id} has ended and is reporting")

    async def restart(self, identity: str) -> None:
        """Start an identity anew, also one that is paused; its running jobs go back to their queue."""
        found = self._find(identity)
        await self._end_pause(identity)
        await self._daemon.journal.restarted(identity)
        found.restart()

    async def reload(self) -> ReloadReport:
        """Read the configuration again and do what it says, identity by identity."""
        return await self._daemon.reloader.reload()
