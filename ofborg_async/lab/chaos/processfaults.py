"""What happens to a builder's own process and to its children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

from ofborg_async.lab.chaos.ground import Ground, Stand
from ofborg_async.lab.chaos.plan import FaultPlan
from ofborg_async.lab.chaos.seeking import LOOK_SECONDS, POLL_SECONDS, sought, until_up
from ofborg_async.process.table import ProcessInfo, read_proc, read_process
from ofborg_async.waiting import at_most

_POLL_SECONDS = 0.02
_SHARES = (1.0, 0.2, 0.0)


async def kill_daemon(ground: Ground, fault: FaultPlan) -> bool:
    """SIGKILL at any moment, also soon after a start; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        struck = bool(stand.builder.pids)
        stand.builder.kill()
        await _gone(stand)
        await anyio.sleep(fault.seconds)
        stand.builder.launch()
        if fault.choice < 0.3:  # once more, in the middle of its start or its recovery
            await anyio.sleep(fault.choice * 8)
            stand.builder.kill()
            await _gone(stand)
            stand.builder.launch()
    return struck


async def restart_daemon(ground: Ground, fault: FaultPlan) -> bool:
    """SIGTERM, its exit, a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        struck = bool(stand.builder.pids)
        statuses = await stand.builder.stop()
        if any(statuses):
            ground.broken.append(f"a stop ended with {statuses}")
        await anyio.sleep(fault.seconds)
        stand.builder.launch()
    return struck


async def cut_stop_short(ground: Ground, fault: FaultPlan) -> bool:
    """SIGTERM, then SIGKILL before it is done; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        return await _while_it_stops(stand, fault.choice * 1.5, stand.builder.kill)


async def hurry_daemon(ground: Ground, fault: FaultPlan) -> bool:
    """SIGTERM twice, the second a moment after the first; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        return await _while_it_stops(stand, fault.choice * 0.2, stand.builder.terminate)


async def _while_it_stops(stand: Stand, after_seconds: float, strike: Callable[[], None]) -> bool:
    """Do something so long after a SIGTERM; if the builder had ended by then, once more and earlier."""
    struck = False
    for share in _SHARES:
        stand.builder.terminate()
        with at_most(after_seconds * share):
            await _gone(stand)
        struck = bool(stand.builder.pids)
        if struck:
            strike()
            await _gone(stand)
        stand.builder.launch()
        if struck:
            break
        await until_up(stand.builder)
    return struck


async def restart_identity(ground: Ground, fault: FaultPlan) -> bool:
    """What it does is given up, and it starts anew beside its siblings."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        struck = False
        with at_most(LOOK_SECONDS):
            while not (struck := await stand.builder.restart_identity(fault.choice)):
                await anyio.sleep(POLL_SECONDS)
    return struck


async def stop_child(ground: Ground, fault: FaultPlan) -> bool:
    """A git or nix is stopped for a while."""
    found = await _signal_tool(ground, fault, signal.SIGSTOP)
    if found is None:
        return False
    await anyio.sleep(fault.seconds)
    now = read_process(found.pid)
    if now is not None and now.start == found.start:
        with suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGCONT)
    return True


async def kill_child(ground: Ground, fault: FaultPlan) -> bool:
    """A git or nix is killed."""
    return await _signal_tool(ground, fault, signal.SIGKILL) is not None


async def kill_builder(ground: Ground, fault: FaultPlan) -> bool:
    """What nix runs for a derivation gets a SIGKILL, as the kernel sends for want of memory: once for each job."""

    def is_builder(info: ProcessInfo) -> bool:
        words = _words(info)
        return any(
            job.token.encode() in words and words.startswith((b"/bin/sh\0", b"sh\0")) and not job.builder_killed
            for job in ground.jobs.values()
        )

    def look() -> bool:
        found = _choose(ground, fault, is_builder)
        if found is None:
            return False
        words = _words(found)
        struck = _signal(found, signal.SIGKILL)
        for job in ground.jobs.values():
            job.builder_killed |= struck and job.token.encode() in words
        return struck

    return bool(await sought(look))


async def _signal_tool(ground: Ground, fault: FaultPlan, number: signal.Signals) -> ProcessInfo | None:
    """To any git; of nix to the command alone, for what it forks belongs to the build."""

    def is_tool(info: ProcessInfo) -> bool:
        name = _name(info)
        return name.startswith(b"git") or (name[:3] == b"nix" and info.ppid in _daemons(ground))

    def look() -> ProcessInfo | None:
        found = _choose(ground, fault, is_tool)
        return found if found is not None and _signal(found, number) else None

    return await sought(look)


def _signal(info: ProcessInfo, number: signal.Signals) -> bool:
    """Whether it was there to get it."""
    try:
        os.kill(info.pid, number)
    except ProcessLookupError:
        return False
    return True


async def _gone(stand: Stand) -> None:
    while stand.builder.pids:
        await anyio.sleep(_POLL_SECONDS)


def _daemons(ground: Ground) -> tuple[int, ...]:
    return tuple(pid for stand in ground.stands for pid in stand.builder.pids)


def _choose(ground: Ground, fault: FaultPlan, fits: Callable[[ProcessInfo], bool]) -> ProcessInfo | None:
    """What fits of all that descends from the builders, or from the nix-daemon that builds for them."""
    nix = ground.nix_daemon
    above = (*_daemons(ground), *((nix.pid,) if nix is not None and nix.running else ()))
    found = [info for info in descendants(above) if fits(info)]
    return found[int(fault.choice * len(found))] if found else None


def descendants(pids: tuple[int, ...]) -> list[ProcessInfo]:
    """What descends from these processes and runs."""
    table = read_proc()
    family = set(pids)
    while more := {info.pid for info in table.values() if info.ppid in family} - family:
        family |= more
    return [table[pid] for pid in sorted(family - set(pids)) if pid in table and table[pid].alive]


def _words(info: ProcessInfo) -> bytes:
    with suppress(OSError):
        return (Path("/proc") / str(info.pid) / "cmdline").read_bytes()
    return b""


def _name(info: ProcessInfo) -> bytes:
    return _words(info).split(b"\0", 1)[0].rpartition(b"/")[2]
