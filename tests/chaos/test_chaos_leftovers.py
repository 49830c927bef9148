"""What the campaign sees of what is left behind, and what it does not blame."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waits import eventually

from ofborg_async.lab.chaos import leftovers
from ofborg_async.lab.chaos.builders import Ours, Theirs
from ofborg_async.lab.chaos.leftovers import held_files, locks_told, stale_locks
from ofborg_async.lab.chaos.repositoryfaults import identity_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository, as far as it is looked at, last used at second 1000."""
    git = tmp_path / "tree" / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "index").touch()
    used_at(git, 1000)
    return git


def used_at(git: Path, seconds: float) -> None:
    for path in git.iterdir():
        os.utime(path, (seconds, seconds))


def lock_of(git: Path, name: str, seconds: float) -> Path:
    lock = git / name
    lock.touch()
    os.utime(lock, (seconds, seconds))
    used_at(git / "refs", 1000)
    os.utime(git / "refs", (1000, 1000))
    return lock


@pytest.mark.parametrize("name", ["index.lock", "refs/heads/master.lock"])
def test_a_lock_that_a_later_git_passed_by_is_seen(place: Path, name: str) -> None:
    lock = lock_of(place, name, 990)
    assert stale_locks([place], {}, killed=True) == [lock]
    assert stale_locks([place], {}, killed=False) == [lock]


def test_a_lock_of_the_git_that_was_killed_last_is_seen_only_where_none_was(place: Path) -> None:
    lock = lock_of(place, "index.lock", 1000)
    assert stale_locks([place], {}, killed=True) == []
    assert stale_locks([place], {}, killed=False) == [lock]


def test_a_planted_lock_is_not_blamed_but_another_in_its_place_is(place: Path) -> None:
    lock = lock_of(place, "index.lock", 990)
    planted = {lock: identity_of(lock)}
    assert stale_locks([place], planted, killed=True) == []
    lock.unlink()
    lock_of(place, "index.lock", 991)
    assert stale_locks([place], planted, killed=True) == [lock]


@pytest.mark.parametrize("name", ["root/.ofborg-async.lock", "root/repo/0/clone.lock", "mirrors/0.lock"])
def test_a_held_file_is_seen_in_roots_and_beside_mirrors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    builder = Theirs((), (tmp_path / "root",), tmp_path / "mirrors")
    with path.open("w") as file:
        assert held_files(builder) == []
        fcntl.flock(file, fcntl.LOCK_EX)
        assert held_files(builder) == [path]
    assert held_files(builder) == []


async def test_a_daemon_that_does_not_answer_is_seen(tmp_path: Path) -> None:
    builder = Ours(tmp_path, tmp_path / "builders.toml", [tmp_path / "root"], tmp_path / "state", {})
    (told,) = await locks_told(builder)
    assert "no word of the locks that are held" in told


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("known_by", ["word", "environment", "neither"])
async def test_a_process_that_knows_a_builders_place_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_by: str
) -> None:
    monkeypatch.setattr(leftovers, "_VANISH_SECONDS", 0.3)
    store: Any = SimpleNamespace(directory=tmp_path / "store")
    ground: Any = SimpleNamespace(store=store, directory=tmp_path, stands=[None], nix_daemon=None, jobs={})
    place = {"word": tmp_path / "daemon-0" / "roots", "environment": store.directory}.get(known_by, tmp_path / "other")
    environment = {**os.environ, "PLACE": str(place)} if known_by == "environment" else dict(os.environ)
    child = subprocess.Popen(["sh", "-c", "read line", str(place)], stdin=subprocess.PIPE, env=environment)
    try:
        await eventually("it has begun", lambda: b"read line" in cmdline(child.pid))
        left = await leftovers._processes(ground)
        assert [f"process {child.pid}: " in text for text in left] == ([] if known_by == "neither" else [True])
    finally:
        child.communicate()
    assert await leftovers._processes(ground) == []


def cmdline(pid: int) -> bytes:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes()
