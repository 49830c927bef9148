"""Two connections to one broker, for all identities that reach it with equal settings.

One consumes and one publishes: in a memory or disk alarm the broker stops reading from connections that publish, and
acknowledgements written there would not be processed. Each is kept by itself, so that a fault of one leaves the other:
a build goes on consuming its delivery while publishing comes back, and the other way round.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import anyio
from anyio.abc import TaskStatus

from ofborg_async.broker.dial import Dialer
from ofborg_async.broker.intake import Intake, Subscription
from ofborg_async.broker.kept import KeptConnection, LinkState
from ofborg_async.broker.noise import quiet_library_logs
from ofborg_async.broker.publisher import LanePublisher
from ofborg_async.clock import Clock
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.model.status import AmqpState, BrokerSnapshot

# worst first: what a link with one connection in each state is shown as
_WORST_FIRST = (LinkState.REFUSED, LinkState.DOWN, LinkState.CONNECTING, LinkState.UP)


class Link:
    """The connections to one broker. ``run`` keeps them; everything else may be called while it runs.

    ``backoff(n)``: seconds to wait after the n-th failure in a row, n from 1. ``client_properties`` are shown to the
    broker's administrator.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        clock: Clock,
        backoff: Callable[[int], float],
        client_properties: Mapping[str, str],
    ) -> None:
        self.settings = settings
        dialer = Dialer(settings, client_properties)
        self._consume, self._publish = (
            KeptConnection(
                dialer,
                consuming=consuming,
                call_timeout_seconds=settings.call_timeout_seconds,
                clock=clock,
                backoff=backoff,
            )
            for consuming in (True, False)
        )
        self._intakes: weakref.WeakSet[Intake] = weakref.WeakSet()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Connect and stay connected; a broker that is down or refuses is tried again for ever.

        Started means running, not connected: a daemon starts before its network. Raises its cancellation only, and
        then has closed both connections within a bounded time.
        """
        quiet_library_logs()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._consume.run)
            tasks.start_soon(self._publish.run)
            task_status.started()

    async def wait_ready(self) -> None:
        """Wait until jobs can be consumed."""
        await self._consume.wait_ready()

    async def wait_ready_to_publish(self) -> None:
        """Wait until results can be published."""
        await self._publish.wait_ready()

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped reading what is published (a memory or disk alarm)."""
        return self._publish.blocked

    async def open_intake(self, subscription: Subscription) -> Intake:
        """Consume a queue, declaring and binding it where it is missing.

        Raises BrokerUnavailableError (not connected, or lost meanwhile), BrokerRefusedError (names the queue and what
        to ask for; or what the connection itself was refused), DeadlineExceededError.
        """
        intake = Intake(self._consume, self.settings, subscription)
        await intake.open()
        self._intakes.add(intake)
        return intake

    def publisher(self, identity: str, system: str) -> LanePublisher:
        """A publisher for one system of one identity. Costs nothing until it publishes."""
        return LanePublisher(self._publish, self.settings, f"{identity}, {system}")

    def snapshot(self, identities: Sequence[str]) -> BrokerSnapshot:
        """How the link stands; ``identities`` are the names of those that use it."""
        worse = min(self._consume, self._publish, key=lambda kept: _WORST_FIRST.index(kept.state))
        addresses = [kept.address for kept in (self._consume, self._publish) if kept.address]
        since = self._publish.blocked_since if self._state() is AmqpState.BLOCKED else worse.since
        return BrokerSnapshot(
            address=addresses[0]
            if addresses
            else ", ".join(f"{host}:{port}" for host, port in self.settings.addresses),
            vhost=self.settings.vhost,
            username=self.settings.username,
            state=self._state(),
            since=since,
            identities=tuple(identities),
            error="" if worse.error is None else f"{worse.name}: {worse.error}",
            retry_in_seconds=worse.retry_in_seconds,
        )

    def _state(self) -> AmqpState:
        states = {self._consume.state, self._publish.state}
        if LinkState.REFUSED in states:
            return AmqpState.REFUSED
        if LinkState.DOWN in states:
            return AmqpState.DOWN
        if LinkState.CONNECTING in states:
            return AmqpState.CONNECTING
        if self.blocked:
            return AmqpState.BLOCKED
        return AmqpState.CONSUMING if any(intake.consuming for intake in self._intakes) else AmqpState.HOLDING
