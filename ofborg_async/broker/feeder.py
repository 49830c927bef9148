"""The other side of a builder, for ``submit``: publishes a job, and reads its log and results as their consumers do.

Exchanges are declared as the feeder, the log collector and the result poster of the original declare them: ``logs``
topic and ``build-results`` fanout, both durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aio_pika.exceptions  # noqa: TID251 - this is that room
from aio_pika.abc import AbstractChannel, AbstractQueue  # noqa: TID251 - this is that room

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.dial import Dialer, Dialled
from ofborg_async.broker.message import JsonMessage
from ofborg_async.broker.noise import quiet_library_logs
from ofborg_async.broker.refusals import Doing, Phase
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, UnroutableError
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.model.job import Address
from ofborg_async.waiting import within

_CLOSE_SECONDS = 5.0
_QUEUE_BYTES = 256 * 1024 * 1024
"""What the broker keeps for a reader that has fallen behind; the oldest goes first."""


class Feeder:
    """One connection for one submission. Made by ``open_feeder``; used by one task.

    Every method raises BrokerRefusedError, BrokerUnavailableError and DeadlineExceededError.
    """

    def __init__(self, dialled: Dialled, settings: BrokerSettings) -> None:
        self._dialled = dialled
        self._settings = settings
        self._queue: AbstractQueue | None = None

    async def listen(self, logs: Address, results: Address) -> None:
        """From now on keep what is published at these two addresses, for ``next_message``."""
        await self._ensure_exchange(logs.exchange, "topic")
        await self._ensure_exchange(results.exchange, "fanout")
        channel = await self._open_channel()
        queue = Doing(self._settings, Phase.DECLARE, "queue", "amq.gen-")
        with translated(queue), within(self._settings.call_timeout_seconds, "declaring a queue of its own"):
            self._queue = await channel.declare_queue(
                exclusive=True, auto_delete=True, arguments={"x-max-length-bytes": _QUEUE_BYTES}
            )
        for address in (logs, results):
            binding = Doing(self._settings, Phase.BIND, "exchange", address.exchange)
            with translated(binding), within(self._settings.call_timeout_seconds, f"binding to {address.exchange}"):
                await self._queue.bind(address.exchange, address.routing_key)

    async def next_message(self) -> bytes | None:
        """The oldest message that was kept and not read yet; None when there is none at this moment."""
        queue = self._queue
        if queue is None:
            raise BrokerUnavailableError("nothing is listened to")
        doing = Doing(self._settings, Phase.CONSUME, "queue", queue.name)
        with translated(doing), within(self._settings.call_timeout_seconds, f"reading from {queue.name}"):
            message = await queue.get(no_ack=True, fail=False, timeout=None)
        return None if message is None else message.body

    async def publish(self, system: str, body: bytes) -> None:
        """Publish a job for one system. Also raises UnroutableError: no builder has ever served that system there."""
        queue = f"build-inputs-{system}"
        doing = Doing(self._settings, Phase.PUBLISH, "exchange", "amq.default")
        channel = await self._open_channel(confirms=True)
        try:
            with translated(doing), within(self._settings.call_timeout_seconds, f"publishing to {queue}"):
                await _publish(channel, queue, body, system)
        finally:
            await close_quietly(channel.close, _CLOSE_SECONDS)

    async def _ensure_exchange(self, name: str, kind: str) -> None:
        """Declare passively, which needs no right, and actively only when it is not there."""
        doing = Doing(self._settings, Phase.DECLARE, "exchange", name)
        try:
            await self._once(doing, lambda channel: channel.declare_exchange(name, passive=True))
        except BrokerRefusedError as refusal:
            if not refusal.said.startswith("NOT_FOUND"):
                raise
            await self._once(doing, lambda channel: channel.declare_exchange(name, kind, durable=True))

    async def _once(self, doing: Doing, call: Callable[[AbstractChannel], Awaitable[object]]) -> None:
        """Make a call on a channel of its own: a refusal closes its channel."""
        channel = await self._open_channel()
        try:
            with translated(doing), within(self._settings.call_timeout_seconds, f"{doing.phase} on {doing.resource}"):
                await call(channel)
        finally:
            await close_quietly(channel.close, _CLOSE_SECONDS)

    async def _open_channel(self, *, confirms: bool = False) -> AbstractChannel:
        doing = Doing(self._settings, Phase.CONNECT, address=self._dialled.address)
        with translated(doing), within(self._settings.call_timeout_seconds, "opening a channel"):
            channel = self._dialled.connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
            await channel.initialize()
        return channel


@asynccontextmanager
async def open_feeder(settings: BrokerSettings, *, version: str) -> AsyncIterator[Feeder]:
    """Connect once, without trying again. Raises BrokerRefusedError, BrokerUnavailableError."""
    quiet_library_logs()
    dialled = await Dialer(settings, {"ofborg_version": version}).dial(consuming=True, on_blocked=lambda _: None)
    try:
        yield Feeder(dialled, settings)
    finally:
        await dialled.close()


async def _publish(channel: AbstractChannel, queue: str, body: bytes, system: str) -> None:
    try:
        await channel.default_exchange.publish(JsonMessage(body), queue, mandatory=True)
    except aio_pika.exceptions.PublishError as error:
        said = f"no builder of {system} has ever used this vhost"
        raise UnroutableError("", queue, said=said, permanent=False) from error
    except aio_pika.exceptions.DeliveryError as error:
        raise BrokerUnavailableError(f"the broker did not take the job for {queue} (nack)") from error
