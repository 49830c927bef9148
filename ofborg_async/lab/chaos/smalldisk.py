"""Disks that can be filled or made read-only: file systems in memory that only a builder sees. Linux, root only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.servers import LabError, Server, base_environment

SIZE_BYTES = 64 * 1024 * 1024
INODES = 4000
_HOLD = """
set -e
for each in "$@"; do mount -t tmpfs -o "$0" tmpfs "$each"; done
for each in "$@"; do touch "$each/held"; done
exec sleep infinity
"""
# What opens a file for writing between the two keeps the second from its effect.
_MAKE_READ_ONLY = """
for _ in 1 2 3 4 5 6 7 8 9; do
  mount --bind "$0" "$0"
  mount -o remount,bind,ro "$0" && exit
  umount --lazy "$0"
done
exit 1
"""
_READY_SECONDS = 20.0
_PIECES_BYTES = (1 << 20, 1 << 12, 1)


@frozen
class SmallDisk:
    """``prefix``: the words before a program that is to see it at ``place``; ``view`` is how others see it."""

    prefix: tuple[str, ...]
    place: Path
    view: Path

    def fill(self) -> None:
        """Leave no byte free."""
        for piece_bytes in _PIECES_BYTES:
            try:
                with (self.view / "filler").open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(piece_bytes))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def fill_to(self, left_bytes: int) -> None:
        """Leave about so many bytes free."""
        found = os.statvfs(self.view)
        (self.view / "filler").write_bytes(bytes(found.f_bavail * found.f_frsize - left_bytes))

    def empty(self) -> None:
        """Give back what ``fill`` or ``fill_to`` took."""
        (self.view / "filler").unlink(missing_ok=True)

    def use_up_inodes(self, left: int = 0) -> None:
        """Leave no inode free, or about so many."""
        fillers = self.view / "fillers"
        try:
            fillers.mkdir(exist_ok=True)
            for number in range(os.statvfs(self.view).f_favail - left if left else INODES + 1):
                (fillers / str(number)).touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def give_back_inodes(self) -> None:
        """Give back what ``use_up_inodes`` took."""
        shutil.rmtree(self.view / "fillers", ignore_errors=True)

    async def set_read_only(self, path: Path, *, on: bool) -> None:
        """Let nothing be written below a directory, or again; what is open for writing stays so. Raises LabError.

        ``path`` is as the builder sees it.
        """
        words = ("sh", "-c", _MAKE_READ_ONLY) if on else ("umount", "--lazy")
        await run(*self.prefix, *words, str(path), env=base_environment())


@asynccontextmanager
async def small_disks(log: Path, *places: Path) -> AsyncIterator[tuple[SmallDisk, ...]]:
    """A SmallDisk of SIZE_BYTES at each of ``places``, empty directories, and one prefix for all of them.

    The mounts are gone with the process that holds them.
    """
    if not namespaces_work():
        raise LabError("small disks take mount namespaces: Linux, root")
    options = f"size={SIZE_BYTES},nr_inodes={INODES},mode=755"
    words = ["unshare", "--mount", "--", "sh", "-c", _HOLD, options, *map(str, places)]
    enter = shutil.which("nsenter", path=base_environment()["PATH"])
    if enter is None:
        raise LabError("nsenter is missing: it is part of util-linux")
    holder = Server("small disks", words, env=base_environment(), log=log)
    try:
        holder.start()
        views = [Path("/proc") / str(holder.pid) / "root" / place.relative_to("/") for place in places]
        await holder.ready(lambda: _exists(views[-1] / "held"), _READY_SECONDS)
        prefix = (enter, f"--mount=/proc/{holder.pid}/ns/mnt", "--")
        yield tuple(SmallDisk(prefix, place, view) for place, view in zip(places, views, strict=True))
    finally:
        holder.kill()


async def _exists(path: Path) -> bool:
    return path.exists()
