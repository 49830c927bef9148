"""A virtual host on a real broker for each test, a link that runs for a while, and a peer that feeds and collects."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import anyio
from aiormq.abc import ConsumerCallback, DeliveredMessage
from aiormq.channel import Channel
from attrs import evolve, frozen

from ofborg_async.broker.dial import Dialled
from ofborg_async.broker.intake import Subscription
from ofborg_async.broker.kept import KeptConnection
from ofborg_async.broker.link import Link
from ofborg_async.clock import SystemClock
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.identity import BrokerSettings, Secret
from ofborg_async.model.job import Address

QUEUE = "build-inputs-x86_64-linux"
RESULTS = Address("build-results", "")
LOGS = Address("logs", "nixos/nixpkgs.1")
PASSWORD = "p@ss/w%40rd"
_numbers = itertools.count(1)


@frozen
class Place:
    """A virtual host of a test's own, and the settings of a user with all rights on it."""

    broker: Broker
    settings: BrokerSettings

    @property
    def vhost(self) -> str:
        return self.settings.vhost

    async def permit(self, *, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Set the user's rights."""
        await self.broker.set_permissions(
            self.settings.username, self.vhost, configure=configure, write=write, read=read
        )

    async def close_connections(self, kind: str = "") -> None:
        """What an administrator does: close connections, the ``consume`` or ``publish`` ones or both."""
        await self.broker.evaluate(
            '[rabbit_networking:close_connection(Pid, "by the administrator") || [{pid, Pid}, {vhost, H}, '
            "{client_properties, P}] <- rabbit_networking:connection_info_all([pid, vhost, client_properties]), "
            f'H =:= <<"{self.vhost}">>, {{<<"connection_name">>, _, N}} <- P, '
            f'string:find(N, <<"{kind}">>) =/= nomatch], ok'
        )

    async def peer_channel(self) -> tuple[aiormq.Connection, Channel]:
        """A peer and a channel of it."""
        peer = await self.peer()
        channel = await peer.channel()
        assert isinstance(channel, Channel)
        return peer, channel

    async def peer(self) -> aiormq.Connection:
        """A plain connection of the administrator: the feeder and the collector of a test."""
        return await aiormq.connect(self.broker.url(vhost=self.vhost) + "?heartbeat=0")

    async def feed(self, *bodies: bytes, queue: str = QUEUE) -> None:
        """Put jobs into a queue as the feeder does."""
        peer, channel = await self.peer_channel()
        for body in bodies:
            await channel.basic_publish(body, routing_key=queue)
        await peer.close()

    async def has_ready(self, count: int, queue: str = QUEUE) -> None:
        """Wait until that many messages are in the queue that no consumer holds, and none that one holds."""

        async def reached() -> bool:
            state = (await self.broker.list_queues(self.vhost))[queue]
            return state.ready == count

        await eventually(f"{count} messages ready", reached)


async def make_place(broker: Broker) -> Place:
    """A new virtual host with a user of its own."""
    number = next(_numbers)
    settings = BrokerSettings(
        addresses=((broker.host, broker.port),),
        vhost=f"vhost{number}",
        username=f"builder{number}",
        password=Secret(PASSWORD),
        ssl=False,
        heartbeat_seconds=2,
        connect_timeout_seconds=10,
        call_timeout_seconds=10,
    )
    await broker.add_vhost(settings.vhost)
    await broker.add_user(settings.username, PASSWORD)
    place = Place(broker, settings)
    await place.permit()
    return place


class Collector:
    """Reads what is published to ``build-results`` and ``logs``, in order."""

    def __init__(self, peer: aiormq.Connection, channel: Channel) -> None:
        self.peer = peer
        self.channel = channel
        self.results: list[DeliveredMessage] = []
        self.logs: list[DeliveredMessage] = []

    @property
    def lines(self) -> list[bytes]:
        """The bodies that came to ``logs``."""
        return [message.body for message in self.logs]

    async def has(self, *, results: int = 0, lines: int = 0) -> None:
        """Wait until so many have come."""
        await eventually(
            f"{results} results and {lines} lines", lambda: (len(self.results), len(self.logs)) == (results, lines)
        )


@asynccontextmanager
async def collecting(place: Place) -> AsyncIterator[Collector]:
    """A Collector for the time of the block."""
    peer, channel = await place.peer_channel()
    collector = Collector(peer, channel)

    def take(into: list[DeliveredMessage]) -> ConsumerCallback:
        async def append(message: DeliveredMessage) -> None:
            into.append(message)

        return append

    try:
        await channel.exchange_declare("build-results", exchange_type="fanout", durable=True)
        await channel.exchange_declare("logs", exchange_type="topic", durable=True)
        for queue, exchange, key, into in (
            ("results", "build-results", "", collector.results),
            ("collected", "logs", "*.*", collector.logs),
        ):
            await channel.queue_declare(queue, durable=True)
            await channel.queue_bind(queue, exchange, key)
            await channel.basic_consume(queue, take(into), no_ack=True)
        yield collector
    finally:
        await peer.close()


def subscription(queue: str = QUEUE, **changes: Any) -> Subscription:
    """What the lane of an identity named ``mac`` asks for."""
    return evolve(
        Subscription(
            system="x86_64-linux",
            queue=queue,
            consumer_tag="mac-x86_64-linux,aarch64-linux-builder",
            build_all_jobs=False,
            identity="mac",
        ),
        **changes,
    )


@asynccontextmanager
async def running(settings: BrokerSettings, *, backoff: Callable[[int], float] = lambda _: 0.1) -> AsyncIterator[Link]:
    """A link that runs while the body does. Use it inside the test: its task group must not cross a fixture's yield."""
    link = Link(settings, clock=SystemClock(), backoff=backoff, client_properties={"ofborg_version": "test"})
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: link.run(task_status=task_status))
        try:
            yield link
        finally:
            tasks.cancel_scope.cancel()


def dialled(kept: KeptConnection) -> Dialled:
    """What is below a connection that stands at this moment."""
    assert kept._dialled is not None
    return kept._dialled


async def eventually(what: str, condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30.0) -> None:
    """Poll a condition, plain or async, until it is true."""
    with anyio.move_on_after(seconds):
        while True:
            value = condition()
            if await value if isinstance(value, Awaitable) else value:
                return
            await anyio.sleep(0.02)
    raise AssertionError(f"{what} did not come about within {seconds} s")
