"""What the campaign sees of what is left behind, and what it does not blame."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

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
