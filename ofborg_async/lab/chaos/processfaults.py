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
from ofborg_async.process.table import ProcessInfo, read_proc, read_process
from ofborg_async.waiting import at_most

_LOOK_SECONDS = 3.0
_POLL_SECONDS = 0.02


async def kill_daemon(ground: Ground, fault: FaultPlan) -> None:
    """SIGKILL at any moment, also soon after a start; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        stand.builder.kill()
        await _gone(stand)
        await anyio.sleep(fault.seconds)
        stand.builder.launch()
        if fault.choice < 0.3:  # once more, in the middle of its start or its recovery
            await anyio.sleep(fault.choice * 8)
            stand.builder.kill()
            await _gone(stand)
            stand.builder.launch()


async def restart_daemon(ground: Ground, fault: FaultPlan) -> None:
    """SIGTERM, its exit, a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        statuses = await stand.builder.stop()
        if any(statuses):
            ground.broken.append(f"a stop ended with {statuses}")
        await anyio.sleep(fault.seconds)
        stand.builder.launch()


async def cut_stop_short(ground: Ground, fault: FaultPlan) -> None:
    """SIGTERM, then SIGKILL before it is done; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        stand.builder.terminate()
        await anyio.sleep(fault.choice * 1.5)
        stand.builder.kill()
        await _gone(stand)
        stand.builder.launch()


async def hurry_daemon(ground: Ground, fault: FaultPlan) -> None:
    """SIGTERM twice, the second a moment after the first; then a start."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        stand.builder.terminate()
        await anyio.sleep(fault.choice * 0.2)
        stand.builder.terminate()
        await _gone(stand)
        stand.builder.launch()


async def restart_identity(ground: Ground, fault: FaultPlan) -> None:
    """What it does is given up, and it starts anew beside its siblings."""
    stand = ground.stands[fault.daemon]
    async with stand.lock:
        await stand.builder.restart_identity(fault.choice)


async def stop_child(ground: Ground, fault: FaultPlan) -> None:
    """A git or nix is stopped for a while."""
    found = await _find_tool(ground, fault)
    if found is not None:
        with suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGSTOP)
            await anyio.sleep(fault.seconds)
        now = read_process(found.pid)
        if now is not None and now.start == found.start:
            with suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGCONT)


async def kill_child(ground: Ground, fault: FaultPlan) -> None:
    """A git or nix is killed."""
    found = await _find_tool(ground, fault)
    if found is not None:
        with suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)


async def kill_builder(ground: Ground, fault: FaultPlan) -> None:
    """What nix runs for a derivation is killed, as the kernel does for want of memory: once for each job."""

    def is_builder(info: ProcessInfo) -> bool:
        words = _words(info)
        return any(
            job.token.encode() in words and words.startswith((b"/bin/sh\0", b"sh\0")) and not job.builder_killed
            for job in ground.jobs.values()
        )

    found = await _find(ground, fault, is_builder)
    if found is not None:
        words = _words(found)
        for job in ground.jobs.values():
            job.builder_killed |= job.token.encode() in words
        with suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)


async def _find_tool(ground: Ground, fault: FaultPlan) -> ProcessInfo | None:
    """Any git; of nix the command alone, for what it forks belongs to the build."""
    parents = ground.stands[fault.daemon].builder.pids
    return await _find(
        ground,
        fault,
        lambda info: _name(info).startswith(b"git") or (_name(info)[:3] == b"nix" and info.ppid in parents),
    )


async def _gone(stand: Stand) -> None:
    while stand.builder.pids:
        await anyio.sleep(_POLL_SECONDS)


async def _find(ground: Ground, fault: FaultPlan, fits: Callable[[ProcessInfo], bool]) -> ProcessInfo | None:
    """A descendant of the builder that fits, once there is one; None when none comes soon."""
    found: list[ProcessInfo] = []
    with at_most(_LOOK_SECONDS):
        while not found:
            await anyio.sleep(_POLL_SECONDS)
            found = [info for info in descendants(ground.stands[fault.daemon].builder.pids) if fits(info)]
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
