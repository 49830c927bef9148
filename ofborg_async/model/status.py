"""Frozen snapshots for introspection. ``status`` renders them; nothing here knows a live object.

Times are RFC 3339 UTC texts, durations seconds, sizes bytes (interface document, "status").
"""

from __future__ import annotations

import enum

from attrs import frozen


class IdentityState(enum.StrEnum):
    """The states of an identity (interface document, "status")."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    PAUSED = "paused"
    DRAINING = "draining"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    STOPPED = "stopped"


class Phase(enum.StrEnum):
    """Where a job is."""

    FETCH = "fetch"
    CHECKOUT = "checkout"
    EVALUATE = "evaluate"
    BUILD = "build"
    REPORT = "report"


class AmqpState(enum.StrEnum):
    """How one system of an identity stands with its broker."""

    CONNECTING = "connecting"
    CONSUMING = "consuming"
    HOLDING = "holding"  # connected, not consuming on purpose: busy, paused, draining
    BLOCKED = "blocked"
    DOWN = "down"
    REFUSED = "refused"


@frozen
class JobSnapshot:
    """A job under way. ``lines`` so far; ``quiet_seconds`` since its last line; ``limit_seconds`` of the attempt.

    ``trouble``: the fault of the host after which its phase is tried again, "" if there was none.
    """

    attempt_id: str
    request_id: str
    repo: str
    pr: int
    attrs: tuple[str, ...]
    phase: Phase
    started_at: str
    elapsed_seconds: float
    limit_seconds: float
    quiet_seconds: float
    lines: int
    waiting_for: str = ""
    trouble: str = ""


@frozen
class SystemSnapshot:
    """One system of an identity: its queue, how it stands with the broker, its job."""

    system: str
    queue: str
    amqp: AmqpState
    job: JobSnapshot | None
    amqp_detail: str = ""


@frozen
class IdentitySnapshot:
    """One row of ``status``; ``last_error`` "" when there was none; ``lock`` says how its root is held.

    ``results_waiting`` are results that the broker does not take, ``results_detail`` why not, "" when not known.
    """

    name: str
    state: IdentityState
    systems: tuple[SystemSnapshot, ...]
    root: str
    lock: str
    ok_24h: int
    failed_24h: int
    restarts: int
    last_error: str
    remedy: str
    reason: str
    state_since: str
    jobs_undecodable: int = 0
    results_waiting: int = 0
    results_detail: str = ""


@frozen
class LockSnapshot:
    """One lock of the manager. ``holder`` None when free; ages in seconds; ``waiters`` in queue order."""

    key: str
    kind: str
    path: str
    holder: str | None
    holder_pid: int | None
    job: str | None
    held_seconds: float
    waiters: tuple[str, ...]


@frozen
class BrokenLock:
    """A lock whose holder was dead: ``ended`` are the processes it had left behind, by number and name."""

    key: str
    path: str
    ended: tuple[str, ...]


@frozen
class SlotSnapshot:
    """A budget of the host: ``name`` is ``builds`` or ``evaluations``."""

    name: str
    used: int
    total: int
    waiting: int


@frozen
class BrokerSnapshot:
    """The connection of one group of identities to a broker; ``error`` with its remedy, "" if there is none."""

    address: str
    vhost: str
    username: str
    state: AmqpState
    since: str
    identities: tuple[str, ...]
    error: str = ""
    retry_in_seconds: float | None = None


@frozen
class DaemonSnapshot:
    """Everything ``status`` shows. ``verdict`` is ok, degraded or down.

    ``disk_place``: of all that jobs write to, the one whose free bytes are nearest to the floor of who uses it.
    """

    schema: int
    host: str
    version: str
    pid: int
    started_at: str
    uptime_seconds: float
    fingerprint: str
    config_changed: bool
    slots: tuple[SlotSnapshot, ...]
    brokers: tuple[BrokerSnapshot, ...]
    disk_free_bytes: int
    disk_floor_bytes: int
    locks_held: int
    locks_waiting: int
    verdict: str
    identities: tuple[IdentitySnapshot, ...]
    stopping: bool = False
    disk_place: str = ""


@frozen
class HistoryEntry:
    """A finished attempt from the journal. Durations by phase in seconds; ``peak_memory_bytes`` 0 when unknown."""

    attempt_id: str
    identity: str
    system: str
    repo: str
    pr: int
    attrs: tuple[str, ...]
    status: str
    reason: str
    started_at: str
    finished_at: str
    durations_seconds: dict[str, float]
    lines: int
    peak_memory_bytes: int
