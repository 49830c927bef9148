"""Runs tests in which systemd itself starts the daemons, with the rights that deploy/'s unit gives and no others.

    python tests/hardened.py [--nix-daemon] [arguments of pytest]

The tests run on a host of their own (``lab.host``) under a systemd of their own, as the unit's user, who owns all that
they make. A daemon of ``lab.farm`` is started by a unit which is deploy/'s, but for what makes it a service of one
machine: the command, the directories, who restarts it. With ``--nix-daemon`` the unit has its drop-in, and each farm's
store a nix-daemon before it, which is not restricted. As root, on Linux, with systemd installed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import anyio
from waits import eventually

from ofborg_async.lab import restricted, starter
from ofborg_async.lab.farm import NIX_DAEMON_VARIABLE
from ofborg_async.lab.host import UID, Account, Host
from ofborg_async.lab.namespace import empty_nix
from ofborg_async.lab.servers import base_environment
from ofborg_async.lab.systemd import Systemd, open_systemd, systemd_works

PROJECT = Path(__file__).parents[1]
UNIT = PROJECT / "deploy" / "ofborg-async.service"
DROP_IN = PROJECT / "deploy" / "ofborg-async.service.d" / "nix-daemon.conf"

# Not below /tmp, of which the drop-in gives the daemon one of its own.
PLACE = Path("/lab")
SOCKET = "/run/lab-starter.sock"
KEPT = ("CI", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""What of this environment the tests see."""

STARTED_BY_THE_LAB = f"""
[Unit]
CollectMode=inactive-or-failed
[Service]
Type=exec
ExecStart=
ExecStart={shlex.quote(sys.executable)} -I {shlex.quote(str(starter.__file__))}
ExecReload=
StandardInput=socket
StandardOutput=append:{PLACE}/starter.log
StandardError=inherit
Restart=no
WatchdogSec=0
# The tests kill daemons and look at what the next one does with the rest.
KillMode=process
StateDirectory=
RuntimeDirectory=
ReadWritePaths={PLACE}
# Wherever the clone is, in /tmp too.
BindReadOnlyPaths={PROJECT} {sys.prefix}
"""
STARTER_SOCKET = f"""
[Socket]
ListenStream={SOCKET}
SocketUser=ofborg
SocketMode=0600
Accept=yes
MaxConnections=1000
TriggerLimitIntervalSec=0
"""
# Unrestricted: brokers, nix-daemons and the tests themselves.
TESTS = f"""
[Unit]
Requires=ofborg-async.socket
After=ofborg-async.socket
[Service]
Type=oneshot
User=ofborg
ExecStart=/bin/sh {PLACE}/tests.sh
StandardOutput=append:{PLACE}/output
StandardError=inherit
TimeoutStartSec=infinity
LimitNOFILE=65536
TasksMax=infinity
"""


def units(*, nix_daemon: bool) -> dict[str, str]:
    found = {
        "ofborg-async@.service": UNIT.read_text(),
        "ofborg-async@.service.d/zz-lab.conf": STARTED_BY_THE_LAB,
        "ofborg-async.socket": STARTER_SOCKET,
        "tests.service": TESTS,
    }
    return found | {f"ofborg-async@.service.d/{DROP_IN.name}": DROP_IN.read_text()} if nix_daemon else found


def script(arguments: list[str], *, nix_daemon: bool) -> str:
    variables = base_environment(
        HOME=f"{PLACE}/home",
        TMPDIR=f"{PLACE}/tmp",
        HYPOTHESIS_STORAGE_DIRECTORY=f"{PLACE}/tmp/hypothesis",
        **{restricted.SOCKET_VARIABLE: SOCKET},
        **({NIX_DAEMON_VARIABLE: "1"} if nix_daemon else {}),
        **{name: os.environ[name] for name in KEPT if name in os.environ},
    )
    environment = [f"{name}={value}" for name, value in variables.items()]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={PLACE}/tmp/pytest", *arguments]
    return (
        f"cd {shlex.quote(str(Path.cwd()))}\nmkdir -p {PLACE}/tmp {PLACE}/home\n"
        f"env -i {shlex.join([*environment, *pytest])}\n"
        f"echo $? > {PLACE}/status.new\nmv {PLACE}/status.new {PLACE}/status\n"
    )


async def run(directory: Path, arguments: list[str], *, nix_daemon: bool) -> int:
    """The exit status of the tests, which are shown as they run."""
    here = directory / "lab"
    here.mkdir()
    (here / "tests.sh").write_text(script(arguments, nix_daemon=nix_daemon))
    host = Host(directory, empty_nix(directory / "nix").prefix, Account("ofborg", "ofborg", str(PLACE), {}))
    await host.lay_out({})
    os.chown(here, UID, UID)
    setup = [f"mkdir {PLACE}", f"mount --bind {here} {PLACE}"]
    async with open_systemd(host, units(nix_daemon=nix_daemon), setup=setup) as systemd:
        code, text = await systemd.run("systemctl", "start", "--no-block", "tests.service")
        if code != 0:
            raise SystemExit(text)
        return await until_done(systemd, here)


async def until_done(systemd: Systemd, here: Path) -> int:
    output, status = here / "output", here / "status"
    await eventually("the first word of the tests", lambda: output.exists() or not systemd.server.running, 120)
    if not output.exists():
        print("tests/hardened.py: systemd ended before the tests began", file=sys.stderr)
        return 1
    with output.open("rb") as said:
        while True:
            done = status.exists() or not systemd.server.running
            while more := said.read(65536):
                sys.stdout.buffer.write(more)
                sys.stdout.buffer.flush()
            if done:
                break
            await anyio.sleep(0.05)
    return int(status.read_text()) if status.exists() else 1


def main(arguments: list[str]) -> int:
    if not systemd_works():
        print("tests/hardened.py: takes root, Linux, systemd's package, and a container that allows namespaces")
        return 1
    nix_daemon = "--nix-daemon" in arguments
    directory = Path(tempfile.mkdtemp(prefix="hardened-"))
    directory.chmod(0o755)
    try:
        rest = [word for word in arguments if word != "--nix-daemon"]
        return anyio.run(lambda: run(directory, rest, nix_daemon=nix_daemon))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
