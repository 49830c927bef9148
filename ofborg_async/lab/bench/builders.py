"""The builders that are compared: ours, one daemon for all identities, and another one, a process for each.

Each side has a farm of its own: a virtual host, a store, a wiretap. The upstream repository is shared, so the two are
given the same work in turns (``in_turns``); the one that is not measured is idle meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import anyio
from attrs import evolve, frozen

from ofborg_async.lab.bench.peer import Peer, peer
from ofborg_async.lab.bench.plan import SYSTEM, Bench
from ofborg_async.lab.bench.usage import Cpu, Memory, cpu_of, disk_mib, memory_of
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.namespace import namespaces_work, private_nix
from ofborg_async.lab.rabbitmq import ADMIN
from ofborg_async.lab.servers import LabError, Server, base_environment
from ofborg_async.lab.upstream import Changes, Upstream, create_upstream
from ofborg_async.lab.wiretap import RESULTS
from ofborg_async.waiting import within

OURS, THEIRS = "ours", "theirs"

Job = dict[str, Any]
T = TypeVar("T")

_POLL_SECONDS = 0.005
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_JOBS_SECONDS = 1800.0
_SETTLE_SECONDS = 300.0


@frozen
class Running:
    """Builders that run: their processes, and the directory that has all they wrote."""

    farm: Farm
    peer: Peer
    pids: tuple[int, ...]
    started_seconds: float

    def cpu(self) -> Cpu:
        """What they used so far."""
        return cpu_of(self.pids)

    def memory(self) -> Memory:
        """What they hold now."""
        return memory_of(self.pids)

    def disk_mib(self) -> float:
        """The space that their roots and states take."""
        return disk_mib(self.farm.directory)

    async def work(self, jobs: Sequence[Job], status: str = "Success") -> float:
        """Seconds from publishing the first job until the last result. Raises LabError for another status."""
        tap = self.farm.tap
        tap.messages.clear()
        began = perf_counter()
        for job in jobs:
            await self.farm.submit(SYSTEM, job)
        await tap.wait_for(lambda _: len(tap.on(RESULTS)) >= len(jobs), deadline_seconds=_JOBS_SECONDS, what="results")
        seconds = perf_counter() - began
        for result in tap.results():
            if result["status"] != status:
                raise LabError(f"a benchmark's job was not {status}: {result}")
        return seconds

    async def settle(self) -> None:
        """Wait until every job is acknowledged."""
        await self.farm.until_settled(deadline_seconds=_SETTLE_SECONDS)

    def busy_identities(self) -> set[str]:
        """Who began the jobs of the last ``work``."""
        payloads = (message.payload for message in self.farm.tap.on("logs"))
        return {payload["identity"] for payload in payloads if "attempted_attrs" in payload and "tag" not in payload}


class Side(Protocol):
    """One of the builders that are compared, and its farm."""

    @property
    def name(self) -> str:
        """OURS or THEIRS."""
        ...

    @property
    def farm(self) -> Farm:
        """Where it works."""
        ...

    @property
    def peer(self) -> Peer:
        """Questions to its broker."""
        ...

    def running(self, identities: int, place: str = "run") -> Any:
        """A Running with so many identities for the time of an ``async with``.

        What they write goes to ``place`` of the farm's directory, and stays: a new place is a cold start.
        """
        ...


@frozen
class Ours:
    """``ofborg-async run``."""

    farm: Farm
    peer: Peer
    name: str = OURS

    @asynccontextmanager
    async def running(self, identities: int, place: str = "run") -> AsyncIterator[Running]:
        """One daemon."""
        farm = _at(self.farm, place)
        file = farm.configuration(*_names(identities))
        daemon = DaemonProcess(farm.directory / "daemon", [file])
        try:
            began = perf_counter()
            daemon.launch()
            await _consumed(self.peer, identities, daemon)
            yield Running(farm, self.peer, (daemon.pid,), perf_counter() - began)
            if status := await daemon.stop(_STOP_SECONDS):
                raise LabError(f"the daemon exited with {status}:\n{daemon.last_words()}")
        finally:
            daemon.close()
            await _consumed(self.peer, 0)


@frozen
class Theirs:
    """Processes of ``program``, each started after the words of ``prefix`` with one configuration."""

    farm: Farm
    peer: Peer
    program: Path
    prefix: tuple[str, ...]
    name: str = THEIRS

    @asynccontextmanager
    async def running(self, identities: int, place: str = "run") -> AsyncIterator[Running]:
        """A process for each identity."""
        farm = _at(self.farm, place)
        servers = [self._server(farm, name) for name in _names(identities)]
        try:
            began = perf_counter()
            for server in servers:
                server.start()
            await _consumed(self.peer, identities, *servers)
            yield Running(farm, self.peer, tuple(server.pid for server in servers), perf_counter() - began)
        finally:
            for server in servers:
                server.kill()
            await _consumed(self.peer, 0)

    def _server(self, farm: Farm, name: str) -> Server:
        root = farm.directory / "roots" / name
        root.mkdir(parents=True, exist_ok=True)
        configuration = {
            "runner": {"identity": name},
            "feedback": {"full_logs": True},
            "checkout": {"root": str(root)},
            "nix": {"system": SYSTEM, "remote": farm.store.remote, "build_timeout_seconds": 3600},
            "rabbitmq": {
                "ssl": False,
                "host": f"{farm.broker.host}:{farm.broker.port}",
                "virtualhost": farm.vhost,
                "username": ADMIN,
                "password": ADMIN,
            },
        }
        file = farm.directory / f"{name}.json"
        file.write_text(json.dumps(configuration))
        # It gives git its own surroundings; a merge needs an author.
        author = {"GIT_AUTHOR_NAME": "bench", "GIT_COMMITTER_NAME": "bench", "EMAIL": "bench@localhost"}
        env = base_environment(HOME=str(farm.directory), GIT_CONFIG_NOSYSTEM="1", **author)
        words = [*self.prefix, str(self.program), str(file)]
        return Server(name, words, env=env, log=farm.directory / f"{name}.log")


@asynccontextmanager
async def sides(
    bench: Bench, place: Path, contents: Changes | None = None
) -> AsyncIterator[tuple[list[Side], Upstream]]:
    """The sides that are compared, ours alone where there is no other builder, and their upstream repository."""
    async with AsyncExitStack() as stack:
        upstream = await create_upstream(place / "upstream.git", contents)
        found: list[Side] = []
        for name in (OURS, THEIRS) if bench.against is not None else (OURS,):
            opened = open_farm(place / name, bench.broker, SYSTEM, contents={"unused": ""})
            farm = evolve(await stack.enter_async_context(opened), upstream=upstream)
            asking = await stack.enter_async_context(peer(farm))
            if name == OURS:
                found.append(Ours(farm, asking))
            elif bench.against is not None:
                prefix = await stack.enter_async_context(_their_nix(place / "their-nix"))
                found.append(Theirs(farm, asking, bench.against, prefix))
        yield found, upstream


def in_turns(both: Iterable[T], run: int) -> list[T]:
    """In order, the other way round in every second run: whoever is second finds caches warm."""
    listed = list(both)
    return listed[:: -1 if run % 2 else 1]


@asynccontextmanager
async def _their_nix(directory: Path) -> AsyncIterator[tuple[str, ...]]:
    """The words before a program that sees a nix.conf like ours: the original clears nix's environment."""
    if not namespaces_work():
        raise LabError("--against works on Linux as root: the other builder gets its nix.conf by a mount namespace")
    async with private_nix(directory) as place:
        marker = directory / "etc" / "held"
        holder = Server(
            "namespace",
            [*place.prefix, "sh", "-c", 'touch "$0" && exec sleep infinity', "/etc/nix/held"],
            env=base_environment(),
            log=directory / "holder.log",
        )
        try:
            holder.start()
            await holder.ready(lambda: _exists(marker), _START_SECONDS)
            yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")
        finally:
            holder.kill()


async def _consumed(asking: Peer, identities: int, *programs: DaemonProcess | Server) -> None:
    """Wait until so many consumers are there. Raises LabError when a program exits first."""
    with within(_START_SECONDS, f"{identities} consumers"):
        while await asking.consumers() != identities:
            for program in programs:
                if not program.running:
                    raise LabError(f"a builder exited at its start:\n{program.last_words()}")
            await anyio.sleep(_POLL_SECONDS)


async def _exists(path: Path) -> bool:
    return path.exists()


def _at(farm: Farm, place: str) -> Farm:
    directory = farm.directory / place
    directory.mkdir(exist_ok=True)
    return evolve(farm, directory=directory)


def _names(identities: int) -> list[str]:
    return [f"bench-{number:02}" for number in range(1, identities + 1)]
