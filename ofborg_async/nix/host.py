"""What this host itself knows of memory and disks that ran out: evidence that no package can write into a log."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

_COUNTERS = Path("/proc/vmstat")


@frozen
class HostEvidence:
    """What to look at: ``places`` are the directories that builds write to; below a floor they count as full."""

    places: tuple[Path, ...]
    floor_bytes: int
    floor_inodes: int

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for want of memory since the boot; 0 where it does not tell."""
        try:
            counters = _COUNTERS.read_bytes()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith(b"oom_kill ")), 0)

    def full_place(self) -> Path | None:
        """A place whose file system is below the floor of bytes or inodes now, or None."""
        return next((place for place in _existing(self.places) if self._is_full(place)), None)

    def _is_full(self, place: Path) -> bool:
        disk = os.statvfs(place)
        # A file system without a fixed number of inodes says 0 of 0.
        return disk.f_bavail * disk.f_frsize < self.floor_bytes or (
            disk.f_files > 0 and disk.f_favail < self.floor_inodes
        )


def _existing(places: Iterable[Path]) -> Iterable[Path]:
    for place in places:
        if place.is_dir():
            yield place
