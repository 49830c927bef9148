"""The file itself: made, migrated, or refused with a remedy, and never silently made anew."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from journal_helpers import FakeClock, copy_as_killed, finish, make_attempt, opened

from ofborg_async.errors import FaultKind, HostFault, JournalUnusableError
from ofborg_async.journal import Journal, opening, schema

if TYPE_CHECKING:
    from collections.abc import Callable


async def refused(directory: Path) -> JournalUnusableError:
    """Open it twice: refused both times, and nothing was changed by the first."""
    before = {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}
    for _ in range(2):
        with pytest.raises(JournalUnusableError) as error:
            await Journal.open(directory, clock=FakeClock(), reserve_bytes=1 << 16)
        assert error.value.remedy
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {name: after.get(name) for name in before if name != "processes.log"} == {
        name: content for name, content in before.items() if name != "processes.log"
    }
    return error.value


async def filled(directory: Path, attempts: int = 20) -> Path:
    """A journal that was closed with a result in its outbox."""
    async with opened(directory) as journal:
        for number in range(attempts):
            await journal.begin(make_attempt(f"a{number}", request_id=str(number)))
            await finish(journal, f"a{number}")
    return directory


async def test_a_death_while_the_journal_is_made_leaves_one_that_opens(tmp_path: Path) -> None:
    """Killed after any of the statements that make it, in a process of its own; the next start makes or takes it."""
    for statement in range(1, 60):
        directory = tmp_path / str(statement)
        done = await anyio.run_process(
            [sys.executable, "-c", DIES_WHILE_IT_IS_MADE, directory, str(statement)], check=False
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        async with opened(directory) as journal:
            assert await journal.history() == ()
        if done.returncode == 0:
            return
    raise AssertionError("more statements than expected")


DIES_WHILE_IT_IS_MADE = """
import os, signal, sys, sqlite3
from pathlib import Path
from ofborg_async.journal import opening

left = int(sys.argv[2])
connect = opening._connect

class Dying(sqlite3.Connection):
    def execute(self, *words):
        global left
        left -= 1
        done = super().execute(*words)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

def dying(path, mode):
    return sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None, factory=Dying)

