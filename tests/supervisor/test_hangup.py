"""A reload that is asked for by a signal, and a stop that comes while the files are read."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from waits import eventually

from ofborg_async.model.identity import Settings
from ofborg_async.supervisor.reload import Reloader


async def test_a_stop_while_the_files_are_read_ends_no_task_of_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    """What the task raises would cut off every job and end the daemon with an error instead of a stop."""
    caplog.set_level(logging.INFO)
    reading, go_on = threading.Event(), threading.Event()
    settings: Any = SimpleNamespace()

    def read() -> Settings:
        reading.set()
        go_on.wait(30)
        return settings  # type: ignore[no-any-return]

    daemon: Any = SimpleNamespace(hangup=anyio.Event(), stopping=anyio.Event())
    reloader = Reloader(daemon, read)
    async with anyio.create_task_group() as group:
        group.start_soon(reloader.on_hangups)
        daemon.hangup.set()
        await eventually("the files are read", reading.is_set)
        daemon.stopping.set()
        go_on.set()
        await eventually("it is said", lambda: "no reload: the daemon stops" in caplog.text)
        group.cancel_scope.cancel()
