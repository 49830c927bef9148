"""Real want of memory: a control group of which the kernel kills a process when it takes more than its share.

Linux, root only, with control groups of either version mounted at the usual place: the kernel's
admin-guide/cgroup-v1/memory and admin-guide/cgroup-v2.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import anyio
from attrs import frozen

from ofborg_async.waiting import within

_MOUNT = Path("/sys/fs/cgroup")
_EMPTY_SECONDS = 30.0
_POLL_SECONDS = 0.02


@frozen
class MemoryGroup:
    """Processes that share a limit of memory, and what they start."""

    _place: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before a program that is to be in the group from its start."""
        return "sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self._place / "cgroup.procs")

    def limit(self, size_bytes: int) -> None:
        """From now on they have so much together, and no swap."""
        for file, value in self._limits(size_bytes):
            if file.exists():
                file.write_text(str(value))

    def lift(self) -> None:
        """From now on they have what the machine has."""
        for file, value in reversed(self._limits("max" if _version() == 2 else -1)):
            if file.exists():
                file.write_text(str(value))

    def count_kills(self) -> int:
        """How many of them the kernel has killed for want of memory."""
        file = self._place / ("memory.events" if _version() == 2 else "memory.oom_control")
        words = dict(line.split() for line in file.read_text().splitlines())
        return int(words["oom_kill"])

    def _limits(self, value: int | str) -> list[tuple[Path, int | str]]:
        """What to write where, the limit with swap last: it is never to be below the one without."""
        if _version() == 2:
            return [(self._place / "memory.swap.max", 0), (self._place / "memory.max", value)]
        return [
            (self._place / "memory.limit_in_bytes", value),
            (self._place / "memory.memsw.limit_in_bytes", value),
        ]


@asynccontextmanager
async def memory_group() -> AsyncIterator[MemoryGroup]:
    """A MemoryGroup without a limit for the time of the block; its processes must end with it."""
    place = _root() / f"ofborg-async-lab-{uuid.uuid4()}"
    place.mkdir()
    try:
        yield MemoryGroup(place)
    finally:
        with anyio.CancelScope(shield=True), within(_EMPTY_SECONDS, "the end of a group's processes"):
            while (place / "cgroup.procs").read_text():
                await anyio.sleep(_POLL_SECONDS)
            place.rmdir()


def memory_groups_work() -> bool:
    """Whether this process may make such groups here."""
    place = _root() / f"ofborg-async-lab-{uuid.uuid4()}"
    try:
        place.mkdir()
    except OSError:
        return False
    try:
        return (place / ("memory.max" if _version() == 2 else "memory.limit_in_bytes")).exists()
    finally:
        place.rmdir()


@cache
def _version() -> int:
    return 2 if (_MOUNT / "cgroup.controllers").exists() else 1


def _root() -> Path:
    return _MOUNT if _version() == 2 else _MOUNT / "memory"
