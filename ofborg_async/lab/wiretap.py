"""The daemon's peers on the broker: feeder, log collector and result poster in one, which writes everything down."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import anyio
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from attrs import frozen

from ofborg_async.lab.servers import LabError
from ofborg_async.waiting import at_most, within

LOGS, RESULTS, JOBS = "logs", "build-results", "build-jobs"

_CALL_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_PREFETCH = 1000


@frozen
class Message:
    """One message as it came. ``redelivered``: it may stand here twice, for the broker sent it again to us."""

    exchange: str
    routing_key: str
    content_type: str | None
    delivery_mode: int | None
    message_id: str | None
    body: bytes
    redelivered: bool

    @property
    def payload(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Wiretap:
    """Everything published to the exchanges, in the order of one queue that is bound to both of them.

    The queue is durable: what is published while the broker or this peer is away comes after ``connect``.
    """

    def __init__(self, url: str) -> None:
        self.messages: list[Message] = []
        self._url = url
        self._queue = f"wiretap-{uuid.uuid4()}"
        self._connection: AbstractConnection | None = None
        self._consuming: AbstractChannel | None = None
        self._publishing: AbstractChannel | None = None
        self._news = anyio.Event()

    async def connect(self) -> None:
        """Connect, declare what the original's peers declare, and listen. Again after the broker was away."""
        with within(_CALL_SECONDS, "the wiretap's connection"):
            await self._drop()
            self._connection = await aio_pika.connect(self._url)
            channel = self._consuming = await self._connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=_PREFETCH)
            queue = await channel.declare_queue(self._queue, durable=True)
            for exchange, kind, key in ((LOGS, "topic", "#"), (RESULTS, "fanout", "")):
                await channel.declare_exchange(exchange, kind, durable=True)
                await queue.bind(exchange, key)
            self._publishing = await self._connection.channel()
            await self._publishing.declare_exchange(JOBS, "fanout", durable=True)
            await queue.consume(self._take)

    async def declare_jobs(self, *systems: str) -> None:
        """The queues that builders of these systems take jobs from, bound to the jobs' exchange."""
        with within(_CALL_SECONDS, "the declaration of job queues"):
            for system in systems:
                queue = await self._channel.declare_queue(job_queue(system), durable=True)
                await queue.bind(JOBS, "")

    async def unbind(self, exchange: str) -> None:
        """Hear no more of an exchange, as when an administrator removes a binding; ``connect`` binds again."""
        with within(_CALL_SECONDS, "the end of a binding"):
            queue = await self._channel.get_queue(self._queue, ensure=False)
            await queue.unbind(exchange, "" if exchange == RESULTS else "#")

    async def listen_to(self, exchange: str) -> None:
        """Declare one more exchange, a fanout, and hear what is published to it from now on."""
        with within(_CALL_SECONDS, "the declaration of an exchange"):
            await self._channel.declare_exchange(exchange, "fanout", durable=True)
            queue = await self._channel.get_queue(self._queue, ensure=False)
            await queue.bind(exchange, "")

    async def publish_job(self, queue: str, job: Mapping[str, Any] | bytes) -> None:
        """Publish a job, or bytes that are none, to one queue, as the feeder does. Returns once the broker has it."""
        await self._publish(self._channel.default_exchange, queue, job)

    async def publish_to_all(self, job: Mapping[str, Any] | bytes) -> None:
        """Publish a job to the jobs' exchange: every system's queue gets it."""
        with within(_CALL_SECONDS, "the jobs' exchange"):
            exchange = await self._channel.get_exchange(JOBS, ensure=False)
        await self._publish(exchange, "", job)

    def on(self, exchange: str, routing_key: str | None = None) -> list[Message]:
        """What came so far through an exchange, in order; of one routing key only, when it is given."""
        return [m for m in self.messages if m.exchange == exchange and routing_key in (None, m.routing_key)]

    def results(self) -> list[dict[str, Any]]:
        """The build results that came so far, in order."""
        return [message.payload for message in self.on(RESULTS)]

    async def wait_for(
        self, predicate: Callable[[list[Message]], bool], *, deadline_seconds: float = 60.0, what: str = "messages"
    ) -> list[Message]:
        """Return all messages once ``predicate`` holds of them. Raises DeadlineExceededError."""
        with within(deadline_seconds, what):
            while not predicate(self.messages):
                self._news = anyio.Event()
                await self._news.wait()
        return self.messages

    async def wait_for_results(self, count: int, *, deadline_seconds: float = 60.0) -> list[dict[str, Any]]:
        """Return the results once there are ``count`` of them. Raises DeadlineExceededError."""
        await self.wait_for(
            lambda _: len(self.on(RESULTS)) >= count, deadline_seconds=deadline_seconds, what=f"{count} results"
        )
        return self.results()

    async def close(self) -> None:
        """Remove the queue and disconnect. A broker that is away is no error."""
        with anyio.CancelScope(shield=True), at_most(_CLOSE_SECONDS):
            with suppress(Exception):
                if self._consuming is not None:
                    await self._consuming.close()
                await self._channel.queue_delete(self._queue)
            await self._drop()

    @property
    def _channel(self) -> AbstractChannel:
        if self._publishing is None:
            raise LabError("the wiretap is not connected")
        return self._publishing

    async def _publish(self, exchange: aio_pika.abc.AbstractExchange, key: str, job: Mapping[str, Any] | bytes) -> None:
        body = job if isinstance(job, bytes) else json.dumps(job).encode()
        message = aio_pika.Message(body, content_type="application/json", delivery_mode=2)
        with within(_CALL_SECONDS, "the publication of a job"):
            await exchange.publish(message, key)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(
            Message(
                exchange=message.exchange or "",
                routing_key=message.routing_key or "",
                content_type=message.content_type,
                delivery_mode=message.delivery_mode,
                message_id=message.message_id,
                body=message.body,
                redelivered=bool(message.redelivered),
            )
        )
        self._news.set()
        await message.ack()

    async def _drop(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                await self._connection.close()
        self._connection = self._consuming = self._publishing = None


@asynccontextmanager
async def wiretap(url: str, *systems: str) -> AsyncIterator[Wiretap]:
    """A connected Wiretap for the time of the block, with job queues for ``systems``."""
    tap = Wiretap(url)
    try:
        await tap.connect()
        await tap.declare_jobs(*systems)
        yield tap
    finally:
        await tap.close()


def job_queue(system: str) -> str:
    """The queue from which builders of a system take jobs."""
    return f"build-inputs-{system}"
