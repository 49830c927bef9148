"""A host as a service definition describes it: its user, its files, its directories, and nothing of the tester's own.

``lab.host`` stands in for it, so that the definition's own words are run, absolute paths included.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from attrs import frozen
from waits import eventually

from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.lab.farm import toml_file
from ofborg_async.lab.host import Account, Host, hosts_work
from ofborg_async.lab.namespace import private_nix
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.lab.servers import Server, base_environment
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.lab.wiretap import Wiretap, job_queue, wiretap

PROJECT = Path(__file__).parents[2]
SYSTEM = "x86_64-linux"
IDENTITIES = ("service-a", "service-b", "service-c", "service-d")
CONFIGURATION = "/etc/ofborg-async/builders.toml"

needs_a_place = pytest.mark.skipif(
    not hosts_work(), reason="a host of one's own takes mount namespaces and overlayfs: root on Linux"
)

Runner = Callable[..., Awaitable[tuple[int, str]]]
"""Runs words on the host, and gives their exit status and what they printed."""


@frozen
class ServicePlace:
    """The place, and the peers of the daemon in it."""

    host: Host
    broker: Broker
    vhost: str
    upstream: Upstream
    tap: Wiretap

    @property
    def configuration(self) -> Path:
        """What lies in /etc/ofborg-async/builders.toml of the place."""
        return self.host.files[CONFIGURATION]

    async def run(self, *argv: str) -> tuple[int, str]:
        """Run a command in the place, as root; its exit status and what it printed."""
        words = self.host.words(argv, environment=["PATH=/usr/local/bin:/usr/bin:/bin"])
        done = await anyio.run_process(words, check=False, env=base_environment())
        return done.returncode, (done.stdout + done.stderr).decode()

    async def status_is_well(self, run: Runner, *options: str) -> None:
        """The command, as root, says so, once the counts behind it have caught up with the last job."""

        async def well() -> bool:
            code, said = await run("ofborg-async", "status", *options)
            return code == 0 and all(name in said for name in IDENTITIES)

        await eventually("status 0 and every identity", well, 60)

    async def builds(self, number: int) -> None:
        """As many jobs as there are identities come to each of them once, and are built."""
        await self.broker_has_consumers()
        before = len(self.tap.results())
        for each in range(number, number + len(IDENTITIES)):
            head = await self.upstream.open_pr(each, {"doc/number": str(each)})
            await self.tap.publish_job(job_queue(SYSTEM), self.upstream.job(each, head, ["ok"]))
        results = await self.tap.wait_for_results(before + len(IDENTITIES), deadline_seconds=120)
        assert {result["status"] for result in results} == {"Success"}
        starts = [message.payload for message in self.tap.on("logs") if "skipped_attrs" in message.payload]
        assert {start["identity"] for start in starts if "identity" in start} == set(IDENTITIES)

    async def broker_has_consumers(self) -> None:
        """One of each identity, by the broker's own word."""
        wanted = {f"{name}-{SYSTEM}-builder" for name in IDENTITIES}

        async def all_there() -> bool:
            return wanted <= {state.tag for state in await self.broker.list_consumers(self.vhost)}

        await eventually("a consumer of each identity", all_there, 60)


class Service:
    """A service that is started with ``words``; ``socket`` is its control socket as seen from here."""

    def __init__(self, name: str, words: Sequence[str], *, log: Path, socket: Path) -> None:
        self.server = Server(name, words, env=base_environment(), log=log)
        self.socket = socket
        self.client = ControlClient(unix_connector(socket), where=str(socket))

    async def until_it_answers(self) -> None:
        """Its control socket is there."""
        await self.server.ready(lambda: _exists(self.socket), 60)

    async def wait(self) -> int:
        """Its exit status."""
        await eventually("its exit", lambda: not self.server.running, 60)
        assert self.server.returncode is not None
        return self.server.returncode

    async def stop(self) -> int:
        """SIGTERM to its first process alone, as a service manager does; its exit status."""
        os.kill(self.server.pid, signal.SIGTERM)
        return await self.wait()


@asynccontextmanager
async def open_place(
    directory: Path, broker: Broker, vhost: str, account: Account, programs: Mapping[str, str]
) -> AsyncIterator[ServicePlace]:
    """A place with ``programs`` (scripts by path) and ``ofborg-async`` in /usr/local/bin, configured for all of it."""
    upstream = await create_upstream(directory / "upstream.git")
    async with (
        private_nix(directory / "private-nix") as nix,
        upstream.served() as upstream.url,
        wiretap(broker.url(vhost=vhost), SYSTEM) as tap,
    ):
        host = Host(directory, nix.prefix, account, {CONFIGURATION: directory / "builders.toml"})
        await host.lay_out(programs)
        place = ServicePlace(host, broker, vhost, upstream, tap)
        defaults = {
            "nix.systems": [SYSTEM],
            "nix.remote": "daemon",
            "rabbitmq.host": f"{broker.host}:{broker.port}",
            "rabbitmq.ssl": False,
            "rabbitmq.virtualhost": vhost,
            "rabbitmq.username": ADMIN,
            "rabbitmq.password": ADMIN,
            "feedback.full_logs": True,
        }
        toml_file(place.configuration, identities=[{"name": name} for name in IDENTITIES], defaults=defaults)
        yield place


async def _exists(path: Path) -> bool:
    return path.exists()
