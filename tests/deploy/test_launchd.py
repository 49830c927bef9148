"""deploy/org.nixos.ofborg-async.plist: what it says, and that a process started as launchd starts it does its work."""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path
from typing import Any

import anyio
import pytest
from service_place import CONFIGURATION, IDENTITIES, PROJECT, Service, needs_a_place, open_place

from ofborg_async.lab.host import Account
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.identity import DaemonSettings
from ofborg_async.model.status import AmqpState

PLIST = PROJECT / "deploy" / "org.nixos.ofborg-async.plist"
MAXFILES_DEFAULT = 256  # launchctl limit maxfiles, soft
STATE = "/private/var/lib/ofborg-async"

# macOS's own waits until the path is there. This one waits for the tester too, and says for what it was called.
WAIT4PATH = """#!/bin/sh
echo "$@" > waited
until [ -e "$1" ] && [ -e mounted ]; do sleep 0.05; done
"""


@pytest.fixture
def plist() -> dict[str, Any]:
    loaded: dict[str, Any] = plistlib.loads(PLIST.read_bytes())
    return loaded


def test_it_says_what_launchd_needs_to_know(plist: dict[str, Any]) -> None:
    assert plist["Label"] == PLIST.stem
    assert plist["UserName"] == plist["GroupName"] == "_ofborg"
    grace = DaemonSettings(state_dir=Path("/"), control_socket=Path("/")).shutdown_grace_seconds
    assert plist["ExitTimeOut"] > grace + 60
    assert plist["ProcessType"] == "Interactive"
    assert plist["Umask"] == 0o077
    assert plist["RunAtLoad"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False}


def test_the_limit_of_open_files_starves_nobody(plist: dict[str, Any]) -> None:
    # launchd.plist(5): for a daemon of the system these numbers become kern.maxfiles and kern.maxfilesperproc as well.
    assert plist["SoftResourceLimits"] == {"NumberOfFiles": 1 << 20}
    assert "HardResourceLimits" not in plist


def test_nothing_in_it_depends_on_a_login(plist: dict[str, Any]) -> None:
    environment = plist["EnvironmentVariables"]
    path = environment["PATH"].split(":")
    assert path.index("/nix/var/nix/profiles/default/bin") < path.index("/usr/bin")
    assert all(Path(place).is_absolute() for place in path)
    assert not {"HOME", "NIX_REMOTE", "OFBORG_ASYNC_ALLOW_ROOT"} & set(environment)
    # Not /var: nix's restricted evaluation knows a path only by its real name.
    assert plist["WorkingDirectory"] == environment["OFBORG_ASYNC_STATE_DIR"] == STATE
    assert environment["OFBORG_ASYNC_CONTROL_SOCKET"].startswith(STATE)


def test_it_waits_for_the_volume_of_nix_and_leaves_no_shell_in_between(plist: dict[str, Any]) -> None:
    shell, option, script = plist["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    assert shlex.split(script) == [
        *("/bin/wait4path", "/nix/store", "&&"),
        # A shell that stayed would get the SIGTERM in the daemon's place.
        *("exec", "ofborg-async", "run", "-c", CONFIGURATION),
    ]


@needs_a_place
@pytest.mark.timeout(300)
async def test_it_runs_as_launchd_starts_it(tmp_path: Path, broker: Broker, vhost: str, plist: dict[str, Any]) -> None:
    state = tmp_path / "state"
    account = Account(plist["UserName"], plist["GroupName"], "/var/empty", {STATE: state})
    async with open_place(tmp_path, broker, vhost, account, {"/bin/wait4path": WAIT4PATH}) as place:
        words = place.host.words(
            plist["ProgramArguments"],
            user=plist["UserName"],
            cwd=plist["WorkingDirectory"],
            environment=[f"{key}={shlex.quote(value)}" for key, value in plist["EnvironmentVariables"].items()],
            setup=[f"umask {plist['Umask']:o}", f"ulimit -Sn {MAXFILES_DEFAULT}"],
        )
        service = Service("launchd's job", words, log=tmp_path / "ofborg-async.log", socket=state / "control.sock")
        try:
            service.server.start()
            await service.server.ready(lambda: anyio.Path(state / "waited").exists(), 30)
            assert (state / "waited").read_text() == "/nix/store\n"
            assert not service.socket.exists()
            (state / "mounted").touch()
            await service.until_it_answers()
            await place.builds(1)

            status = await service.client.status()
            assert status.pid == service.server.pid
            assert [identity.name for identity in status.identities] == list(IDENTITIES)
            states = {system.amqp for identity in status.identities for system in identity.systems}
            assert states <= {AmqpState.CONSUMING, AmqpState.HOLDING}
            process = Path(f"/proc/{status.pid}")
            assert f"Max open files            {MAXFILES_DEFAULT} " in (process / "limits").read_text()
            assert {
                line.split(b"=")[0].decode() for line in (process / "environ").read_bytes().split(b"\0") if line
            } <= {
                *plist["EnvironmentVariables"],
                *("PWD", "OLDPWD", "_"),  # the shell's
            }
            assert b"\nUid:\t399\t" in (process / "status").read_bytes()
            private = [path for path in state.iterdir() if path.name not in {"waited", "mounted"}]
            assert private
            assert not any(path.stat().st_mode & 0o077 for path in private)

            # As an operator asks, as root.
            socket = plist["EnvironmentVariables"]["OFBORG_ASYNC_CONTROL_SOCKET"]
            await place.status_is_well(place.run, "--socket", socket)
            assert await service.stop() == 0
            assert "Too many open files" not in service.server.last_words()
        except BaseException:
            print(service.server.last_words())
            raise
        finally:
            service.server.kill()
