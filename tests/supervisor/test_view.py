"""Which disk the snapshot tells of: the one nearest to its floor, whatever the others' places are like."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ofborg_async.model.identity import LimitSettings, NixSettings
from ofborg_async.supervisor.view import View

FREE = {"/state": 500, "/good": 300, "/store/nix/store": 900}


def view() -> View:
    daemon: Any = SimpleNamespace(settings=SimpleNamespace(daemon=SimpleNamespace(state_dir=Path("/state"))))
    return View(daemon)


def identity(root: str, floor_bytes: int) -> Any:
    nix = NixSettings(("x86_64-linux",), remote="/store", environment={"TMPDIR": "/not there"})
    limits = LimitSettings(disk_floor_bytes=floor_bytes)
    return SimpleNamespace(settings=SimpleNamespace(root=Path(root), nix=nix, limits=limits))


@pytest.fixture(autouse=True)
def _disks(monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_usage(place: Path) -> Any:
        if str(place) == "/denied":
            raise PermissionError(13, "Permission denied")
        if str(place) not in FREE:
            raise FileNotFoundError(2, "No such file or directory")
        return SimpleNamespace(free=FREE[str(place)])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def test_the_disk_nearest_to_its_floor() -> None:
    told = view()._tightest_disk([identity("/good", 100)])
    assert (told.place, told.free_bytes, told.floor_bytes) == ("/good", 300, 100)
    told = view()._tightest_disk([identity("/good", 100), identity("/new", 450)])
    assert (told.place, told.floor_bytes) == ("/state", 450)  # the other's root is not made yet


def test_a_root_that_cannot_be_asked_takes_nobodys_status_away() -> None:
    assert view()._tightest_disk([identity("/denied", 100), identity("/good", 100)]).place == "/good"
