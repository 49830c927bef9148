"""``service``: definitions from one source, for a configuration, installed over nothing that is not ours."""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ofborg_async.config import load
from ofborg_async.errors import ConfigError, HostFault
from ofborg_async.service import Kind, Needs, define, install, needs_of, uninstall
from ofborg_async.service.definition import unit_sections
from ofborg_async.service.place import PLACES, place_of

DEPLOY = Path(__file__).parents[2] / "deploy"


def usual(kind: Kind) -> Needs:
    """What deploy/ is made for: everything at its usual place."""
    return Needs(
        kind=kind,
        user=kind.user,
        configuration=(Path("/etc/ofborg-async/builders.toml"),),
        state_dir=kind.state_dir,
        control_socket=kind.runtime_dir / "control.sock",
        writable=(kind.state_dir,),
    )


@pytest.mark.parametrize(
    ("kind", "file"),
    [(Kind.SYSTEMD, "ofborg-async.service"), (Kind.LAUNCHD, "org.nixos.ofborg-async.plist")],
)
def test_the_files_in_deploy_are_what_is_printed(kind: Kind, file: str) -> None:
    assert define(usual(kind)) == (DEPLOY / file).read_text()


def test_the_drop_in_is_what_a_unit_gets_where_nix_daemon_builds() -> None:
    drop_in = (DEPLOY / "ofborg-async.service.d" / "nix-daemon.conf").read_text()
    assert drop_in == (files("ofborg_async.service") / "data" / "nix-daemon.conf").read_text()
    needs = evolve(usual(Kind.SYSTEMD), builds=False, writable=(*usual(Kind.SYSTEMD).writable, Path("/srv/root")))
    service, plain = (unit_sections(define(each))["Service"] for each in (needs, evolve(needs, builds=True)))
    assert service.pop("ReadWritePaths") == ['"-/srv/root"']  # where ProtectSystem=strict closes all
    strict = unit_sections(drop_in)["Service"]
    assert service == plain | {key: plain.get(key, []) + found for key, found in strict.items()}
    # Behind what it takes back.
    assert service["SystemCallFilter"][-4:] == ["", "@system-service", "~@privileged", "@chown"]
    assert service["DeviceAllow"][-1] == ""


def test_what_a_nixos_module_says_of_it_once() -> None:
    module = define(evolve(usual(Kind.NIXOS), builds=False))
    assert '"ProtectSystem" = "strict";' in module
    assert '"SystemCallFilter" = [ "@system-service" "~@privileged" "@chown" ];' in module
    assert '"CapabilityBoundingSet" = "";' in module
    assert "DeviceAllow" not in module


@pytest.mark.parametrize(
    "changes",
    [
        {"writable": (Path("/tmp/root"),)},
        {"configuration": (Path("/var/tmp/builders.toml"),)},
        {"control_socket": Path("/tmp/control.sock")},
        {"programs": (Path("/tmp/venv/bin"),)},
    ],
)
def test_a_private_tmp_hides_nothing_of_the_daemons(changes: dict[str, Any]) -> None:
    assert "PrivateTmp" not in unit_sections(define(evolve(usual(Kind.SYSTEMD), builds=False, **changes)))["Service"]


@pytest.mark.parametrize("kind", Kind)
def test_the_stop_is_given_the_grace_and_more(kind: Kind) -> None:
    definition = define(evolve(usual(kind), grace_seconds=3600.5))
    assert "3781" in definition
    assert "180" not in definition.replace("1048576", "")


@pytest.mark.parametrize("kind", Kind)
def test_nothing_is_left_to_fill_in(kind: Kind) -> None:
    assert re.findall(r"@[A-Z_]+@", define(usual(kind))) == []


def test_a_unit_for_several_files_and_closed_places() -> None:
    needs = evolve(
        usual(Kind.SYSTEMD),
        user="builder",
        configuration=(Path("/etc/a b.json"), Path("/etc/c.json")),
        writable=(Path("/srv/state"), Path("/home/x/root")),
        programs=(Path("/opt/ofborg-async/bin"), Path("/usr/bin")),
    )
    service = unit_sections(define(needs))["Service"]
    assert service["ExecStart"] == ["/usr/bin/env ofborg-async run -c '/etc/a b.json' -c /etc/c.json"]
    assert service["ExecReload"] == [f"/usr/bin/env ofborg-async reload --socket {needs.control_socket}"]
    assert service["User"] == service["Group"] == ["builder"]
    assert service["ReadWritePaths"] == ['"-/home/x/root"']  # ProtectHome=read-only would close it
    assert service["Environment"][0].startswith("PATH=/opt/ofborg-async/bin:/run/current-system")
    assert service["Environment"][0].count("/usr/bin") == 1


