"""What the benchmarks ask of the broker beside the wiretap: quick questions, and an exchange for logs of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika  # noqa: TID251 - a peer of the builders, as the wiretap is
import anyio

from ofborg_async.lab.farm import Farm
from ofborg_async.lab.wiretap import job_queue
from ofborg_async.waiting import within

LOGS = "bench-logs"
"""An exchange and a queue: logs that go there are taken by the broker alone, so that no consumer uses the machine."""

_CALL_SECONDS = 30.0


class Peer:
    """A connection to a farm's virtual host. Made by ``peer``."""

    def __init__(self, farm: Farm, channel: aio_pika.abc.AbstractChannel) -> None:
        self._farm = farm
        self._channel = channel

    async def consumers(self) -> int:
        """How many consumers the queue of the farm's first system has."""
        with within(_CALL_SECONDS, "the number of consumers"):
            queue = await self._channel.declare_queue(job_queue(self._farm.systems[0]), passive=True)
        return queue.declaration_result.consumer_count or 0

    async def open_logs(self) -> None:
        """Make the exchange LOGS and a queue that keeps what comes there."""
        with within(_CALL_SECONDS, "the exchange for logs"):
            exchange = await self._channel.declare_exchange(LOGS, "topic", durable=True)
            queue = await self._channel.declare_queue(LOGS, durable=True)
            await queue.bind(exchange, "#")

    async def take_logs(self) -> int:
        """Throw away what came to LOGS; how many messages it was."""
        with within(_CALL_SECONDS, "emptying the queue of logs"):
            queue = await self._channel.get_queue(LOGS, ensure=False)
            return (await queue.purge()).message_count or 0


@asynccontextmanager
async def peer(farm: Farm) -> AsyncIterator[Peer]:
    """A connected Peer for the time of the block."""
    with within(_CALL_SECONDS, "the benchmarks' connection"):
        connection = await aio_pika.connect(farm.broker.url(vhost=farm.vhost))
        channel = await connection.channel()
    try:
        yield Peer(farm, channel)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()
