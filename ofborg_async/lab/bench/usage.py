"""What processes use: CPU with and without that of their children, memory, and space on the disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import psutil
from attrs import define, frozen

MIB = float(1 << 20)
_SAMPLE_SECONDS = 0.02


@frozen
class Cpu:
    """CPU seconds, user and system: of the processes themselves, and of the children they waited for."""

    own_seconds: float
    children_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.own_seconds + self.children_seconds

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.own_seconds - earlier.own_seconds, self.children_seconds - earlier.children_seconds)


@frozen
class Memory:
    """Resident and proportional size in MiB; ``pss_mib`` is None where the system does not tell it."""

    rss_mib: float
    pss_mib: float | None


def cpu_of(pids: Sequence[int]) -> Cpu:
    """What ``pids`` used since they began. A child counts once it has been waited for (proc(5), cutime)."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return Cpu(
        sum(each.user + each.system for each in times),
        sum(each.children_user + each.children_system for each in times),
    )


def exact_cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of the threads that ``pids`` have now, where Linux counts nanoseconds; else as ``cpu_of`` tells them.

    For processes that do next to nothing: a hundredth of a second would be all or nothing.
    """
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if not files:
        return cpu_of(pids).own_seconds
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9  # proc(5): the first is time on the CPU


def memory_of(pids: Sequence[int]) -> Memory:
    """What ``pids`` and all their descendants hold now."""
    family = _family(pids)
    pss_bytes = [getattr(process.memory_full_info(), "pss", None) for process in family]
    return Memory(
        sum(process.memory_info().rss for process in family) / MIB,
        None if None in pss_bytes else sum(filter(None, pss_bytes)) / MIB,
    )


@define
class Peak:
    """The largest resident size seen so far, of the processes without their children."""

    rss_mib: float = 0.0


@asynccontextmanager
async def watching(pids: Sequence[int]) -> AsyncIterator[Peak]:
    """Sample the resident size of ``pids`` while the block runs."""
    processes = [psutil.Process(pid) for pid in pids]
    peak = Peak()

    def look() -> None:
        peak.rss_mib = max(peak.rss_mib, sum(process.memory_info().rss for process in processes) / MIB)

    async def sample() -> None:
        while True:
            look()
            await anyio.sleep(_SAMPLE_SECONDS)

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        yield peak
        group.cancel_scope.cancel()
    look()


def disk_mib(*places: Path) -> float:
    """The space that directories take, as du(1) counts it: blocks, a file with several names once."""
    seen: set[tuple[int, int]] = set()
    size_bytes = 0
    for place in places:
        for folder, _, files in os.walk(place):
            for path in (folder, *(os.path.join(folder, file) for file in files)):  # noqa: PTH118 - 200,000 times
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    size_bytes += status.st_blocks * 512
    return size_bytes / MIB


def _family(pids: Sequence[int]) -> list[psutil.Process]:
    family = {}
    for pid in pids:
        process = psutil.Process(pid)
        family[pid] = process
        with suppress(psutil.NoSuchProcess):
            family |= {child.pid: child for child in process.children(recursive=True)}
    return list(family.values())
