"""Every fault of the host in every phase of a job: what becomes of it, and never a Failure for the pull request.

The table has a cell for each fault and phase: a fault that is done here to a real daemon, the test elsewhere that does
it, or the reason why it cannot happen. Here each job is held in its phase by a wrapper of git or nix, the fault is
done, and the job goes on; what the cell says must come of it while the fault lasts, for the right reason, and nothing
else; once the fault is over the same job must be built, with one result, without an operator.
"""

from __future__ import annotations

import ast
import enum
import fcntl
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from attrs import define, evolve, field, frozen
from waits import eventually

import ofborg_async
from ofborg_async.errors import FaultKind
from ofborg_async.lab.chaos.smalldisk import SmallDisk, small_disks
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import base_environment
from ofborg_async.lab.upstream import package_set
from ofborg_async.model.status import IdentityState

SYSTEM = "x86_64-linux"
PHASES = ("fetch", "checkout", "evaluate", "build", "report")
TOOLS = {
    "fetch": ("git", "fetch"),
    "compare": ("git", "diff-tree"),
    "checkout": ("git", "checkout"),
    "evaluate": ("nix-instantiate", ""),
    "build": ("nix-build", ""),
}
LATE_BROKER = "test_redelivery.py::test_a_broker_that_is_away_at_the_end_of_the_build_gets_the_result_later"
KEPT_LOCK = "test_checkout_beside_original.py::test_lock_that_the_original_keeps_is_a_fault_that_names_it"
LATE_KILL = "test_redelivery.py::test_a_daemon_killed_with_a_computed_result_sends_it_and_does_not_build_again"
AS_A_USER = (str(shutil.which("setpriv")), "--bounding-set=-dac_override,-dac_read_search", "--")
"""Root, for whom permissions count all the same."""


class Outcome(enum.Flag):
    """What comes of a job while the fault lasts."""

    RETRIED = enum.auto()
    """Its phase is tried again in place."""
    REQUEUED = enum.auto()
    """Its message goes back to the queue."""
    QUARANTINED = enum.auto()
    """The identity takes nothing for a while: it went back more than once."""
    REPORTED = enum.auto()
    """Its result is published: the fault does not keep it."""


RETRIED = Outcome.RETRIED | Outcome.REQUEUED | Outcome.QUARANTINED


@frozen
class Done:
    """A fault that is done here: ``strike`` and ``heal`` it, and of which ``kind`` the daemon must say it is.

    ``wrapper``: what the held tool does when it goes on, in shell. ``hold_at``: another moment than the phase's own.
    ``outcome``: what must come of it, and nothing else.
    """

    kind: FaultKind
    strike: Callable[[Host], Awaitable[None]] | None = None
    heal: Callable[[Host], Awaitable[None]] | None = None
    wrapper: str = ""
    hold_at: str = ""
    outcome: Outcome = RETRIED


@frozen
class Elsewhere:
    """Another test does it: ``test`` is its file and name, only its name when it is in this file."""

    test: str


@frozen
class SameAs:
    """It goes the way of another cell of this ``fault`` and ``phase``, which is done."""

    fault: str
    phase: str
    because: str


@frozen
class NoPart:
    """What the fault is about has no part in this phase."""

    because: str


Cell = Done | Elsewhere | SameAs | NoPart


