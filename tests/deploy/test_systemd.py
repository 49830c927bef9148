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
from service_place import IDENTITIES, PROJECT, Account, Service, ServicePlace, needs_a_place, open_place
from waits import eventually

from ofborg_async.lab.farm import toml_file
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.lab.servers import Server, base_environment
from ofborg_async.model.identity import DaemonSettings
from ofborg_async.supervisor.notify import Notifier

UNIT = PROJECT / "deploy" / "ofborg-async.service"


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


# systemd.exec(5): what these settings make read-only.
CLOSED_BY = {
    ("ProtectSystem", "full"): ("/usr", "/boot", "/efi", "/etc"),
    ("ProtectHome", "read-only"): ("/home", "/root", "/run/user"),
}


def closed_places(service: dict[str, list[str]]) -> list[str]:
    """The directories of this machine that the unit's hardening makes read-only."""
    places = [place for key, value in CLOSED_BY if service[key] == [value] for place in CLOSED_BY[key, value]]
    return [place for place in places if Path(place).is_dir() and not Path(place).is_symlink()]


def close(places: list[str]) -> list[str]:
    """Lines of shell, for root in a mount namespace, that make them so."""
    return [f"mount --rbind {place} {place} && mount -o remount,bind,ro {place}" for place in places]


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


def test_its_hardening_leaves_nixs_sandbox_alone(service: dict[str, list[str]]) -> None:
    assert service["NoNewPrivileges"] == ["true"]
    breaks_the_sandbox = {"ProtectKernelLogs", "ProtectKernelTunables", "ProcSubset", "RestrictNamespaces"}
    hides_what_is_needed = {"PrivateUsers", "PrivateDevices", "PrivateTmp"}
    assert not (breaks_the_sandbox | hides_what_is_needed) & set(service)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
async def test_systemd_finds_nothing_wrong_with_it() -> None:
    done = await anyio.run_process(["systemd-analyze", "verify", str(UNIT)], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


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


@needs_a_place
@pytest.mark.timeout(300)
async def test_it_runs_as_systemd_starts_it(
    tmp_path: Path, broker: Broker, vhost: str, service: dict[str, list[str]]
) -> None:
    state, runtime = tmp_path / "state", tmp_path / "runtime"
    paths = {"STATE_DIRECTORY": "/var/lib/ofborg-async", "RUNTIME_DIRECTORY": "/run/ofborg-async"}
    mounts = dict(zip(paths.values(), (state, runtime), strict=True)) | {"/run/systemd": tmp_path / "notify"}
    account = Account("ofborg", "ofborg", "/var/lib/ofborg-async", mounts)
    (tmp_path / "notify").mkdir(mode=0o755)
    with notify_socket(str(tmp_path / "notify" / "notify")) as manager:
        (tmp_path / "notify" / "notify").chmod(0o777)
        async with open_place(tmp_path, broker, vhost, account, {}) as place:
            runtime.chmod(int(service["RuntimeDirectoryMode"][0], 8))
            # systemd.exec(5), "Environment variables set or propagated by the service manager".
            variables = environment_of(service) | paths
            variables |= {"HOME": account.home, "LOGNAME": "ofborg", "USER": "ofborg", "SHELL": "/bin/false"}
            variables |= {"INVOCATION_ID": uuid.uuid4().hex, "JOURNAL_STREAM": "8:1"}
            variables |= {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "400000"}
            words = place.words(
                shlex.split(service["ExecStart"][0]),
                user=service["User"][0],
                environment=[*(f"{key}={shlex.quote(value)}" for key, value in variables.items()), "WATCHDOG_PID=$$"],
                setup=[*close(closed_places(service)), f"umask {service['UMask'][0]}"],
            )
            unit = Service("systemd's unit", words, log=tmp_path / "journal", socket=runtime / "control.sock")
            try:
                await check_unit(place, unit, manager, state, service)
            except BaseException:
                print(unit.server.last_words())
                raise
            finally:
                unit.server.kill()


async def check_unit(
    place: ServicePlace, unit: Service, manager: NotifySocket, state: Path, service: dict[str, list[str]]
) -> None:
    unit.server.start()
    await unit.server.ready(lambda: said(manager, "READY=1"), 60)
    assert_hardened(unit.server.pid, service)
    await place.builds(1)
    assert (await unit.client.status()).pid == unit.server.pid  # the main process: NotifyAccess=main
    await eventually("WATCHDOG=1", lambda: manager.count("WATCHDOG=1"))
    assert {path.name for path in state.iterdir()} >= set(IDENTITIES)  # the roots, as nothing else was said
    # An operator's shell has none of these variables, and finds the daemon.
    await place.status_is_well()
    code, text = await place.run("ofborg-async", "status", user="nobody")
    assert code == 3
    assert "use the daemon's own user or root" in text
    code, text = await place.run(*shlex.split(service["ExecReload"][0]))
    assert (code, sorted(text.splitlines())) == (0, [f"{name}: unchanged" for name in sorted(IDENTITIES)]), text
    assert await unit.stop() == 0
    await eventually("STOPPING=1", lambda: manager.count("STOPPING=1") == 1)

    # A stop with "ofborg-async stop" is a stop as well: Restart=on-failure leaves it so.
    unit.server.start()
    await unit.until_it_answers()
    await place.broker_has_consumers()
    code, text = await place.run("ofborg-async", "stop")
    assert (code, await unit.wait()) == (0, 0), text

    # The socket's other place is inside the state directory, where others may not even look.
    code, text = await place.run("ofborg-async", "status", user="nobody")
    assert code == 3, text
    assert "use the daemon's own user or root" in text

    # env passes on the exit status on which RestartPreventExitStatus depends.
    place.configuration.write_text("[daemon]\nno_such_key = 1\n")
    unit.server.start()
    assert str(await unit.wait()) in service["RestartPreventExitStatus"]
    assert "no_such_key" in unit.server.last_words()


def assert_hardened(pid: int, service: dict[str, list[str]]) -> None:
    """The process is as the unit says that it should be: no new rights, none of root's, and closed places."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    places = closed_places(service)
    assert {"/usr", "/etc"} <= set(places)
    # This is root, whom nothing but a read-only file system keeps from writing.
    assert [place for place in places if os.access(f"/proc/{pid}/root{place}", os.W_OK)] == []


async def said(manager: NotifySocket, word: str) -> bool:
    return manager.count(word) > 0
