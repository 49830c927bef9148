"""Every test of this room leaves no process behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest
from process_helpers import marked, until_sync

from ofborg_async.clock import SystemClock
from ofborg_async.process import Spawner
from ofborg_async.process.children import OWN


@pytest.fixture
def spawner() -> Spawner:
    return Spawner(SystemClock(), None)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    try:
        until_sync(lambda: not marked(), "processes are left")
    finally:
        for pid in marked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not OWN.running
