"""Each fault of the campaign is named to the operator while it lasts, by ``why`` or ``doctor``; or why it need not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from asked import command
from attrs import define, evolve, field, frozen
from gated import GATED, SYSTEM, gated
from waits import eventually

import ofborg_async
from ofborg_async.lab.chaos.ledger import delete_exchange
from ofborg_async.lab.chaos.plan import FaultKind
from ofborg_async.lab.chaos.smalldisk import SmallDisk, small_disks
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.proxy import Proxy, Way, proxy
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.servers import LOOPBACK, Server, base_environment
from ofborg_async.lab.store import nix_daemon_of
from ofborg_async.lab.wiretap import RESULTS, job_queue
from ofborg_async.process.table import read_proc

WELL = "Its queues are empty: it waits for work."
NAME = "lab-a"
USER, PASSWORD = "teller", "password of teller"
QUICK = {
    "limits.fetch_timeout_seconds": 2,
    "limits.host_fault_retries": 1,
    "limits.host_fault_backoff_seconds": 0.2,
    "limits.max_attempts": 1000,
    "limits.quarantine_after": 1000,
}
ENVIRONMENT = {
    "OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.1",
    "OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "0.5",
    "OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": "120",
}


@define
class Stand:
    """A daemon that waits for work, and what surrounds it."""

    farm: Farm
    daemon: DaemonProcess
    jobs: int = field(default=0, kw_only=True)

    async def why(self) -> str:
        return await self.daemon.client.why(NAME)

    async def until_well(self, after: str) -> None:
        seen = ""

        async def well() -> bool:
            nonlocal seen
            seen = await self.why()
            return seen == WELL

        with telling(lambda: f"after {after}: {seen}"):
            await eventually("it waits for work", well, 60)

    async def submit(self, attr: str = "ok") -> None:
        """Ask for a build that has not been done; ``slow`` prints a line and then waits for the gate."""
        self.jobs += 1
        salted = GATED.replace('"-c" script ]', f'"-c" script ]; salt = "{self.jobs}"')
        head = await self.farm.upstream.open_pr(self.jobs, {"default.nix": salted})
        await self.farm.submit(SYSTEM, self.farm.upstream.job(self.jobs, head, [attr]))

    async def until_reported(self) -> None:
        """The last job that was asked for has a result. Others may be twice in a tap that was cut off."""
        tap = self.farm.tap
        await tap.wait_for(lambda _: any(result["pr"]["number"] == self.jobs for result in tap.results()))


@define
class Network(Stand):
    """The broker, the remote repository and nix-daemon, each at the end of a path that can be spoiled."""

    file: Path
    broker_path: Proxy
    upstream_path: Proxy
    nix_daemon: Server
    gate: Path

    @property
    def broker(self) -> Broker:
        return self.farm.broker

    @asynccontextmanager
    async def build(self) -> AsyncIterator[None]:
        """A build is at the gate; it ends after the block."""
        await self.submit("slow")

        async def begun() -> bool:
            job = (await self.daemon.status()).identities[0].systems[0].job
            return job is not None and job.lines > 0

        await eventually("the build's first line", begun)
        try:
            yield
        finally:
            self.open_gate()
        await self.until_reported()
        self.gate.unlink()

    def open_gate(self) -> None:
        self.gate.touch()


@define
class Disk(Stand):
    """The disk of its state and its roots."""

    disk: SmallDisk
    place: Path


# --- what is done ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def broker_killed(it: Network) -> AsyncIterator[None]:
    it.broker.kill()
    yield
    await it.broker.start()
    await it.farm.tap.connect()


@asynccontextmanager
async def broker_stopped(it: Network) -> AsyncIterator[None]:
    await it.broker.stop()
    yield
    await it.broker.start()
    await it.farm.tap.connect()


@asynccontextmanager
async def alarm(it: Network, raise_alarm: Callable[[Broker], Callable[..., Awaitable[None]]]) -> AsyncIterator[None]:
    """The broker says so to those who publish, hence the build."""
    async with it.build():
        await raise_alarm(it.broker)(on=True)
        it.open_gate()
        yield
        await raise_alarm(it.broker)(on=False)


@asynccontextmanager
async def wrong_password(it: Network) -> AsyncIterator[None]:
    await it.broker.change_password(USER, "another")
    await it.broker.close_all_connections()
    yield
    await it.broker.change_password(USER, PASSWORD)
    await it.farm.tap.connect()


@asynccontextmanager
async def queue_deleted(it: Network) -> AsyncIterator[None]:
    """For good: the user may not make one."""
    await it.broker.set_permissions(USER, it.farm.vhost, configure="^$")
    await it.broker.delete_queue(job_queue(SYSTEM), it.farm.vhost)
    yield
    await it.broker.set_permissions(USER, it.farm.vhost)


@asynccontextmanager
async def results_deleted(it: Network) -> AsyncIterator[None]:
    async with it.build():
        await delete_exchange(it.broker.url(vhost=it.farm.vhost), RESULTS)
        it.open_gate()
        yield
        await it.farm.tap.connect()


@asynccontextmanager
async def results_unbound(it: Network) -> AsyncIterator[None]:
    async with it.build():
        await it.farm.tap.unbind(RESULTS)
        it.open_gate()
        yield
        await it.farm.tap.connect()


@asynccontextmanager
async def path_frozen(it: Network, *ways: Way) -> AsyncIterator[None]:
    it.broker_path.freeze(*ways)
    yield
    it.broker_path.heal()


@asynccontextmanager
async def path_refused(it: Network) -> AsyncIterator[None]:
    it.broker_path.refuse()
    yield
    it.broker_path.heal()


@asynccontextmanager
async def upstream_away(it: Network) -> AsyncIterator[None]:
    await it.submit()
    path = it.farm.upstream.path
    path.rename(path.with_name("away"))
    yield
    path.with_name("away").rename(path)
    await it.until_reported()


@asynccontextmanager
async def upstream_silent(it: Network) -> AsyncIterator[None]:
    it.upstream_path.freeze()
    await it.submit()
    yield
    it.upstream_path.cut()
    it.upstream_path.heal()
    await it.until_reported()


@asynccontextmanager
async def child_stopped(it: Network) -> AsyncIterator[None]:
    async with it.build():
        (build,) = [
            info.pid
            for info in read_proc().values()
            if info.ppid == it.daemon.pid and b"nix-build" in Path(f"/proc/{info.pid}/cmdline").read_bytes()
        ]
        os.kill(build, signal.SIGSTOP)
        yield
        os.kill(build, signal.SIGCONT)


@asynccontextmanager
async def nix_daemon_gone(it: Network) -> AsyncIterator[None]:
    it.nix_daemon.kill()
    yield
    it.nix_daemon.start()


@asynccontextmanager
async def daemon_killed(it: Network) -> AsyncIterator[None]:
    it.daemon.kill()
    await it.daemon.wait()
    yield
    await it.daemon.start()


@asynccontextmanager
async def daemon_stopping(it: Network) -> AsyncIterator[None]:
    async with it.build():
        it.daemon.signal(signal.SIGTERM)
        yield
    assert await it.daemon.wait() == 0
    await it.daemon.start()


@asynccontextmanager
async def disk_full(it: Disk) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(it.disk.fill)
    yield
    it.disk.empty()


@asynccontextmanager
async def no_inodes(it: Disk) -> AsyncIterator[None]:
    """It is looked at before a job is taken."""
    await anyio.to_thread.run_sync(it.disk.use_up_inodes)
    await it.submit()
    yield
    await anyio.to_thread.run_sync(it.disk.give_back_inodes)


@asynccontextmanager
async def read_only(it: Disk) -> AsyncIterator[None]:
    await it.disk.set_read_only(it.place / "roots", on=True)
    await it.submit()
    yield
    await it.disk.set_read_only(it.place / "roots", on=False)
    await it.until_reported()


# --- what is said ------------------------------------------------------------------------------------------------


async def of_why(it: Stand) -> str:
    return await it.why()


async def of_the_command(it: Stand) -> str:
    return (await command(it.daemon, "why", NAME))[1]


async def of_doctor(it: Network) -> str:
    argv = [sys.executable, "-m", "ofborg_async", "doctor", "-c", str(it.file), NAME]
    environment = base_environment(OFBORG_ASYNC_ALLOW_ROOT="1", COLUMNS="1000")
    done = await anyio.run_process(argv, check=False, env=environment)
    return (done.stdout + done.stderr).decode()


@frozen
class Named:
    """``strike`` lasts for its block; every one of ``words`` is then in what is ``asked``."""

    strike: Callable[..., AbstractAsyncContextManager[None]]
    words: tuple[str, ...]
    asked: Callable[..., Awaitable[str]] = of_why

    def said_in(self, text: str) -> bool:
        return all(word.lower() in text.lower() for word in self.words)


F = FaultKind
UNREACHED = "The broker cannot be reached: "
FULL = "takes no messages for now: its memory or disk is used up"
ON_THE_NETWORK: Mapping[FaultKind, Named] = {
    F.BROKER_KILLED: Named(broker_killed, (UNREACHED,)),
    F.BROKER_RESTARTED: Named(broker_stopped, (UNREACHED,)),
    F.ALARM: Named(partial(alarm, raise_alarm=lambda broker: broker.set_memory_alarm), (FULL,)),
    F.DISK_ALARM: Named(partial(alarm, raise_alarm=lambda broker: broker.set_disk_alarm), (FULL,)),
    F.WRONG_PASSWORD: Named(wrong_password, ("The broker refuses it: ", "password", USER)),
    F.QUEUE_DELETED: Named(queue_deleted, ("The broker refuses it: ", f"NOT_FOUND - no queue '{job_queue(SYSTEM)}'")),
    F.RESULTS_DELETED: Named(results_deleted, ("no exchange", RESULTS)),
    F.UNBOUND: Named(results_unbound, ("no queue", RESULTS)),
    F.PATH_FROZEN: Named(path_frozen, (UNREACHED,)),
    F.PATH_HALF_FROZEN: Named(lambda it: path_frozen(it, Way.DOWN), (UNREACHED,)),
    F.PATH_REFUSED: Named(path_refused, (UNREACHED,)),
    F.UPSTREAM_AWAY: Named(upstream_away, ("fetching from 'git://", "not exported")),
    F.UPSTREAM_SILENT: Named(upstream_silent, ("fetch", "longer than 2 s")),
    F.CHILD_STOPPED: Named(child_stopped, ("is in phase build", "quiet for 1 s")),
    F.NIX_DAEMON_RESTARTED: Named(nix_daemon_gone, ("nix.remote is 'daemon', but", "start nix-daemon"), of_doctor),
    F.DAEMON_KILLED: Named(daemon_killed, ("no daemon", "control.sock"), of_the_command),
    F.DAEMON_RESTARTED: Named(daemon_stopping, ("The daemon is stopping.",)),
}
ON_THE_DISK: Mapping[FaultKind, Named] = {
    F.DISK_FULL: Named(disk_full, ("bytes free, less than the floor of",)),
    F.INODES_USED_UP: Named(no_inodes, ("It cannot take work: the disk of", "limits.disk_floor_inodes")),
    F.READ_ONLY: Named(read_only, ("Read-only file system", "disk/roots")),
}
TOLD_AFTERWARDS = {
    F.DAEMON_CUT_SHORT: "as killed: `history` has the attempt as Interrupted",
    F.HURRIED: "as stopping, for a moment; `history` has the attempt as Requeued",
    F.CONNECTIONS_CLOSED: "over within a second: the log has what the administrator said",
    F.PATH_CUT: "over within a second: the log has it",
    F.PATH_SLOW: "it works, slower",
    F.LOGS_DELETED: "nothing of the wire waits for it: the log warns that lines are left out",
    F.FORCE_PUSHED: "the job's own outcome: `history` has it as Silent, or built from what was seen",
    F.PR_DELETED: "the job's own outcome: `history` has it as Silent",
    F.BRANCH_RENAMED: "it works",
    F.STALE_LOCKS: "removed under our lock: it works",
    F.TRUNCATED: "made anew by the next job: the log warns of a mirror; a work tree's index is mended without a word",
    F.HALF_CLONE: "made whole by the next job: the log warns of a mirror; of a work tree it says nothing",
    F.IDENTITY_RESTARTED: "asked for by the operator: the log has it",
    F.CHILD_KILLED: "over at once: tried again, a line of the build's log has it",
    F.BUILDER_KILLED: "over at once: tried again, a line of the build's log has it",
    F.COLLECTED: "instantiated again: it works",
    F.CLOCK_SET_BACK: "nothing follows the wall clock: it works",
}
"""What does not last long enough to be asked about, or is no trouble; what tells of it: test_telling_afterwards."""


def test_every_fault_of_the_campaign_has_its_place() -> None:
    tables = (ON_THE_NETWORK, ON_THE_DISK, TOLD_AFTERWARDS)
    assert sorted(kind for table in tables for kind in table) == sorted(FaultKind)


async def go_through(it: Stand, faults: Mapping[FaultKind, Named]) -> None:
    """One fault after the other: not named before it, named while it lasts, and all well after it."""
    await it.until_well("the start")
    for kind, named in faults.items():
        assert not named.said_in(await named.asked(it)), f"{kind} is named before it is there"
        async with named.strike(it):
            await until_named(it, kind, named)
        await it.until_well(kind)


async def until_named(it: Stand, kind: FaultKind, named: Named) -> None:
    seen = ""

    async def is_named() -> bool:
        nonlocal seen
        seen = await named.asked(it)
        return named.said_in(seen)

    with telling(lambda: seen):
        await eventually(f"{kind} is named by {named.words}", is_named, 40)


@contextmanager
def telling(what: Callable[[], str]) -> Iterator[None]:
    """A test that fails in the block says this too."""
    try:
        yield
    except AssertionError as error:
        error.add_note(what())
        raise


@asynccontextmanager
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(private_broker(tmp_path / "node"))
        farm = (await stack.enter_async_context(gated(tmp_path, broker))).farm
        await broker.add_user(USER, PASSWORD)
        await broker.set_permissions(USER, farm.vhost)
        nix_daemon, store = await stack.enter_async_context(nix_daemon_of(farm.store))
        farm = evolve(farm, store=store)
        broker_path = await stack.enter_async_context(proxy(broker.host, broker.port))
        served = urlsplit(await stack.enter_async_context(farm.upstream.served()))
        upstream_path = await stack.enter_async_context(proxy(LOOPBACK, served.port or 0))
        farm.upstream.url = f"git://{LOOPBACK}:{upstream_path.port}{served.path}"
        broker_settings = {
            "rabbitmq.host": f"{LOOPBACK}:{broker_path.port}",
            "rabbitmq.username": USER,
            "rabbitmq.password": PASSWORD,
            "rabbitmq.heartbeat_seconds": 1,
            "rabbitmq.connect_timeout_seconds": 1,
            "rabbitmq.call_timeout_seconds": 2,
        }
        file = farm.configuration(NAME, **QUICK, **broker_settings, **{"checkout.clone_url_schemes": ["git"]})
        async with farm.daemon(file, environment=ENVIRONMENT) as daemon:
            gate = tmp_path / "gate" / "open"
            yield Network(farm, daemon, file, broker_path, upstream_path, nix_daemon, gate)
            assert await daemon.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
@pytest.mark.timeout(240)
async def test_a_fault_around_the_daemon_is_named_while_it_lasts(tmp_path: Path) -> None:
    async with network(tmp_path) as it:
        await go_through(it, ON_THE_NETWORK)


@pytest.mark.skipif(not namespaces_work(), reason="takes mount namespaces: Linux, root")
@pytest.mark.timeout(240)
async def test_a_fault_of_the_disk_is_named_while_it_lasts(tmp_path: Path, broker: Broker) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    async with (
        open_farm(tmp_path / "farm", broker, SYSTEM) as farm,
        small_disks(tmp_path / "disk.log", place) as (disk,),
    ):
        floors = {"limits.disk_floor_bytes": 8 << 20, "limits.disk_floor_inodes": 100}
        root = str(place / "roots" / NAME)
        file = farm.configuration({"name": NAME, "checkout.root": root}, **QUICK, **floors)
        environment = ENVIRONMENT | {
            "OFBORG_ASYNC_STATE_DIR": str(place / "state"),
            # Whatever working directory the prefix leaves it in.
            "PYTHONPATH": str(Path(ofborg_async.__file__).parents[1]),
        }
        async with farm.daemon(file, environment=environment, prefix=disk.prefix) as daemon:
            await go_through(Disk(farm, daemon, disk=disk, place=place), ON_THE_DISK)
            assert await daemon.stop() == 0
