"""The control client through a real OpenSSH server: answers, logs, and each way it can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from ofborg_async.control.client import ControlClient
from ofborg_async.control.problems import NoDaemonError
from ofborg_async.lab.servers import free_port
from ofborg_async.lab.sshd import Sshd, private_sshd
from ofborg_async.remote.hosts import HostSpec
from ofborg_async.remote.ssh import SshAccess, open_remote

sys.path.append(str(Path(__file__).parents[1] / "control"))
from control_serving import PATIENCE_SECONDS, serving
from fake_daemon import ATTEMPT, LOG, SNAPSHOT, FakeDaemon


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with start_blocking_portal() as portal:
        opening = private_sshd(tmp_path_factory.mktemp("sshd") / "server")
        with portal.wrap_async_context_manager(opening) as server:
            yield server


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def spec_of(sshd: Sshd) -> HostSpec:
    return HostSpec(sshd.host, sshd.user, sshd.port)


def access_of(sshd: Sshd) -> SshAccess:
    return SshAccess(known_hosts=sshd.known_hosts, client_keys=(sshd.client_key,))


async def ask(spec: HostSpec, path: Path, access: SshAccess, *, seconds: float = PATIENCE_SECONDS) -> object:
    async with open_remote(spec, str(path), connect_seconds=seconds, access=access) as connect:
        return await ControlClient(connect, where=str(spec), call_seconds=seconds).status()


async def test_status_and_logs_through_ssh(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    daemon = FakeDaemon()
    async with (
        serving(path, daemon),
        open_remote(spec_of(sshd), str(path), connect_seconds=PATIENCE_SECONDS, access=access_of(sshd)) as connect,
    ):
        client = ControlClient(connect, where="there", call_seconds=PATIENCE_SECONDS)
        assert await client.status() == SNAPSHOT
        assert await client.status() == SNAPSHOT
        async with client.log(ATTEMPT, follow=True) as chunks:
            received = b""
            async for chunk in chunks:
                received += chunk
                daemon.log_ended.set()
        assert received == LOG + daemon.tail_bytes


async def test_a_follower_who_leaves_is_noticed_through_ssh(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    daemon = FakeDaemon()
    async with serving(path, daemon):
        async with open_remote(
            spec_of(sshd), str(path), connect_seconds=PATIENCE_SECONDS, access=access_of(sshd)
        ) as connect:
            client = ControlClient(connect, where="there", call_seconds=PATIENCE_SECONDS)
            async with client.log(ATTEMPT, follow=True) as chunks:
                await anext(chunks)
        with anyio.fail_after(PATIENCE_SECONDS):
            await daemon.log_closed.wait()


async def test_an_unknown_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    nobody = tmp_path / "known_hosts"
    nobody.write_text("")
    for known in (nobody, tmp_path / "missing"):
        with pytest.raises(NoDaemonError, match=r"host key cannot be trusted.*compare the fingerprint"):
            await ask(spec_of(sshd), tmp_path / "c.sock", SshAccess(known, (sshd.client_key,)))


async def test_a_changed_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    key_type, key = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {key_type} {key}\n")
    with pytest.raises(NoDaemonError, match="host key cannot be trusted"):
        await ask(spec_of(sshd), tmp_path / "c.sock", SshAccess(known, (sshd.client_key,)))


@pytest.mark.parametrize("line", ["UserKnownHostsFile none", "StrictHostKeyChecking no", ""])
async def test_no_configuration_makes_an_unknown_host_known(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "config").write_text(f"{line}\n")
    with pytest.raises(NoDaemonError, match="host key cannot be trusted"):
        await ask(spec_of(sshd), tmp_path / "c.sock", SshAccess(client_keys=(sshd.client_key,)))


async def test_the_users_configuration_is_used(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "config").write_text(
        f"Host builder\nHostName 127.0.0.1\nPort {sshd.port}\nIdentityFile {sshd.client_key}\n"
        f"UserKnownHostsFile {sshd.known_hosts}\n"
    )
    async with serving(tmp_path / "c.sock", FakeDaemon()):
        assert await ask(HostSpec("builder"), tmp_path / "c.sock", SshAccess()) == SNAPSHOT


async def test_a_refused_login_says_so(sshd: Sshd, tmp_path: Path) -> None:
    access = SshAccess(sshd.known_hosts, (make_key(tmp_path / "stranger"),))
    with pytest.raises(NoDaemonError, match=r"refused the log-in.*ssh-add"):
        await ask(spec_of(sshd), tmp_path / "c.sock", access)


async def test_no_server_and_no_such_name(sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"cannot be reached.*refused"):
        await ask(HostSpec("127.0.0.1", "root", free_port()), tmp_path / "c.sock", access_of(sshd))
    with pytest.raises(NoDaemonError, match="cannot be reached"):
        await ask(HostSpec("nowhere.invalid", "root"), tmp_path / "c.sock", access_of(sshd))


async def test_no_socket_there(sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"nothing answers at .*missing\.sock there.*--socket"):
        await ask(spec_of(sshd), tmp_path / "missing.sock", access_of(sshd))


async def test_forwarding_to_sockets_is_off(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with private_sshd(tmp_path / "sshd", "AllowStreamLocalForwarding no") as sshd, serving(path, FakeDaemon()):
        with pytest.raises(NoDaemonError, match="AllowStreamLocalForwarding"):
            await ask(spec_of(sshd), path, access_of(sshd))


async def test_a_black_hole_ends_at_the_deadline(sshd: Sshd, tmp_path: Path) -> None:
    async def say_nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, say_nothing)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(NoDaemonError, match=r"longer than 0\.2 s"):
            await ask(HostSpec("127.0.0.1", "root", port), tmp_path / "c.sock", access_of(sshd), seconds=0.2)
        group.cancel_scope.cancel()


async def test_a_socket_that_never_answers_ends_at_the_deadline(sshd: Sshd, tmp_path: Path) -> None:
    async def say_nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    path = tmp_path / "c.sock"
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, say_nothing)
        async with open_remote(
            spec_of(sshd), str(path), connect_seconds=PATIENCE_SECONDS, access=access_of(sshd)
        ) as connect:
            with pytest.raises(NoDaemonError, match=r"longer than 0\.2 s"):
                await ControlClient(connect, where="there", call_seconds=0.2).status()
        group.cancel_scope.cancel()
