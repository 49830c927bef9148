"""The ground of one round: broker, repository, store, a path and a builder for each daemon; what is known of jobs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from attrs import define, field, frozen

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.chaos import jobs as make
from ofborg_async.lab.chaos.builders import Builder, Ours
from ofborg_async.lab.chaos.jobs import BRANCHES, Job
from ofborg_async.lab.chaos.ledger import open_ledger, publish
from ofborg_async.lab.chaos.plan import ACKNOWLEDGEMENT_TIMEOUT_SECONDS, SYSTEMS, FaultPlan, RoundPlan
from ofborg_async.lab.chaos.shiftedclock import ShiftedClock
from ofborg_async.lab.chaos.smalldisk import SmallDisk, small_disks
from ofborg_async.lab.chaos.theirs import their_builder
from ofborg_async.lab.farm import toml_file
from ofborg_async.lab.proxy import Proxy, proxy
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.servers import LOOPBACK, Server
from ofborg_async.lab.store import Store, nix_daemon_of, private_store
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.lab.wiretap import job_queue

USER, PASSWORD = "builder", "password of builder"
DISKS = ("disk-of-roots", "disk-of-state")
"""The directories of a daemon of ours, or the places of its small disks."""
_DAEMON_SETTINGS = {
    "OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.2",
    "OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "2",
    "OFBORG_ASYNC_MAX_BUILDS": "3",
}


@frozen
class Stand:
    """One builder, its way to the broker, and the lock of whoever starts and ends it.

    ``disks`` are that of its roots and that of its state, or none.
    """

    builder: Builder
    path: Proxy
    disks: tuple[SmallDisk, ...] = ()
    clock: ShiftedClock | None = None
    lock: anyio.Lock = field(factory=anyio.Lock)


@define(eq=False)
class Ground:
    """All of it. ``broker_lock`` and ``upstream_lock``: held by faults during which these cannot be used.

    ``done`` are the faults that had something to strike. ``planted`` are lock files of no git: (inode, nanoseconds).
    """

    directory: Path
    plan: RoundPlan
    broker: Broker
    store: Store
    upstream: Upstream
    stands: tuple[Stand, ...]
    jobs: dict[int, Job]
    upstream_path: Proxy | None = None
    nix_daemon: Server | None = None
    done: list[FaultPlan] = field(factory=list)
    planted: dict[Path, tuple[int, int]] = field(factory=dict)
    notes: list[str] = field(factory=list)
    broken: list[str] = field(factory=list)
    branch: str = BRANCHES[0]
    broker_lock: anyio.Lock = field(factory=anyio.Lock)
    upstream_lock: anyio.Lock = field(factory=anyio.Lock)
    nix_lock: anyio.Lock = field(factory=anyio.Lock)

    @property
    def url(self) -> str:
        """The broker, for a peer of the builders."""
        return self.broker.url()

    async def submit(self, job: Job) -> None:
        """Ask for a job, once the broker can be used."""
        async with self.broker_lock:
            job.body = make.message(self.upstream, job, self.branch)
            body = job.body if isinstance(job.body, bytes) else json.dumps(job.body).encode()
            await publish(self.url, job_queue(job.plan.system), body)
            job.submitted = True

    async def unfinished(self) -> list[Job]:
        """Jobs that were asked for and whose end no builder has told of, by number."""
        ended: set[int] = set()
        for stand in self.stands:
            history = None
            with suppress(OfborgAsyncError):  # it is starting, or worse: who asks tells what is not over
                history = await stand.builder.history() if stand.builder.pids else None
            ended |= {entry.pr for entry in history or () if entry.status not in GIVEN_BACK}
        return [job for number, job in sorted(self.jobs.items()) if job.submitted and number not in ended]


GIVEN_BACK = frozenset({"Requeued", "Interrupted"})


@asynccontextmanager
async def open_ground(directory: Path, plan: RoundPlan, against: Path | None) -> AsyncIterator[Ground]:
    """A Ground whose builders are not started yet; everything is ended and removed after the block."""
    timeout = int(1000 * ACKNOWLEDGEMENT_TIMEOUT_SECONDS) if plan.acknowledgement_timeout else 30 * 60 * 1000
    configured = f"[{{rabbit,[{{consumer_timeout,{timeout}}},{{channel_tick_interval,1000}}]}}]."
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(private_broker(directory / "broker", advanced_config=configured))
        await broker.add_user(USER, PASSWORD)
        await broker.set_permissions(USER)
        await open_ledger(broker.url(), *SYSTEMS)
        store = await stack.enter_async_context(private_store(directory / "store"))
        nix_daemon: Server | None = None
        if plan.nix_daemon:
            nix_daemon, store = await stack.enter_async_context(nix_daemon_of(store))
        upstream = await create_upstream(directory / "upstream.git", make.MASTER_FILES)
        upstream_path: Proxy | None = None
        if plan.served:
            served = await stack.enter_async_context(upstream.served())
            upstream_path = await stack.enter_async_context(proxy(LOOPBACK, urlsplit(served).port or 0))
            upstream.url = f"git://{LOOPBACK}:{upstream_path.port}/{upstream.path.name}"
        jobs = await _open_prs(upstream, plan)
        stands = []
        for number in range(plan.daemons):
            path = await stack.enter_async_context(proxy(broker.host, broker.port))
            place = directory / f"daemon-{number}"
            place.mkdir()
            names = [f"chaos-{number}-{each}" for each in range(plan.identities)]
            disks: tuple[SmallDisk, ...] = ()
            clock: ShiftedClock | None = None
            if against is None:
                places = [place / name for name in DISKS]
                for each in places:
                    each.mkdir()
                if plan.small_disks:
                    disks = await stack.enter_async_context(small_disks(place / "disks.log", *places))
                if plan.shifted_clocks:
                    clock = ShiftedClock(place / "clock")
                builder: Builder = _our_builder(place, names, store, path, plan, disks, clock)
            else:
                builder = await stack.enter_async_context(
                    their_builder(place, against, names, path.port, USER, PASSWORD)
                )
            stack.callback(builder.close)
            stands.append(Stand(builder, path, disks, clock))
        yield Ground(directory, plan, broker, store, upstream, tuple(stands), jobs, upstream_path, nix_daemon)


def _our_builder(
    place: Path,
    names: Sequence[str],
    store: Store,
    path: Proxy,
    plan: RoundPlan,
    disks: tuple[SmallDisk, ...],
    clock: ShiftedClock | None,
) -> Builder:
    """Its roots are on the one disk and its state on the other, if there are any."""
    of_roots, of_state = (place / name for name in DISKS)
    roots = [of_roots / "roots" / name for name in names]
    file = toml_file(
        place / "builders.toml",
        identities=[{"name": name, "checkout.root": str(root)} for name, root in zip(names, roots, strict=True)],
        defaults={
            "nix.systems": list(SYSTEMS),
            "nix.remote": store.remote,
            "nix.environment": dict(store.environment),
            "checkout.clone_url_schemes": ["file", "git"],
            "rabbitmq.host": f"127.0.0.1:{path.port}",
            "rabbitmq.ssl": False,
            "rabbitmq.virtualhost": "/",
            "rabbitmq.username": USER,
            "rabbitmq.password": PASSWORD,
            "rabbitmq.heartbeat_seconds": 2,
            "rabbitmq.connect_timeout_seconds": 5,
            "rabbitmq.call_timeout_seconds": 5,
            "rabbitmq.unroutable_hold_seconds": plan.hold_seconds,
            "limits.fetch_timeout_seconds": 20,
            "limits.host_fault_retries": 1,
            "limits.host_fault_backoff_seconds": 0.2,
            "limits.max_attempts": 1000,
            "limits.quarantine_after": 1000,
            "limits.disk_floor_bytes": 8 << 20 if disks else 0,
            "limits.disk_floor_inodes": 0,
            "feedback.full_logs": True,
        },
    )
    settings = {**_DAEMON_SETTINGS, "OFBORG_ASYNC_STATE_DIR": str(of_state / "state")}
    prefix: tuple[str, ...] = ()
    if disks:
        prefix, of_roots, of_state = disks[0].prefix, disks[0].view, disks[1].view
    if clock is not None:
        prefix += clock.prefix
    return Ours(place, file, [of_roots / "roots" / name for name in names], of_state / "state", settings, prefix)


async def _open_prs(upstream: Upstream, plan: RoundPlan) -> dict[int, Job]:
    """The pull requests of all jobs; then master changes what some of them change too."""
    first = await upstream.sha()
    jobs = {job.number: await make.prepare(upstream, job, first) for job in plan.jobs}
    await upstream.commit(f"refs/heads/{BRANCHES[0]}", {"on": "foo"}, parents=[first])
    await upstream.advance_master({"clash": "changed on master\n"})
    return jobs
