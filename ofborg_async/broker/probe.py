"""What a broker lets an identity do, asked without a side effect: nothing is declared, bound, consumed or routed.

RabbitMQ judges a right before it looks at the rest of a request, so a request that can never be carried out tells it:
a declaration or a consumer with an argument that is invalid (406 when allowed, 403 when not), the removal of a binding
that does not exist, a publish to the default exchange with a key that is no queue's name. Each has a channel of its
own, because a refusal closes it.
"""

from __future__ import annotations

import enum
import ssl
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import aio_pika  # noqa: TID251 - this is that room
import aiormq.exceptions  # noqa: TID251 - this is that room
from aio_pika.abc import AbstractChannel  # noqa: TID251 - this is that room
from attrs import evolve, field, frozen

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.dial import CLOSE_SECONDS, Dialer, Dialled
from ofborg_async.broker.noise import quiet_library_logs
from ofborg_async.broker.refusals import Doing, Phase
from ofborg_async.broker.topology import JOBS_EXCHANGE
from ofborg_async.errors import BrokerRefusedError
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.waiting import within

LOGS_EXCHANGE = "logs"
RESULTS_EXCHANGE = "build-results"
DEFAULT_EXCHANGE = "amq.default"  # as the broker calls it where rights are concerned

Call = Callable[[AbstractChannel], Awaitable[object]]


class Right(enum.StrEnum):
    """What was asked of a resource."""

    EXISTS = "exists"
    READ = "read"
    WRITE = "write"
    CONFIGURE = "configure"


@frozen
class Answer:
    """One thing that was asked. ``refusal`` None: it is so; else what the broker said, with the remedy."""

    right: Right
    kind: str
    name: str
    refusal: BrokerRefusedError | None = None

    @property
    def resource(self) -> str:
        """The resource as people write it."""
        return f"{self.kind} {self.name}"


@frozen
class ProbeReport:
    """What one address answered. ``product`` is the broker's own name and version, "" if it says none.

    ``certificate_ends`` is when its TLS certificate expires, None without TLS.
    """

    address: str
    product: str
    certificate_ends: datetime | None
    answers: tuple[Answer, ...] = field(factory=tuple)

    def refusal(self, right: Right, name: str) -> BrokerRefusedError | None:
        """Why a thing that was asked is not so, None if it is."""
        return next(answer.refusal for answer in self.answers if (answer.right, answer.name) == (right, name))


async def probe(settings: BrokerSettings, address: tuple[str, int], queues: Sequence[str]) -> ProbeReport:
    """Log in at one of the addresses and ask for every right that a builder of ``queues`` needs.

    Raises BrokerRefusedError (login, vhost, TLS), BrokerUnavailableError, DeadlineExceededError.
    """
    quiet_library_logs()
    dialer = Dialer(evolve(settings, addresses=(address,)), {"product": "ofborg-async doctor"})
    dialled = await dialer.dial(consuming=True, on_blocked=lambda _: None)
    try:
        asking = _Asking(settings, dialled)
        answers = [
            await asking.exists("exchange", JOBS_EXCHANGE, lambda channel: _passive(channel, JOBS_EXCHANGE)),
            await asking.exists("exchange", LOGS_EXCHANGE, lambda channel: _passive(channel, LOGS_EXCHANGE)),
            await asking.exists("exchange", RESULTS_EXCHANGE, lambda channel: _passive(channel, RESULTS_EXCHANGE)),
        ]
        for queue in queues:
            answers += await asking.queue(queue)
        answers += [
            await asking.write_exchange(LOGS_EXCHANGE),
            await asking.write_exchange(RESULTS_EXCHANGE),
            await asking.write_default(),
        ]
        return ProbeReport(dialled.address, _product(dialled), _certificate_ends(dialled), tuple(answers))
    finally:
        await dialled.close()


