"""The original's own configuration files, of every generation, run as they are and build.

What is changed in them: the broker's host, where the password lies, and the root; where several of them run at once,
their identities too, for those are the same in every example. So the users and the virtual host are those of the
examples, the broker speaks TLS, and ``remote: "daemon"`` is a nix-daemon behind ``/nix``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import frozen
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.namespace import PrivateNix, namespaces_work, private_nix
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.tls import TlsFiles, make_tls_files
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.lab.wiretap import Wiretap, job_queue, wiretap

pytestmark = [
    pytest.mark.skipif(not namespaces_work(), reason="a private /nix takes mount namespaces: root on Linux"),
    pytest.mark.timeout(300),
]

CONFIGS = Path(__file__).parents[2] / "configs"
USER, VHOST = "example", "ofborg"
ESCAPED_PASSWORD, PASSWORD, PRIVATE_PASSWORD = "replace%20me", "replace me", "replace-me"
SYSTEMS = ("x86_64-linux", "i686-linux", "aarch64-darwin", "x86_64-darwin")
GENERATIONS = {
    "original-1-password.json": ("x86_64-linux",),
    "original-2-password-file.json": ("aarch64-darwin", "x86_64-darwin"),
    "original-3-builder.json": ("x86_64-linux",),
}


@frozen
class SecureBroker:
    """A node with a TLS listener."""

    node: Broker
    tls: TlsFiles


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    directory = tmp_path_factory.mktemp("secure")
    tls = make_tls_files(directory / "tls")
    node = Broker(directory / "node", tls=tls)

    def run(function: Callable[[], Awaitable[None]]) -> None:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(anyio.run, function).result()

    try:
        run(node.start)
        run(lambda: node.add_user(USER, PASSWORD))
        yield SecureBroker(node, tls)
    finally:
        node.close()
        shutil.rmtree(directory, ignore_errors=True)


@frozen
class Ground:
    """Everything that the examples name, for real."""

    directory: Path
    broker: SecureBroker
    nix: PrivateNix
    upstream: Upstream
    tap: Wiretap

    def example(self, name: str, *, host: str = "127.0.0.1", identity: str | None = None, root: str = "root") -> Path:
        """A copy of an example that finds what is here."""
        document = json.loads((CONFIGS / name).read_text())
        rabbitmq = document.get("builder", document).get("rabbitmq")
        if rabbitmq is not None:
            rabbitmq["host"] = f"{host}:{self.broker.node.tls_port}"
        if rabbitmq is not None and "password_file" in rabbitmq:
            rabbitmq["password_file"] = str(self.directory / "password")
        if "checkout" in document:
            document["checkout"]["root"] = str(self.directory / root)
        if identity is not None:
            document["runner"]["identity"] = identity
        return self.write(f"{identity or 'only'}-{name}", document)

    def write(self, name: str, document: dict[str, Any]) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path

    def process(self, files: Sequence[Path]) -> DaemonProcess:
        environment = {"OFBORG_ASYNC_RABBITMQ_CA_FILE": str(self.broker.tls.authority)}
        return DaemonProcess(self.directory / "daemon", files, environment=environment, prefix=self.nix.prefix)

    @asynccontextmanager
    async def daemon(self, *files: Path) -> AsyncIterator[DaemonProcess]:
        daemon = self.process(files)
        try:
            await daemon.start()
            yield daemon
        finally:
            daemon.close()

    async def submit(self, system: str, number: int) -> dict[str, Any]:
        """A pull request and the job to build ``ok`` of it."""
        head = await self.upstream.open_pr(number, {"doc/number": str(number)})
        job = self.upstream.job(number, head, ["ok"])
        await self.tap.publish_job(job_queue(system), job)
        return job

    async def consumers(self) -> set[tuple[str, str]]:
        """The builders' queues and tags."""
        states = await self.broker.node.list_consumers(VHOST)
        return {(state.queue, state.tag) for state in states if state.queue in map(job_queue, SYSTEMS)}

    def builders(self) -> dict[str, set[str]]:
        """Who built for each system, by what was said at the start of each log."""
        found: dict[str, set[str]] = {}
        for message in self.tap.on("logs"):
            if "attempted_attrs" in message.payload and "tag" not in message.payload:
                found.setdefault(message.payload["system"], set()).add(message.payload["identity"])
        return found


@asynccontextmanager
async def open_ground(directory: Path, secure: SecureBroker, password: str = PASSWORD) -> AsyncIterator[Ground]:
    node = secure.node
    await node.change_password(USER, password)
    await node.add_vhost(VHOST)
    await node.set_permissions(USER, VHOST)
    (directory / "password").touch(mode=0o600)
    (directory / "password").write_text(f"{ESCAPED_PASSWORD}\n")
    upstream = await create_upstream(directory / "upstream.git")
    try:
        async with (
            # The sandbox builds for any system whose programs run here, and the shell in it is of no system.
            private_nix(directory / "nix", extra_platforms=" ".join(SYSTEMS)) as nix,
            upstream.served() as upstream.url,
            wiretap(node.url(vhost=VHOST), *SYSTEMS) as tap,
        ):
            yield Ground(directory, secure, nix, upstream, tap)
    finally:
        with anyio.CancelScope(shield=True):
            await node.delete_vhost(VHOST)


async def all_well(daemon: DaemonProcess) -> None:
    """Every consumer is there and every result out, once the counts have caught up with the last of them."""

    async def well() -> bool:
        return (await daemon.status()).verdict == "ok"

    await eventually("the verdict ok", well)


def lines_of_ok() -> list[str]:
    """What nix says when it builds ``ok``, as in the recordings."""
    path = "/nix/store/<hash>-ok"
    return ["this derivation will be built:", f"  {path}.drv", f"building '{path}.drv'...", "building ok", path]


