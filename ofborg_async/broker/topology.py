"""The exchange, queue and binding that jobs come through (wire document, "Connection and topology").

Passive declarations first: they need no right, and a queue that others declared with arguments (quorum, a delivery
limit) would answer an active one with 406. Each on a throw-away channel, because a refusal closes its channel. What is
refused here is a warning: if the queue can be consumed all the same, nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aio_pika.abc import AbstractChannel  # noqa: TID251 - this is that room

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.kept import KeptConnection
from ofborg_async.broker.refusals import Doing, Phase
from ofborg_async.errors import BrokerRefusedError
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.waiting import within

JOBS_EXCHANGE = "build-jobs"

_CLOSE_SECONDS = 5.0

Call = Callable[[AbstractChannel], Awaitable[object]]


class Topology:
    """Declares and binds on one connection. Methods that return texts return warnings for the operator."""

    def __init__(self, connection: KeptConnection, settings: BrokerSettings) -> None:
        self._connection = connection
        self._settings = settings

    async def ensure_queue(self, queue: str) -> list[str]:
        """See to it that ``queue`` is there and gets the jobs. Raises BrokerUnavailableError, DeadlineExceededError."""
        warnings = await self._ensure_exchange()
        doing = Doing(self._settings, Phase.DECLARE, "queue", queue)
        warnings += await self._ensure(
            doing,
            lambda channel: channel.declare_queue(queue, passive=True),
            lambda channel: channel.declare_queue(queue, durable=True),
        )
        binding = Doing(self._settings, Phase.BIND, "queue", queue)
        return warnings + await self._attempt(binding, lambda channel: _bind(channel, queue))

    async def declare_own_queue(self, channel: AbstractChannel) -> tuple[str, list[str]]:
        """Declare a queue of this connection's own on ``channel`` (``build_all_jobs``); its name, and warnings.

        It gets a copy of every job and is gone with its consumer. Raises BrokerRefusedError, BrokerUnavailableError,
        DeadlineExceededError.
        """
        warnings = await self._ensure_exchange()
        doing = Doing(self._settings, Phase.DECLARE, "queue", "amq.gen-")
        with translated(doing), within(self._settings.call_timeout_seconds, "declaring a queue of its own"):
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        doing = Doing(self._settings, Phase.BIND, "queue", queue.name)
        with translated(doing), within(self._settings.call_timeout_seconds, f"binding {queue.name}"):
            await queue.bind(JOBS_EXCHANGE, "")
        return queue.name, warnings

    async def _ensure_exchange(self) -> list[str]:
        return await self._ensure(
            Doing(self._settings, Phase.DECLARE, "exchange", JOBS_EXCHANGE),
            lambda channel: channel.declare_exchange(JOBS_EXCHANGE, passive=True),
            lambda channel: channel.declare_exchange(JOBS_EXCHANGE, "fanout", durable=True),
        )

    async def _ensure(self, doing: Doing, passive: Call, active: Call) -> list[str]:
        """Declare passively, and actively only if it is not there."""
        try:
            await self._on_throwaway_channel(doing, passive)
        except BrokerRefusedError as refusal:
            if not refusal.said.startswith("NOT_FOUND"):
                return [str(refusal)]
            return await self._attempt(doing, active)
        return []

    async def _attempt(self, doing: Doing, call: Call) -> list[str]:
        """Make a call whose refusal is a warning."""
        try:
            await self._on_throwaway_channel(doing, call)
        except BrokerRefusedError as refusal:
            return [str(refusal)]
        return []

    async def _on_throwaway_channel(self, doing: Doing, call: Call) -> None:
        channel = await self._connection.open_channel(doing)
        try:
            with translated(doing), within(self._settings.call_timeout_seconds, f"{doing.phase} on {doing.resource}"):
                await call(channel)
        finally:
            await close_quietly(channel.close, _CLOSE_SECONDS)


async def _bind(channel: AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(JOBS_EXCHANGE, "")
