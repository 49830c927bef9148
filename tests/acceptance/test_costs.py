"""What must not grow unseen: counts, which are the same on a slow machine as on a fast one. Nothing here is timed.

Times are the benchmarks' matter (docs/performance.md). A change that makes one of these counts smaller lowers its
bound; one that makes it greater says here what it brings. ``tests/journal/test_journal_attempts.py`` counts the
statements, commits and syncs of an attempt.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import frozen
from cost_counts import Commands, Io, Modules
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from traced_calls import own_calls, traced_calls
from waits import eventually

from ofborg_async.lab.bench.logs import LINE_CHARACTERS, contents
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.proxy import Proxy, Way, proxy
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set
from ofborg_async.lab.wiretap import Message

SYSTEM = "x86_64-linux"
QUIET_SECONDS = 1.5

SMALL_JOB = {
    "git fetch": 1,  # the branch and the pull request, into the mirror
    "git merge-tree": 1,
    "git diff-tree": 1,  # whether an attributes file changes: then all of the tree is written anew
    "git update-ref": 1,  # what the original finds when it is put back
    "git clean": 1,  # what the last build left beside the tracked files
    "git checkout": 1,  # of the difference
    "nix-build": 1,  # evaluates too
}
"""Every program that a job starts on a warm tree whose branch has moved, with one attribute and nothing to build."""

SMALL_JOB_READS = 80
"""Was 68: some for each program (what it printed, to the end; its start in /proc), the rest notes of tree and root."""

SMALL_JOB_WRITES = 95
"""Was 76 to 80: for each page of five transactions SQLite writes two; lines, notes, two records for each program."""

SMALL_JOB_WRITTEN_BYTES = 130_000
"""Was 105,000 to 113,000: nearly all of it 4 KiB pages of five transactions in SQLite's write-ahead log."""

SMALL_JOB_SENT_BYTES = 1_800
"""Was 1,660: LogStart, one line, the result twice, an acknowledgement; more would be declarations for each job."""

CALLS: dict[str, tuple[tuple[str, ...], int]] = {
    # Was 161 to 170: notes of tree and root, each process's start in /proc, who is still there when one of two ends.
    "looking at files": (
        (
            *("open", "openat", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "getdents64"),
            *("access", "faccessat", "faccessat2", "readlink", "readlinkat"),
        ),
        230,
    ),
    # Was 40: the job, five publishings with their confirms, and five transactions that wake the loop.
    "sockets": (("socket", "connect", "sendto", "sendmsg", "recvfrom", "recvmsg"), 60),
    # Was 101 on a quiet machine, 127 on a busy one, where less comes at once: a checkpoint is one, too.
    "waiting for descriptors": (
        ("epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"),
        190,
    ),
    # Was 61 to 105: the journal's thread is woken and gives the interpreter back, five times.
    "waiting for threads": (("futex",), 200),
    # Was 7: SMALL_JOB. A thread is started when one was idle for long, and the job with it.
    "starting": (("vfork", "fork", "clone", "clone3"), 10),
    # Was 4: three transactions that must not be lost, and the journal's generation beside them. A tick may add one.
    "syncs": (("fsync", "fdatasync", "sync_file_range", "syncfs", "msync"), 7),
}
"""The system calls of a small job by what they are for, in all threads of the daemon: their names, and the bound."""

ALL_CALLS = 1_350
"""Was 889 to 965 without ``getpid``, which Python's event loop calls 500 times before 3.12. A third are for the
seven programs, 49 each; what a child does itself until it is another program (79 calls) is not among them."""

LINES = 5_000

LINE_OVERHEAD_BYTES = 40.0
"""On the disk beside the line itself: its newline, and a transaction each second that says how far they were sent, so
that a slow machine has more of them. Was 8; a second copy of the line would be 81."""

THIRD_PARTY = {
    *("aio_pika", "aiormq", "pamqp", "yarl", "multidict", "propcache", "idna"),  # the broker
    *("anyio", "h11", "attr", "attrs", "cattrs", "typing_extensions"),
}
"""All that the daemon loads beside Python itself. asyncssh, rich, psutil and the tests' tools are not among it."""

OWN_MODULES = 168
"""Was 161, 45 KiB each on the average. Commands, rendering, SSH and the lab are no part of the daemon."""

ALL_MODULES = 500
"""Was 465 with those of Python itself, which differ by its version."""

