"""The host's processes at one moment, and who belongs together: pure, apart from reading the table.

Linux: ``/proc/PID/stat`` (proc(5)). Elsewhere: ``ps``, which POSIX has. A process is known by its number and its start,
since numbers come again.
"""

from __future__ import annotations

import os
import subprocess  # noqa: TID251 - this is the room that spawns; ps is how other systems than Linux list processes
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.waiting import in_thread

_PS = ("ps", "-axo", "pid=,ppid=,pgid=,state=,lstart=")
_PS_SECONDS = 20.0
# ps shows starts in whole seconds, and they are compared with the wall clock of the spawn.
_PS_TOLERANCE_SECONDS = 2


@frozen
class ProcessInfo:
    """One process.

    ``sid`` 0 where the system does not tell. ``start`` in clock ticks since the boot (Linux) or seconds of the epoch.
    """

    pid: int
    ppid: int
    pgid: int
    sid: int
    start: int
    state: str

    @property
    def alive(self) -> bool:
        """False for one that has exited and only waits for its parent to notice."""
        return self.state not in ("Z", "X")

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP, or a debugger, has taken effect."""
        return self.state in ("T", "t")


ProcessTable = Mapping[int, ProcessInfo]


async def process_table() -> ProcessTable:
    """All processes that can be seen now. Raises HostFault (PROCESS) where ps does not work."""
    return read_proc() if sys.platform == "linux" else await ps_table()


def read_proc() -> ProcessTable:
    """All processes by ``/proc``: about 15 us for each."""
    names = os.listdir("/proc")  # noqa: PTH208 - thousands of processes, and no Path is needed of any
    return read_processes(int(name) for name in names if name.isdigit())


def read_processes(pids: Iterable[int]) -> ProcessTable:
    """Those of the processes that exist, by ``/proc``."""
    found = map(read_process, pids)
    return {info.pid: info for info in found if info is not None}


def read_process(pid: int) -> ProcessInfo | None:
    """One process by ``/proc``; None when there is none of that number."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - a third faster than by Path
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The second field is the program's name in brackets and may itself have brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    state, ppid, pgid, sid = fields[:4]
    return ProcessInfo(pid, int(ppid), int(pgid), int(sid), int(fields[19]), state.decode())


def cpu_seconds_of(pid: int) -> float | None:
    """What a process has taken of a processor so far, without its children; None where it cannot be told (no /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    user, system = text[text.rindex(b")") + 2 :].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def ps_table() -> ProcessTable:
    """All processes by ``ps``. Raises HostFault (PROCESS)."""
    env = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ.get("PATH", os.defpath)}
    try:
        done = await in_thread(
            lambda: subprocess.run(
                _PS, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_PS_SECONDS
            )
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostFault(FaultKind.PROCESS, f"processes cannot be listed: {error}", remedy="install ps") from error
    return parse_ps(done.stdout)


def parse_ps(output: bytes) -> ProcessTable:
    """What ``ps -axo pid=,ppid=,pgid=,state=,lstart=`` printed in the C locale and in UTC."""
    table = {}
    for line in output.decode(errors="replace").splitlines():
        pid, ppid, pgid, state, lstart = line.split(maxsplit=4)
        started = datetime.strptime(lstart.strip(), "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
        table[int(pid)] = ProcessInfo(int(pid), int(ppid), int(pgid), 0, int(started.timestamp()), state[0])
    return table


@cache
def boot_id() -> str:
    """A text that is new with each boot of the host: ticks of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def start_of_child(pid: int, now: datetime) -> int:
    """``start`` of a child spawned just ``now`` and not yet reaped; asking ps would cost more than the spawn did."""
    info = read_process(pid) if sys.platform == "linux" else None
    return int(now.timestamp()) if info is None else info.start


def start_text(start: int) -> str:
    """``start`` of a ProcessInfo as the opaque text of a ProcessRecord."""
    return f"{boot_id()}/{start}" if sys.platform == "linux" else f"epoch/{start}"


def parse_start_text(text: str) -> int | None:
    """The ``start`` in a record's text; None when it was written in another boot or is no such text."""
    era, _, start = text.partition("/")
    expected = boot_id() if sys.platform == "linux" else "epoch"
    return int(start) if era == expected and start.isdecimal() else None


def same_start(one: int, other: int) -> bool:
    """Whether two starts of the same pid are one process's."""
    return one == other if sys.platform == "linux" else abs(one - other) <= _PS_TOLERANCE_SECONDS


def family(table: ProcessTable, seeds: Iterable[int], *, myself: int) -> dict[int, ProcessInfo]:
    """``seeds``, what descends from them, and everyone in a process group or session of one of these.

    A seed that is gone still stands for the group and session of its number, which is not given out again while they
    last. ``myself`` (this daemon's pid) and its process group never belong, nor does init.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    sessions: defaultdict[int, list[int]] = defaultdict(list)
    for info in table.values():
        children[info.ppid].append(info.pid)
        groups[info.pgid].append(info.pid)
        if info.sid:
            sessions[info.sid].append(info.pid)
    barred = {1, myself, *(groups[table[myself].pgid] if myself in table else ())}
    found: dict[int, ProcessInfo] = {}
    queue = [pid for seed in seeds for pid in (seed, *groups[seed], *sessions[seed])]
    while queue:
        pid = queue.pop()
        if pid in table and pid not in found and pid not in barred:
            info = found[pid] = table[pid]
            queue += children[pid] + groups[info.pgid] + sessions.get(info.sid, [])
    return found
