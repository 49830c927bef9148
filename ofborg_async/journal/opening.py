"""Opening the database file, or refusing it with a remedy: never silently made anew.

Checked: that it is there when the side file says so, that it is ours, of a version we know, as long as it says,
whole (the small tables always, all of it after an unclean end when it is not too large), and not an older copy.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault, JournalUnusableError
from ofborg_async.journal.generation import Generation, GenerationFile
from ofborg_async.journal.schema import check_ours, migrate

DATABASE = "journal.sqlite3"
GENERATION = "journal.generation"
BUSY_SECONDS = 5.0
_WHOLE_CHECK_BYTES = 64 * 1024 * 1024
_SMALLEST_BYTES = 512
_LIVE_TABLES = ("meta", "running", "job", "outbox", "hold")

FULL_DISK_CODES = frozenset(
    # ENOSPC is SQLITE_FULL; a quota gives IOERR_WRITE; the shared-memory file gives IOERR_SHMSIZE
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
)

FREE_SPACE = "free some space on the file system of the state directory"
_RESTORE = (
    "Restore it from a backup, or move it away together with journal.generation to start with an empty journal: "
    "results in it that were not yet reported are lost then"
)


@frozen
class Opened:
    """An open database, its generation and the side file that follows it."""

    connection: sqlite3.Connection
    generation: Generation
    generation_file: GenerationFile


def open_database(directory: Path) -> Opened:
    """Open, create or migrate the journal in ``directory``.

    Raises JournalUnusableError, HostFault (DISK: no room to open it; LOCK: another program uses it).
    """
    path = directory / DATABASE
    generation_file = GenerationFile(directory / GENERATION)
    try:
        _ensure_exists(path, generation_file)
        path.chmod(0o600)
        generation = _inspect(path, generation_file)
        connection = _connect(path, "rw")
        try:
            _configure(connection)
            _check_length(connection, path)
            migrate(connection)
            generation_file.start(generation)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise cannot_open(error, path) from error
    return Opened(connection, generation, generation_file)


def _ensure_exists(path: Path, generation_file: GenerationFile) -> None:
    size = _size(path)
    if size >= 0 and not path.is_file():
        raise JournalUnusableError(str(path), "it is not a file", remedy="Move it away")
    if 0 < size < _SMALLEST_BYTES:  # SQLite would take it for a new one
        raise JournalUnusableError(str(path), f"it is cut off: {size} bytes long", remedy=_RESTORE)
    if size > 0:
        return
    noted = generation_file.read()
    wal = path.with_name(path.name + "-wal")
    if noted is not None or _size(wal) > 0:
        state = "it is empty" if size == 0 else "it is missing"
        witness = GENERATION if noted is not None else wal.name
        raise JournalUnusableError(
            str(path),
            f"{state}, but {witness} shows that there was a journal",
            remedy=f"Put it back, or delete {GENERATION} and {wal.name} to start with an empty one: "
            "results in it that were not yet reported are lost then",
        )
    _create(path)


def _create(path: Path) -> None:
    # Under another name first: a crash leaves either no journal or a whole one. In its lasting mode too, for to change
    # that is a transaction of its own, which a crash would leave to be rolled back.
    fresh = path.with_name(path.name + ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = _connect(fresh, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it into the one file, or an error
    finally:
        connection.close()
    fresh.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Never mode=rwc: SQLite itself must not create an empty database where one went missing.
    uri = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _inspect(path: Path, generation_file: GenerationFile) -> Generation:
    """Look at a journal without changing it: what is refused is left as it was found, its WAL too."""
    unclean = _size(path.with_name(path.name + "-wal")) > 0
    # But a transaction that was cut off in the old mode can only be looked at once it is rolled back.
    cut_off = _size(path.with_name(path.name + "-journal")) > 0
    connection = _connect(path, "rw" if cut_off else "ro")
    try:
        check_ours(connection, str(path))
        whole = unclean and path.stat().st_size <= _WHOLE_CHECK_BYTES
        for check in ("",) if whole else tuple(f"('{table}')" for table in _LIVE_TABLES):
            (verdict,) = connection.execute(f"PRAGMA quick_check{check}").fetchone()
            if verdict != "ok":
                raise JournalUnusableError(str(path), f"it is damaged ({verdict})", remedy=_RESTORE)
        generation = Generation(*connection.execute("SELECT lineage, commits FROM meta").fetchone())
    finally:
        connection.close()
    generation_file.check(generation, path)
    return generation


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # the writer relaxes it for the few commits that a power cut may take back
        "fullfsync = 1",  # macOS: fsync alone does not reach the platter; elsewhere ignored
        "checkpoint_fullfsync = 1",
        "foreign_keys = 1",
        "trusted_schema = 0",
        "journal_size_limit = 4194304",
        "cache_size = -1024",  # KiB: rows are small and read once
    ):
        connection.execute(f"PRAGMA {pragma}")


def _check_length(connection: sqlite3.Connection, path: Path) -> None:
    # After a checkpoint everything is in the main file, so its length must be what its header says.
    # (When another program reads it just now, a part may stay in the WAL; it is not waited for.)
    (_, in_wal, moved) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    size = path.stat().st_size
    if in_wal == moved and size < pages * page_bytes:
        detail = f"it is cut off: {size} bytes long instead of {pages * page_bytes}"
        raise JournalUnusableError(str(path), detail, remedy=_RESTORE)


def cannot_open(error: sqlite3.Error | OSError, path: Path) -> HostFault | JournalUnusableError:
    """Say why a file of the state directory cannot be used, and what helps."""
    owner = f"Give {path.parent} and what is in it to the user that runs the daemon, on a writable file system"
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return HostFault(FaultKind.DISK, f"{path}: {error.strerror}", remedy=FREE_SPACE)
        return JournalUnusableError(str(path), f"it cannot be opened: {error.strerror}", remedy=owner)
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code in FULL_DISK_CODES:
        return HostFault(FaultKind.DISK, f"{path}: {error}", remedy=FREE_SPACE)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY:
            return HostFault(FaultKind.LOCK, f"{path} is in use by another program", remedy="end that program")
        case sqlite3.SQLITE_CANTOPEN if _is_full(path.parent):  # of inodes, mostly: it passes, unlike a lost file
            return HostFault(FaultKind.DISK, f"{path}: no file can be made beside it", remedy=FREE_SPACE)
        case sqlite3.SQLITE_NOTADB:
            detail, remedy = "it is not an SQLite database", _RESTORE
        case sqlite3.SQLITE_CORRUPT:
            detail, remedy = f"it is damaged ({error})", _RESTORE
        case _:
            detail, remedy = f"it cannot be opened ({error})", owner
    return JournalUnusableError(str(path), detail, remedy=remedy)


def _is_full(directory: Path) -> bool:
    found = os.statvfs(directory)
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def _size(path: Path) -> int:
    """The size of a file, -1 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
