"""A password is in no output, log, file, argument or environment of what we run, in whatever writing."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import anyio
import pytest
from attrs import define, field
from gated import Gated, gated
from waits import eventually

from ofborg_async.cli.parser import build_parser
from ofborg_async.control.routes import ROUTES
from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import base_environment, free_port
from ofborg_async.lab.wiretap import LOGS, RESULTS
from ofborg_async.model.status import AmqpState
from ofborg_async.process.table import read_proc

RIGHT = 'ri ght/@:%41?#"\\&ü-7f3a'
WRONG = 'wr ong/@:%42?#"\\&ö-9c1d'
USER = "keeper"
ELSEWHERE = {"demo"}
"""A command that knows no configuration and no password of anybody."""
COMMAND_SECONDS = 60.0
LEAST_BYTES = 12
"""Of a password's writings, each is longer: no match is by chance."""


def writings(password: str) -> dict[str, bytes]:
    """How a password could be written somewhere."""
    raw = password.encode()
    texts = {
        "as it is": password,
        "percent-encoded": quote(password, safe=""),
        "percent-encoded but for slashes": quote(password),
        "as a form's value": quote_plus(password),
        "in JSON": json.dumps(password)[1:-1],
        "in JSON, not ASCII": json.dumps(password, ensure_ascii=False)[1:-1],
        "in Python": repr(password)[1:-1],
        "in Python's bytes": repr(raw)[2:-1],
        "escaped": password.encode("unicode_escape").decode(),
        "HTML": password.replace("&", "&amp;").replace('"', "&quot;"),
        "hexadecimal": raw.hex(),
    }
    # In base64 the same bytes have three writings, by where they begin; the outer characters depend on what is beside.
    for before in range(3):
        for name, encode in (("base64", base64.b64encode), ("base64, for URLs", base64.urlsafe_b64encode)):
            texts[f"{name}, {before} bytes behind"] = encode(b"\0" * before + raw).decode().rstrip("=")[4:-2]
    assert all(len(text) >= LEAST_BYTES for text in texts.values())
    return {name: text.encode() for name, text in texts.items()}


@define
class Search:
    """Looks for the passwords in whatever it is shown; remembers what it was shown."""

    found: list[str] = field(factory=list)
    seen: list[str] = field(factory=list)

    def look(self, where: str, data: bytes) -> None:
        self.seen.append(where)
        for password in (RIGHT, WRONG):
            for how, writing in writings(password).items():
                if writing in data:
                    at = data.index(writing)
                    self.found.append(f"{where}: {how}: {data[max(0, at - 80) : at + 80]!r}")


@pytest.mark.parametrize("how", writings(RIGHT))
def test_the_search_finds_every_writing(how: str) -> None:
    search = Search()
    search.look("here", b"before " + writings(RIGHT)[how] + b" behind")
    assert any(f"here: {how}" in found or "here: " in found for found in search.found)
    search = Search()
    search.look("here", b"nothing of it")
    assert search.found == []


def configuration(stage: Gated, user: str, *, tls_port: int) -> Path:
    """Identities with the right password, a wrong one, no such vhost, no TLS; passwords said in several ways."""
    directory = stage.farm.directory
    for name, password in (("right", RIGHT), ("wrong", WRONG)):
        file = directory / f"{name}.password"
        file.touch(mode=0o600)
        file.write_text(password + "\n")
    inline = {"rabbitmq.password": RIGHT}
    return stage.farm.configuration(
        {"name": "good", "rabbitmq.password_file": str(directory / "right.password")},
        {"name": "wrong", "rabbitmq.password_file": str(directory / "wrong.password")},
        {"name": "inline-wrong", "rabbitmq.password": WRONG},
        {"name": "no-vhost", "rabbitmq.virtualhost": "no-such-vhost", **inline},
        {"name": "no-tls", "rabbitmq.ssl": True, "rabbitmq.host": f"127.0.0.1:{tls_port}", **inline},
        {"name": "nobody-there", "rabbitmq.host": "127.0.0.1:1", **inline},
        rabbitmq__username=user,
        rabbitmq__password=None,
    )


def original(stage: Gated, user: str) -> Path:
    """The same in the original builder's JSON."""
    broker = stage.farm.broker
    file = stage.farm.directory / "original.json"
    file.touch(mode=0o600)
    document = {
        "runner": {"identity": "json"},
        "checkout": {"root": str(stage.farm.directory / "roots" / "json")},
        "nix": {"system": "x86_64-linux", "remote": "daemon", "build_timeout_seconds": 3600},
        "rabbitmq": {
            "host": f"{broker.host}:{broker.port}",
            "ssl": False,
            "virtualhost": stage.farm.vhost,
            "username": user,
            "password": RIGHT,
        },
        "feedback": {"full_logs": True},
    }
    file.write_text(json.dumps(document))
    return file