@define
class Host:
    """A daemon whose state and roots are on a small disk of their own, with wrappers of its tools."""

    farm: Farm
    disk: SmallDisk
    place: Path
    daemon: DaemonProcess = field(init=False)
    jobs: int = 0

    @property
    def programs(self) -> Path:
        return self.place / "programs"

    def wrap(self) -> None:
        """Put what the daemon needs of programs into a directory that is all of its PATH."""
        self.programs.mkdir()
        path = base_environment()["PATH"]
        for name in ("git", "nix-instantiate", "nix-build", "nix-store", "nix", "sh", "setpriv"):
            real = shutil.which(name, path=path)
            assert real is not None, name
            if name in {tool for tool, _ in TOOLS.values()}:
                (self.programs / f"real-{name}").symlink_to(real)
                self.unhide(name)
            else:
                (self.programs / name).symlink_to(real)

    def unhide(self, name: str) -> None:
        real = Path(self.programs / f"real-{name}").readlink()
        script = self.programs / name
        script.write_text(
            f"#!/bin/sh\nreal={real} place={self.place}\n"
            f'case " $* " in $(cat {self.place}/held/{name} 2>/dev/null || echo none))\n'
            f"mkdir {self.place}/reached 2>/dev/null && while [ ! -e {self.place}/go ]; do sleep 0.02; done\n"
            f'. {self.place}/wrapper;; esac\nexec $real "$@"\n'.replace("cat ", "/bin/cat ")
            .replace("mkdir ", "/bin/mkdir ")
            .replace("sleep ", "/bin/sleep ")
        )
        script.chmod(0o755)

    async def hide(self, name: str) -> None:
        (self.programs / name).unlink()

    def hold(self, phase: str, wrapper: str) -> None:
        tool, word = TOOLS[phase]
        for old in (self.place / "reached", self.place / "held"):
            shutil.rmtree(old, ignore_errors=True)
        (self.place / "go").unlink(missing_ok=True)
        (self.place / "wrapper").write_text(f"{wrapper}\n")
        (self.place / "held").mkdir()
        (self.place / "held" / tool).write_text(f"* {word} *" if word else "*")

    def open_logs(self) -> int:
        """How many descriptors of build logs the daemon has."""
        found = 0
        for link in Path(f"/proc/{self.daemon.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += link.readlink().parent.name == "logs"
        return found

    def release(self) -> None:
        (self.place / "go").touch()

    async def submit(self) -> None:
        self.jobs += 1
        salted = package_set()["default.nix"].replace('"-c" script ]', f'"-c" script ]; salt = "{self.jobs}"')
        head = await self.farm.upstream.open_pr(self.jobs, {"default.nix": salted})
        # Two attrs, as one alone is evaluated and built by one process (tests/nix/test_nix_ahead.py).
        await self.farm.submit(SYSTEM, self.farm.upstream.job(self.jobs, head, ["ok", "ok"]))

    def went_back(self, kind: FaultKind) -> int:
        return self.daemon.log.read_text().count(f"goes back to its queue ({kind}: ")

    def outcome(self, since: int, phase: str, kind: FaultKind) -> Outcome:
        """What came of the job that was submitted when the log had ``since`` characters."""
        said = self.daemon.log.read_text()[since:]
        found = Outcome(0)
        if f"{phase} failed for a reason of this host: {kind}: " in said:
            found |= Outcome.RETRIED
        if f"goes back to its queue ({kind}: " in said:
            found |= Outcome.REQUEUED
        if "host is quarantined: " in said:
            found |= Outcome.QUARANTINED
        if len(self.farm.tap.results()) == self.jobs:
            found |= Outcome.REPORTED
        return found

    async def go_through(self, phase: str, done: Done) -> None:
        """One job, held in its phase, with the fault; then without."""
        since = len(self.daemon.log.read_text())
        self.hold(done.hold_at or phase, done.wrapper)
        await self.submit()
        await eventually(f"the job is in its phase {phase}", (self.place / "reached").exists)
        if done.strike is not None:
            await done.strike(self)
        self.release()
        try:
            await eventually(
                f"{phase}: {done.outcome} for {done.kind}",
                lambda: done.outcome in (found := self.outcome(since, phase, done.kind)) or Outcome.REPORTED in found,
            )
            last = self.farm.tap.results()[-1:]
            assert self.outcome(since, phase, done.kind) == done.outcome, (
                phase,
                [(each["status"], each["output"]) for each in last],
            )
        finally:
            (self.place / "wrapper").write_text("")
            if done.heal is not None:
                await done.heal(self)
        results = await self.farm.tap.wait_for_results(self.jobs)
        assert [result["status"] for result in results] == ["Success"] * self.jobs
        assert (await self.daemon.status()).identities[0].restarts == 0


async def use_up_inodes(host: Host) -> None:
    host.disk.use_up_inodes()


async def give_back_inodes(host: Host) -> None:
    host.disk.give_back_inodes()


async def empty(host: Host) -> None:
    host.disk.empty()


def read_only(place: str, *, on: bool) -> Callable[[Host], Awaitable[None]]:
    async def do(host: Host) -> None:
        await host.disk.set_read_only(host.place / "disk" / place, on=on)

    return do


async def take_upstream_away(host: Host) -> None:
    host.farm.upstream.path.rename(host.farm.upstream.path.with_name("away"))


async def bring_upstream_back(host: Host) -> None:
    host.farm.upstream.path.with_name("away").rename(host.farm.upstream.path)


async def unhide_git(host: Host) -> None:
    host.unhide("git")


async def unhide_build(host: Host) -> None:
    host.unhide("nix-build")


def read_only_store(*, on: bool) -> Callable[[Host], Awaitable[None]]:
    async def do(host: Host) -> None:
        await host.disk.set_read_only(host.farm.store.directory / "root", on=on)

    return do


def denied_store() -> Done:
    async def strike(host: Host) -> None:
        (host.farm.store.directory / "root/nix/store").chmod(0)

    async def heal(host: Host) -> None:
        (host.farm.store.directory / "root/nix/store").chmod(0o1775)

    return Done(FaultKind.PERMISSION, strike, heal)


def denied(place: str, *, hold_at: str = "", outcome: Outcome = RETRIED) -> Done:
    async def strike(host: Host) -> None:
        (host.disk.view / place).chmod(0)

    async def heal(host: Host) -> None:
        (host.disk.view / place).chmod(0o700)

    return Done(FaultKind.PERMISSION, strike, heal, hold_at=hold_at, outcome=outcome)


def denied_once_read(place: str, *, hold_at: str, outcome: Outcome) -> Done:
    """``denied`` once the daemon has the log open for writing and for sending: what it opens later it cannot."""
    done = denied(place, hold_at=hold_at, outcome=outcome)

    async def strike(host: Host) -> None:
        await eventually("the log is read", lambda: host.open_logs() >= 2)
        assert done.strike is not None
        await done.strike(host)

    return evolve(done, strike=strike)


READ_ONLY_STATE = partial(Done, FaultKind.PERMISSION, read_only("state", on=True), read_only("state", on=False))
KILLED = "kill -KILL $$"
FILLS = "/bin/cat /dev/zero 2>/dev/null >> $place/disk/filler"
"""Each time anew: a git that has failed gives back what it took."""
NOT_USED = NoPart("git has done its part when nix begins, and nix begins when git has")

MATRIX: dict[str, dict[str, Cell]] = {
    "disk full": {
        "fetch": Done(FaultKind.DISK, heal=empty, wrapper=FILLS),
        "checkout": Elsewhere("tests/checkout/test_checkout_dirt.py::test_full_disk_is_a_fault_of_the_disk"),
        "evaluate": Elsewhere("tests/nix/test_nix_evaluate.py::test_a_full_disk"),
        "build": Elsewhere("tests/nix/test_nix_build.py::test_a_build_that_fills_the_disk_is_the_hosts_fault"),
        "report": Elsewhere("tests/journal/test_journal_disk.py::test_results_are_recorded_on_a_full_disk"),
    },
    "inodes used up": {
        "fetch": Done(FaultKind.DISK, use_up_inodes, give_back_inodes),
        "checkout": Done(FaultKind.DISK, use_up_inodes, give_back_inodes),
        "evaluate": Done(FaultKind.DISK, use_up_inodes, give_back_inodes),
        "build": SameAs("disk full", "build", "the kernel says ENOSPC for both, and so does nix"),
        "report": Done(FaultKind.DISK, use_up_inodes, give_back_inodes, hold_at="build", outcome=Outcome.REPORTED),
    },
    "read-only": {
        "fetch": READ_ONLY_STATE(),
        "checkout": Done(FaultKind.PERMISSION, read_only("roots", on=True), read_only("roots", on=False)),
        "evaluate": READ_ONLY_STATE(),
        "build": Done(FaultKind.PERMISSION, read_only_store(on=True), read_only_store(on=False)),
        "report": READ_ONLY_STATE(hold_at="build", outcome=Outcome.REPORTED),
    },
    "permission lost": {
        "fetch": denied("state/mirrors"),
        "checkout": denied("roots/host/repo"),
        "evaluate": denied("state/gcroots"),
        "build": denied_store(),
        "report": denied_once_read("state", hold_at="build", outcome=Outcome.REPORTED),
    },
    "network away": {
        "fetch": Done(FaultKind.NETWORK, take_upstream_away, bring_upstream_back),
        "checkout": NoPart("a checkout has all objects (tests/checkout/test_checkout_prepare.py proves the commands)"),
        "evaluate": NoPart("restricted evaluation fetches nothing"),
        "build": NoPart(
            "only a fixed-output derivation has the network: that its source is away is the build's own outcome"
        ),
        "report": Elsewhere(f"tests/acceptance/{LATE_BROKER}"),
    },
    "git missing": {
        "fetch": Done(FaultKind.PROCESS, lambda host: host.hide("git"), unhide_git),
        "checkout": Done(FaultKind.PROCESS, lambda host: host.hide("git"), unhide_git, hold_at="compare"),
        "evaluate": NOT_USED,
        "build": NOT_USED,
        "report": NOT_USED,
    },
    "git killed": {
        "fetch": Elsewhere("tests/checkout/test_checkout_dirt.py::test_fetch_that_is_killed_is_done_again"),
        "checkout": Done(FaultKind.MEMORY, wrapper=KILLED),
        "evaluate": NOT_USED,
        "build": NOT_USED,
        "report": NOT_USED,
    },
    "nix missing": {
        "fetch": NOT_USED,
        "checkout": NOT_USED,
        "evaluate": Elsewhere("tests/nix/test_nix_evaluate.py::test_no_nix_on_the_path"),
        "build": Done(FaultKind.PROCESS, lambda host: host.hide("nix-build"), unhide_build, hold_at="evaluate"),
        "report": NOT_USED,
    },
    "nix-daemon gone": {
        "fetch": NOT_USED,
        "checkout": NOT_USED,
        "evaluate": Elsewhere("tests/nix/test_nix_evaluate.py::test_no_daemon"),
        "build": Elsewhere("tests/nix/test_nix_build.py::test_a_daemon_that_dies_is_the_hosts_fault"),
        "report": NOT_USED,
    },
    "out of memory": {
        "fetch": Done(FaultKind.MEMORY, wrapper=KILLED),
        "checkout": SameAs("git killed", "checkout", "the kernel kills git as anybody does"),
        "evaluate": Elsewhere("tests/nix/test_nix_evaluate.py::test_killed_as_when_memory_runs_out"),
        "build": Elsewhere("tests/nix/test_nix_build.py::test_a_signal_from_outside_is_the_hosts_fault"),
        "report": Elsewhere(f"tests/acceptance/{LATE_KILL}"),
    },
    "lock held": {
        "fetch": Elsewhere("test_a_mirror_that_another_process_holds"),
        "checkout": Elsewhere(f"tests/checkout/{KEPT_LOCK}"),
        "evaluate": NoPart("nix waits for its own locks within the attempt's time"),
        "build": NoPart("nix waits for its own locks within the attempt's time"),
        "report": Elsewhere("tests/journal/test_journal_outbox.py::test_a_result_while_another_program_holds_the_lock"),
    },
}
HERE = [fault for fault, row in MATRIX.items() if any(isinstance(cell, Done) for cell in row.values())]


@asynccontextmanager
async def host_of(place: Path, broker: Broker, **changes: object) -> AsyncIterator[Host]:
    (place / "disk").mkdir()
    quick = {"limits__host_fault_retries": 1, "limits__host_fault_backoff_seconds": 0.05}
    quick |= {"limits__quarantine_after": 2, "limits__quarantine_seconds": 0.5}
    quick |= {"limits__max_attempts": 1000, "limits__fetch_timeout_seconds": 10}
    floors = {"limits__disk_floor_bytes": 0, "limits__disk_floor_inodes": 0}
    async with (
        open_farm(place / "farm", broker, SYSTEM) as farm,
        small_disks(place / "disk.log", place / "disk") as (disk,),
    ):
        host = Host(farm, disk, place)
        host.wrap()
        root = str(place / "disk" / "roots" / "host")
        file = farm.configuration({"name": "host", "checkout.root": root}, **{**quick, **floors, **changes})
        environment = {
            "PATH": str(host.programs),
            "OFBORG_ASYNC_STATE_DIR": str(place / "disk" / "state"),
            "OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.1",
            "OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "0.3",
            "OFBORG_ASYNC_RESTART_INTENSITY": "1",
            # Whatever working directory the prefix leaves it in.
            "PYTHONPATH": str(Path(ofborg_async.__file__).parents[1]),
        }
        async with farm.daemon(file, environment=environment, prefix=(*disk.prefix, *AS_A_USER)) as daemon:
            host.daemon = daemon
            try:
                yield host
            finally:
                host.release()  # else what is held would wait for good
            assert await daemon.stop() == 0


needs_namespaces = pytest.mark.skipif(not namespaces_work(), reason="takes mount namespaces: Linux, root")


@needs_namespaces
@pytest.mark.parametrize("fault", HERE)
async def test_a_fault_in_every_phase(tmp_path: Path, broker: Broker, fault: str) -> None:
    async with host_of(tmp_path, broker) as host:
        for phase, cell in MATRIX[fault].items():
            if isinstance(cell, Done):
                await host.go_through(phase, cell)


@needs_namespaces
async def test_a_mirror_that_another_process_holds(tmp_path: Path, broker: Broker) -> None:
    async with host_of(tmp_path, broker, limits__fetch_timeout_seconds=0.3) as host:
        lock = host.disk.view / "state/mirrors" / f"{host.daemon.pid}.lock"
        await host.submit()
        await host.farm.tap.wait_for_results(1)
        (lock,) = (host.disk.view / "state/mirrors").glob("*.lock")
        with lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await host.submit()
            await eventually("it goes back", lambda: host.went_back(FaultKind.LOCK))
        assert {r["status"] for r in await host.farm.tap.wait_for_results(2)} == {"Success"}


@needs_namespaces
async def test_a_state_disk_that_stays_full_ends_no_identity(tmp_path: Path, broker: Broker) -> None:
    """The journal takes nothing, so nothing is built; whatever that lasts, it goes on by itself afterwards."""
    async with host_of(tmp_path, broker, limits__quarantine_after=1000) as host:
        host.disk.fill()
        with suppress(FileNotFoundError):
            (host.disk.view / "state/journal.reserve").unlink()
        host.disk.fill()
        await host.submit()
        await eventually("it is tried again and again", lambda: host.went_back(FaultKind.DISK) >= 6)
        identity = (await host.daemon.status()).identities[0]
        assert identity.state in {IdentityState.IDLE, IdentityState.BUSY, IdentityState.STARTING}
        assert "disk" in identity.last_error
        assert "unexpectedly" not in host.daemon.log.read_text()
        host.disk.empty()
        assert [r["status"] for r in await host.farm.tap.wait_for_results(1)] == ["Success"]
        await host.farm.until_settled()
        assert len(host.farm.tap.results()) == 1


@needs_namespaces
async def test_a_folder_of_logs_that_is_removed_costs_lines_and_no_result(tmp_path: Path, broker: Broker) -> None:
    """Under a job that evaluates: what it prints later has no file to be sent from. The next job makes the folder."""
    async with host_of(tmp_path, broker) as host:
        host.hold("evaluate", "")
        await host.submit()
        await eventually("the job evaluates", (host.place / "reached").exists)
        shutil.rmtree(host.disk.view / "state/logs")
        host.release()
        await host.farm.tap.wait_for_results(1)
        await host.submit()
        results = await host.farm.tap.wait_for_results(2)
        assert [result["status"] for result in results] == ["Success", "Success"]
        assert (await host.daemon.status()).identities[0].restarts == 0


async def test_a_folder_of_logs_that_is_removed_does_not_end_the_daemon(tmp_path: Path, broker: Broker) -> None:
    """It looks into the folder a second after a job, as so few logs are to be kept."""
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        environment = {"OFBORG_ASYNC_LOG_KEEP_BYTES": "1"}
        async with farm.daemon(farm.configuration("lab-a"), environment=environment) as daemon:
            head = await farm.upstream.open_pr(1, {"doc/x": "x"})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
            await farm.tap.wait_for_results(1)
            shutil.rmtree(daemon.state_dir / "logs")
            await eventually("it is missed", lambda: "left for later: disk: " in daemon.log.read_text())
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
            await farm.tap.wait_for_results(2)
            assert await daemon.stop() == 0


def test_every_fault_has_a_cell_for_every_phase_and_every_named_test_exists() -> None:
    for fault, row in MATRIX.items():
        assert tuple(row) == PHASES, fault
        for cell in row.values():
            match cell:
                case Elsewhere(test):
                    assert there_is(test), test
                case SameAs(other, phase):
                    assert isinstance(MATRIX[other][phase], Done | Elsewhere), cell
                case Done() | NoPart():
                    pass


def there_is(test: str) -> bool:
    file, _, name = test.rpartition("::")
    path = Path(__file__).parents[2] / file if file else Path(__file__)
    return name in {
        node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AsyncFunctionDef)
    }
