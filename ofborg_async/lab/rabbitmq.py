"""A private RabbitMQ node: own ports, own epmd, own cookie, every file in one directory, as any user.

Debian's rabbitmq-server takes 3.7 s to its first connection on two cores, most of it spent on looking for each module
in the directories of some sixty plugins. Told where the modules are, and of no plugin, it takes 1.6 s.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from attrs import frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.erlang import binary, core_plugins, erl_call, server_program, string
from ofborg_async.lab.servers import LOOPBACK, LabError, Server, base_environment, free_port, listens
from ofborg_async.lab.tls import TlsFiles
from ofborg_async.waiting import at_most

ADMIN = "lab"
"""The user that every broker has, with all rights on each virtual host; it is its own password."""

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_CALL_SECONDS = 30.0
_GREETING_SECONDS = 5.0
_PORT_TRIES = 4
_WORDS_OF_A_TIMEOUT = b"has timed out waiting for"
_WORDS_OF_A_TAKEN_PORT = ("eaddrinuse", "address already in use", "already in use", "ERROR: port")


@frozen
class QueueState:
    """One queue: messages in all, of these ready and unacknowledged, and how many consumers."""

    name: str
    messages: int
    ready: int
    unacked: int
    consumers: int


@frozen
class ConsumerState:
    """One consumer of a queue. ``prefetch`` 0 is without limit."""

    queue: str
    tag: str
    prefetch: int
    manual_ack: bool


class Broker:
    """A node that is started with ``start`` and ended with ``close``; in between it may be killed and started again.

    ``host`` and ``port`` take AMQP, ``tls_port`` AMQP over TLS (None without ``tls``). ``advanced_config`` is the text
    of an advanced.config, ``conf_lines`` are lines of a rabbitmq.conf. By default the node runs on one scheduler, which
    leaves the other core to what is tested.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tls: TlsFiles | None = None,
        advanced_config: str = "",
        conf_lines: Sequence[str] = (),
        plugins: Sequence[str] = (),
        schedulers: int = 1,
    ) -> None:
        self.host = LOOPBACK
        self.port = 0
        self.tls_port: int | None = None
        self.directory = directory
        self._tls = tls
        self._advanced_config = advanced_config
        self._conf_lines = conf_lines
        self._plugins = plugins
        self._schedulers = schedulers
        self._distribution_port = 0
        self._server: Server | None = None
        self._epmd: Server | None = None
        self._replies = itertools.count(1)

    def url(self, user: str = ADMIN, password: str = ADMIN, vhost: str = "/") -> str:
        """The AMQP URL of a user, without TLS."""
        return (
            f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{self.host}:{self.port}/{quote(vhost, safe='')}"
        )

    async def start(self) -> None:
        """Start the node and wait until it takes connections: the first time on free ports, later on the same ones.

        Raises LabError when it exits, DeadlineExceededError when it takes longer than a minute and a half.
        """
        for attempt in itertools.count(1):
            fresh = self._server is None
            if fresh:
                self._lay_out()
            try:
                await self._start_once()
            except LabError as error:
                lost_a_port = any(words in str(error) for words in _WORDS_OF_A_TAKEN_PORT)
                self.close()
                if not (fresh and lost_a_port and attempt < _PORT_TRIES):
                    raise
                shutil.rmtree(self.directory)
            except BaseException:
                self.close()
                raise
            else:
                return

    def kill(self) -> None:
        """SIGKILL, as a machine that lost its power: durable messages stay, connections are reset."""
        self._node.kill()

    async def stop(self) -> None:
        """Stop in good order, as for an upgrade."""
        await self._node.terminate(_STOP_SECONDS)

    async def restart(self) -> None:
        """Stop in good order and start on the same ports with the same data."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP, in force when this returns: connections stay open and nothing answers."""
        self._node.stop_at_once()

    def resume(self) -> None:
        """SIGCONT."""
        self._node.signal(signal.SIGCONT)

    def close(self) -> None:
        """End the node and its epmd for good. Its files stay."""
        for server in (self._server, self._epmd):
            if server is not None:
                server.kill()
        self._server = self._epmd = None

    @property
    def running(self) -> bool:
        """Whether the node runs."""
        return self._server is not None and self._server.running

    @property
    def pid(self) -> int:
        """The node's process group."""
        return self._node.pid

    async def add_user(self, user: str, password: str) -> None:
        """A user without any right."""
        await self.evaluate(
            f"rabbit_auth_backend_internal:add_user({binary(user)}, {binary(password)}, {binary(ADMIN)}), ok"
        )

    async def delete_user(self, user: str) -> None:
        """Remove a user; the broker closes its connections."""
        await self.evaluate(f"rabbit_auth_backend_internal:delete_user({binary(user)}, {binary(ADMIN)}), ok")

    async def change_password(self, user: str, password: str) -> None:
        """For connections to come; open ones stay."""
        await self.evaluate(
            f"rabbit_auth_backend_internal:change_password({binary(user)}, {binary(password)}, {binary(ADMIN)}), ok"
        )

    async def set_permissions(
        self, user: str, vhost: str = "/", *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """What a user may do on a virtual host: regular expressions over names of queues and exchanges."""
        arguments = ", ".join(map(binary, (user, vhost, configure, write, read, ADMIN)))
        await self.evaluate(f"rabbit_auth_backend_internal:set_permissions({arguments}), ok")

    async def add_vhost(self, vhost: str) -> None:
        """A virtual host on which the ADMIN has all rights."""
        await self.evaluate(f"rabbit_vhost:add({binary(vhost)}, {binary(ADMIN)}), ok")
        await self.set_permissions(ADMIN, vhost)

    async def delete_vhost(self, vhost: str) -> None:
        """Remove a virtual host with its queues and connections."""
        await self.evaluate(f"rabbit_vhost:delete({binary(vhost)}, {binary(ADMIN)}), ok")

    async def delete_queue(self, queue: str, vhost: str = "/") -> None:
        """Delete a queue under its consumers."""
        name = f"rabbit_misc:r({binary(vhost)}, queue, {binary(queue)})"
        await self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), rabbit_amqqueue:delete(Q, false, false, {binary(ADMIN)}), ok"
        )

    async def list_queues(self, vhost: str = "/") -> dict[str, QueueState]:
        """Every queue of a virtual host, by name."""
        keys = "[name, messages, messages_ready, messages_unacknowledged, consumers]"
        rows = await self.evaluate(
            f"[[element(4, N), M, R, U, C] || [{{_, N}}, {{_, M}}, {{_, R}}, {{_, U}}, {{_, C}}]"
            f" <- rabbit_amqqueue:info_all({binary(vhost)}, {keys})]"
        )
        return {row[0]: QueueState(*row) for row in rows}

    async def list_consumers(self, vhost: str = "/") -> list[ConsumerState]:
        """Every consumer on a virtual host, by queue and tag."""
        rows = await self.evaluate(
            "[[element(4, proplists:get_value(queue_name, C)), proplists:get_value(consumer_tag, C),"
            " proplists:get_value(prefetch_count, C), proplists:get_value(ack_required, C)]"
            f" || C <- rabbit_amqqueue:consumers_all({binary(vhost)})]"
        )
        return sorted((ConsumerState(*row) for row in rows), key=lambda state: (state.queue, state.tag))

    async def count_connections(self) -> int:
        """How many AMQP connections are open."""
        return int(await self.evaluate("length(rabbit_networking:connections())"))

    def count_timeouts(self) -> int:
        """How often it said in its log that a consumer took longer than consumer_timeout for an acknowledgement."""
        logs = (self.directory / "log").glob("*.log")
        return sum(path.read_bytes().count(_WORDS_OF_A_TIMEOUT) for path in logs)

    async def close_all_connections(self) -> None:
        """Close every AMQP connection with 320 CONNECTION_FORCED."""
        await self.evaluate(
            f"[rabbit_networking:close_connection(C, {string('closed by the lab')})"
            " || C <- rabbit_networking:connections()], ok"
        )

    async def set_memory_alarm(self, *, on: bool) -> None:
        """Raise or clear the memory alarm: the broker stops reading from connections that publish, and says blocked."""
        await self._set_alarm("memory", on=on)

    async def set_disk_alarm(self, *, on: bool) -> None:
        """Raise or clear the disk alarm, which does the same."""
        await self._set_alarm("disk", on=on)

    async def _set_alarm(self, resource: str, *, on: bool) -> None:
        limit = f"{{resource_limit, {resource}, node()}}"
        call = f"set_alarm({{{limit}, []}})" if on else f"clear_alarm({limit})"
        await self.evaluate(f"rabbit_alarm:{call}, ok")

    async def evaluate(self, code: str, *, seconds: float = _CALL_SECONDS) -> Any:
        """Evaluate Erlang expressions on the node (20 ms; rabbitmqctl takes 1.5 s). Their value must fit JSON.

        Raises LabError with what the node said, or when ``seconds`` are over.
        """
        reply = self.directory / f"reply-{next(self._replies)}"
        program = f"ok = file:write_file({binary(str(reply))}, rabbit_json:encode(begin {code} end)), written.\n"
        address = f"{LOOPBACK}:{self._distribution_port}"
        said = await run(
            *(erl_call(), "-r", "-address", address, "-timeout", f"{seconds:g}", "-e"),
            env=self._environment(),
            stdin=program.encode(),
            deadline_seconds=seconds,
        )
        if b"written" not in said:
            raise LabError(f"the broker answered {said.decode(errors='replace')} to {code}")
        value = json.loads(await anyio.Path(reply).read_bytes())
        await anyio.Path(reply).unlink()
        return value

    @property
    def _node(self) -> Server:
        if self._server is None:
            raise LabError("the broker was not started")
        return self._server

    def _lay_out(self) -> None:
        """Choose ports and write the files that the node reads."""
        self.port = free_port()
        self.tls_port = None if self._tls is None else free_port()
        self._distribution_port = free_port()
        home = self.directory / "home"
        home.mkdir(parents=True)
        cookie = home / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text(f"[{', '.join(self._plugins)}].\n")
        (self.directory / "rabbitmq-env.conf").touch()
        if self._advanced_config:
            (self.directory / "advanced.config").write_text(self._advanced_config)
        if self._conf_lines:
            (self.directory / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in self._conf_lines))
        epmd_port = str(free_port())
        environment = base_environment(
            HOME=str(home), ERL_EPMD_PORT=epmd_port, ERL_EPMD_ADDRESS=LOOPBACK, ERL_AFLAGS="-start_epmd false"
        )
        self._epmd = Server("epmd", ["epmd"], env=environment, log=self.directory / "epmd.log")
        environment |= self._node_settings(f"lab{self.port}@localhost")
        self._server = Server("rabbitmq-server", [server_program()], env=environment, log=self.directory / "output.log")

    def _node_settings(self, name: str) -> dict[str, str]:
        settings = {
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.directory / "generated"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RUNNING_UNDER_SYSTEMD": "true",  # the start script then becomes the node instead of waiting for it
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(self._node_arguments()),
        }
        core = None if self._plugins else core_plugins()
        if core is not None:
            chosen = self.directory / "plugins"
            chosen.mkdir()
            (chosen / core[0].name).symlink_to(core[0])  # it has the schema of rabbitmq.conf
            settings["RABBITMQ_PLUGINS_DIR"] = str(chosen)
            settings["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" -pa {' '.join(str(path / 'ebin') for path in core)}"
        return settings

    def _node_arguments(self) -> list[str]:
        """Split at blanks by the start script, hence without any inside a word."""
        loopback = "{127,0,0,1}"
        words = [
            *("+S", f"{self._schedulers}:{self._schedulers}"),
            *("+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"),
            *("-kernel", "inet_dist_use_interface", loopback),
            *("-rabbit", "tcp_listeners", f'[{{"{LOOPBACK}",{self.port}}}]'),
            *("-rabbit", "default_user", f'<<"{ADMIN}">>', "-rabbit", "default_pass", f'<<"{ADMIN}">>'),
            *("-rabbit", "loopback_users", "[]"),
        ]
        if self._tls is not None:
            files = {"cacertfile": self._tls.authority, "certfile": self._tls.certificate, "keyfile": self._tls.key}
            options = ",".join(f'{{{key},"{path}"}}' for key, path in files.items())
            words += ["-rabbit", "ssl_listeners", f'[{{"{LOOPBACK}",{self.tls_port}}}]']
            words += ["-rabbit", "ssl_options", f"[{options}]"]
        return words

    def _environment(self) -> dict[str, str]:
        return base_environment(HOME=str(self.directory / "home"))

    async def _start_once(self) -> None:
        if self._epmd is None:
            raise LabError("the broker was not laid out")
        if not self._epmd.running:
            self._epmd.start()
            epmd_port = int(self._epmd.env["ERL_EPMD_PORT"])
            await self._epmd.ready(lambda: listens(epmd_port), _START_SECONDS)
        self._node.start()
        await self._node.ready(self._greets, _START_SECONDS)
        tls_port = self.tls_port
        if tls_port is not None:  # which may come a moment later
            await self._node.ready(lambda: listens(tls_port), _START_SECONDS)

    async def _greets(self) -> bool:
        """Whether the node answers the protocol header with connection.start: a method frame on channel 0."""
        try:
            with at_most(_GREETING_SECONDS):
                async with await anyio.connect_tcp(self.host, self.port) as stream:
                    await stream.send(b"AMQP\x00\x00\x09\x01")
                    return (await stream.receive(3)) == b"\x01\x00\x00"
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        return False


@asynccontextmanager
async def private_broker(
    directory: Path,
    *,
    tls: TlsFiles | None = None,
    advanced_config: str = "",
    conf_lines: Sequence[str] = (),
    plugins: Sequence[str] = (),
    schedulers: int = 1,
) -> AsyncIterator[Broker]:
    """A Broker for the time of the block, all its files in ``directory``, which must not exist yet and is removed."""
    broker = Broker(
        directory,
        tls=tls,
        advanced_config=advanced_config,
        conf_lines=conf_lines,
        plugins=plugins,
        schedulers=schedulers,
    )
    try:
        await broker.start()
        yield broker
    finally:
        broker.close()
        shutil.rmtree(directory, ignore_errors=True)
