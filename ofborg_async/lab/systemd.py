"""A systemd of one's own, the first process of namespaces: units are tried by the program that runs them. Linux, root.

It sees the units it is given and no others, and has the machine's network. Its control group is made below this
process's own. What it would set of the machine as it boots (proc(5), ``/proc/sys``) it finds read-only, and what it
would tell its console and log goes nowhere.
"""

from __future__ import annotations

import subprocess  # noqa: TID251 - asked once, before there is an event loop
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import anyio
from attrs import frozen

from ofborg_async.lab.commands import ask
from ofborg_async.lab.host import Host, hosts_work
from ofborg_async.lab.servers import LabError, Server, base_environment
from ofborg_async.process.table import read_proc
from ofborg_async.waiting import within

PROGRAM = Path("/usr/lib/systemd/systemd")
START_SECONDS = 30.0
_END_SECONDS = 20.0
_ASK_SECONDS = 10.0
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

# Words: the name of the control group, then those of the first process. Over the machine's control groups, of whatever
# layout, comes the one hierarchy that this systemd uses.
_ENTER_GROUP = """
set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/$1
shift
mkdir "$group"
echo $$ > "$group/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup -- "$@"
"""
_LEAVE_GROUP = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/$1
[ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} +
"""
_TRY_GROUP = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && d=$(mktemp -d -p /sys/fs/cgroup) && rmdir $d"
# The kernel gives a user a new /proc, as nix's sandbox wants one, if he sees all of an old one: here there is no other
# than the one that units cover.
_BOOT = f"""
set -e
mount -t tmpfs -o mode=755 tmpfs /run
sed -n "s/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - proc .*/\\1/p" /proc/self/mountinfo > /run/proc
tac /run/proc | xargs umount -l
mount -t proc proc /proc
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for each in console kmsg; do [ ! -e /dev/$each ] || mount --bind /dev/null /dev/$each; done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec env container=lab SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nowhere \\
  SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nowhere {PROGRAM} --system --show-status=false --log-target=null
"""
# What every unit depends on, and nothing else of a system. nix's sandbox needs a /proc of which nothing is covered.
_UNITS = {
    "default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
    "basic.target": "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n",
    "sysinit.target": "[Unit]\nRequires=uncovered.service\nAfter=uncovered.service\n",
    "shutdown.target": "[Unit]\nDefaultDependencies=no\n",
    "uncovered.service": "[Unit]\nDefaultDependencies=no\n"
    "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/umount /proc/sys\n",
}


@frozen
class Systemd:
    """It runs. ``server``: its outermost process."""

    host: Host
    server: Server
    pid: int

    async def run(self, *argv: str, user: str | None = None) -> tuple[int, str]:
        """Run a command there; its exit status and what it printed."""
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        words = ["nsenter", f"--target={self.pid}", *spaces, "--", "env", "-C", "/", *self.host.become(user), *argv]
        return await ask(*words, env=base_environment(PATH=_PATH))

    async def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        _, text = await self.run("systemctl", "show", "--value", f"--property={key}", unit)
        return text.strip()

    def path(self, place: str) -> Path:
        """A place of it, as seen from here."""
        return Path(f"/proc/{self.pid}/root{place}")


@asynccontextmanager
async def open_systemd(host: Host, units: Mapping[str, str], *, setup: Sequence[str] = ()) -> AsyncIterator[Systemd]:
    """A systemd on ``host`` with ``units`` (text by path below /etc/systemd/system) that has reached its target.

    Raises LabError when it does not boot.
    """
    for name, text in (_UNITS | dict(units)).items():
        file = host.directory / "units" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    name = f"ofborg-async-{host.directory.name}"
    own_units = f"rm -rf /etc/systemd; mkdir -p /etc/systemd; cp -r {host.directory}/units /etc/systemd/system"
    words = host.words(
        ["sh", "-c", _ENTER_GROUP, "sh", name, "sh", "-c", _BOOT],
        environment=[f"PATH={_PATH}"],
        setup=[*setup, own_units],
    )
    server = Server("systemd", words, env=base_environment(), log=host.directory / "systemd.log")
    try:
        server.start()
        with within(START_SECONDS, "the first process of the namespaces"):
            while (pid := _child(server)) is None:
                await anyio.sleep(0.02)
        systemd = Systemd(host, server, pid)
        await server.ready(lambda: _has_booted(systemd), START_SECONDS)
        yield systemd
    finally:
        server.kill()
        with anyio.CancelScope(shield=True):
            await _leave_group(name)


@cache
def systemd_works() -> bool:
    """Whether this user can have one here: its program is there, and no container forbids what is around it."""
    if sys.platform != "linux" or not PROGRAM.exists() or not hosts_work():
        return False
    words = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--", "sh", "-c", _TRY_GROUP]
    return subprocess.run(words, capture_output=True, timeout=_ASK_SECONDS, check=False).returncode == 0


def _child(server: Server) -> int | None:
    if not server.running:
        raise LabError(f"systemd was not started:\n{server.last_words()}")
    found = [info for info in read_proc().values() if info.ppid == server.pid]
    # Before "unshare" the words have children of their own.
    return next((each.pid for each in found if _executable(each.pid) == PROGRAM), None)


def _executable(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/exe").readlink()
    except OSError:
        return None


async def _has_booted(systemd: Systemd) -> bool:
    _, state = await systemd.run("systemctl", "is-system-running")
    if state.strip() == "degraded":
        _, failed = await systemd.run("systemctl", "--failed", "--no-legend")
        raise LabError(f"systemd has units that failed: {failed}")
    return state.strip() == "running"


async def _leave_group(name: str) -> None:
    """The kernel takes leave of killed processes when it can; until then their group stays."""
    words = ["unshare", "--mount", "--", "sh", "-c", _LEAVE_GROUP, "sh", name]
    with within(_END_SECONDS, "the end of systemd's control group"):
        while (await ask(*words, env=base_environment()))[0] != 0:
            await anyio.sleep(0.05)
