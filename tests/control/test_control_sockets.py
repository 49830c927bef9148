"""The control socket's permissions, its life, who may use it; the loopback listener."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream
from attrs import evolve
from control_serving import PATIENCE_SECONDS, raw, serving
from fake_daemon import SNAPSHOT, WELL, FakeDaemon

from ofborg_async.clock import SystemClock
from ofborg_async.control.http import Limits
from ofborg_async.control.listen import ControlSocket, Peer
from ofborg_async.control.server import ControlServer
from ofborg_async.errors import ConfigError, HostFault, LockHeldError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_socket_is_the_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.sock"
    before = os.umask(0)
    try:
        async with serving(path, FakeDaemon()):
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert mode_of(path) == 0o600
            assert mode_of(path.parent) == 0o700
            assert list(path.parent.iterdir()) == [path]
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_group_may_use_it(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid())
    bound = ControlSocket(tmp_path / "c.sock", group=group.gr_name)
    async with await bound.listen():
        assert mode_of(bound.path) == 0o660
        assert bound.path.stat().st_gid == group.gr_gid
    bound.remove()


async def test_peers_are_this_user_root_and_members(tmp_path: Path) -> None:
    alone = ControlSocket(tmp_path / "c.sock")
    async with await alone.listen():
        assert alone.admits(Peer(os.geteuid(), 1, 1))
        assert alone.admits(Peer(0, 0, 1))
        assert not alone.admits(Peer(54321, 54321, 1))
        alone.gid = 777
        assert alone.admits(Peer(54321, 777, 1))
        assert not alone.admits(Peer(54321, 778, None))


async def test_a_stranger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofborg_async.control.server.peer_of", lambda _: Peer(54321, 54321, 1))
    async with serving(tmp_path / "c.sock", FakeDaemon()):
        answer = await raw(tmp_path / "c.sock", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 Forbidden")
    assert b"user 54321 may not control this daemon" in answer


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user: root, Linux")
async def test_another_user_who_reaches_the_socket_is_refused_by_the_kernels_word() -> None:
    """Not in a temporary directory of pytest's, which another user cannot enter."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "c.sock"
        Path(name).chmod(0o755)
        async with serving(path, FakeDaemon()) as client:
            path.chmod(0o666)
            refused = await asked_as(path, 54321)
            assert refused.startswith(b"HTTP/1.1 403 Forbidden")
            assert b"user 54321 may not control this daemon" in refused
            assert (await asked_as(path, 0)).startswith(b"HTTP/1.1 200 OK")
            await client.status()


async def asked_as(path: Path, user: int) -> bytes:
    """What the server answers to a process of another user."""
    program = (
        "import socket, sys\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "peer.connect(sys.argv[1])\n"
        "peer.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "while data := peer.recv(65536):\n"
        "    sys.stdout.buffer.write(data)\n"
    )
    # -I -S: nothing of ours is read, which another user may not. The interpreter itself must be one that all can run.
    python = [str(shutil.which("python3", path=os.defpath)), "-I", "-S", "-c", program, str(path)]
    done = await anyio.run_process(
        ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--", *python], check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with serving(path, FakeDaemon()) as client:
        await client.status()


async def test_a_living_daemons_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with serving(path, FakeDaemon()) as client:
        with pytest.raises(LockHeldError) as caught:
            ControlSocket(path)
        assert caught.value.holder_pid == os.getpid()
        await client.status()


async def test_a_successors_socket_is_left(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with serving(path, FakeDaemon()):
        path.unlink()
        path.write_text("a successor")
    assert path.read_text() == "a successor"


def test_paths_that_cannot_be_a_socket_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"daemon\.control_socket: .*is no socket"):
        ControlSocket(tmp_path / "file")
    with pytest.raises(ConfigError, match="too long"):
        ControlSocket(tmp_path / ("x" * 200))
    with pytest.raises(ConfigError, match="there is no group 'nobody-knows-it'"):
        ControlSocket(tmp_path / "c.sock", group="nobody-knows-it")
    with pytest.raises(HostFault, match=r"control socket .* cannot be made"):
        ControlSocket(tmp_path / "file" / "c.sock")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


async def over_tcp(port: int, request: bytes) -> bytes:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request)
            return await everything(stream)


async def everything(stream: SocketStream) -> bytes:
    received = b""
    try:
        while True:
            received += await stream.receive()
    except anyio.EndOfStream:
        return received


async def test_the_loopback_is_read_only(tmp_path: Path) -> None:
    daemon = FakeDaemon(shown=WELL)
    server = ControlServer(daemon, SystemClock(), Limits())
    async with anyio.create_task_group() as group:
        port = await group.start(lambda task_status: server.serve_loopback("127.0.0.1", 0, task_status=task_status))
        for path in (b"/", b"/metrics", b"/healthz", b"/openapi.json"):
            answer = await over_tcp(port, b"GET %s HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % (path, port))
            assert answer.startswith(b"HTTP/1.1 200 OK"), path
        for method, path in ((b"GET", b"/v1/status"), (b"POST", b"/v1/stop"), (b"GET", b"/v1/logs/mac1-a")):
            answer = await over_tcp(port, b"%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (method, path))
            assert answer.startswith(b"HTTP/1.1 404 "), path
        # What was refused without being read is read away, or the reset would take the answer with it.
        garbage = b"\x00" * 150_000
        assert (await over_tcp(port, garbage)).endswith(b"}\n")
        answer = await over_tcp(port, b"GET / HTTP/1.1\r\nHost: rebound.example:%d\r\n\r\n" % port)
        assert answer.startswith(b"HTTP/1.1 421 ")
        for host in (b"127.0.0.1:1", b"[::1]:9", b"[::1]", b"LOCALHOST"):
            answer = await over_tcp(port, b"GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
            assert answer.startswith(b"HTTP/1.1 200 "), host
        daemon.shown = evolve(SNAPSHOT, verdict="degraded")
        answer = await over_tcp(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        with pytest.raises(HostFault, match=r"cannot listen on 127\.0\.0\.1 port"):
            await server.serve_loopback("127.0.0.1", port)
        group.cancel_scope.cancel()
    assert daemon.calls == []
