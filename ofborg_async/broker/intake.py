"""Takes jobs from one queue for one system of one identity: at most one unacknowledged message at a time.

A consumer callback runs in tasks of the library that end when the channel dies, so the callback here only puts the
message where ``Intake.next`` finds it. ``message.process()`` of aio-pika is not used: on cancellation it rejects
without requeue, which deletes the job.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage  # noqa: TID251 - this is that room
from aiormq.abc import AbstractChannel as UnderlayChannel  # noqa: TID251 - aio-pika does not tell of a consumer's end
from attrs import frozen

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.kept import KeptConnection
from ofborg_async.broker.refusals import Doing, Phase, translate
from ofborg_async.broker.topology import Topology
from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DeadlineExceededError,
    DeliveryLostError,
)
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.waiting import idle, within

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_COUNT_HEADER = "x-delivery-count"  # quorum queues: requeued, or its channel or connection was lost


@frozen
class Subscription:
    """What to consume: the queue of one system for one identity, under the exact consumer tag of the wire document.

    With ``build_all_jobs`` the queue is the broker's to name, and ``queue`` is not used.
    """

    system: str
    queue: str
    consumer_tag: str
    build_all_jobs: bool
    identity: str


class IncomingDelivery:
    """One message, not yet acknowledged: ``pipeline.ports.Delivery``. It keeps its channel until it is settled."""

    def __init__(self, consumer: _Consumer, message: AbstractIncomingMessage) -> None:
        self._consumer = consumer
        self._message = message
        self._settled = False
        self._lost_event = anyio.Event()
        self._lost_reason = ""
        self.queue = consumer.queue
        self.body = message.body
        self.redelivered = bool(message.redelivered)
        count = message.headers.get(_COUNT_HEADER)
        self.returns = count if isinstance(count, int) else 0

    @property
    def lost(self) -> bool:
        """True once its channel is gone, or what became of it is unknown."""
        return self._lost_event.is_set()

    async def wait_lost(self) -> str:
        """Wait until it is lost; why, in words. Does not return for a delivery that is settled."""
        with idle("the delivery to be lost"):
            await self._lost_event.wait()
        return self._lost_reason

    async def ack(self) -> None:
        """Acknowledge; returns when the broker answered a call behind it. Raises DeliveryLostError."""
        await self._settle(Step.DELIVERY_ACK, self._message.ack, "acknowledging a job")

    async def reject(self) -> None:
        """Drop it without requeue. Raises DeliveryLostError."""
        await self._settle(Step.DELIVERY_REJECT, lambda: self._message.reject(requeue=False), "rejecting a job")

    async def requeue(self) -> None:
        """Give it back to the queue. Does nothing when it is lost: the broker gives it back itself."""
        if self.lost:
            return
        try:
            await self._settle(Step.DELIVERY_REQUEUE, lambda: self._message.nack(requeue=True), "requeueing a job")
        except DeliveryLostError as error:
            logger.info("%s", error)

    async def _settle(self, step: Step, write: Callable[[], Awaitable[None]], what: str) -> None:
        """Write a frame and wait for the answer to a cheap call behind it, which the broker takes in order."""
        if self.lost:
            raise DeliveryLostError(f"{what}: {self._lost_reason}")
        if self._settled:
            raise RuntimeError(f"{what}: this delivery is settled already")
        self._settled = True
        consumer = self._consumer
        answered = False
        try:
            with translated(consumer.doing(Phase.SETTLE)), within(consumer.call_timeout_seconds, what):
                with around(step):
                    await write()
                with around(Step.DELIVERY_PROCESSED):
                    await consumer.channel.set_qos(prefetch_count=1)
            answered = True
        except (BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError) as error:
            self.mark_lost(str(error))
            raise DeliveryLostError(f"{what}: {error}") from error
        finally:
            if not answered:
                self.mark_lost(f"{what} was cut short")
            await consumer.release(self)

    def mark_lost(self, reason: str) -> None:
        """Called by its consumer when the channel is gone."""
        if not self.lost:
            self._lost_reason = reason
            self._lost_event.set()


class _Consumer:
    """One channel with one consumer on it, and the deliveries that came through it.

    ``wanted`` False: messages that still come go back at once. ``parked``: nobody consumes here any more, and the
    channel goes with its last delivery.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        underlay: UnderlayChannel,
        queue: str,
        consumer_tag: str,
        settings: BrokerSettings,
        on_change: Callable[[], None],
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.call_timeout_seconds = settings.call_timeout_seconds
        self.inbox: deque[IncomingDelivery] = deque()
        self.wanted = False
        self.parked = False
        self.failure: str | None = None
        self._consumer_tag = consumer_tag
        self._settings = settings
        self._on_change = on_change
        self._unsettled: set[IncomingDelivery] = set()
        channel.close_callbacks.add(
            lambda _, reason: self.fail(str(translate(reason or Exception(), self.doing(Phase.CONSUME))))
        )
        underlay.on_consumer_cancel_callbacks.add(
            lambda _: self.fail(f"the broker ended the consumer of queue {queue!r}: the queue was deleted or moved")
        )

    def doing(self, phase: Phase) -> Doing:
        """What is being done with the queue, for translations."""
        return Doing(self._settings, phase, "queue", self.queue)

    async def consume(self) -> None:
        """Start to consume. Raises BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError."""
        self.wanted = True
        doing = self.doing(Phase.CONSUME)
        with translated(doing), within(self.call_timeout_seconds, f"consuming {doing.resource}"):
            await self.channel.set_qos(prefetch_count=1)
            queue = await self.channel.get_queue(self.queue, ensure=False)
            await queue.consume(self._on_message, consumer_tag=self._consumer_tag)

    async def cancel(self) -> None:
        """Stop to consume; what nobody took yet goes back. Raises nothing: a consumer that is gone consumes nothing."""
        self.wanted = False
        if self.failure is None:
            try:
                with translated(self.doing(Phase.CONSUME)), within(self.call_timeout_seconds, "ending a consumer"):
                    queue = await self.channel.get_queue(self.queue, ensure=False)
                    await queue.cancel(self._consumer_tag)
            except (BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError) as error:
                self.fail(str(error))
        while self.inbox:
            await self.inbox.popleft().requeue()

    async def release(self, delivery: IncomingDelivery) -> None:
        """A delivery is settled, or lost."""
        self._unsettled.discard(delivery)
        if self.parked and not self._unsettled:
            await self.close()

    async def park(self) -> None:
        """Leave the channel to the deliveries that are not settled."""
        await self.cancel()
        self.parked = True
        if not self._unsettled:
            await self.close()

    async def close(self) -> None:
        """Close the channel: the broker gives back what is not acknowledged."""
        self.wanted = False
        self.fail("the channel was closed on this side")
        with around(Step.DELIVERIES_LEFT):
            await close_quietly(self.channel.close, _CLOSE_SECONDS)

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        if not self.wanted:
            # On a channel that ends in this moment it goes back by itself.
            gone = suppress(BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError)
            settle = within(self.call_timeout_seconds, "giving a message back")
            with around(Step.DELIVERY_REQUEUE), gone, translated(self.doing(Phase.SETTLE)), settle:
                await message.nack(requeue=True)
            return
        with around(Step.DELIVERY_TAKEN):
            delivery = IncomingDelivery(self, message)
            self._unsettled.add(delivery)
            self.inbox.append(delivery)
        self._on_change()

    def fail(self, reason: str) -> None:
        """The consumer is gone, and every delivery with it: where they are now is the broker's knowledge."""
        if self.failure is not None:
            return
        self.failure = reason
        self.inbox.clear()
        for delivery in self._unsettled:
            delivery.mark_lost(reason)
        self._unsettled.clear()
        self._on_change()