def test_a_property_list_with_a_state_of_its_own() -> None:
    state = Path("/Volumes/a & b")
    needs = evolve(usual(Kind.LAUNCHD), state_dir=state, control_socket=state / "control.sock")
    loaded = plistlib.loads(define(needs).encode())
    assert loaded["WorkingDirectory"] == loaded["EnvironmentVariables"]["OFBORG_ASYNC_STATE_DIR"] == "/Volumes/a & b"
    assert loaded["EnvironmentVariables"]["OFBORG_ASYNC_CONTROL_SOCKET"] == "/Volumes/a & b/control.sock"


@pytest.mark.parametrize("path", ["/etc/100%.toml", "/etc/$HOME.toml", '/etc/".toml', "/etc/'.toml", "/etc/a\nb.toml"])
@pytest.mark.parametrize("kind", Kind)
def test_a_path_that_means_something_to_a_service_manager(kind: Kind, path: str) -> None:
    with pytest.raises(ConfigError, match="use another path"):
        define(evolve(usual(kind), configuration=(Path(path),)))


def evaluated(module: str, attribute: str, tmp_path: Path) -> Any:
    """An attribute of a module, as nix evaluates it."""
    import json

    (tmp_path / "module.nix").write_text(module)
    expression = f"(import {tmp_path}/module.nix {{ lib.mkForce = x: x; }}).{attribute}"
    environment = {**os.environ, "NIX_REMOTE": f"local?root={tmp_path}/store", "HOME": "/homeless-shelter"}
    words = ["nix-instantiate", "--eval", "--strict", "--json", "-E", expression]
    done = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_modules_say_what_unit_and_property_list_say(tmp_path: Path) -> None:
    service = evaluated(define(usual(Kind.NIXOS)), "systemd.services.ofborg-async", tmp_path)
    unit = unit_sections(define(usual(Kind.SYSTEMD)))["Service"]
    (path,) = unit.pop("Environment")
    assert service["environment"] == {"PATH": path.removeprefix("PATH=")}
    assert service["serviceConfig"] == {key: value for key, (value,) in unit.items()}
    daemon = evaluated(define(usual(Kind.NIX_DARWIN)), "launchd.daemons.ofborg-async.serviceConfig", tmp_path)
    assert daemon == plistlib.loads(define(usual(Kind.LAUNCHD)).encode())


@pytest.mark.parametrize("kind", Kind)
def test_install_twice_replace_and_uninstall(kind: Kind, tmp_path: Path) -> None:
    text = define(usual(kind))
    path = tmp_path / PLACES[kind].relative_to("/")
    assert "is written; now: " in install(kind, text, tmp_path)
    assert path.read_text().startswith(text)
    assert path.stat().st_mode & 0o777 == 0o644
    assert "as it should be already" in install(kind, text, tmp_path)
    assert "is replaced" in install(kind, define(evolve(usual(kind), grace_seconds=60)), tmp_path)
    assert "is removed" in uninstall(kind, tmp_path)
    assert list(path.parent.iterdir()) == []
    assert "nothing is to be done" in uninstall(kind, tmp_path)


def test_what_is_installed_is_still_valid(tmp_path: Path) -> None:
    install(Kind.LAUNCHD, define(usual(Kind.LAUNCHD)), tmp_path)
    assert plistlib.loads(place_of(Kind.LAUNCHD, tmp_path).read_bytes())["Label"] == "org.nixos.ofborg-async"
    install(Kind.SYSTEMD, define(usual(Kind.SYSTEMD)), tmp_path)
    sections = unit_sections(place_of(Kind.SYSTEMD, tmp_path).read_text())
    assert sections == unit_sections(define(usual(Kind.SYSTEMD)))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("how", ["foreign", "changed", "empty"])