class _Asking:
    """Asks on one connection."""

    def __init__(self, settings: BrokerSettings, dialled: Dialled) -> None:
        self._settings = settings
        self._connection = dialled.connection

    async def exists(self, kind: str, name: str, call: Call) -> Answer:
        """Whether something is there: a passive declaration, which needs no right."""
        return Answer(Right.EXISTS, kind, name, await self._refusal(Phase.DECLARE, kind, name, call))

    async def queue(self, queue: str) -> list[Answer]:
        """Everything about one queue."""

        async def consume(channel: AbstractChannel) -> object:
            underlay = await channel.get_underlay_channel()
            return await underlay.basic_consume(queue, _ignore, arguments={"x-priority": "none"})

        async def unbind(channel: AbstractChannel) -> object:
            underlay = await channel.get_underlay_channel()
            return await underlay.queue_unbind(queue=queue, exchange=JOBS_EXCHANGE, routing_key=str(uuid.uuid4()))

        there = await self.exists("queue", queue, lambda channel: channel.declare_queue(queue, passive=True))
        return [
            there,
            await self._right(Right.CONFIGURE, Phase.DECLARE, "queue", queue, lambda channel: _declare(channel, queue)),
            await self._right(Right.READ, Phase.CONSUME, "queue", queue, consume),
            await self._right(Right.WRITE, Phase.BIND, "queue", queue, unbind),
        ]

    async def write_exchange(self, exchange: str) -> Answer:
        """Whether messages may be published to an exchange."""

        async def unbind(channel: AbstractChannel) -> object:
            underlay = await channel.get_underlay_channel()
            key = str(uuid.uuid4())
            return await underlay.exchange_unbind(destination=exchange, source=JOBS_EXCHANGE, routing_key=key)

        answer = await self._right(Right.WRITE, Phase.PUBLISH, "exchange", exchange, unbind)
        if answer.refusal is not None and f"exchange '{exchange}'" not in answer.refusal.said:
            return evolve(
                answer, refusal=None
            )  # what is refused is to read build-jobs, which is judged after the write
        return answer

    async def write_default(self) -> Answer:
        """Whether messages may be published straight to queues."""

        async def publish(channel: AbstractChannel) -> object:
            return await channel.default_exchange.publish(
                aio_pika.Message(b""), routing_key=f"nobody-{uuid.uuid4()}", mandatory=True
            )

        return await self._right(Right.WRITE, Phase.PUBLISH, "exchange", DEFAULT_EXCHANGE, publish)

    async def _right(self, right: Right, phase: Phase, kind: str, name: str, call: Call) -> Answer:
        refusal = await self._refusal(phase, kind, name, call)
        allowed = refusal is None or not refusal.said.startswith("ACCESS_REFUSED")
        return Answer(right, kind, name, None if allowed else refusal)

    async def _refusal(self, phase: Phase, kind: str, name: str, call: Call) -> BrokerRefusedError | None:
        """What the broker says against a call. Raises BrokerUnavailableError, DeadlineExceededError."""
        doing = Doing(self._settings, phase, kind, name)
        what = f"{phase} on {doing.resource}"
        channel = self._connection.channel(publisher_confirms=True, on_return_raises=False)
        try:
            with translated(doing), within(self._settings.call_timeout_seconds, what):
                await channel.initialize()
                with suppress(aiormq.exceptions.ChannelPreconditionFailed):  # allowed, but for its invalid argument
                    await call(channel)
        except BrokerRefusedError as refusal:
            return refusal
        finally:
            await close_quietly(channel.close, CLOSE_SECONDS)
        return None


async def _ignore(_message: object) -> None:
    """Never called: the consumer is not accepted."""


def _passive(channel: AbstractChannel, exchange: str) -> Awaitable[object]:
    return channel.declare_exchange(exchange, passive=True)


def _declare(channel: AbstractChannel, queue: str) -> Awaitable[object]:
    # An expiry of 0 is invalid, and differs from what any queue can have: nothing is ever made of this.
    return channel.declare_queue(queue, durable=True, arguments={"x-expires": 0})


def _product(dialled: Dialled) -> str:
    properties = dialled.connection.underlay.server_properties
    return " ".join(_text(properties.get(name)) for name in ("product", "version")).strip()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _certificate_ends(dialled: Dialled) -> datetime | None:
    certificate = dialled.transport.get_extra_info("peercert")
    if not certificate or "notAfter" not in certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
