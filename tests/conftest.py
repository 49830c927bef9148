"""Private real parts for every room's tests. What serves a whole run is started when first asked for, once a worker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import anyio
import pytest
from hypothesis import HealthCheck, settings

from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import free_port as find_free_port
from ofborg_async.lab.store import Store, create_store
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.process.table import ProcessInfo, read_proc

T = TypeVar("T")

# A run in the background of a script inherits SIGINT ignored, and would pass that on to commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine must not fail a property for its time, and continuous integration repeats the same examples each run.
settings.register_profile(
    "timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("timeless")

LEFT_SECONDS = 15.0
"""How long what was ended may take to vanish, before it counts as left behind."""


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process of this run outlives it: no descendant, and nobody who knows its temporary directory."""
    place = tmp_path_factory.getbasetemp()
    before = {info.pid for info in _of_this_run(place)}
    yield
    deadline = time.monotonic() + LEFT_SECONDS
    while left := [info for info in _of_this_run(place) if info.pid not in before]:
        if time.monotonic() > deadline:
            words = [f"{info.pid} {_read(info.pid, 'cmdline').decode(errors='replace')}" for info in left]
            for info in left:
                with suppress(ProcessLookupError):
                    os.kill(info.pid, signal.SIGKILL)
            pytest.fail("processes are left behind:\n" + "\n".join(words))
        time.sleep(0.1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One RabbitMQ node for the whole run. A test that ends or changes it takes one of its own."""
    directory = tmp_path_factory.mktemp("rabbitmq") / "node"
    node = Broker(directory)
    try:
        outside(node.start)
        yield node
    finally:
        node.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def vhost(broker: Broker) -> AsyncIterator[str]:
    """A virtual host of the test's own on the shared broker."""
    name = f"test-{uuid4()}"
    await broker.add_vhost(name)
    yield name
    await broker.delete_vhost(name)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One nix store for the whole run: what one test built another finds built."""
    made = outside(lambda: create_store(tmp_path_factory.mktemp("nix") / "store"))
    yield made
    made.remove()


@pytest.fixture
async def upstream(tmp_path: Path) -> Upstream:
    """A repository with the package set of the recordings."""
    return await create_upstream(tmp_path / "upstream.git")


@pytest.fixture
def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    return find_free_port()


def outside(function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function to its end on an event loop of its own, apart from the one that tests use."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, function).result()


def _of_this_run(place: Path) -> list[ProcessInfo]:
    """Descendants of this process, and processes that have ``place`` in their words, environment or directory."""
    if sys.platform != "linux":
        return []
    table = read_proc()
    family = {os.getpid()}
    while more := {info.pid for info in table.values() if info.ppid in family} - family:
        family |= more
    ancestors = {os.getpid()}  # they may have the place in their words: it was an option of theirs
    while more := {table[pid].ppid for pid in ancestors if pid in table} - ancestors:
        ancestors |= more
    return [
        info
        for info in table.values()
        if info.alive and info.pid not in ancestors and (info.pid in family or _knows(info.pid, place))
    ]


def _knows(pid: int, place: Path) -> bool:
    # Not another run's, whose directory has a name that only begins like ours.
    path = re.compile(re.escape(os.fsencode(place)) + rb"(?![\w.-])")
    if any(path.search(_read(pid, name)) for name in ("cmdline", "environ")):
        return True
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cwd").readlink().is_relative_to(place)
    return False


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:
        return b""
