"""A host that gives no thread: as it is when processes are used up, for a thread counts like one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ofborg_async.broker.dial import Dialer
from ofborg_async.checkout import MirrorMaintenance, MirrorStore
from ofborg_async.clock import SystemClock
from ofborg_async.errors import BrokerUnavailableError, FaultKind, HostFault
from ofborg_async.journal import LogStore
from ofborg_async.locks import LockManager
from ofborg_async.model.identity import BrokerSettings, LimitSettings, Secret
from ofborg_async.process import Spawner
from ofborg_async.waiting import in_thread


@pytest.fixture(autouse=True)
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        del self
        raise RuntimeError("can't start new thread")  # what CPython says

    monkeypatch.setattr(threading.Thread, "start", start)


async def test_it_is_a_fault_of_the_host() -> None:
    with pytest.raises(HostFault, match="no thread can be started") as raised:
        await in_thread(list)
    assert raised.value.kind is FaultKind.PROCESS


async def test_packing_mirrors_is_left_for_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it raised would end the daemon."""
    (tmp_path / ("a" * 64)).mkdir()
    clock = SystemClock()
    locks = LockManager(clock)
    mirrors = MirrorStore(tmp_path, locks=locks, clock=clock)
    await MirrorMaintenance(mirrors, spawner=Spawner(clock, None), locks=locks, clock=clock, environment={}).look(
        quiet=True
    )
    assert "no thread can be started" in caplog.text


async def test_clearing_logs_is_left_for_later(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="no thread can be started"):
        await LogStore(tmp_path, limits=LimitSettings()).prune(0, ())


async def test_a_log_ends_all_the_same(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limits=LimitSettings())
    writer = store.create("a")
    writer.write([b"one"])
    await writer.finish()
    assert writer.finished
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer._close()


async def test_a_connection_with_tls_is_tried_again() -> None:
    """What it raised would end the daemon."""
    settings = BrokerSettings(addresses=(("localhost", 1),), vhost="/", username="u", password=Secret("p"), ssl=True)
    with pytest.raises(BrokerUnavailableError, match="no thread can be started"):
        await Dialer(settings, {}).dial(consuming=True, on_blocked=lambda _: None)
