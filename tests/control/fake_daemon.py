"""A DaemonControl that serves example snapshots; ``python fake_daemon.py SOCKET [PORT]`` serves them to look at."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from attrs import define, evolve, field

from ofborg_async.clock import SystemClock, rfc3339
from ofborg_async.control.port import Metric, MetricKind, Sample
from ofborg_async.control.problems import ConflictError, UnknownNameError
from ofborg_async.control.server import ControlServer
from ofborg_async.model.reload import Change, FaultReport, IdentityChange, ReloadReport
from ofborg_async.model.status import (
    AmqpState,
    BrokenLock,
    BrokerSnapshot,
    DaemonSnapshot,
    HistoryEntry,
    IdentitySnapshot,
    IdentityState,
    JobSnapshot,
    LockSnapshot,
    Phase,
    SlotSnapshot,
    SystemSnapshot,
)

LINUX = "x86_64-linux"
ATTEMPT = "5f0c1c1e-7f5b-4f0e-9a3c-0a6d1c2b3d4e"
OTHER_ATTEMPT = "5f0cffff-0000-4000-8000-000000000001"
HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\u202eattr<script>alert(1)</script>[bold]x[/bold]"
LONG_ERROR = (
    "the broker refused user 'builder' on vhost '/ofborg' queue 'build-inputs-aarch64-darwin': "
    "ACCESS_REFUSED - read access to queue 'build-inputs-aarch64-darwin' in vhost '/ofborg' refused"
)
LONG_REMEDY = "ask the broker's administrator for the read permission on build-inputs-aarch64-darwin"


def job(attempt_id: str = ATTEMPT, phase: Phase = Phase.BUILD, **changes: Any) -> JobSnapshot:
    example = JobSnapshot(
        attempt_id=attempt_id,
        request_id="req-1",
        repo="NixOS/nixpkgs",
        pr=123456,
        attrs=("hello", "firefox", "python311Packages.numpy", "linuxPackages_latest.kernel", "chromium"),
        phase=phase,
        started_at="2025-06-01T10:00:00.000Z",
        elapsed_seconds=754.2,
        limit_seconds=21600.0,
        quiet_seconds=12.0,
        lines=20481,
    )
    return evolve(example, **changes)


def system(name: str, amqp: AmqpState, running: JobSnapshot | None = None, detail: str = "") -> SystemSnapshot:
    return SystemSnapshot(name, f"build-inputs-{name}", amqp, running, detail)


def identity(name: str, state: IdentityState, *systems: SystemSnapshot, **changes: Any) -> IdentitySnapshot:
    example = IdentitySnapshot(
        name=name,
        state=state,
        systems=systems,
        root=f"/var/lib/ofborg-async/{name}",
        lock="held",
        ok_24h=12,
        failed_24h=3,
        restarts=0,
        last_error="",
        remedy="",
        reason="",
        state_since="2025-06-01T10:00:00.000Z",
    )
    return evolve(example, **changes)


IDENTITIES = (
    identity("mac1-a", IdentityState.BUSY, system(LINUX, AmqpState.HOLDING, job())),
    identity("mac1-b", IdentityState.IDLE, system(LINUX, AmqpState.CONSUMING)),
    identity(
        "mac1-two-systems",
        IdentityState.BUSY,
        system(
            "aarch64-darwin",
            AmqpState.HOLDING,
            job(OTHER_ATTEMPT, Phase.CHECKOUT, attrs=(HOSTILE,), waiting_for="the work tree, held by mac1-a"),
        ),
        system("x86_64-darwin", AmqpState.CONSUMING),
    ),
    identity(
        "mac1-refused",
        IdentityState.BACKOFF,
        system("aarch64-darwin", AmqpState.REFUSED),
        lock="held",
        last_error=LONG_ERROR,
        remedy=LONG_REMEDY,
        restarts=7,
    ),
    identity(
        "mac1-paused",
        IdentityState.PAUSED,
        system(LINUX, AmqpState.HOLDING),
        reason="disk replacement, until 2025-06-01T18:00:00Z",
    ),
    identity(
        "mac1-quarantined",
        IdentityState.QUARANTINED,
        system(LINUX, AmqpState.HOLDING),
        reason="3 jobs in a row failed for reasons of the host; next try in 480 s",
        last_error="disk: no space left on device",
        remedy="free space at /nix",
        results_waiting=2,
    ),
)

SNAPSHOT = DaemonSnapshot(
    schema=1,
    host="mac1.example.org",
    version="0.1.0",
    pid=4711,
    started_at="2025-06-01T08:00:00.000Z",
    uptime_seconds=93784.0,
    fingerprint="9b0a44f1c0de9b0a44f1c0de9b0a44f1c0de9b0a44f1c0de9b0a44f1c0de0000",
    config_changed=True,
    slots=(SlotSnapshot("builds", 2, 4, 0), SlotSnapshot("evaluations", 1, 2, 3)),
    brokers=(
        BrokerSnapshot(
            "events.example.org:5671",
            "ofborg",
            "builder",
            AmqpState.CONSUMING,
            "2025-06-01T08:00:01.000Z",
            ("mac1-a", "mac1-b"),
        ),
        BrokerSnapshot(
            "events2.example.org:5671",
            "ofborg",
            "builder",
            AmqpState.DOWN,
            "2025-06-01T08:00:01.000Z",
            ("mac1-refused",),
            error="connection refused",
            retry_in_seconds=12.0,
        ),
    ),
    disk_free_bytes=48 * 1024**3,
    disk_floor_bytes=512 * 1024**2,
    locks_held=7,
    locks_waiting=1,
    verdict="down",
    identities=IDENTITIES,
)

WELL = evolve(
    SNAPSHOT,
    config_changed=False,
    brokers=SNAPSHOT.brokers[:1],
    verdict="ok",
    identities=IDENTITIES[:2],
)

LOCKS = (
    LockSnapshot("root:mac1-a", "root", "/var/lib/ofborg-async/mac1-a", "daemon", 4711, None, 93000.0, ()),
    LockSnapshot(
        "tree:38dca4e3aa6bca43ea96d2fcc04e8229",
        "tree",
        "/var/lib/ofborg-async/mac1-a/repo/38dca4e3aa6bca43ea96d2fcc04e8229/builder/mac1-a.lock",
        "mac1-a",
        4711,
        ATTEMPT,
        754.0,
        ("mac1-two-systems",),
    ),
)

HISTORY = (
    HistoryEntry(
        attempt_id="0e3c1c1e-7f5b-4f0e-9a3c-0a6d1c2b3d4e",
        identity="mac1-a",
        system=LINUX,
        repo="NixOS/nixpkgs",
        pr=99,
        attrs=("hello",),
        status="Success",
        reason="",
        started_at="2025-06-01T09:00:00.000Z",
        finished_at="2025-06-01T09:05:00.000Z",
        durations_seconds={"fetch": 2.0, "checkout": 8.5, "evaluate": 31.0, "build": 258.0, "report": 0.5},
        lines=4000,
        peak_memory_bytes=3 * 1024**3,
    ),
    HistoryEntry(
        attempt_id="1e3c1c1e-7f5b-4f0e-9a3c-0a6d1c2b3d4e",
        identity="mac1-b",
        system=LINUX,
        repo="NixOS/nixpkgs",
        pr=100,
        attrs=(HOSTILE, "b", "c"),
        status="UnexpectedError",
        reason="cancelled by the operator",
        started_at="2025-06-01T07:00:00.000Z",
        finished_at="2025-06-01T07:00:20.000Z",
        durations_seconds={"fetch": 20.0},
        lines=0,
        peak_memory_bytes=0,
    ),
)

RELOADED = ReloadReport(
    schema=1,
    ok=True,
    fingerprint="f" * 64,
    warnings=("mac1-b: others can read its root",),
    identities=(
        IdentityChange("mac1-a", Change.CHANGED, ("rabbitmq.password",), "it restarts once its job is over"),
        IdentityChange("mac1-b", Change.UNCHANGED),
    ),
    daemon_keys=("daemon.max_builds",),
    restart_keys=("daemon.state_dir",),
)
FAULTY = ReloadReport(
    schema=1,
    ok=False,
    fingerprint="f" * 64,
    faults=(
        FaultReport("builders.toml", 7, "identity[mac1-a].name", "is no name"),
        FaultReport("more.json", None, "", "no such file"),
    ),
)

LOG = b"building hello\n\x1b[31;1mred\x1b[0m \x1b]0;owned\x07 and \xff bytes\nsecond line\n"


@define
class FakeDaemon:
    """Answers from its fields, and records in ``calls`` what it was told."""

    shown: DaemonSnapshot = SNAPSHOT
    calls: list[tuple[object, ...]] = field(factory=list)
    drained: anyio.Event = field(factory=anyio.Event)
    stopped: anyio.Event = field(factory=anyio.Event)
    log_ended: anyio.Event = field(factory=anyio.Event)
    log_closed: anyio.Event = field(factory=anyio.Event)
    log_bytes: bytes = LOG
    tail_bytes: bytes = b"the last line\n"
    error: Exception | None = None
    reloaded: ReloadReport = RELOADED

    def snapshot(self) -> DaemonSnapshot:
        if self.error is not None:
            raise self.error
        return self.shown

    def locks(self) -> tuple[LockSnapshot, ...]:
        return LOCKS

    async def break_lock(self, key: str) -> BrokenLock:
        lock = next((lock for lock in LOCKS if lock.key == key), None)
        if lock is None:
            raise UnknownNameError("lock", key, [lock.key for lock in LOCKS])
        if lock.kind == "root":
            raise ConflictError("daemon holds it and is alive", remedy="stop it")
        return BrokenLock(lock.key, lock.path, ("process 4711 (git)",))

    def metrics(self) -> tuple[Metric, ...]:
        labels = (("identity", "mac1-a"), ("text", 'a"b\\c\nd'))
        return (Metric("ofborg_async_lines_total", MetricKind.COUNTER, "Lines\nread.", (Sample(7, labels),)),)

    def why(self, identity: str) -> str:
        self._known(identity)
        return f"{identity} waits for a slot: 4 of 4 are in use"

    async def history(
        self, identity: str | None, since: datetime | None, limit: int, before: str | None
    ) -> tuple[HistoryEntry, ...]:
        self.calls.append(("history", identity, since, limit, before))
        if identity is not None:
            self._known(identity)
        rows = [row for row in HISTORY if identity in {None, row.identity}]
        return tuple(rows[:limit])

    async def read_log(self, selector: str, follow: bool) -> AsyncGenerator[bytes, None]:
        names = {row.name for row in self.shown.identities}
        matches = [attempt for attempt in (ATTEMPT, OTHER_ATTEMPT) if attempt.startswith(selector)]
        if selector not in names and not matches:
            raise UnknownNameError("attempt or identity", selector, names)
        if len(matches) > 1:
            raise ConflictError(f"{selector} could be {len(matches)} attempts", remedy="give more of the attempt's id")
        return self._log(follow)

    async def _log(self, follow: bool) -> AsyncGenerator[bytes, None]:
        try:
            yield self.log_bytes
            if follow:
                await self.log_ended.wait()
                yield self.tail_bytes
        finally:
            self.log_closed.set()

    async def drain(self, identities: tuple[str, ...], deadline_seconds: float | None) -> None:
        self._known(*identities)
        self.calls.append(("drain", identities, deadline_seconds))

    async def wait_drained(self, identities: tuple[str, ...]) -> None:
        self._known(*identities)
        await self.drained.wait()

    async def stop(self) -> None:
        self.calls.append(("stop",))
        self.stopped.set()

    async def reload(self) -> ReloadReport:
        self.calls.append(("reload",))
        return self.reloaded

    async def pause(self, identities: tuple[str, ...], reason: str, until: datetime | None) -> None:
        self._known(*identities)
        self.calls.append(("pause", identities, reason, until))

    async def resume(self, identities: tuple[str, ...]) -> None:
        self._known(*identities)
        self.calls.append(("resume", identities))

    async def cancel(self, attempt_id: str) -> None:
        if not ATTEMPT.startswith(attempt_id):
            raise ConflictError("it has ended already")
        self.calls.append(("cancel", attempt_id))

    async def restart(self, identity: str) -> None:
        self._known(identity)
        self.calls.append(("restart", identity))

    def _known(self, *identities: str) -> None:
        names = [row.name for row in self.shown.identities]
        for name in identities:
            if name not in names:
                raise UnknownNameError("identity", name, names)


def alive(snapshot: DaemonSnapshot) -> DaemonSnapshot:
    """The same with this process's id and a start a while ago, to look at."""
    return evolve(snapshot, pid=os.getpid(), started_at=rfc3339(datetime.now(UTC) - timedelta(days=1)))


async def serve(socket: Path, port: int | None, daemon: FakeDaemon) -> None:
    """Serve until told to stop; drains and logs end at once."""
    daemon.drained.set()
    daemon.log_ended.set()
    server = ControlServer(daemon, SystemClock())
    async with anyio.create_task_group() as group:
        await group.start(lambda task_status: server.serve_socket(socket, task_status=task_status))
        if port is not None:
            await group.start(lambda task_status: server.serve_loopback("127.0.0.1", port, task_status=task_status))
        print("ready", flush=True)
        await daemon.stopped.wait()
        group.cancel_scope.cancel()


if __name__ == "__main__":
    shown = {"well": WELL, "all": SNAPSHOT}[sys.argv[3] if len(sys.argv) > 3 else "all"]
    with suppress(KeyboardInterrupt):
        anyio.run(serve, Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None, FakeDaemon(alive(shown)))
