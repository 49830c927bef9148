"""A disk that can be filled or made read-only: a file system in memory that only a builder sees. Linux, root only."""

from __future__ import annotations

import errno
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
_HOLD = 'mount -t tmpfs -o "size=$0,nr_inodes=$2,mode=755" tmpfs "$1" && touch "$1/held" && exec sleep infinity'
_MAKE_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
_READY_SECONDS = 20.0
_PIECES_BYTES = (1 << 20, 1 << 12, 1)


@frozen
class SmallDisk:
    """``prefix``: the words before a program that is to see it at its place; ``view`` is how others see it."""

    prefix: tuple[str, ...]
    view: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.view / "filler").open("ab", buffering=0) as file:
            for piece_bytes in _PIECES_BYTES:
                try:
                    while True:
                        file.write(bytes(piece_bytes))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Give back what ``fill`` took."""
        (self.view / "filler").unlink(missing_ok=True)

    def use_up_inodes(self) -> None:
        """Leave no inode free."""
        fillers = self.view / "fillers"
        try:
            fillers.mkdir(exist_ok=True)
            for number in range(INODES + 1):
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
async def small_disk(place: Path, log: Path) -> AsyncIterator[SmallDisk]:
    """A SmallDisk of SIZE_BYTES at ``place``, an empty directory. Its mount is gone with the process that holds it."""
    if not namespaces_work():
        raise LabError("a small disk takes mount namespaces: Linux, root")
    words = ["unshare", "--mount", "--", "sh", "-c", _HOLD, str(SIZE_BYTES), str(place), str(INODES)]
    enter = shutil.which("nsenter", path=base_environment()["PATH"])
    if enter is None:
        raise LabError("nsenter is missing: it is part of util-linux")
    holder = Server("small disk", words, env=base_environment(), log=log)
    try:
        holder.start()
        view = Path("/proc") / str(holder.pid) / "root" / place.relative_to("/")
        await holder.ready(lambda: _exists(view / "held"), _READY_SECONDS)
        yield SmallDisk((enter, f"--mount=/proc/{holder.pid}/ns/mnt", "--"), view)
    finally:
        holder.kill()


async def _exists(path: Path) -> bool:
    return path.exists()
