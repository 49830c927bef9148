"""What a round will do, drawn from one seeded generator before it begins: the same seed gives the same schedule."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence

from attrs import frozen

from ofborg_async.lab.namespace import namespaces_work

SYSTEMS = ("x86_64-linux", "i686-linux")


class JobKind(enum.StrEnum):
    """What a job asks for."""

    OK = "ok"
    LOUD = "loud"
    FAILS = "fails"
    SKIPPED = "skipped"
    MIXED = "mixed"
    CONFLICT = "conflict"
    DELETED = "deleted before it was asked for"
    FORCED = "force-pushed before it was asked for"
    NO_ATTRS = "no attributes"
    NONSENSE = "no build job"
    BRANCH = "onto a branch that changes its name"


class FaultKind(enum.StrEnum):
    """What goes wrong."""

    DAEMON_KILLED = "daemon killed"
    DAEMON_RESTARTED = "daemon restarted"
    DAEMON_CUT_SHORT = "daemon killed while it stops"
    BROKER_KILLED = "broker killed"
    BROKER_RESTARTED = "broker restarted"
    CONNECTIONS_CLOSED = "connections closed"
    ALARM = "memory alarm"
    DISK_ALARM = "disk alarm"
    WRONG_PASSWORD = "wrong password"
    QUEUE_DELETED = "queue deleted"
    RESULTS_DELETED = "results exchange deleted"
    LOGS_DELETED = "logs exchange deleted"
    UNBOUND = "results unbound"
    PATH_FROZEN = "path frozen"
    PATH_HALF_FROZEN = "path frozen one way"
    PATH_SLOW = "path slow"
    PATH_CUT = "path cut"
    PATH_REFUSED = "path refused"
    UPSTREAM_AWAY = "upstream away"
    UPSTREAM_SILENT = "upstream does not answer"
    FORCE_PUSHED = "pull request force-pushed"
    PR_DELETED = "pull request deleted"
    BRANCH_RENAMED = "branch becomes a folder"
    STALE_LOCKS = "stale git locks"
    TRUNCATED = "truncated objects"
    HALF_CLONE = "interrupted clone"
    IDENTITY_RESTARTED = "identity restarted"
    HURRIED = "daemon stopped in a hurry"
    CHILD_STOPPED = "child stopped"
    CHILD_KILLED = "child killed"
    BUILDER_KILLED = "nix's builder killed"
    COLLECTED = "store collected"
    NIX_DAEMON_RESTARTED = "nix-daemon killed and restarted"
    DISK_FULL = "disk full"
    INODES_USED_UP = "inodes used up"
    READ_ONLY = "a directory read-only"
    CLOCK_SET_BACK = "clock set back"


_ON_SMALL_DISKS = frozenset({FaultKind.DISK_FULL, FaultKind.INODES_USED_UP, FaultKind.READ_ONLY})
_WEIGHTS: dict[FaultKind, int] = {
    FaultKind.DAEMON_KILLED: 5,
    FaultKind.DAEMON_RESTARTED: 3,
    FaultKind.DAEMON_CUT_SHORT: 2,
    FaultKind.BROKER_KILLED: 3,
    FaultKind.BROKER_RESTARTED: 2,
    FaultKind.CONNECTIONS_CLOSED: 3,
    FaultKind.CHILD_KILLED: 3,
    FaultKind.CHILD_STOPPED: 2,
}
_LONG = frozenset({FaultKind.PATH_FROZEN, FaultKind.PATH_HALF_FROZEN, FaultKind.UPSTREAM_SILENT})
_LASTING = _ON_SMALL_DISKS | {
    FaultKind.ALARM,
    FaultKind.DISK_ALARM,
    FaultKind.WRONG_PASSWORD,
    FaultKind.UNBOUND,
    FaultKind.PATH_SLOW,
    FaultKind.PATH_REFUSED,
    FaultKind.UPSTREAM_AWAY,
    FaultKind.CHILD_STOPPED,
    FaultKind.CLOCK_SET_BACK,
}
"""Those that are nothing when they are over at once."""
ACKNOWLEDGEMENT_TIMEOUT_SECONDS = 5.0
"""The short one. The broker looks once a second."""
_JOBS = (JobKind.OK,) * 6 + (JobKind.LOUD,) * 2 + (JobKind.BRANCH,) * 2 + tuple(JobKind)


@frozen
class JobPlan:
    """A job that is asked for at ``at_seconds``; its build takes ``seconds`` and prints ``lines``."""

    number: int
    kind: JobKind
    system: str
    at_seconds: float
    seconds: float
    lines: int


@frozen
class FaultPlan:
    """A fault from ``at_seconds`` on, for ``seconds`` where it lasts.

    ``daemon`` is the number of the one that it is about; ``choice``, from 0 to 1, decides what else is open.
    """

    kind: FaultKind
    at_seconds: float
    seconds: float
    daemon: int
    choice: float


@frozen
class RoundPlan:
    """One round: its daemons with so many identities each, its jobs and faults in the order of time.

    ``served``: the remote repository is behind a network; ``nix_daemon``: builds go through one;
    ``shifted_clocks``: each daemon has a wall clock of its own.
    """

    seed: int
    daemons: int
    identities: int
    acknowledgement_timeout: bool
    hold_seconds: float
    small_disks: bool
    served: bool
    nix_daemon: bool
    shifted_clocks: bool
    jobs: tuple[JobPlan, ...]
    faults: tuple[FaultPlan, ...]


@frozen
class Size:
    """How much happens in a round.

    The last job for each system is asked for at the end of the span, so that late faults find something; it takes
    longer than the acknowledgement time-out, if that is a short one.
    """

    span_seconds: float = 24.0
    jobs: int = 20
    faults: int = 14


SMALL = Size(span_seconds=9.0, jobs=8, faults=4)


def possible_faults() -> tuple[FaultKind, ...]:
    """Those that can be done on this machine: all for root on Linux."""
    return tuple(kind for kind in FaultKind if kind not in _ON_SMALL_DISKS or namespaces_work())


def draw_round(seed: int, size: Size, only: Sequence[FaultKind] = ()) -> RoundPlan:
    """The round of a seed; with ``only``, no other faults, and each of them at least once where there is room."""
    chance = random.Random(seed)
    kinds = tuple(only) or possible_faults()
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    daemons = chance.choice((1, 1, 2))
    acknowledgement_timeout = chance.random() < 0.25
    longest, last = (9.0, 9.0) if acknowledgement_timeout else (3.0, 2.0)
    jobs = [
        JobPlan(
            number=number,
            kind=chance.choice(_JOBS),
            system=chance.choice(SYSTEMS),
            at_seconds=chance.uniform(0, size.span_seconds),
            seconds=round(chance.choice((0.0, chance.uniform(0, 1), chance.uniform(0, longest))), 1),
            lines=chance.choice((0, 3, 40)),
        )
        for number in range(1, size.jobs - len(SYSTEMS) + 1)
    ]
    jobs += [
        JobPlan(number, JobKind.OK, system, at_seconds=size.span_seconds, seconds=last, lines=3)
        for number, system in enumerate(SYSTEMS, len(jobs) + 1)
    ]
    drawn = [*only, *chance.choices(kinds, weights, k=size.faults)][: size.faults]
    faults = [_draw_fault(chance, kind, size.span_seconds, daemons) for kind in drawn]
    return RoundPlan(
        seed=seed,
        daemons=daemons,
        identities=chance.choice((1, 2, 3)),
        acknowledgement_timeout=acknowledgement_timeout,
        hold_seconds=chance.choice((0.0, 2.0, 300.0)),
        small_disks=any(fault.kind in _ON_SMALL_DISKS for fault in faults),
        served=any(fault.kind is FaultKind.UPSTREAM_SILENT for fault in faults),
        nix_daemon=any(fault.kind is FaultKind.NIX_DAEMON_RESTARTED for fault in faults),
        shifted_clocks=any(fault.kind is FaultKind.CLOCK_SET_BACK for fault in faults),
        jobs=tuple(sorted(jobs, key=lambda job: job.at_seconds)),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_seconds)),
    )


def _draw_fault(chance: random.Random, kind: FaultKind, span_seconds: float, daemons: int) -> FaultPlan:
    return FaultPlan(
        kind=kind,
        at_seconds=chance.uniform(0, span_seconds),
        seconds=round(_draw_seconds(chance, kind), 2),
        daemon=chance.randrange(daemons),
        choice=chance.random(),
    )


def _draw_seconds(chance: random.Random, kind: FaultKind) -> float:
    if kind in _LONG:
        return chance.uniform(4, 14)
    if kind in _LASTING:
        return chance.uniform(2, 5)
    return chance.choice((0.0, chance.uniform(0, 2), chance.uniform(1, 5)))