def faulty(stage: Gated) -> Path:
    """A configuration whose faults are at the passwords themselves."""
    file = stage.farm.directory / "faulty.toml"
    file.touch(mode=0o600)
    right, wrong, host = (json.dumps(text) for text in (RIGHT, WRONG, f"amqp://u:{WRONG}"))
    file.write_text(
        f"[defaults]\nrabbitmq.pasword = {right}\nrabbitmq.username = 7\n"
        f'[[identity]]\nname = "one"\nrabbitmq.password = [{right}]\nrabbitmq.host = {host}\n'
        f'[[identity]]\nname = "two"\nrabbitmq.password = {wrong}\nrabbitmq.password_file = {right}\n'
    )
    return file


def commands_of(parser: argparse.ArgumentParser, *before: str) -> list[str]:
    """Every command that the parser knows, an action of one as two words."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += commands_of(below, *before, name)
    return found or [" ".join(before)]


async def command(search: Search, daemon: DaemonProcess | None, words: str) -> str:
    """Run a command and look at everything it prints."""
    argv = [sys.executable, "-m", "ofborg_async", *words.split()]
    # Wide, so that no secret is hidden by being broken into two lines.
    env = base_environment(OFBORG_ASYNC_ALLOW_ROOT="1", COLUMNS="1000")
    if daemon is not None:
        env["OFBORG_ASYNC_CONTROL_SOCKET"] = str(daemon.socket_path)
        env["OFBORG_ASYNC_STATE_DIR"] = str(daemon.state_dir)
    with anyio.fail_after(COMMAND_SECONDS):
        done = await anyio.run_process(argv, check=False, env=env)
    search.look(f"ofborg-async {words}", done.stdout + done.stderr)
    return (done.stdout + done.stderr).decode()


def look_at_processes(search: Search, daemon: DaemonProcess) -> set[str]:
    """Arguments and environment of the daemon and of everything below it; what programs those are."""
    table = read_proc()
    family = {daemon.pid}
    while more := {info.pid for info in table.values() if info.ppid in family} - family:
        family |= more
    names = set()
    for pid in family:
        for kind in ("cmdline", "environ"):
            try:
                data = (Path("/proc") / str(pid) / kind).read_bytes()
            except OSError:  # it has ended
                continue
            search.look(f"{kind} of process {pid}", data)
            if kind == "cmdline":
                names.add(os.path.basename(data.split(b"\0")[0]).decode())  # noqa: PTH119 - of bytes
    return names


def files_of(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink())


ASKED: dict[tuple[str, str], tuple[str, object]] = {
    ("GET", "/v1/status"): ("/v1/status", None),
    ("GET", "/v1/locks"): ("/v1/locks", None),
    ("POST", "/v1/locks/break"): ("/v1/locks/break", {"key": "no such lock"}),
    ("GET", "/v1/history"): ("/v1/history", None),
    ("GET", "/v1/logs/{selector}"): ("/v1/logs/good", None),
    ("GET", "/v1/identities/{identity}/why"): ("/v1/identities/wrong/why", None),
    ("POST", "/v1/identities/{identity}/restart"): ("/v1/identities/no-vhost/restart", {}),
    ("POST", "/v1/attempts/{attempt_id}/cancel"): ("/v1/attempts/none/cancel", {}),
    ("POST", "/v1/drain"): ("/v1/drain", {"identities": ["no-tls"]}),
    ("GET", "/v1/drained"): ("/v1/drained?identity=no-tls", None),
    ("POST", "/v1/pause"): ("/v1/pause", {"identities": ["wrong"]}),
    ("POST", "/v1/resume"): ("/v1/resume", {"identities": ["wrong"]}),
    ("POST", "/v1/reload"): ("/v1/reload", {}),
    ("GET", "/metrics"): ("/metrics", None),
    ("GET", "/healthz"): ("/healthz", None),
    ("GET", "/openapi.json"): ("/openapi.json", None),
    ("GET", "/"): ("/", None),
    ("POST", "/v1/stop"): ("/v1/stop", {}),
}
"""For each route what is asked, in this order: the last one ends the daemon."""


def test_every_route_is_asked() -> None:
    assert set(ASKED) == {(route.method, route.path) for route in ROUTES}
    assert list(ASKED)[-1] == ("POST", "/v1/stop")


async def look_at_the_api(search: Search, daemon: DaemonProcess, port: int, *, stop: bool = False) -> None:
    """The answers of all routes on the socket, and of those on the loopback; the last one alone to ``stop``."""
    everything = list(ASKED.items())
    for (method, route), (path, body) in everything[-1:] if stop else everything[:-1]:
        answer = await ask(await anyio.connect_unix(daemon.socket_path), method, path, body)
        assert not answer.startswith(b"HTTP/1.1 5") or route == "/healthz", answer
        search.look(f"socket {method} {route}", answer)
    for path in () if stop else ("/", "/metrics", "/healthz", "/openapi.json"):
        answer = await ask(await anyio.connect_tcp("127.0.0.1", port), "GET", path, None)
        assert b"200 OK" in answer.splitlines()[0] or path == "/healthz"
        search.look(f"loopback {path}", answer)


async def ask(stream: anyio.abc.ByteStream, method: str, path: str, body: object) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    async with stream:
        await stream.send(head.encode() + b"\r\n" + data)
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            return answer


@pytest.mark.timeout(300)
@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_no_password_is_shown(log_format: str, tmp_path: Path, broker: Broker) -> None:
    search = Search()
    async with gated(tmp_path, broker) as stage:
        user = f"{USER}-{log_format}"  # the broker is shared by all tests
        await broker.add_user(user, RIGHT)
        await broker.set_permissions(user, stage.farm.vhost)
        file, before = configuration(stage, user, tls_port=broker.port), original(stage, user)
        bad, places = faulty(stage), f"--kind systemd --prefix {tmp_path / 'installed'}"
        submitted = f"--repo a/b --pr 1 --system x86_64-linux --head-sha {'0' * 40} attr"
        refused = quote(WRONG, safe="")
        for words in (
            f"run -c {bad}", f"run -c {bad} -c {before}", f"check -c {bad}", f"check -c {bad} --json",
            f"doctor -c {bad}", f"convert {bad}", f"submit -c {bad} {submitted}",
            f"service print --kind nixos -c {bad}", f"service print --kind systemd -c {file}",
            f"service print --kind launchd -c {before}",
            f"service install {places} -c {file}", f"service uninstall {places}",
            f"submit --amqp-url amqp://{user}:{refused}@127.0.0.1:{broker.port}/v {submitted}",
            f"check -c {file}", f"check -c {file} --json", f"check -c {before}", f"convert {before}",
            f"doctor -c {file}", f"doctor -c {file} --json",
            f"submit -c {file} --identity wrong {submitted}",
        ):  # fmt: skip
            await command(search, None, words)
        port = free_port()  # late: whoever else looks for one may get the same
        environment = {
            "OFBORG_ASYNC_LOG_LEVEL": "debug",
            "OFBORG_ASYNC_LOG_FORMAT": log_format,
            "OFBORG_ASYNC_METRICS_LISTEN": f"127.0.0.1:{port}",
        }
        async with stage.farm.daemon(file, environment=environment) as daemon:
            await stage.start_job()
            await eventually("every fault to be known", lambda: _faults_are_known(daemon), 90)
            programs = look_at_processes(search, daemon)
            assert "nix-build" in programs, programs
            names = ("good", "wrong", "inline-wrong", "no-vhost", "no-tls", "nobody-there")
            questions = ["status", "status --json", "locks", "locks --json", "logs good", "why wrong --json"]
            for words in (*questions, *(f"why {name}" for name in names)):
                assert await command(search, daemon, words)
            stage.open()
            await stage.farm.tap.wait_for_results(1, deadline_seconds=120)
            await stage.farm.until_settled()
            for words in ("history", "history --json", "logs good", "logs -f good"):
                assert await command(search, daemon, words)
            await look_at_the_api(search, daemon, port)
            for words in (
                "pause wrong --reason so", "why wrong", "resume wrong", "drain nobody-there", "cancel none",
                "restart no-vhost", "reload", "reload --json", "locks --break nothing",
            ):  # fmt: skip
                await command(search, daemon, words)
            file.write_text(bad.read_text())
            assert "pasword" in await command(search, daemon, "reload")
            # Identities whose broker is away end with the daemon all the same.
            if log_format == "json":
                await look_at_the_api(search, daemon, port, stop=True)
            await command(search, daemon, "stop")
            assert await daemon.wait() == 0
            said = daemon.log.read_bytes()
            search.look("the daemon's log", said)
            assert b"ACCESS_REFUSED" in said
            _look_at_state(search, daemon)
        assert {message.exchange for message in stage.farm.tap.messages} == {LOGS, RESULTS}
        for message in stage.farm.tap.messages:
            search.look(f"a message on {message.exchange}", message.body)
    assert search.found == []
    assert len(search.seen) > 100, search.seen
    for name in set(commands_of(build_parser())) - ELSEWHERE:
        assert any(
            seen.startswith(f"ofborg-async {name} ") or seen == f"ofborg-async {name}" for seen in search.seen
        ), name


def _look_at_state(search: Search, daemon: DaemonProcess) -> None:
    files = list(files_of(daemon.state_dir))
    for path in files:
        search.look(str(path), path.read_bytes())
    databases = [path for path in files if path.read_bytes()[:15] == b"SQLite format 3"]
    assert databases
    for path in databases:
        with sqlite3.connect(path) as connection:
            search.look(f"dump of {path}", "\n".join(connection.iterdump()).encode())
        connection.close()


async def _faults_are_known(daemon: DaemonProcess) -> bool:
    states = {each.name: each.systems[0].amqp for each in (await daemon.status()).identities}
    refused = {name for name, state in states.items() if state is AmqpState.REFUSED}
    errors = {each.name for each in (await daemon.status()).identities if each.last_error}
    return refused >= {"wrong", "inline-wrong", "no-vhost", "no-tls"} and "nobody-there" in errors
