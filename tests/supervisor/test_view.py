"""Which disk the snapshot tells of, what the end of a pause does, and that a log nobody reads is closed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import LogStore
from ofborg_async.model.identity import LimitSettings, NixSettings
from ofborg_async.model.status import IdentityState
from ofborg_async.supervisor.lifecycle import MAY_CONSUME, Event, advance
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


class OneState:
    """An identity as far as pauses go."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(name="one")
        self.state = IdentityState.IDLE
        self.busy = False

    @property
    def may_consume(self) -> bool:
        return self.state in MAY_CONSUME

    def on(self, event: Event, reason: str = "") -> None:
        del reason
        self.state = advance(self.state, event)

    def restart(self) -> None:
        self.on(Event.RESTART)


class Pauses:
    """The journal, as far as pauses go, and a clock; the first ``faults`` calls to end one fail."""

    def __init__(self, faults: int = 0) -> None:
        self.statistics = SimpleNamespace(commits=-1)
        self.faults = faults
        self.cleared: list[str] = []
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def restarted(self, identity: str) -> None: ...

    async def set_pause(self, identity: str, reason: str, until: datetime | None) -> None: ...

    async def clear_pause(self, identity: str) -> bool:
        self.cleared.append(identity)
        if self.faults:
            self.faults -= 1
            raise HostFault(FaultKind.DISK, "full")
        return True


async def paused_for_a_minute(pauses: Pauses) -> tuple[View, OneState]:
    one = OneState()
    view = View(cast("Any", SimpleNamespace(identities={"one": one}, journal=pauses, clock=pauses)))
    await view.pause(("one",), "", pauses.now() + timedelta(seconds=60))
    assert one.state is IdentityState.PAUSED
    return view, one


async def test_a_pause_whose_end_cannot_be_written_ends_once_it_can() -> None:
    pauses = Pauses(faults=1)
    view, one = await paused_for_a_minute(pauses)
    pauses.seconds = 61
    with pytest.raises(HostFault):
        await view.refresh()
    await view.refresh()
    assert one.state is not IdentityState.PAUSED


async def test_what_is_restarted_is_not_paused_any_more() -> None:
    pauses = Pauses()
    view, one = await paused_for_a_minute(pauses)
    await view.restart("one")
    assert (one.state, pauses.cleared) == (IdentityState.STARTING, ["one"])


@pytest.mark.parametrize("event", [Event.STOP, Event.DRAIN])
async def test_the_end_of_a_pause_undoes_nothing_else(event: Event) -> None:
    """Drained since by the operator, or stopped with the daemon, which waits for a job in its grace."""
    pauses = Pauses()
    view, one = await paused_for_a_minute(pauses)
    one.on(event)
    pauses.seconds = 61
    await view.refresh()
    assert not one.may_consume


def open_logs(directory: Path) -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += link.readlink().parent == directory
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc")
async def test_a_log_that_is_asked_for_and_not_read_is_closed(tmp_path: Path) -> None:
    """A reader that has gone before the first line, or that asked with HEAD."""
    logs = LogStore(tmp_path, limits=LimitSettings())
    await logs.create("a1").finish()

    async def find_attempts(prefix: str, *, limit: int) -> tuple[str, ...]:
        return (prefix,)[:limit]

    journal = SimpleNamespace(find_attempts=find_attempts)
    view = View(cast("Any", SimpleNamespace(identities={}, logs=logs, journal=journal)))
    chunks = await view.read_log("a1", follow=False)
    await chunks.aclose()
    assert open_logs(tmp_path / "logs") == 0
