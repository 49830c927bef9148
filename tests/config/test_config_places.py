from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from config_place import elsewhere

from ofborg_async.config import Host, default_control_socket, default_state_dir
from ofborg_async.config.places import daemon_socket, personal_folders

LINUX = elsewhere(Path("/"))
ROOT = attrs.evolve(LINUX, user_id=0, user_name="root", home=Path("/root"))
MAC = attrs.evolve(LINUX, platform="darwin", user_id=501, home=Path("/Users/jdoe"))
MAC_ROOT = attrs.evolve(ROOT, platform="darwin")


@pytest.mark.parametrize(
    ("environ", "host", "state", "socket"),
    [
        (
            {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a"},
            LINUX,
            "/var/lib/a",
            "/run/a/control.sock",
        ),
        (
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1000"},
            LINUX,
            "/s/ofborg-async",
            "/run/user/1000/ofborg-async/control.sock",
        ),
        (
            {"XDG_STATE_HOME": "relative", "HOME": "/not/used"},
            LINUX,
            "/home/jdoe/.local/state/ofborg-async",
            "/home/jdoe/.local/state/ofborg-async/control.sock",
        ),
        ({"OFBORG_ASYNC_STATE_DIR": "/own"}, LINUX, "/home/jdoe/.local/state/ofborg-async", "/own/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, ROOT, "/var/lib/ofborg-async", "/run/ofborg-async/control.sock"),
        (
            {},
            MAC,
            "/Users/jdoe/Library/Application Support/ofborg-async",
            "/Users/jdoe/Library/Application Support/ofborg-async/control.sock",
        ),
        ({}, MAC_ROOT, "/var/lib/ofborg-async", "/var/run/ofborg-async/control.sock"),
    ],
)
def test_places_when_nobody_says(
    environ: dict[str, str], host: Host, state: str, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert default_state_dir(environ, host) == Path(state)
    assert daemon_socket(environ, host) == Path(socket)


def test_the_command_finds_the_socket_that_is_there(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "OFBORG_ASYNC_STATE_DIR": str(tmp_path / "state")}
    first = tmp_path / "run" / "ofborg-async" / "control.sock"
    second = tmp_path / "state" / "control.sock"
    assert default_control_socket(environ, LINUX) == first == daemon_socket(environ, LINUX)
    second.parent.mkdir()
    second.touch()
    assert default_control_socket(environ, LINUX) == second
    first.parent.mkdir(parents=True)
    first.touch()
    assert default_control_socket(environ, LINUX) == first
    assert default_control_socket({**environ, "OFBORG_ASYNC_CONTROL_SOCKET": "/x"}, LINUX) == Path("/x")


def test_this_host_can_be_described() -> None:
    here = Host.here()
    assert here.working_directory == Path.cwd()
    assert here.host_name
    assert default_control_socket({}).name == "control.sock"


def test_whose_home_is_personal() -> None:
    assert Path("/data/jdoe") in personal_folders("linux", 1000, Path("/data/jdoe"))
    assert Path("/var/lib/builder") not in personal_folders("linux", 1000, Path("/var/lib/builder"))
    assert Path("/data/service") not in personal_folders("linux", 300, Path("/data/service"))
    assert Path("/data/jdoe") in personal_folders("darwin", 501, Path("/data/jdoe"))
    assert Path("/") not in personal_folders("linux", 65534, Path("/"))
