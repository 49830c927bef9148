"""A daemon of the lab's own: configured, started as a service manager would, asked, stopped, looked after."""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import anyio
from attrs import frozen

from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.lab.rabbitmq import ADMIN, Broker, QueueState
from ofborg_async.lab.restricted import daemons_spawn
from ofborg_async.lab.servers import LabError, Server, base_environment
from ofborg_async.lab.store import Store, private_nix_daemon, private_store
from ofborg_async.lab.upstream import Changes, Upstream, create_upstream
from ofborg_async.lab.wiretap import Wiretap, job_queue, wiretap
from ofborg_async.model.status import DaemonSnapshot
from ofborg_async.waiting import within

NIX_DAEMON_VARIABLE = "OFBORG_ASYNC_LAB_NIX_DAEMON"
"""With it in the environment, each farm's store is reached by way of a nix-daemon."""

READY_SECONDS = 60.0
STOP_SECONDS = 60.0


class DaemonProcess:
    """``ofborg-async run`` on ``files``, its state, socket and log in ``directory``. Ready as systemd would be told.

    ``environment`` is added to a minimal one (PATH, the state's and the socket's place, permission to be root). It has
    the rights of this process, or those that a service unit gives it (``restricted``).
    """

    def __init__(
        self,
        directory: Path,
        files: Sequence[Path],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.state_dir = directory / "state"
        self.socket_path = directory / "control.sock"
        self.log = directory / "daemon.log"
        self._notify_path = directory / "notify.sock"
        self._notify: socket.socket | None = None
        words = [word for file in files for word in ("-c", str(file))]
        env = base_environment(
            OFBORG_ASYNC_STATE_DIR=str(self.state_dir),
            OFBORG_ASYNC_CONTROL_SOCKET=str(self.socket_path),
            OFBORG_ASYNC_ALLOW_ROOT="1",
            NOTIFY_SOCKET=str(self._notify_path),
        )
        self._server = Server(
            "ofborg-async",
            [*prefix, sys.executable, "-m", "ofborg_async", "run", *words],
            env={**env, **(environment or {})},
            log=self.log,
            spawn=daemons_spawn(),
        )
        self.client = ControlClient(unix_connector(self.socket_path), where=str(self.socket_path))

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._server.running

    def launch(self) -> None:
        """Start it without waiting."""
        self._close_notify()
        self._notify_path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.settimeout(0)
        self._notify.bind(str(self._notify_path))
        self._server.start()

    async def start(self, seconds: float = READY_SECONDS) -> None:
        """Start it and wait until it says that it is ready. Raises LabError with its last words when it exits."""
        self.launch()
        await self._server.ready(self._said_ready, seconds)

    async def _said_ready(self) -> bool:
        if self._notify is None:
            return False
        try:
            return b"READY=1" in self._notify.recv(4096)
        except BlockingIOError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone, as a service manager does."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL the daemon alone; what it started is left to itself."""
        self.signal(signal.SIGKILL)

    async def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait until it has exited; its exit status (negative: the signal)."""
        with within(seconds, "the daemon's exit"):
            while self._server.running:
                await anyio.sleep(0.02)
        status = self._server.returncode
        if status is None:
            raise LabError("the daemon was not started")
        return status

    async def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM and wait; its exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait(seconds)

    async def status(self) -> DaemonSnapshot:
        """What ``status`` shows."""
        return await self.client.status()

    def last_words(self) -> str:
        """The end of its log."""
        return self._server.last_words()

    def close(self) -> None:
        """Kill it and whatever it started, whether it runs or not."""
        self._server.kill()
        self._close_notify()

    def _close_notify(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None


@frozen
class Farm:
    """What a daemon needs around it: a virtual host of a broker, an upstream repository, a store, a wiretap."""

    directory: Path
    broker: Broker
    vhost: str
    upstream: Upstream
    store: Store
    tap: Wiretap
    systems: tuple[str, ...]

    def defaults(self, **changes: object) -> dict[str, object]:
        """The ``[defaults]`` that reach this farm; ``changes`` replace keys, with ``__`` for the dot."""
        return {
            "nix.systems": list(self.systems),
            "nix.remote": self.store.remote,
            "nix.environment": dict(self.store.environment),
            "checkout.clone_url_schemes": ["file"],
            "rabbitmq.host": f"{self.broker.host}:{self.broker.port}",
            "rabbitmq.ssl": False,
            "rabbitmq.virtualhost": self.vhost,
            "rabbitmq.username": ADMIN,
            "rabbitmq.password": ADMIN,
            "feedback.full_logs": True,
        } | {key.replace("__", "."): value for key, value in changes.items()}

    def configuration(self, *identities: str | Mapping[str, object], **changes: object) -> Path:
        """Write a TOML file with ``identities`` (a name, or keys with ``name``), each with a root of its own."""
        tables = [identity if isinstance(identity, Mapping) else {"name": identity} for identity in identities]
        roots = self.directory / "roots"
        return toml_file(
            self.directory / "builders.toml",
            identities=[{"checkout.root": str(roots / str(table["name"])), **table} for table in tables],
            defaults=self.defaults(**changes),
        )

    @asynccontextmanager
    async def daemon(
        self, *files: Path, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> AsyncIterator[DaemonProcess]:
        """A ready DaemonProcess for the time of the block; killed at its end if it still runs.

        Its first pause before it tries again what failed is a tenth of the usual second: nobody else uses this broker.
        """
        quick = {"OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.1"}
        daemon = DaemonProcess(
            self.directory / "daemon", files, environment=quick | dict(environment or {}), prefix=prefix
        )
        try:
            await daemon.start()
            yield daemon
        finally:
            daemon.close()

    async def submit(self, system: str, job: Mapping[str, object] | bytes) -> None:
        """Publish a job to the queue of a system."""
        await self.tap.publish_job(job_queue(system), job)

    async def until_settled(self, *systems: str, deadline_seconds: float = 60.0) -> None:
        """Wait until no message is left in the queues of ``systems`` (all by default), acknowledged ones included."""
        queues = [job_queue(system) for system in systems or self.systems]
        with within(deadline_seconds, "the end of all jobs"):
            while any(state.messages for name, state in (await self.queues()).items() if name in queues):
                await anyio.sleep(0.05)

    async def queues(self) -> dict[str, QueueState]:
        """The state of every queue of the farm."""
        return await self.broker.list_queues(self.vhost)


@asynccontextmanager
async def open_farm(
    directory: Path, broker: Broker, *systems: str, contents: Changes | None = None, **nix_settings: str
) -> AsyncIterator[Farm]:
    """A farm in ``directory`` on a virtual host of its own; ``nix_settings`` are further lines of its nix.conf."""
    systems = systems or ("x86_64-linux",)
    vhost = f"farm-{uuid.uuid4()}"
    await broker.add_vhost(vhost)
    try:
        async with (
            private_store(directory / "store", **nix_settings) as own,
            private_nix_daemon(own) if NIX_DAEMON_VARIABLE in os.environ else nullcontext(own) as store,
            wiretap(broker.url(vhost=vhost), *systems) as tap,
        ):
            upstream = await create_upstream(directory / "upstream.git", contents)
            yield Farm(directory, broker, vhost, upstream, store, tap, systems)
    finally:
        with anyio.CancelScope(shield=True):
            if broker.running:
                await broker.delete_vhost(vhost)


def toml_file(path: Path, *, identities: Sequence[Mapping[str, object]], defaults: Mapping[str, object]) -> Path:
    """Write a configuration: dotted keys and values of ``defaults``, then of each identity. Mode 0600."""
    lines = ["[defaults]", *(f"{key} = {_toml(value)}" for key, value in defaults.items())]
    for identity in identities:
        lines += ["", "[[identity]]", *(f"{key} = {_toml(value)}" for key, value in identity.items())]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
