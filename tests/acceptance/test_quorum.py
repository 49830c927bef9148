"""Quorum queues count how often a message returns, and drop it over their limit: no job may be lost to that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest
from gated import SYSTEM, gated
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.wiretap import job_queue

DEAD = "dead-letters"


@asynccontextmanager
async def quorum(farm: Farm, limit: int, *, drops: int = 0) -> AsyncIterator[None]:
    """The farm's job queue is a quorum queue with a delivery limit; what it ``drops`` is found in another."""
    connection = await aio_pika.connect(farm.broker.url(vhost=farm.vhost))
    async with connection:
        channel = await connection.channel()
        await channel.queue_delete(job_queue(SYSTEM))
        await channel.declare_queue(DEAD, durable=True)
        arguments: dict[str, str | int] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD,
        }
        await channel.declare_queue(job_queue(SYSTEM), durable=True, arguments=dict(arguments))
    yield
    assert (await farm.queues())[DEAD].messages == drops


@pytest.mark.timeout(240)
@pytest.mark.parametrize("limit", [1, 4])
async def test_a_job_that_a_sick_host_gives_back_is_answered_before_the_broker_drops_it(
    tmp_path: Path, broker: Broker, limit: int
) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, quorum(farm, limit):
        head = await farm.upstream.open_pr(1, {"doc/x": "x"})
        file = farm.configuration(
            {"name": "lab-a", "limits.delivery_limit": limit},
            limits__host_fault_retries=0,
            limits__max_attempts=100,
            limits__quarantine_after=100,
        )
        (tmp_path / "upstream.git").rename(tmp_path / "away.git")
        async with farm.daemon(file) as daemon:
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
            (result,) = await farm.tap.wait_for_results(1, deadline_seconds=120)
            await farm.until_settled()
            returns = max(1, limit - 1)
            assert result["status"] == {
                "UnexpectedError": {
                    "err": f"its message has returned to the queue {returns} times: limits.delivery_limit"
                }
            }
            assert daemon.log.read_text().count("goes back to its queue") == returns
            (tmp_path / "away.git").rename(tmp_path / "upstream.git")
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
            results = await farm.tap.wait_for_results(2, deadline_seconds=120)
            assert results[1]["status"] == "Success"
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_connections_that_are_lost_over_the_limit_neither_end_nor_double_a_build(tmp_path: Path) -> None:
    """The broker drops the message of a job that is in hand: it is built to its end, once, and answered."""
    limit = 2
    async with (
        private_broker(tmp_path / "node") as broker,
        gated(tmp_path, broker) as stage,
        quorum(stage.farm, limit, drops=1),
        stage.farm.daemon(stage.farm.configuration("lab-a", "lab-b", limits__delivery_limit=limit)) as daemon,
    ):
        await stage.start_job()
        returns = 0
        while not await has_dropped(stage.farm):
            returns += 1
            await broker.close_all_connections()
            await stage.farm.tap.connect()

            async def returned_or_dropped(times: int = returns) -> bool:
                return has_adopted(daemon, times) or await has_dropped(stage.farm)

            await eventually(f"return {returns}, or the broker drops it", returned_or_dropped)
        assert 1 < returns <= limit + 1
        stage.open()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


async def has_dropped(farm: Farm) -> bool:
    return (await farm.queues())[DEAD].messages == 1


def has_adopted(daemon: DaemonProcess, times: int) -> bool:
    return daemon.log.read_text().count("came back while it runs") == times
