"""Directories made, moved aside and removed, small files read and written, with the host's errors translated."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ofborg_async.errors import host_fault_of
from ofborg_async.waiting import in_thread

_log = logging.getLogger(__name__)

_TRASH = ".trash-"
_NEW = ".new-"


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an OSError into the HostFault (DISK, PERMISSION or OTHER) that names ``what`` and the path."""
    try:
        yield
    except OSError as error:
        raise host_fault_of(error, what) from error


def make_private(directory: Path) -> None:
    """Make a directory and its parents, for this user only. Raises HostFault."""
    with translated("a directory cannot be made"):
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)


def fresh_sibling(path: Path) -> Path:
    """A name beside ``path`` for something that is not finished; ``discard_leftovers`` removes what stays behind."""
    return path.parent / f".{path.name}{_NEW}{uuid.uuid4().hex}"


async def discard(path: Path) -> None:
    """Move what is at ``path`` aside, so that something else can be there, then remove it. Raises HostFault.

    What cannot be removed stays beside it, hidden; ``discard_leftovers`` tries again.
    """
    aside = path.parent / f".{path.name}{_TRASH}{uuid.uuid4().hex}"
    with translated("something broken cannot be moved aside"):
        try:
            path.rename(aside)  # noqa: ASYNC240 - within one directory, at once
        except FileNotFoundError:
            return
    await _remove_in_thread(aside)


async def discard_leftovers(path: Path) -> None:
    """Remove what interrupted work left beside ``path``. The caller has the lock of ``path``."""
    for found in _listed(path.parent):
        if found.name.startswith((f".{path.name}{_TRASH}", f".{path.name}{_NEW}")):
            await _remove_in_thread(found)


async def _remove_in_thread(path: Path) -> None:
    # It is nobody's any more, so a caller that is cancelled need not wait until it is gone.
    await in_thread(partial(remove, path), abandon_on_cancel=True)


def remove_stale_locks(git_directory: Path) -> None:
    """Remove lock files and half-written objects of git commands that were killed. The caller excludes live ones."""
    with translated("a stale lock file cannot be removed"):
        folders = [git_directory]
        for name in ("refs", "logs", "info", "objects/info"):
            folders += [Path(place) for place, _, _ in os.walk(git_directory / name)]
        for folder in folders:
            for path in _listed(folder):
                if path.name.endswith(".lock"):
                    remove(path)
    remove_half_objects(git_directory / "objects")


def remove_half_objects(objects: Path) -> None:
    """Remove temporary packs and objects: nothing prunes here, and each interrupted fetch leaves its size behind."""
    for folder in (objects, objects / "pack", *(path for path in _listed(objects) if len(path.name) == 2)):
        for path in _listed(folder):
            if path.name.startswith(("tmp_", "incoming-", ".tmp-")):
                remove(path)


def older_files(objects: Path, seconds: float) -> Iterator[Path]:
    """The loose objects last written, or asked to be written, before ``seconds`` of the file system's clock."""
    for folder in _listed(objects):
        if len(folder.name) == 2:
            for path in _listed(folder):
                if path.lstat().st_mtime < seconds:
                    yield path


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a small file whole, so that a reader sees the old or the new one. Raises HostFault."""
    with translated("a file cannot be written"):
        new = path.with_name(f"{path.name}.new")
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
        new.replace(path)


def read_lines(path: Path) -> list[str]:
    """The lines of a small file, none if there is no such file. Raises HostFault."""
    with translated("a file cannot be read"):
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return []
    return [line for line in text.split("\n") if line]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove(path: Path) -> None:
    """Remove a file or a whole directory, the read-only parts too; what resists is logged and left."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def make_writable(_function: object, name: str, _error: object) -> None:
        stuck = Path(name)
        try:
            stuck.parent.chmod(0o700)
            if stuck.is_dir() and not stuck.is_symlink():
                stuck.chmod(0o700)
                shutil.rmtree(stuck, ignore_errors=True)
            else:
                stuck.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", stuck, error.strerror)

    shutil.rmtree(path, onerror=make_writable)
