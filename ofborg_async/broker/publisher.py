"""Publishes for one system of one identity: results one by one and mandatory, log lines in bulk.

On the link's publishing connection, with two channels of the lane's own, opened with its first job and opened again
when lost. A fault of a channel (an exchange that does not exist) is the lane's own fault and touches no sibling.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import aio_pika.exceptions  # noqa: TID251 - this is that room
import anyio
from aio_pika.abc import AbstractChannel  # noqa: TID251 - this is that room

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.kept import KeptConnection
from ofborg_async.broker.linechannel import Confirmation, LineChannel
from ofborg_async.broker.message import JsonMessage
from ofborg_async.broker.refusals import Doing, Phase, broker_text
from ofborg_async.errors import BrokerUnavailableError, UnroutableError
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.model.job import Address
from ofborg_async.waiting import at_most

_CLOSE_SECONDS = 5.0


class LanePublisher:
    """``pipeline.ports.Publisher``. Made by ``Link.publisher``; closed by whoever asked for it."""

    def __init__(self, connection: KeptConnection, settings: BrokerSettings, lane: str) -> None:
        self._connection = connection
        self._settings = settings
        self._lane = lane
        self._results: AbstractChannel | None = None
        self._result_turn = anyio.Lock()
        self._lines: LineChannel | None = None
        self._line_turn = anyio.Lock()

    async def publish_result(self, to: Address, body: bytes) -> None:
        """Publish on RES: mandatory, persistent, confirmed. Returns once the broker confirmed it as routed.

        The library finds the publish that a return belongs to by its ``message_id``, and would blame the wrong one if
        two in flight had the same: each publish, a repeated one too, has its own. Waits as long as the broker is
        blocked. After any failure but a return the channel is given up: nothing of it can meet the next publish.

        Raises UnroutableError, BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError.
        """
        async with self._result_turn:
            await self._connection.wait_unblocked()
            doing = Doing(self._settings, Phase.PUBLISH, "exchange", to.exchange)
            channel = await self._result_channel(doing)
            clean = False
            try:
                with (
                    translated(doing),
                    self._connection.patience(
                        self._settings.call_timeout_seconds, f"publishing a result ({self._lane})"
                    ),
                ):
                    await self._publish(channel, to, body)
                clean = True
            except UnroutableError:
                clean = True  # but for a missing exchange, which closed the channel
                raise
            finally:
                if not clean or channel.is_closed:
                    await self._drop_result_channel()

    async def _publish(self, channel: AbstractChannel, to: Address, body: bytes) -> None:
        try:
            exchange = await channel.get_exchange(to.exchange, ensure=False)
            await exchange.publish(JsonMessage(body, message_id=str(uuid.uuid4())), to.routing_key, mandatory=True)
        except aio_pika.exceptions.PublishError as error:
            nowhere = not to.exchange and not to.routing_key
            raise UnroutableError(
                to.exchange, to.routing_key, said=f"returned: {error.args[0]}", permanent=nowhere
            ) from error
        except aio_pika.exceptions.DeliveryError as error:
            raise BrokerUnavailableError(
                "the broker did not take the result (nack): a queue is full, or a fault of its own"
            ) from error
        except aio_pika.exceptions.ChannelNotFoundEntity as error:
            raise UnroutableError(to.exchange, to.routing_key, said=broker_text(error), permanent=True) from error
        except (ValueError, TypeError) as error:  # pamqp: not in the alphabet of names, or too long
            raise UnroutableError(
                to.exchange, to.routing_key, said=f"no valid AMQP name: {error}", permanent=True
            ) from error

    async def _result_channel(self, doing: Doing) -> AbstractChannel:
        if self._results is None or self._results.is_closed:
            self._results = None
            self._results = await self._connection.open_channel(doing, confirms=True)
        return self._results

    async def _drop_result_channel(self) -> None:
        channel, self._results = self._results, None
        if channel is not None:
            await close_quietly(channel.close, _CLOSE_SECONDS)

    async def open_log(self) -> None:
        """Open the log channel, so that what is sent once next really leaves.

        For a sender with nothing under way: the loss of a batch that nobody waited for is not told any more.
        Raises BrokerUnavailableError, BrokerRefusedError, DeadlineExceededError.
        """
        async with self._line_turn:
            await self._connection.wait_unblocked()
            if self._lines is not None and self._lines.failed:
                self._lines.failure_seen = True
            await self._line_channel()

    async def publish_log(self, to: Address, bodies: Sequence[bytes]) -> None:
        """Publish a batch on LOG in order; returns once all are confirmed. ``send_log`` and then ``wait``."""
        confirmation = await self.send_log(to, bodies)
        await confirmation.wait()

    async def send_log(self, to: Address, bodies: Sequence[bytes]) -> Confirmation:
        """Write a batch on LOG behind those sent before; ``wait`` of what is returned tells when it is confirmed.

        So the next batch can be made and written while this one is under way. Waits while too much is unconfirmed and
        while the broker is blocked. When a batch is lost, all behind it count as lost too, and the next ``send_log`` or
        ``wait`` raises: send again, in order, from the first batch whose ``wait`` did not return.

        Raises BrokerUnavailableError, BrokerRefusedError (nothing will arrive at this address), DeadlineExceededError.
        """
        async with self._line_turn:
            await self._connection.wait_unblocked()
            lines = await self._line_channel()
            return await lines.send(to, bodies)

    async def _line_channel(self) -> LineChannel:
        lines = self._lines
        if lines is not None and lines.failed and lines.failure_seen:
            self._lines = None
            await lines.close()
            lines = None
        if lines is None:
            lines = self._lines = await LineChannel.open(self._connection, self._settings)
        return lines

    async def wait_back(self) -> None:
        """Wait until the connection is a new one: after the next loss, when there is one now."""
        await self._connection.wait_back()

    async def close(self) -> None:
        """Close both channels, once what is being published is out; used again, it opens new. Raises nothing."""
        with anyio.CancelScope(shield=True):
            with at_most(_CLOSE_SECONDS):
                async with self._result_turn, self._line_turn:
                    pass
            lines, self._lines = self._lines, None
            async with anyio.create_task_group() as closing:
                closing.start_soon(self._drop_result_channel)
                if lines is not None:
                    closing.start_soon(lines.close)