def test_a_file_of_somebody_else_is_left_alone(kind: Kind, how: str, tmp_path: Path) -> None:
    text = define(usual(kind))
    path = place_of(kind, tmp_path)
    path.parent.mkdir(parents=True)
    install(kind, text, tmp_path) if how == "changed" else None
    content = {
        "foreign": text,
        "changed": path.read_text().replace("180", "90") if how == "changed" else "",
        "empty": "",
    }
    path.write_text(content[how])
    why = "was changed by hand" if how == "changed" else "was not written by ofborg-async"
    with pytest.raises(HostFault, match=why):
        install(kind, text, tmp_path)
    with pytest.raises(HostFault, match=why):
        uninstall(kind, tmp_path)
    assert path.read_text() == content[how]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    with pytest.raises(HostFault, match="--prefix DIR"):
        install(Kind.SYSTEMD, define(usual(Kind.SYSTEMD)), tmp_path)


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ofborg_async", "service", *words]
    return subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def configuration(directory: Path, text: str = "") -> Path:
    file = directory / "builders.toml"
    file.touch(mode=0o600)
    file.write_text(
        '[defaults]\nnix.systems = ["x86_64-linux"]\nrabbitmq = { host = "b", username = "u", password = "p" }\n'
        f'feedback.full_logs = true\n[[identity]]\nname = "a"\n{text}'
    )
    return file


def test_the_command(tmp_path: Path) -> None:
    file = configuration(tmp_path, "[daemon]\nshutdown_grace_seconds = 30.5\n")
    # Nothing of this shell's own gets in: the service will not have it.
    printed = command("print", "--kind", "systemd", "-c", str(file), OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS="999")
    assert (printed.returncode, printed.stderr) == (0, "")
    service = unit_sections(printed.stdout)["Service"]
    assert service["TimeoutStopSec"] == ["211"]
    assert service["ExecStart"] == [f"/usr/bin/env ofborg-async run -c {file}"]
    prefix = tmp_path / "prefix"
    done = command("install", "--kind", "systemd", "-c", str(file), "--prefix", str(prefix), "--user", "someone")
    assert done.returncode == 0, done.stderr
    assert "systemctl daemon-reload" in done.stdout
    installed = prefix / "etc/systemd/system/ofborg-async.service"
    assert "User=someone" in installed.read_text()
    installed.write_text("[Service]\n")
    done = command("uninstall", "--kind", "systemd", "--prefix", str(prefix))
    assert done.returncode == 1
    assert "was not written by ofborg-async" in done.stderr
    assert installed.exists()


@pytest.mark.parametrize(
    ("text", "socket"), [("", "/private/var/lib/ofborg-async"), ('state_dir = "/srv/s"', "/srv/s")]
)
def test_on_macos_the_socket_is_in_the_state(text: str, socket: str, tmp_path: Path) -> None:
    printed = command("print", "--kind", "launchd", "-c", str(configuration(tmp_path, f"[daemon]\n{text}\n")))
    assert printed.returncode == 0, printed.stderr
    variables = plistlib.loads(printed.stdout.encode())["EnvironmentVariables"]
    assert variables["OFBORG_ASYNC_STATE_DIR"] == socket
    assert variables["OFBORG_ASYNC_CONTROL_SOCKET"] == f"{socket}/control.sock"


@pytest.mark.parametrize(("remotes", "strict"), [(["daemon"] * 2, True), (["daemon", ""], False)])
def test_every_identity_must_leave_builds_to_nix_daemon(remotes: list[str], strict: bool, tmp_path: Path) -> None:
    file = configuration(
        tmp_path, f'nix.remote = "{remotes[0]}"\n[[identity]]\nname = "b"\nnix.remote = "{remotes[1]}"\n'
    )
    settings = load([file], environ={"STATE_DIRECTORY": "/var/lib/ofborg-async"})
    assert needs_of(settings, Kind.SYSTEMD, user="ofborg").builds is not strict


def test_wrong_usage_and_a_faulty_configuration(tmp_path: Path) -> None:
    done = command("print", "--kind", "upstart", "-c", str(configuration(tmp_path)))
    assert done.returncode == 64
    assert "none of systemd, launchd, nixos, nix-darwin" in done.stderr
    done = command("print", "--kind", "systemd", "-c", str(configuration(tmp_path, "[daemon]\nno_such_key = 1\n")))
    assert (done.returncode, done.stdout) == (78, "")
    assert "no_such_key" in done.stderr
