from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from waits import eventually

from ofborg_async.lab import servers
from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LabError, Server, base_environment, free_port, listens
from ofborg_async.process.table import read_process

SLEEPER = "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"


def alive(pid: int) -> bool:
    info = read_process(pid)
    return info is not None and info.alive


def children(pid: int) -> list[int]:
    words = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in words.split()]


def sleeper(tmp_path: Path) -> Server:
    """A server with a child in another session."""
    return Server("sleeper", [sys.executable, "-c", SLEEPER], env=base_environment(), log=tmp_path / "log")


async def test_kill_ends_descendants_in_other_sessions_too(tmp_path: Path) -> None:
    server = sleeper(tmp_path)
    server.start()
    (child,) = await eventually("the child", lambda: children(server.pid))
    assert os.getsid(child) != os.getsid(0) == os.getsid(server.pid)
    server.kill()
    assert not server.running
    assert server.returncode == -signal.SIGKILL
    await eventually("the child's end", lambda: not alive(child))


async def test_a_frozen_server_can_be_killed_and_started_again(tmp_path: Path) -> None:
    server = sleeper(tmp_path)
    server.start()
    with pytest.raises(LabError, match="runs already"):
        server.start()
    server.signal(signal.SIGSTOP)
    server.kill()
    server.start()
    assert server.running
    await server.terminate(10)
    assert server.returncode in (-signal.SIGTERM, -signal.SIGKILL)


async def test_a_server_that_exits_at_its_start_is_quoted(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo no such thing >&2; exit 3"]
    server = Server("thing", words, env=base_environment(), log=tmp_path / "log")
    server.start()

    async def never() -> bool:
        return False

    with pytest.raises(LabError, match="thing exited at its start:\nno such thing"):
        await server.ready(never, 30)
    server.kill()


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="nothere is missing"):
        Server("it", ["nothere"], env=base_environment(), log=tmp_path / "log").start()
    with pytest.raises(LabError, match="ended with 3: said so"):
        await run("sh", "-c", "echo said so >&2; exit 3", env=base_environment())


async def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
    import sys, time
    from pathlib import Path
    from ofborg_async.lab.servers import Server, base_environment
    server = Server("sleep", ["sleep", "600"], env=base_environment(), log=Path({str(tmp_path / "log")!r}))
    server.start()
    print(server.pid, flush=True)
    time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    await eventually("the server's end", lambda: not alive(pid))


async def test_free_ports_are_free_and_listening_ones_are_seen() -> None:
    port = free_port()
    assert not await listens(port)
    with socket.create_server(("127.0.0.1", port)):
        assert await listens(port)


async def test_a_port_that_was_given_is_given_to_no_other_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    given = free_port()
    monkeypatch.setattr(servers, "_PORTS", range(given, given + 1))
    with pytest.raises(LabError, match="no free port"):
        free_port()
    script = f"""
    from ofborg_async.lab import servers
    servers._PORTS = range({given}, {given + 1})
    try:
        print(servers.free_port())
    except servers.LabError as error:
        print(error)
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    assert "no free port" in subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