opening._connect = dying
Path(sys.argv[1]).mkdir()
opening.open_database(Path(sys.argv[1])).connection.close()
"""


async def test_it_is_in_its_lasting_mode_from_its_first_moment(tmp_path: Path) -> None:
    """To change the mode is a transaction: a death in the middle of it would have to be rolled back."""
    opening._create(tmp_path / "journal.sqlite3")
    assert (tmp_path / "journal.sqlite3").read_bytes()[18:20] == b"\2\2"  # https://www.sqlite.org/fileformat.html
    assert [path.name for path in tmp_path.iterdir()] == ["journal.sqlite3"]


async def test_a_transaction_that_was_cut_off_in_the_old_mode_is_rolled_back(tmp_path: Path) -> None:
    await filled(tmp_path / "state")
    database = sqlite3.connect(tmp_path / "state" / "journal.sqlite3", isolation_level=None)
    for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 1", "BEGIN IMMEDIATE"):
        database.execute(statement)
    database.execute("UPDATE attempt SET reason = zeroblob(5000)")
    killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    database.close()
    assert (killed / "journal.sqlite3-journal").stat().st_size > 0
    async with opened(killed) as journal:
        assert len(await journal.history()) == 20
        assert {entry.reason for entry in await journal.history()} == {""}


async def test_files_are_private_and_complete(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with opened(tmp_path / "new" / "state") as journal:
            await journal.begin(make_attempt())
            directory = tmp_path / "new" / "state"
            modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
            assert modes == dict.fromkeys(
                (
                    "journal.sqlite3",
                    "journal.sqlite3-wal",
                    "journal.sqlite3-shm",
                    "journal.generation",
                    "journal.reserve",
                    "processes.log",
                ),
                0o600,
            )
            assert directory.stat().st_mode & 0o777 == 0o700
            assert (directory / "journal.reserve").stat().st_size == 1 << 16
    finally:
        os.umask(old)


async def test_settings_of_the_connection(tmp_path: Path) -> None:
    def read(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "fullfsync", "busy_timeout", "user_version")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    async with opened(tmp_path) as journal:
        settings = await journal._writer.read(read)
    assert settings == ["wal", 2, 1, 1, 5000, len(schema.MIGRATIONS)]


async def test_an_older_schema_is_brought_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    added = "ALTER TABLE attempt ADD COLUMN note TEXT NOT NULL DEFAULT 'none';"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    async with opened(tmp_path) as journal:
        found = await journal._writer.read(lambda db: db.execute("SELECT DISTINCT note FROM attempt").fetchall())
        assert found == [("none",)]
        assert len(await journal.outbox()) == 20


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    with monkeypatch.context() as patch:
        broken = "ALTER TABLE attempt ADD COLUMN note TEXT; INSERT INTO no_such_table VALUES (1);"
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(JournalUnusableError, match="no_such_table"):
            await Journal.open(tmp_path, clock=FakeClock())
    async with opened(tmp_path) as journal:
        assert len(await journal.outbox()) == 20


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    with sqlite3.connect(tmp_path / "journal.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    error = await refused(tmp_path)
    assert "newer version" in error.detail
    assert "Install that version" in error.remedy


@pytest.mark.parametrize("application_id", [0, 0x12345678])
async def test_a_database_of_another_program_is_refused(tmp_path: Path, application_id: int) -> None:
    with sqlite3.connect(tmp_path / "journal.sqlite3") as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute(f"PRAGMA application_id = {application_id}")
    connection.close()
    assert "another program" in (await refused(tmp_path)).detail


def not_a_database(path: Path) -> None:
    path.write_bytes(b"{}" * 5000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_by_one_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def header_only(path: Path) -> None:
    os.truncate(path, 50)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (not_a_database, "not an SQLite database"),
        (empty, "it is empty, but journal.generation shows"),
        (missing, "it is missing, but journal.generation shows"),
        (cut_off, "cut off|damaged"),
        (cut_by_one_page, "cut off|damaged"),
        (header_only, "it is cut off: 50 bytes"),
        (overwritten, "damaged"),
        (a_folder, "not a file"),
    ],
)
async def test_a_damaged_journal_is_refused(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    path = await filled(tmp_path) / "journal.sqlite3"
    harm(path)
    if harm is a_folder:
        with pytest.raises(JournalUnusableError, match=said):
            await Journal.open(tmp_path, clock=FakeClock())
        return
    error = await refused(tmp_path)
    with pytest.raises(JournalUnusableError, match=said):
        raise error


async def test_a_wal_without_its_database_is_not_given_to_a_new_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as journal:
        await journal.begin(make_attempt())
        killed = copy_as_killed(tmp_path / "state", tmp_path / "killed")
    for name in ("journal.sqlite3", "journal.generation"):
        (killed / name).unlink()
    assert "journal.sqlite3-wal shows" in (await refused(killed)).detail


async def test_a_damaged_small_table_of_a_large_journal_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the small tables are checked after a clean end, or in a large file."""
    await filled(tmp_path)
    path = tmp_path / "journal.sqlite3"
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    monkeypatch.setattr(opening, "_WHOLE_CHECK_BYTES", 0)
    assert "damaged" in (await refused(tmp_path)).detail


async def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    """Damage that SQLite reads without complaint: two cells of a leaf of the outbox are exchanged."""
    await filled(tmp_path, attempts=3)
    path = tmp_path / "journal.sqlite3"
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        leaf = bytearray(file.read(4096))
        assert leaf[0] == 13  # a leaf of a table; the cells' offsets begin at 8
        leaf[8:10], leaf[10:12] = leaf[10:12], leaf[8:10]
        file.seek((page - 1) * 4096)
        file.write(leaf)
    assert "out of order" in (await refused(tmp_path)).detail