NOT_OURS = ("ofborg_async.lab", "ofborg_async.remote.ssh", "ofborg_async.cli.render", "ofborg_async.control.client")

NOT_PYTHONS = (
    "multiprocessing",
    "unittest",
    "xml",
    "html",
    "http.client",
    "http.server",
    "pdb",
    "doctest",
    "urllib.request",
)
"""Big parts of Python that come with one careless import; email and zipfile do with aiormq's importlib.metadata."""


@frozen
class Watched:
    """A daemon that is counted, with one identity, between a farm and a path to its broker."""

    farm: Farm
    daemon: DaemonProcess
    path: Proxy
    programs: Commands
    modules: Modules

    async def job(self, number: int, attr: str, changes: dict[str, str | bytes | None]) -> list[Message]:
        """A pull request of its own after master has moved; returns its messages, once all is done and written."""
        farm = self.farm
        base = await farm.upstream.sha()
        await farm.upstream.advance_master({"doc/master": f"{number}"})
        head = await farm.upstream.open_pr(number, changes, base=base)
        farm.tap.messages.clear()
        await farm.submit(SYSTEM, farm.upstream.job(number, head, [attr]))
        (result,) = await farm.tap.wait_for_results(1)
        assert result["status"] == "Success", result
        await farm.until_settled()
        await self.quiet()
        return list(farm.tap.messages)

    async def quiet(self) -> None:
        """Until the daemon has written nothing for longer than a tick (a second), which brings the rest to the disk."""
        last, since = (0, 0), time.monotonic()

        def stands_still() -> bool:
            nonlocal last, since
            now = (Io.of(self.daemon.pid).writes, self.path.passed_bytes[Way.UP])
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since > QUIET_SECONDS

        await eventually("a daemon that does nothing", stands_still)


@asynccontextmanager
async def watched(tmp_path: Path, broker: Broker, files: dict[str, str]) -> AsyncIterator[Watched]:
    programs = Commands(tmp_path / "programs", ("git", "nix-instantiate", "nix-build", "nix-store", "nix"))
    modules = Modules(tmp_path / "modules")
    async with (
        open_farm(tmp_path / "farm", broker, SYSTEM, contents=files) as farm,
        proxy(broker.host, broker.port) as path,
    ):
        file = farm.configuration("lab-a", rabbitmq__host=f"{broker.host}:{path.port}", rabbitmq__heartbeat_seconds=60)
        async with farm.daemon(file, environment=modules.environment | programs.environment) as daemon:
            yield Watched(farm, daemon, path, programs, modules)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")


@pytest.mark.timeout(400)
async def test_a_small_job_starts_no_more_programs_and_makes_no_more_calls(tmp_path: Path, broker: Broker) -> None:
    async with watched(tmp_path, broker, package_set()) as here:
        for number in (1, 2):  # the first makes the mirror and the tree, the second opens the channels that stay
            await here.job(number, "ok", {f"doc/{number}": "new"})
        used, sent_bytes = [], []
        for number in (3, 4, 5):
            here.programs.clear()
            io, sent = Io.of(here.daemon.pid), here.path.passed_bytes[Way.UP]
            await here.job(number, "ok", {f"doc/{number}": "new"})
            used.append(Io.of(here.daemon.pid) - io)
            sent_bytes.append(here.path.passed_bytes[Way.UP] - sent)
            started = here.programs.started()
            assert Counter(map(program, started)) == SMALL_JOB, "\n".join(started)
        # The least of them: where what a program started lingers for a moment, the table of all processes is read.
        assert min(each.reads for each in used) <= SMALL_JOB_READS
        assert min(each.writes for each in used) <= SMALL_JOB_WRITES
        assert min(each.written_bytes for each in used) <= SMALL_JOB_WRITTEN_BYTES
        # The path of what was built is in the line and in both results; a nix-daemon of the lab's has a longer one.
        store = here.farm.store.environment.get("NIX_STORE_DIR", "/nix/store")
        assert min(sent_bytes) <= SMALL_JOB_SENT_BYTES + 3 * (len(store) - len("/nix/store"))


