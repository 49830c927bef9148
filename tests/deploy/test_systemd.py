"""deploy/ofborg-async.service: what it says, and that a process started as systemd starts it does its work."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from service_place import CONFIGURATION, IDENTITIES, PROJECT, ServicePlace, open_place
from waits import eventually

from ofborg_async.lab.farm import toml_file
from ofborg_async.lab.host import Account
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.lab.servers import Server, base_environment
from ofborg_async.lab.systemd import Systemd, open_systemd, systemd_works
from ofborg_async.model.identity import DaemonSettings
from ofborg_async.supervisor.notify import Notifier

UNIT = PROJECT / "deploy" / "ofborg-async.service"
DROP_IN = PROJECT / "deploy" / "ofborg-async.service.d" / "nix-daemon.conf"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
needs_systemd = pytest.mark.skipif(
    not systemd_works(), reason="a systemd of one's own takes its package and namespaces: root on Linux"
)


def units(*, strict: bool) -> dict[str, str]:
    """What deploy/ has, by path below /etc/systemd/system."""
    found = {UNIT.name: UNIT.read_text()}
    return found | {f"{DROP_IN.parent.name}/{DROP_IN.name}": DROP_IN.read_text()} if strict else found


@pytest.fixture
def service() -> dict[str, list[str]]:
    """The section [Service]: every key with its values in order."""
    found: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return dict(found)


def environment_of(service: dict[str, list[str]]) -> dict[str, str]:
    return dict(word.split("=", 1) for line in service["Environment"] for word in shlex.split(line))


class NotifySocket:
    """systemd's end of NOTIFY_SOCKET, bound to ``address``: the variable's value."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._said: list[str] = []
        self._closed = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0.1)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._reader = threading.Thread(target=self._read)

    def listen(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                self._said.append(self._socket.recv(4096).decode())

    def count(self, word: str) -> int:
        return sum(message.splitlines().count(word) for message in tuple(self._said))

    def close(self) -> None:
        self._closed.set()
        if self._reader.is_alive():
            self._reader.join()
        self._socket.close()


@contextmanager
def notify_socket(address: str, *, listen: bool = True) -> Iterator[NotifySocket]:
    made = NotifySocket(address)
    try:
        if listen:
            made.listen()
        yield made
    finally:
        made.close()


def test_it_says_when_to_wait_to_kill_and_to_restart(service: dict[str, list[str]]) -> None:
    assert service["Type"] == ["notify"]
    assert service["KillMode"] == ["mixed"]
    grace = DaemonSettings(state_dir=Path("/"), control_socket=Path("/")).shutdown_grace_seconds
    assert float(service["TimeoutStopSec"][0]) > grace + 60
    assert float(service["WatchdogSec"][0]) >= 10
    assert service["Restart"] == ["on-failure"]  # a stop on request exits with 0 and is not undone
    assert service["RestartPreventExitStatus"] == ["78"]
    assert service["OOMPolicy"] == ["continue"]


def test_it_names_a_user_and_directories(service: dict[str, list[str]]) -> None:
    assert service["User"] == service["Group"] == ["ofborg"]
    assert service["StateDirectory"] == service["RuntimeDirectory"] == ["ofborg-async"]
    assert (service["StateDirectoryMode"], service["UMask"]) == (["0700"], ["0077"])
    # Whoever has daemon.control_group must get as far as the socket.
    assert service["RuntimeDirectoryMode"] == ["0755"]
    assert not {"HOME", "NIX_REMOTE", "OFBORG_ASYNC_ALLOW_ROOT"} & set(environment_of(service))


# systemd-analyze security, 0 to 100, with some room for what other versions count.
@pytest.mark.parametrize(("strict", "bound"), [(False, 50), (True, 25)], ids=["unit", "with the drop-in"])
@needs_analyze
async def test_systemd_finds_nothing_wrong_with_it(strict: bool, bound: int, tmp_path: Path) -> None:
    for name, text in units(strict=strict).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    unit = str(tmp_path / UNIT.name)
    done = await anyio.run_process(["systemd-analyze", "verify", unit], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={bound}", unit]
    done = await anyio.run_process(words, check=False)
    assert done.returncode == 0, done.stdout.decode()


async def test_an_abstract_notify_socket_is_told_too() -> None:
    with notify_socket(f"@ofborg-async-test-{uuid.uuid4()}") as manager:
        Notifier({"NOTIFY_SOCKET": manager.address}).ready("2 identities")
        await eventually("READY=1", lambda: manager.count("READY=1") == manager.count("STATUS=2 identities") == 1)


async def test_what_a_busy_manager_did_not_take_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with notify_socket(str(tmp_path / "socket"), listen=False) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": manager.address})
        while not caplog.records:  # until its queue is full
            notifier.alive()
        notifier.ready("2 identities")
        notifier.stopping()
        manager.listen()

        def told() -> bool:
            notifier.alive()
            return manager.count("STOPPING=1") == 1

        await eventually("room in the queue", told)
        notifier.stopping()
        await eventually("the next message", lambda: manager.count("STOPPING=1") == 2)
        assert manager.count("READY=1") == 1
        assert len(caplog.records) == 1  # not one for each


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    due = {"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "400000"}
    assert Notifier(due).watchdog_seconds == 0.2
    assert Notifier(due | {"WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 0.2
    assert Notifier(due | {"WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "400000"}).watchdog_seconds is None


async def test_the_watchdog_is_fed_as_often_as_it_wants(tmp_path: Path, broker: Broker, vhost: str) -> None:
    state, runtime = tmp_path / "state", tmp_path / "run"
    state.mkdir(mode=0o700)
    runtime.mkdir()
    file = toml_file(
        tmp_path / "builders.toml",
        identities=[{"name": "watched"}],
        defaults={
            "nix.systems": ["x86_64-linux"],
            "rabbitmq.host": f"{broker.host}:{broker.port}",
            "rabbitmq.ssl": False,
            "rabbitmq.virtualhost": vhost,
            "rabbitmq.username": ADMIN,
            "rabbitmq.password": ADMIN,
            "feedback.full_logs": True,
        },
    )
    with notify_socket(str(tmp_path / "notify")) as manager:
        environment = base_environment(
            NOTIFY_SOCKET=manager.address,
            WATCHDOG_USEC="400000",
            STATE_DIRECTORY=str(state),
            RUNTIME_DIRECTORY=str(runtime),
            OFBORG_ASYNC_ALLOW_ROOT="1",
        )
        words = [sys.executable, "-m", "ofborg_async", "run", "-c", str(file)]
        server = Server("ofborg-async", words, env=environment, log=tmp_path / "log")
        try:
            server.start()
            await eventually("READY=1", lambda: manager.count("READY=1") == 1, 60)
            # The tick itself is a second: so many in this time come only if the watchdog's own rate is kept.
            began, fed = time.monotonic(), manager.count("WATCHDOG=1")
            await eventually("20 times WATCHDOG=1", lambda: manager.count("WATCHDOG=1") >= fed + 20, 15)
            assert time.monotonic() - began < 15
            assert manager.count("STOPPING=1") == 0
            assert (runtime / "control.sock").is_socket()
            assert list(state.iterdir())
            os.kill(server.pid, signal.SIGTERM)
            await eventually("its exit", lambda: not server.running, 60)
            assert server.returncode == 0
            await eventually("STOPPING=1", lambda: manager.count("STOPPING=1") == 1)
            assert manager.count("READY=1") == 1
        finally:
            server.kill()


@needs_systemd
@pytest.mark.parametrize("strict", [False, True], ids=["unit", "with the drop-in"])
@pytest.mark.timeout(300)
async def test_it_runs_as_systemd_starts_it(strict: bool, tmp_path: Path, broker: Broker, vhost: str) -> None:
    state = tmp_path / "state"
    account = Account("ofborg", "ofborg", "/var/lib/ofborg-async", {"/var/lib/ofborg-async": state})
    # The drop-in gives it a /tmp of its own, and the installation may be in the machine's.
    installation = f"BindReadOnlyPaths={PROJECT} {sys.prefix}"
    hurry = {f"{UNIT.name}.d/test.conf": f"[Service]\nRestartSec=0.1\nWatchdogSec=2\n{installation}\n"}
    async with (
        open_place(tmp_path, broker, vhost, account, {}) as place,
        open_systemd(place.host, units(strict=strict) | hurry) as systemd,
    ):
        with place.configuration.open("a") as file:
            file.write('[daemon]\ncontrol_group = "ofborg"\n')
        shutil.copyfile(place.configuration, systemd.path(CONFIGURATION))
        try:
            await check_unit(place, systemd, state)
        except BaseException:
            print((await systemd.run("systemctl", "status", "--no-pager", UNIT.name))[1])
            raise


async def check_unit(place: ServicePlace, systemd: Systemd, state: Path) -> None:
    code, text = await systemd.run("systemctl", "start", UNIT.name)  # until it says READY=1
    assert code == 0, text
    main = await systemd.show(UNIT.name, "MainPID")
    assert_hardened(systemd.path(f"/proc/{main}"))
    await place.builds(1)
    assert {path.name for path in state.iterdir()} >= set(IDENTITIES)  # the roots, as nothing else was said
    # An operator's shell has none of the unit's variables, and finds the daemon.
    await place.status_is_well(systemd.run)
    code, text = await systemd.run("ofborg-async", "status", user="nobody")
    assert code == 3
    assert "use the daemon's own user or root" in text
    code, text = await systemd.run("systemctl", "reload", UNIT.name)
    assert code == 0, text
    # The watchdog was fed meanwhile, or it would be another one.
    assert await systemd.show(UNIT.name, "MainPID") == main

    # What ends it but a request is not the last word.
    await systemd.run("kill", "-KILL", main)
    await eventually("its restart", lambda: is_another(systemd, main))
    assert await systemd.show(UNIT.name, "NRestarts") == "1"
    await place.builds(11)
    code, text = await systemd.run("systemctl", "stop", UNIT.name)
    assert (code, await systemd.show(UNIT.name, "Result")) == (0, "success"), text

    # A stop with "ofborg-async stop" is a stop as well: Restart=on-failure leaves it so.
    await systemd.run("systemctl", "start", UNIT.name)
    await place.broker_has_consumers()
    code, text = await systemd.run("ofborg-async", "stop")
    assert code == 0, text
    await eventually("its end", lambda: is_in_state(systemd, "inactive"))

    # The socket's other place is inside the state directory, where others may not even look.
    code, text = await systemd.run("ofborg-async", "status", user="nobody")
    assert code == 3, text
    assert "use the daemon's own user or root" in text

    # A wrong configuration is not tried again.
    systemd.path(CONFIGURATION).write_text("[daemon]\nno_such_key = 1\n")
    code, text = await systemd.run("systemctl", "start", UNIT.name)
    assert code != 0
    await eventually("its end", lambda: is_in_state(systemd, "failed"))
    assert await systemd.show(UNIT.name, "ExecMainStatus") == "78"
    assert await systemd.show(UNIT.name, "NRestarts") == "0"


async def is_another(systemd: Systemd, main: str) -> bool:
    state, now = await systemd.show(UNIT.name, "ActiveState"), await systemd.show(UNIT.name, "MainPID")
    return state == "active" and now not in ("0", main)


async def is_in_state(systemd: Systemd, state: str) -> bool:
    return await systemd.show(UNIT.name, "ActiveState") == state


def assert_hardened(process: Path) -> None:
    """No new rights, none of root's, a filter of system calls, and closed places."""
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {0}
    # This is root, whom nothing but a read-only file system keeps from writing.
    assert [place for place in ("usr", "etc", "home") if os.access(process / "root" / place, os.W_OK)] == []