async def test_a_large_journal_that_lost_its_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history fills the end of the file, which the check of the small tables does not see."""
    await filled(tmp_path)
    connection = sqlite3.connect(tmp_path / "journal.sqlite3")
    with connection:
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
            "INSERT INTO attempt (attempt_id, identity, system, request_id, repo, pr, head_sha, attrs, started_at_ms) "
            "SELECT 'b' || i, 'a', 'x', 'r', 'n', 1, 'f', '[]', 0 FROM n"
        )
    connection.close()
    monkeypatch.setattr(opening, "_WHOLE_CHECK_BYTES", 0)
    path = tmp_path / "journal.sqlite3"
    os.truncate(path, path.stat().st_size - 100)  # SQLite itself sees only whole pages missing
    assert "cut off" in (await refused(tmp_path)).detail


async def test_an_older_copy_is_refused(tmp_path: Path) -> None:
    directory = await filled(tmp_path / "state", attempts=1)
    shutil.copy2(directory / "journal.sqlite3", tmp_path / "backup")
    async with opened(directory) as journal:
        await journal.confirm_and_mark("a0")
    shutil.copy2(tmp_path / "backup", directory / "journal.sqlite3")
    error = await refused(directory)
    assert "older copy" in error.detail
    (directory / "journal.generation").unlink()  # the remedy: the operator says that it is the right one
    async with opened(directory) as journal:
        assert len(await journal.outbox()) == 1


async def test_an_older_copy_is_refused_after_a_kill_too(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    async with opened(directory) as journal:
        await journal.begin(make_attempt("a"))
        backup = copy_as_killed(directory, tmp_path / "backup")
        await finish(journal, "a")
        killed = copy_as_killed(directory, tmp_path / "killed")
    for name in ("journal.sqlite3", "journal.sqlite3-wal"):
        shutil.copy2(backup / name, killed / name)
    assert "older copy" in (await refused(killed)).detail


async def test_the_journal_of_another_daemon_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path / "a")
    await filled(tmp_path / "b", attempts=40)
    shutil.copy2(tmp_path / "b" / "journal.sqlite3", tmp_path / "a" / "journal.sqlite3")
    assert "not the journal that journal.generation tells of" in (await refused(tmp_path / "a")).detail


async def test_a_side_file_that_is_behind_is_no_reason(tmp_path: Path) -> None:
    """After a power cut the side file may be older than the database, which was synced."""
    directory = await filled(tmp_path / "state", attempts=1)
    behind = (directory / "journal.generation").read_bytes()
    async with opened(directory) as journal:
        await journal.begin(make_attempt())
    (directory / "journal.generation").write_bytes(behind)
    async with opened(directory) as journal:
        assert len(await journal.interrupted()) == 1


async def test_a_damaged_side_file_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "journal.generation").write_bytes(b"\0" * 54)
    error = await refused(tmp_path)
    assert error.path.endswith("journal.generation")


async def test_a_crash_while_the_journal_was_made_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite3.new").write_bytes(b"half")
    (tmp_path / "journal.sqlite3.new-journal").write_bytes(b"half")
    (tmp_path / "journal.generation.new").write_bytes(b"half")
    async with opened(tmp_path) as journal:
        await journal.begin(make_attempt())
    assert not list(tmp_path.glob("*.new*"))
    (tmp_path / "journal.generation").unlink()  # a crash before it was written
    async with opened(tmp_path) as journal:
        assert len(await journal.interrupted()) == 1


async def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(JournalUnusableError) as error:
        await Journal.open(tmp_path / "state", clock=FakeClock())
    assert "writable file system" in error.value.remedy


OPENS_IT = """
import sys
from pathlib import Path

import anyio

from ofborg_async.clock import SystemClock
from ofborg_async.errors import JournalUnusableError
from ofborg_async.journal import Journal


async def main():
    try:
        await Journal.open(Path(sys.argv[1]), clock=SystemClock())
    except JournalUnusableError as error:
        print(error.path, error.detail, error.remedy, sep="\\n")


anyio.run(main)
"""
ROOT = os.geteuid() == 0
ONE_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--")
"""Before a program of root's: owners and permissions of files count for it all the same."""


def only_mine_unreadable(directory: Path) -> Path:
    """The journal itself its owner makes readable again; this one it does not."""
    (directory / "journal.generation").chmod(0)
    return directory / "journal.generation"


def of_another_user(directory: Path) -> Path:
    path = directory / "journal.sqlite3"
    os.chown(path, 12345, 12345)
    return path


@pytest.mark.skipif(ROOT and shutil.which("setpriv") is None, reason="root may read everything")
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (only_mine_unreadable, "cannot be read"),
        pytest.param(
            of_another_user,
            "cannot be opened",
            marks=pytest.mark.skipif(not ROOT, reason="root alone gives files away"),
        ),
    ],
)
async def test_an_unreadable_journal_is_refused(tmp_path: Path, harm: Callable[[Path], Path], said: str) -> None:
    path = harm(await filled(tmp_path))
    argv = [*(ONE_USER if ROOT else ()), sys.executable, "-c", OPENS_IT, str(tmp_path)]
    named, detail, remedy = (await anyio.run_process(argv)).stdout.decode().splitlines()
    assert named == str(path)
    assert said in detail
    assert remedy


async def test_a_journal_that_another_program_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.1)
    other = sqlite3.connect(tmp_path / "journal.sqlite3")
    try:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HostFault) as error:
            await Journal.open(tmp_path, clock=FakeClock())
        assert error.value.kind is FaultKind.LOCK
    finally:
        other.close()


async def test_another_program_may_read_it_meanwhile(tmp_path: Path) -> None:
    await filled(tmp_path)
    other = sqlite3.connect(tmp_path / "journal.sqlite3", isolation_level=None)
    try:
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM attempt").fetchone() == (20,)
        async with opened(tmp_path) as journal:
            await journal.begin(make_attempt())
            await journal.begin(make_attempt(request_id="another"))
        async with opened(tmp_path) as journal:
            assert len(await journal.interrupted()) == 2
    finally:
        other.close()
