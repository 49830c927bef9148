"""A host as a service definition describes it: its user, its files, its directories, and nothing of the tester's own.

A mount namespace (Linux, root) stands in for it, so that the definition's own words are run, absolute paths included.
Nothing is made on the machine itself.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from attrs import frozen
from waits import eventually

from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.lab.commands import run
from ofborg_async.lab.farm import toml_file
from ofborg_async.lab.namespace import PrivateNix, namespaces_work, private_nix
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.lab.servers import Server, base_environment
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.lab.wiretap import Wiretap, job_queue, wiretap

PROJECT = Path(__file__).parents[2]
SYSTEM = "x86_64-linux"
UID = 399
IDENTITIES = ("service-a", "service-b", "service-c", "service-d")
CONFIGURATION = "/etc/ofborg-async/builders.toml"

needs_a_place = pytest.mark.skipif(
    not namespaces_work() or "overlay" not in Path("/proc/filesystems").read_text(),
    reason="a host of one's own takes mount namespaces and overlayfs: root on Linux",
)


@frozen
class Account:
    """The service's user. ``mounts``: directories of the place and where they lie here; they belong to the user."""

    user: str
    group: str
    home: str
    mounts: Mapping[str, Path]


@frozen
class ServicePlace:
    """The place, and the peers of the daemon in it. ``programs`` are scripts by their path in the place."""

    directory: Path
    account: Account
    nix: PrivateNix
    broker: Broker
    vhost: str
    upstream: Upstream
    tap: Wiretap

    @property
    def configuration(self) -> Path:
        """What lies in /etc/ofborg-async/builders.toml of the place."""
        return self.directory / "builders.toml"

    def words(self, argv: Sequence[str], *, user: str | None = None, setup: Sequence[str] = (), cwd: str = "/",
              environment: Sequence[str] = ()) -> list[str]:  # fmt: skip
        """Words that run ``argv`` in the place with nothing but ``environment``; ``setup`` are lines of shell."""
        account = self.account
        identifiers = [f"--reuid={user}", f"--regid={account.group}", "--init-groups", "--no-new-privs"]
        as_user = [] if user is None else ["setpriv", *identifiers, "--"]
        script = "\n".join(
            [
                "set -e",
                f"echo {account.user}:x:{UID}:{UID}::{account.home}:/bin/false >> /etc/passwd",
                f"echo {account.group}:x:{UID}: >> /etc/group",
                f"install -D -m 0600 -o {UID} -g {UID} {shlex.quote(str(self.configuration))} {CONFIGURATION}",
                *(self._merge(place) for place in self._merged()),
                *(f"mkdir -p {there}; mount --bind {here} {there}" for there, here in account.mounts.items()),
                *setup,
                # The words of the environment are left to the shell, for $$.
                f'exec {shlex.join(as_user)} env -i -C {cwd} {" ".join(environment)} "$@"',
            ]
        )
        return [*self.nix.prefix, "sh", "-c", script, "sh", *argv]

    def _merge(self, place: Path) -> str:
        added = self.directory / "added" / place.relative_to("/")
        return f"mount -t overlay overlay -o lowerdir={shlex.quote(f'{added}:{place}')} {shlex.quote(str(place))}"

    def _merged(self) -> list[Path]:
        """Directories of the machine that show something more in the place."""
        places = [Path("/bin"), Path("/usr/local/bin"), *(Path(there).parent for there in self.account.mounts)]
        for closed in _closed_ancestors():
            if not any(closed.is_relative_to(place) for place in places):
                places.append(closed)
        return [place for place in dict.fromkeys(places) if place.exists()]

    async def run(self, *argv: str, user: str | None = None) -> tuple[int, str]:
        """Run a command in the place; its exit status and what it printed."""
        words = self.words(argv, user=user, environment=["PATH=/usr/local/bin:/usr/bin:/bin"])
        done = await anyio.run_process(words, check=False, env=base_environment())
        return done.returncode, (done.stdout + done.stderr).decode()

    async def status_is_well(self, *options: str) -> None:
        """The command, as root, says so, once the counts behind it have caught up with the last job."""

        async def well() -> bool:
            code, said = await self.run("ofborg-async", "status", *options)
            return code == 0 and all(name in said for name in IDENTITIES)

        await eventually("status 0 and every identity", well, 60)

    async def builds(self, number: int) -> None:
        """As many jobs as there are identities come to each of them once, and are built."""
        await self.broker_has_consumers()
        for each in range(number, number + len(IDENTITIES)):
            head = await self.upstream.open_pr(each, {"doc/number": str(each)})
            await self.tap.publish_job(job_queue(SYSTEM), self.upstream.job(each, head, ["ok"]))
        results = await self.tap.wait_for_results(len(IDENTITIES), deadline_seconds=120)
        assert {result["status"] for result in results} == {"Success"}
        starts = [message.payload for message in self.tap.on("logs") if "skipped_attrs" in message.payload]
        assert {start["identity"] for start in starts if "identity" in start} == set(IDENTITIES)

    async def broker_has_consumers(self) -> None:
        """One of each identity, by the broker's own word."""
        wanted = {f"{name}-{SYSTEM}-builder" for name in IDENTITIES}
        with anyio.fail_after(60):
            while not wanted <= {state.tag for state in await self.broker.list_consumers(self.vhost)}:
                await anyio.sleep(0.05)


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
        with anyio.fail_after(60):
            while self.server.running:
                await anyio.sleep(0.02)
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
    added = directory / "added"
    for path, text in programs.items():
        file = added / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    command = added / "usr/local/bin/ofborg-async"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.symlink_to(Path(sys.executable).with_name("ofborg-async"))
    for there, here in account.mounts.items():
        (added / there.removeprefix("/")).mkdir(parents=True)
        here.mkdir(mode=0o700, exist_ok=True)
        os.chown(here, UID, UID)
    for closed in _closed_ancestors():
        (added / closed.relative_to("/")).mkdir(parents=True, exist_ok=True)
    (added / "bin").mkdir(exist_ok=True)
    await run("chmod", "-R", "a+rX", str(added), env=base_environment())
    upstream = await create_upstream(directory / "upstream.git")
    async with (
        private_nix(directory / "private-nix") as nix,
        upstream.served() as upstream.url,
        wiretap(broker.url(vhost=vhost), SYSTEM) as tap,
    ):
        place = ServicePlace(directory, account, nix, broker, vhost, upstream, tap)
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


def _closed_ancestors() -> list[Path]:
    """Directories above the tester's own Python and project that another user may not enter; outermost first."""
    ends = {Path(sys.executable), Path(sys.executable).resolve(), Path(sys.base_prefix), PROJECT}
    above = {parent for end in ends for parent in end.parents}
    return sorted(parent for parent in above if not parent.stat().st_mode & 0o001)


async def _exists(path: Path) -> bool:
    return path.exists()