@pytest.mark.timeout(400)
async def test_a_small_job_makes_no_more_system_calls(tmp_path: Path, broker: Broker) -> None:
    async with watched(tmp_path, broker, package_set()) as here:
        for number in (1, 2):  # as above
            await here.job(number, "ok", {f"doc/{number}": "new"})
        jobs = []
        for number in (3, 4, 5):
            async with traced_calls(here.daemon.pid, tmp_path / f"trace-{number}") as calls:
                await here.job(number, "ok", {f"doc/{number}": "new"})
            jobs.append(calls)
        # The least of them: what a slow machine splits into more pieces, or what a tick adds, is not in each.
        least = {what: min(sum(job[name] for name in names) for job in jobs) for what, (names, _) in CALLS.items()}
        over = {what: count for what, count in least.items() if not 0 < count <= CALLS[what][1]}
        total = min(job.total() - job["getpid"] for job in jobs)
        counts = "\n".join(str(job.most_common()) for job in jobs)
        assert over == {}, counts
        assert total <= ALL_CALLS, counts


def test_calls_of_a_child_on_its_way_to_its_program_are_not_the_daemons() -> None:
    trace = """\
10 futex(0x1, 0x189) = 0x1
11 epoll_wait(0x3, 0x4, 0x4, 0x1d3 <unfinished ...>
11 <... epoll_wait resumed>) = 0x1
11 vfork( <unfinished ...>
12 dup2(0x1d, 0) = 0
12 execve(0x1, 0x2, 0x3 <detached ...>
11 <... vfork resumed>) = 0xc
11 close(0x1e) = 0
"""
    assert own_calls(trace) == {"futex": 1, "epoll_wait": 1, "vfork": 1, "close": 1}


def program(words: str) -> str:
    """``git`` with its command, another program without."""
    found = re.match(r"git(?: -\S+)* ([a-z-]+)", words)
    return f"git {found[1]}" if found else words.split(maxsplit=1)[0]


@pytest.mark.timeout(400)
async def test_a_line_is_written_once_and_sent_in_its_frames_alone(tmp_path: Path, broker: Broker) -> None:
    async with watched(tmp_path, broker, contents()) as here:
        await here.job(1, "log", {"nonce": "1", "count": "1"})
        costs = []
        for number, lines in ((2, 1), (3, LINES)):
            io, sent_bytes = Io.of(here.daemon.pid), here.path.passed_bytes[Way.UP]
            messages = await here.job(number, "log", {"nonce": f"{number}", "count": f"{lines}"})
            said = [message for message in messages if "line_number" in message.payload]
            assert lines <= len(said) < lines + 10  # what nix says of itself
            frames_bytes = sum(map(frames_size, messages))
            beside = here.path.passed_bytes[Way.UP] - sent_bytes - frames_bytes
            costs.append((Io.of(here.daemon.pid) - io, beside))
        (small, small_beside), (large, large_beside) = costs
        # Acknowledgement and the like are the same for both; a heartbeat is 8 bytes.
        assert abs(large_beside - small_beside) <= 32
        written_bytes = (large.written_bytes - small.written_bytes) / (LINES - 1)
        assert LINE_CHARACTERS < written_bytes <= LINE_CHARACTERS + LINE_OVERHEAD_BYTES


def frames_size(message: Message) -> int:
    """What AMQP 0-9-1 needs to publish a message: method, header and body, each a frame."""
    publish = commands.Basic.Publish(exchange=message.exchange, routing_key=message.routing_key)
    properties = commands.Basic.Properties(
        content_type=message.content_type, delivery_mode=message.delivery_mode, message_id=message.message_id
    )
    header = ContentHeader(0, len(message.body), properties)
    return sum(len(frame.marshal(part, 1)) for part in (publish, header, ContentBody(message.body)))


async def test_an_idle_daemon_has_loaded_what_it_needs_and_no_more(tmp_path: Path, broker: Broker) -> None:
    async with watched(tmp_path, broker, package_set()) as here:
        loaded = await here.modules.loaded(here.daemon)
        own = {name for name in loaded if is_of(name, ("ofborg_async",))}
        foreign = {name.partition(".")[0] for name in loaded - own} - sys.stdlib_module_names
        assert {name for name in foreign if "cython" not in name} <= THIRD_PARTY | {"__main__"}
        assert len(own) <= OWN_MODULES, sorted(own)
        assert len(loaded) <= ALL_MODULES, sorted(loaded)
        assert [name for name in loaded if is_of(name, NOT_PYTHONS)] == []
        assert [name for name in own if name.startswith(NOT_OURS)] == []


def is_of(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
