"""What this host itself knows of memory and disks that ran out: evidence that no package can write into a log."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from ofborg_async.model.identity import NixSettings

_WHOLE_HOST = Path("/proc/vmstat")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


@frozen
class HostEvidence:
    """What to look at: ``places`` are the directories that builds write to; below a floor they count as full.

    ``kills``: the file of the kernel that counts processes killed for want of memory (``counter_of_kills``).
    """

    places: tuple[Path, ...]
    floor_bytes: int
    floor_inodes: int
    kills: Path = _WHOLE_HOST

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for want of memory so far; 0 where it does not tell."""
        try:
            counters = self.kills.read_bytes()
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


def counter_of_kills(settings: NixSettings, *, own: Path = _OWN_GROUPS, groups: Path = _GROUPS) -> Path:
    """Where the kernel counts kills that may have hit builds: in our control group if they are certain to be in it.

    That is so for a store without a nix-daemon. Elsewhere, and without such a group, it is the count of the whole host,
    to which services that have nothing to do with ours add theirs. ``own`` and ``groups`` are cgroups(7)'s places.
    """
    if not settings.remote.startswith(("local", "/")):
        return _WHOLE_HOST
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return _WHOLE_HOST
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "memory":
            file = groups / "memory" / path.lstrip("/") / "memory.oom_control"
        elif not controllers:
            file = groups / path.lstrip("/") / "memory.events"
        else:
            continue
        if file.is_file():
            return file
    return _WHOLE_HOST


def _existing(places: Iterable[Path]) -> Iterable[Path]:
    for place in places:
        if place.is_dir():
            yield place