class Intake:
    """The jobs of one subscription. Made by ``Link.open_intake``; closed by whoever opened it.

    ``warnings``: what was refused while declaring and binding, though the queue can be consumed.
    """

    def __init__(self, connection: KeptConnection, settings: BrokerSettings, subscription: Subscription) -> None:
        self._connection = connection
        self._settings = settings
        self._topology = Topology(connection, settings)
        self._consumer: _Consumer | None = None
        self._wake = anyio.Event()
        self.subscription = subscription
        self.warnings: tuple[str, ...] = ()

    @property
    def consuming(self) -> bool:
        """Whether a consumer of ours is registered with the broker."""
        consumer = self._consumer
        return consumer is not None and consumer.wanted and consumer.failure is None

    async def open(self) -> None:
        """Declare what is missing, and consume.

        Raises BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError.
        """
        if not self.subscription.build_all_jobs:
            self.warnings = tuple(await self._topology.ensure_queue(self.subscription.queue))
        await self._consume_on_new_channel()

    async def _consume_on_new_channel(self) -> None:
        doing = Doing(self._settings, Phase.CONSUME, "queue", self.subscription.queue)
        channel = await self._connection.open_channel(doing)
        opened = False
        try:
            queue = self.subscription.queue
            if self.subscription.build_all_jobs:
                queue, warnings = await self._topology.declare_own_queue(channel)
                self.warnings = tuple(warnings)
            underlay = await channel.get_underlay_channel()
            tag = self.subscription.consumer_tag
            consumer = _Consumer(channel, underlay, queue, tag, self._settings, self._woken)
            await consumer.consume()
            self._consumer = consumer
            opened = True
        finally:
            if not opened:
                await close_quietly(channel.close, _CLOSE_SECONDS)

    def _woken(self) -> None:
        self._wake.set()
        self._wake = anyio.Event()

    async def next(self) -> IncomingDelivery:
        """Wait for the next job, as long as it takes.

        Raises BrokerUnavailableError that says why, once nothing can come any more: the channel or connection is gone,
        the broker ended the consumer (queue deleted), or the intake was closed.
        """
        while True:
            consumer = self._consumer
            if consumer is None:
                raise BrokerUnavailableError("nothing is consumed: the intake is closed")
            if consumer.inbox:
                return consumer.inbox.popleft()
            if consumer.failure is not None:
                raise BrokerUnavailableError(consumer.failure)
            with idle("a job from the queue"):
                await self._wake.wait()

    async def pause(self) -> None:
        """Take nothing more: the consumer is cancelled, a message that comes in that moment is requeued.

        A delivery that was taken stays as it is. Raises nothing: when the broker is gone nothing comes either.
        """
        if self._consumer is not None:
            await self._consumer.cancel()

    async def resume(self) -> None:
        """Consume again after ``pause``, with the same tag.

        Raises BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError.
        """
        consumer = self._consumer
        if consumer is None:
            raise BrokerUnavailableError("nothing is consumed: the intake is closed")
        if consumer.failure is not None:
            raise BrokerUnavailableError(consumer.failure)
        if self.subscription.build_all_jobs:  # its queue went with its consumer
            await self.park()
        elif not consumer.wanted:
            await consumer.consume()

    async def park(self) -> None:
        """Leave the unacknowledged delivery to whoever adopted it, and consume on a new channel with the same tag.

        The delivery keeps its channel until it is acknowledged, requeued or lost. Raises BrokerRefusedError,
        BrokerUnavailableError, DeadlineExceededError: the delivery is not touched by that.
        """
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.park()
        await self._consume_on_new_channel()

    async def close(self) -> None:
        """Take nothing more; what is not acknowledged goes back, but not what was parked. Bounded; raises nothing."""
        consumer, self._consumer = self._consumer, None
        self._woken()
        if consumer is not None:
            await consumer.close()
