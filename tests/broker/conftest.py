"""One broker for the tests of this folder, a virtual host for each, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from broker_place import Place, make_place

from ofborg_async.lab.rabbitmq import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests."""
    directory = tmp_path_factory.mktemp("rabbit") / "node"
    node = Broker(directory)
    try:
        anyio.run(node.start)
        yield node
    finally:
        node.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def place(broker: Broker) -> Place:
    """A vhost of this test's own."""
    return await make_place(broker)


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task outlives the test, and no exception goes to the event loop's handler unseen."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    yield
    before |= {task for task in (asyncio.current_task(),) if task is not None}
    with anyio.move_on_after(5):
        while asyncio.all_tasks() - before:
            await anyio.sleep(0.01)
    left = asyncio.all_tasks() - before
    gc.collect()  # a future whose exception nobody read complains when it is collected
    await anyio.sleep(0)
    assert not left, left
    assert not complaints, complaints
