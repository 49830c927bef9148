"""Commands for several hosts over a real SSH server: asked at once, each with its own end, none hiding another."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from attrs import frozen
from cli_running import environment, fake_daemon, ofborg

from ofborg_async.cli.targets import Answer, Failure, Target, ask_all
from ofborg_async.lab.servers import free_port
from ofborg_async.lab.sshd import private_sshd


@frozen
class Fleet:
    """Hosts by the names of an SSH configuration: ``one`` answers, ``hole`` accepts and says nothing."""

    env: dict[str, str]
    socket: Path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(private_sshd(home / "sshd")) as sshd,
        fake_daemon(home, "well") as path,
        socket.create_server(("127.0.0.1", 0)) as hole,
    ):
        common = f"HostName 127.0.0.1\nIdentityFile {sshd.client_key}\nUserKnownHostsFile {sshd.known_hosts}\n"
        (home / ".ssh" / "config").write_text(
            f"Host one other\nPort {sshd.port}\n{common}"
            f"Host hole\nPort {hole.getsockname()[1]}\n{common}"
            f"Host nobody\nPort {free_port()}\n{common}"
        )
        yield Fleet(environment(HOME=str(home)), path)


def test_one_host_is_as_this_one(fleet: Fleet) -> None:
    done = ofborg("status", "--host", "one", "--socket", fleet.socket, env=fleet.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("== one\nmac1.example.org ")


def test_a_host_that_fails_hides_no_other(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "fleet"
    file.write_text("other  # the second\nnobody\n")
    begin = time.monotonic()
    hosts = ("--host", "hole", "--host", "one", "--fleet", file, "--patience", "3s")
    done = ofborg("status", *hosts, "--socket", fleet.socket, env=fleet.env)
    assert time.monotonic() - begin < 30
    assert done.returncode == 3
    assert done.stdout.count("mac1.example.org") == 2
    assert done.stdout.index("== one\n") < done.stdout.index("== other\n")
    assert "no daemon answers at hole: logging in to hole took longer than 3 s" in done.stderr
    assert "no daemon answers at nobody: it cannot be reached: Connection refused" in done.stderr


def test_json_of_several_hosts_is_one_document(fleet: Fleet) -> None:
    hosts = ("--host", "one", "--host", "nobody")
    done = ofborg("locks", "--json", *hosts, "--socket", fleet.socket, env=fleet.env)
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert [host["target"] for host in document["hosts"]] == ["one", "nobody"]
    assert document["hosts"][0]["answer"]["locks"]
    assert document["hosts"][1]["error"]["error"].startswith("it cannot be reached")


def test_a_log_comes_from_the_one_host_that_has_it(fleet: Fleet) -> None:
    hosts = ("--host", "one", "--host", "nobody")
    done = ofborg("logs", "5f0c1c1e", "-f", *hosts, "--socket", fleet.socket, env=fleet.env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("building hello\n")
    assert done.stdout.endswith("the last line\n")
    done = ofborg("logs", "5f0c1c1e", "--host", "one", "--host", "other", "--socket", fleet.socket, env=fleet.env)
    assert done.returncode == 1
    assert "several hosts have that: one, other" in done.stderr
    done = ofborg("logs", "mac1", "--host", "one", "--host", "other", "--socket", fleet.socket, env=fleet.env)
    assert done.returncode == 64
    assert "did you mean mac1-" in done.stderr


def test_a_bad_fleet_file_is_a_fault_of_configuration(tmp_path: Path) -> None:
    file = tmp_path / "fleet"
    file.write_text("-oProxyCommand=x\n")
    done = ofborg("status", "--fleet", file)
    assert done.returncode == 78
    assert f"{file}: line 1: " in done.stderr


async def test_who_does_not_know_a_name_is_silent_when_another_does(tmp_path: Path) -> None:
    with fake_daemon(tmp_path, "well") as well, fake_daemon(tmp_path, "all") as ill:
        targets = [Target(None, str(path), 20.0) for path in (well, ill, tmp_path / "none")]
        answers = await ask_all(targets, lambda client: client.why("mac1-paused"))
        assert [type(answer) for answer in answers] == [Answer, Failure]
        answers = await ask_all(targets, lambda client: client.why("mac9"))
        assert [type(answer) for answer in answers] == [Failure, Failure, Failure]
