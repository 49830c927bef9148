"""A daemon whose journal is harmed, newer or an older copy: it exits, says what helps, and leaves the file alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ofborg_async.clock import SystemClock
from ofborg_async.journal import Journal
from ofborg_async.lab.farm import DaemonProcess, toml_file

LOST = "results in it that were not yet reported are lost then"


async def use(state: Path) -> None:
    """Open the journal as a daemon does, enter something, and close it."""
    journal = await Journal.open(state, clock=SystemClock())
    try:
        await journal.set_pause("lab-a", "for a while", None)
    finally:
        await journal.close()


async def damaged(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (database.stat().st_size - 4096))


async def truncated(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


async def emptied(database: Path) -> None:
    os.truncate(database, 0)


async def removed(database: Path) -> None:
    database.unlink()


async def newer(database: Path) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


async def restored(database: Path) -> None:
    backup = database.with_name("backup")
    shutil.copy2(database, backup)
    await use(database.parent)
    backup.rename(database)


@pytest.mark.parametrize(
    ("harm", "said", "remedy"),
    [
        (damaged, "it is damaged", LOST),
        (truncated, "it is ", LOST),
        (emptied, "it is empty, but journal.generation shows that there was a journal", LOST),
        (removed, "it is missing, but journal.generation shows that there was a journal", LOST),
        (newer, "it was written by a newer version of this program", "Install that version"),
        (restored, "it is an older copy", "journal.generation"),
    ],
    ids=["damaged", "truncated", "emptied", "removed", "newer", "restored"],
)
async def test_a_daemon_does_not_start_on_it(
    tmp_path: Path, harm: Callable[[Path], Awaitable[None]], said: str, remedy: str
) -> None:
    broker = {"rabbitmq.host": "127.0.0.1:1", "rabbitmq.ssl": False, "rabbitmq.username": "u", "rabbitmq.password": "p"}
    file = toml_file(
        tmp_path / "builders.toml",
        identities=[{"name": "lab-a", "checkout.root": str(tmp_path / "root")}],
        defaults={**broker, "nix.systems": ["x86_64-linux"], "feedback.full_logs": True},
    )
    daemon = DaemonProcess(tmp_path / "daemon", [file])
    database = daemon.state_dir / "journal.sqlite3"
    daemon.state_dir.mkdir()
    await use(daemon.state_dir)
    await harm(database)
    before = {path.name: path.read_bytes() for path in daemon.state_dir.glob("journal.*")}
    try:
        for _ in range(2):  # a service manager may try again
            daemon.launch()
            assert await daemon.wait() == 78
        words = daemon.log.read_text()
        assert words.count(f"ofborg-async: {database}: {said}") == 2
        assert remedy in words
        assert "Traceback" not in words
    finally:
        daemon.close()
    after = {path.name: path.read_bytes() for path in daemon.state_dir.glob("journal.*")}
    assert {name: after.get(name) for name in before} == before
