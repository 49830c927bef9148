"""One connection to a broker, kept: connected again with backoff for as long as it is wanted."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import anyio
from aio_pika.abc import AbstractChannel  # noqa: TID251 - this is that room

from ofborg_async.broker.calls import translated
from ofborg_async.broker.dial import BrokerConnection, Dialer, Dialled
from ofborg_async.broker.refusals import Doing, in_words
from ofborg_async.clock import Clock, rfc3339
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError
from ofborg_async.waiting import idle

logger = logging.getLogger(__name__)

# A connection that lasted this long was a good one: the next failure is the first again.
_GOOD_AFTER_SECONDS = 30.0
# Stands for "many failures": what only a person can repair is tried again with the longest backoff there is.
_MANY_FAILURES = 30


class LinkState(enum.StrEnum):
    """How a kept connection stands."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    REFUSED = "refused"


class KeptConnection:
    """A plain connection with our own reconnection.

    ``backoff(n)`` gives the seconds to wait after the n-th failure in a row, n from 1.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        consuming: bool,
        call_timeout_seconds: float,
        clock: Clock,
        backoff: Callable[[int], float],
    ) -> None:
        self._dialer = dialer
        self._consuming = consuming
        self._call_timeout_seconds = call_timeout_seconds
        self._clock = clock
        self._backoff = backoff
        self._dialled: Dialled | None = None
        self._changed = anyio.Event()
        self._opening: set[int] = set()  # numbers of channels on their way: aio-pika waits before it takes the number
        self._patient: dict[anyio.CancelScope, float] = {}
        self._retry_at: float | None = None
        self._said = ""
        self.state = LinkState.CONNECTING
        self.since = rfc3339(clock.now())
        self.blocked = False
        self.blocked_since = ""
        self.error: BrokerRefusedError | BrokerUnavailableError | None = None

    @property
    def name(self) -> str:
        """Which of the two connections of a link this is."""
        return "consuming connection" if self._consuming else "publishing connection"

    @property
    def address(self) -> str:
        """Where it is connected to, "" while it is not."""
        return self._dialled.address if self._dialled is not None else ""

    @property
    def retry_in_seconds(self) -> float | None:
        """Until the next attempt to connect; None while connected or connecting."""
        return None if self._retry_at is None else max(0.0, self._retry_at - self._clock.monotonic())

    async def run(self) -> None:
        """Connect and stay connected until cancelled; closes the connection then. Raises nothing else."""
        failures = 0
        while True:
            started_at = self._clock.monotonic()
            try:
                await self._connect_and_hold()
            except BrokerRefusedError as error:
                self._move(LinkState.REFUSED, error)
                delay = self._backoff(_MANY_FAILURES)
            except BrokerUnavailableError as error:
                if self.state is LinkState.UP and self._clock.monotonic() - started_at > _GOOD_AFTER_SECONDS:
                    failures = 0
                failures += 1
                self._move(LinkState.DOWN, error)
                delay = self._backoff(failures)
            self._retry_at = self._clock.monotonic() + delay
            self._log(delay)
            await self._clock.sleep(delay)
            self._retry_at = None

    def _log(self, delay_seconds: float) -> None:
        """Say what is wrong once, and only at debug level again until something else is."""
        text = str(self.error)
        level = logging.DEBUG if text == self._said else logging.WARNING
        self._said = text
        logger.log(level, "%s: %s; next attempt in %.1f s", self.name, text, delay_seconds)

    async def _connect_and_hold(self) -> None:
        """Connect, and return only by raising what ended the connection."""
        dialled = await self._dialer.dial(
            consuming=self._consuming, on_blocked=lambda blocked: self._set_blocked(blocked=blocked)
        )
        try:
            self._dialled = dialled
            self._move(LinkState.UP, None)
            self._said = ""
            logger.info("%s: connected to %s", self.name, dialled.address)
            with idle("the connection to end"):
                await dialled.connection.ended.wait()
            reason = in_words(dialled.connection.end_reason)
            raise BrokerUnavailableError(f"connection to {dialled.address} lost: {reason}")
        finally:
            self._dialled = None
            self._set_blocked(blocked=False)
            await dialled.close()

    def _move(self, state: LinkState, error: BrokerRefusedError | BrokerUnavailableError | None) -> None:
        if state is not self.state:
            self.since = rfc3339(self._clock.now())
        self.state = state
        self.error = error
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _set_blocked(self, *, blocked: bool) -> None:
        """The broker stopped or goes on reading (memory or disk alarm): deadlines stop, or start anew."""
        if blocked == self.blocked:
            return
        self.blocked = blocked
        self.blocked_since = rfc3339(self._clock.now())
        now = anyio.current_time()
        for scope, seconds in self._patient.items():
            scope.deadline = math.inf if blocked else now + seconds
        if blocked:
            logger.warning("%s: blocked by the broker (an alarm: memory or disk)", self.name)
        elif self._dialled is not None:
            logger.info("%s: no longer blocked", self.name)
        self._notify()

    async def wait_ready(self) -> None:
        """Wait until it is connected."""
        with idle("the broker to be reachable"):
            while self.state is not LinkState.UP:
                await self._changed.wait()

    async def wait_back(self) -> None:
        """Wait until it is connected anew: after the next loss, when it is connected now."""
        before = self._dialled
        with idle("a new connection: whoever waits for it pauses between tries, and has the pause for a deadline"):
            while self._dialled is None or self._dialled is before:
                await self._changed.wait()

    async def wait_unblocked(self) -> None:
        """Wait while the broker does not read from it. Returns also when it is lost."""
        with idle("the broker to end its alarm"):
            while self.blocked:
                await self._changed.wait()

    @contextmanager
    def patience(self, seconds: float, what: str) -> Iterator[None]:
        """Give the body ``seconds`` of time in which the broker reads; time while it is blocked does not count.

        Raises DeadlineExceededError naming ``what``. If what was written is not even in the socket by then, the
        connection is cut: nothing of a call that failed may leave a buffer of ours later.
        """
        deadline = math.inf if self.blocked else anyio.current_time() + seconds
        with anyio.CancelScope(deadline=deadline) as scope:
            self._patient[scope] = seconds
            try:
                yield
            finally:
                del self._patient[scope]
        if scope.cancelled_caught:
            if self._dialled is not None and self._dialled.transport.get_write_buffer_size() > 0:
                self._dialled.transport.abort()
            raise DeadlineExceededError(what, seconds)

    async def open_channel(self, doing: Doing, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel; with ``confirms``, one whose publishes wait for the broker and raise what it returns.

        Raises BrokerUnavailableError (not connected), BrokerRefusedError (what the connection was refused, or no
        channel is left), DeadlineExceededError.
        """
        if self._dialled is None:
            raise self.error or BrokerUnavailableError(f"{self.name}: not connected yet")
        connection = self._dialled.connection
        with translated(doing), self.patience(self._call_timeout_seconds, "opening a channel"):
            number = _lowest_free_number(connection, self._opening, doing)
            self._opening.add(number)
            try:
                channel = connection.channel(number, publisher_confirms=confirms, on_return_raises=confirms)
                await channel.initialize()
            finally:
                self._opening.discard(number)
        return channel


def _lowest_free_number(connection: BrokerConnection, opening: Collection[int], doing: Doing) -> int:
    """The lowest channel number not in use.

    aiormq takes the highest in use plus one: with channels that come and go it passes what the broker allows.
    """
    most = connection.underlay.connection_tune.channel_max or 65535
    for number in range(1, most + 1):
        if number not in connection.underlay.channels and number not in opening:
            return number
    raise BrokerRefusedError(
        who=doing.settings.username,
        vhost=doing.settings.vhost,
        resource=doing.resource,
        said=f"all {most} channels of the connection are in use",
        remedy="Ask for a larger channel_max in rabbitmq.conf, or run fewer identities with these settings.",
    )


def reason_of(closing: asyncio.Future[object]) -> BaseException | None:
    """What a ``closing`` future of aiormq's ended with. CancelledError stands for a lost heartbeat."""
    if closing.cancelled():
        return asyncio.CancelledError()
    return closing.exception()
