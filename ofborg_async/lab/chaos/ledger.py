"""A queue that gets all results and all logs and is read once, at the end: what the round is judged by.

Nothing is taken from it before, so that no lost acknowledgement of ours shows a message twice.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika  # noqa: TID251 - a peer of the daemon, as the wiretap is
import anyio
from aio_pika.abc import (  # noqa: TID251 - as above
    AbstractChannel,
    AbstractIncomingMessage,
)
from attrs import frozen

from ofborg_async.lab.wiretap import JOBS, LOGS, RESULTS, job_queue
from ofborg_async.waiting import within

QUEUE = "ledger"
_CALL_SECONDS = 30.0
_READ_SECONDS = 120.0


@frozen
class Entry:
    """One message of the ledger, in the order in which the broker took them."""

    exchange: str
    body: bytes

    @property
    def payload(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@asynccontextmanager
async def _channel(url: str) -> AsyncIterator[AbstractChannel]:
    with within(_CALL_SECONDS, "the ledger's connection"):
        connection = await aio_pika.connect(url)
    try:
        yield await connection.channel()
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()


async def open_ledger(url: str, *systems: str) -> None:
    """Declare the ledger, the exchanges it is bound to, and the job queues; again after something was deleted."""
    with within(_CALL_SECONDS, "the declaration of the ledger"):
        async with _channel(url) as channel:
            queue = await channel.declare_queue(QUEUE, durable=True)
            for exchange, kind, key in ((LOGS, "topic", "#"), (RESULTS, "fanout", "")):
                await channel.declare_exchange(exchange, kind, durable=True)
                await queue.bind(exchange, key)
            await channel.declare_exchange(JOBS, "fanout", durable=True)
            for system in systems:
                await (await channel.declare_queue(job_queue(system), durable=True)).bind(JOBS, "")


async def read_ledger(url: str) -> list[Entry]:
    """All entries. They are taken out."""
    entries: list[Entry] = []
    changed = anyio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        entries.append(Entry(message.exchange or "", message.body))
        changed.set()

    async with _channel(url) as channel:
        with within(_READ_SECONDS, "reading the ledger"):
            queue = await channel.declare_queue(QUEUE, passive=True)
            count = queue.declaration_result.message_count or 0
            await queue.consume(take, no_ack=True)
            while len(entries) < count:
                await changed.wait()
                changed = anyio.Event()
    return entries


async def publish(url: str, queue: str, body: bytes) -> None:
    """Put a job into a queue, as the feeder does. Returns once the broker has it on its disk."""
    message = aio_pika.Message(body, content_type="application/json", delivery_mode=2)
    async with _channel(url) as channel:
        with within(_CALL_SECONDS, "the publication of a job"):
            await channel.default_exchange.publish(message, queue)


async def delete_exchange(url: str, name: str) -> None:
    """Delete an exchange with its bindings."""
    with within(_CALL_SECONDS, "the deletion of an exchange"):
        async with _channel(url) as channel:
            await channel.exchange_delete(name)


async def unbind(url: str, queue: str, exchange: str) -> None:
    """Remove the binding without a key between a queue and an exchange."""
    with within(_CALL_SECONDS, "the removal of a binding"):
        async with _channel(url) as channel:
            await (await channel.get_queue(queue, ensure=False)).unbind(exchange, "")
