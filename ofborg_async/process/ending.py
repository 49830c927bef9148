"""The end of a process tree: TERM to the group, grace, then KILL to whoever is left, also of those who left the group.

nix runs its builders in sessions of their own and ends them on TERM, hence the grace; after a KILL they run on, hence
the sweep. The tree is listed before and during the grace: a process whose parent is gone no longer tells where it came
from.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable

import anyio

from ofborg_async.process.table import ProcessInfo, ProcessTable, family, process_table, read_process, same_start

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
"""How long killed processes are awaited: one that hangs in the kernel cannot be ended by anybody."""

_SETTLING_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1

Pause = Callable[[float], Awaitable[None]]
FindOrphans = Callable[[ProcessTable], Iterable[ProcessInfo]]


def group_exists(pgid: int) -> bool:
    """Whether any process is in the group, one that waits to be reaped included."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class TreeEnd:
    """Ends the tree of the process ``leader`` (process group and session alike), which began at ``start``.

    ``pause(seconds)`` waits at most so long and meanwhile serves what the tree needs; ``find_orphans`` names processes
    of the tree that have lost their parents, where the system gives them to us.
    """

    def __init__(self, leader: int, start: int, *, pause: Pause, find_orphans: FindOrphans) -> None:
        self._leader = leader
        self._start = start
        self._pause = pause
        self._find_orphans = find_orphans
        self._known: dict[int, ProcessInfo] = {}

    async def run(self, grace_seconds: float) -> list[ProcessInfo]:
        """End all of it. Returns those that could not be ended: hanging in the kernel, or of another user."""
        over = anyio.current_time() + grace_seconds
        if self._group_lives(await self._survivors()):
            _signal_group(self._leader, signal.SIGTERM)
            _signal_group(self._leader, signal.SIGCONT)  # a stopped process takes TERM only then
            await self._grace(over)
        return await self._sweep()

    async def _grace(self, over: float) -> None:
        """Wait for the group, not for its first process alone: nix may have been told by a shell that was first."""
        pause = _FIRST_PAUSE_SECONDS
        while group_exists(self._leader) and anyio.current_time() < over:
            await self._pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if not self._group_lives(await self._survivors()):
                return  # what is there only waits to be reaped, which some init systems do in their own time

    def _group_lives(self, survivors: list[ProcessInfo]) -> bool:
        return any(info.pgid == self._leader for info in survivors)

    async def _sweep(self) -> list[ProcessInfo]:
        """Stop everyone, and once the list has settled kill them all.

        A fork under way survives a SIGSTOP, and a listing takes a moment: only when two listings in a row show all of
        them stopped has nobody a child that was not listed, whom the death of its parent would hide.
        """
        begun = anyio.current_time()
        pause = _FIRST_PAUSE_SECONDS
        were_stopped: set[int] = set()
        while survivors := await self._survivors():
            elapsed = anyio.current_time() - begun
            if elapsed > SWEEP_SECONDS:
                _log.error("processes cannot be ended: %s", survivors)
                return survivors
            if were_stopped.issuperset(info.pid for info in survivors) or elapsed > _SETTLING_SECONDS:
                for info in survivors:
                    signal_process(info, signal.SIGKILL)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                running = (info for info in survivors if not info.stopped)
                for info in sorted(running, key=lambda info: info.start, reverse=True):  # the youngest forks next
                    signal_process(info, signal.SIGSTOP)
            were_stopped = {info.pid for info in survivors if info.stopped}
            await self._pause(pause)
        return []

    async def _survivors(self) -> list[ProcessInfo]:
        table = await process_table()
        seeds = [info.pid for info in self._find_orphans(table)]
        seeds += [pid for pid, info in self._known.items() if pid in table and table[pid].start == info.start]
        if self._leader not in table or same_start(table[self._leader].start, self._start):
            seeds.append(self._leader)
        found = family(table, seeds, myself=os.getpid())
        self._known.update(found)
        return [info for info in found.values() if info.alive]


def signal_process(info: ProcessInfo, number: signal.Signals) -> None:
    """Send a signal to the process that was listed, not to another which got its number since then.

    Numbers are given out in turn, so none comes again in the microseconds between the look and the signal.
    """
    if sys.platform == "linux":
        now = read_process(info.pid)
        if now is None or now.start != info.start:
            return
    try:
        os.kill(info.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        _log.warning("process %d of another user is left running", info.pid)


def _signal_group(pgid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        _log.warning("no process of group %d may be sent %s", pgid, number.name)