@pytest.mark.parametrize(("name", "systems"), GENERATIONS.items(), ids=list(GENERATIONS))
async def test_a_file_of_each_generation_builds(
    name: str, systems: tuple[str, ...], tmp_path: Path, secure: SecureBroker
) -> None:
    async with open_ground(tmp_path, secure) as ground, ground.daemon(ground.example(name)) as daemon:
        tag = f"example-builder-{','.join(systems)}-builder"
        assert await ground.consumers() == {(job_queue(system), tag) for system in systems}

        job = await ground.submit(systems[0], 1)
        # Start, five lines, the result on both exchanges.
        messages = await ground.tap.wait_for(lambda ms: len(ms) >= 8, deadline_seconds=120, what="a whole answer")
        assert {message.exchange: message.routing_key for message in messages} == {
            "logs": "lab/packages.1",
            "build-results": "",
        }
        said = [json.loads(re.sub(r"[a-z0-9]{32}-ok", "<hash>-ok", json.dumps(m.payload))) for m in messages]
        who = {"system": systems[0], "identity": "example-builder", "attempt_id": said[0]["attempt_id"]}
        assert said[:6] == [
            who | {"attempted_attrs": ["ok"], "skipped_attrs": []},
            *(who | {"line_number": n, "output": line} for n, line in enumerate(lines_of_ok(), 1)),
        ]
        result = {
            "tag": "V1",
            "repo": job["repo"],
            "pr": job["pr"],
            "system": systems[0],
            "output": lines_of_ok(),
            "attempt_id": who["attempt_id"],
            "request_id": job["request_id"],
            "status": "Success",
            "skipped_attrs": [],
            "attempted_attrs": ["ok"],
        }
        assert said[6:] == [result, result]
        # It was built where the nix-daemon is, in the root that the file names, and nowhere else.
        assert Path(f"{ground.nix.directory}{messages[-1].payload['output'][-1]}").read_text() == "done\n"
        assert (tmp_path / "root" / "repo").is_dir()
        await all_well(daemon)
        assert await daemon.stop() == 0


async def test_three_generations_at_once_are_three_identities_of_one_daemon(
    tmp_path: Path, secure: SecureBroker
) -> None:
    async with open_ground(tmp_path, secure) as ground:
        hosts = ("127.0.0.1", "localhost", "127.0.0.1")
        files = [
            ground.example(name, host=host, identity=f"generation-{n}", root=f"root-{n}")
            for n, (name, host) in enumerate(zip(GENERATIONS, hosts, strict=True), 1)
        ]
        async with ground.daemon(*files) as daemon:
            assert await ground.consumers() == {
                (job_queue("x86_64-linux"), "generation-1-x86_64-linux-builder"),
                (job_queue("x86_64-linux"), "generation-3-x86_64-linux-builder"),
                (job_queue("aarch64-darwin"), "generation-2-aarch64-darwin,x86_64-darwin-builder"),
                (job_queue("x86_64-darwin"), "generation-2-aarch64-darwin,x86_64-darwin-builder"),
            }
            wanted = ["x86_64-linux"] * 4 + ["aarch64-darwin", "x86_64-darwin"]
            for number, system in enumerate(wanted, 1):
                await ground.submit(system, number)
            results = await ground.tap.wait_for_results(len(wanted), deadline_seconds=180)
            assert {result["status"] for result in results} == {"Success"}
            assert sorted(result["system"] for result in results) == sorted(wanted)
            assert ground.builders() == {
                "x86_64-linux": {"generation-1", "generation-3"},  # the broker serves consumers in turn
                "aarch64-darwin": {"generation-2"},
                "x86_64-darwin": {"generation-2"},
            }
            identities = (await daemon.status()).identities
            assert [identity.name for identity in identities] == [f"generation-{n}" for n in (1, 2, 3)]
            await all_well(daemon)
            assert await daemon.stop() == 0


async def test_a_public_file_with_two_private_ones_is_two_identities(tmp_path: Path, secure: SecureBroker) -> None:
    async with open_ground(tmp_path, secure, PRIVATE_PASSWORD) as ground:
        files = [ground.example("public.json")]
        for name in ("private-a", "private-b"):
            document = json.loads(ground.example("private.json", identity=name).read_text())
            document["checkout"] = {"root": str(tmp_path / name)}  # the public one's root is for one identity only
            files.append(ground.write(f"{name}.json", document))
        systems = ("x86_64-linux", "i686-linux")
        async with ground.daemon(*files) as daemon:
            assert await ground.consumers() == {
                (job_queue(system), f"{name}-x86_64-linux,i686-linux-builder")
                for system in systems
                for name in ("private-a", "private-b")
            }
            for number in range(1, 9):
                await ground.submit(systems[number % 2], number)
            results = await ground.tap.wait_for_results(8, deadline_seconds=180)
            assert {result["status"] for result in results} == {"Success"}
            assert ground.builders() == {system: {"private-a", "private-b"} for system in systems}
            assert await daemon.stop() == 0


async def test_two_private_files_on_the_public_files_root_are_refused(tmp_path: Path, secure: SecureBroker) -> None:
    async with open_ground(tmp_path, secure, PRIVATE_PASSWORD) as ground:
        privates = [ground.example("private.json", identity=name) for name in ("private-a", "private-b")]
        daemon = ground.process([ground.example("public.json"), *privates])
        try:
            daemon.launch()
            assert await daemon.wait() == 78
            said = daemon.last_words()
            root = tmp_path / "root"
            assert f"private-a ({root}) and private-b ({root}) are the same directory" in said
            assert "give each identity a root of its own" in said
            assert await ground.consumers() == set()
        finally:
            daemon.close()
