"""Results whose lane is gone or goes on without them: what a crash left in the outbox, and what cannot be routed.

Each has a task of its own that publishes until the broker has routed it; the courier is the same as a lane's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from anyio.abc import TaskGroup

from ofborg_async.clock import Clock
from ofborg_async.errors import HostFault
from ofborg_async.journal import Journal, LogMissingError, LogStore, OutboxEntry, OutboxState
from ofborg_async.pipeline.courier import Courier, Parcel
from ofborg_async.pipeline.ports import Publisher
from ofborg_async.supervisor.claims import Claim

log = logging.getLogger(__name__)

FAULT_PAUSE_SECONDS = 5.0


class Outbox:
    """Carries on with results outside their lane. ``publisher_for`` gives a way to the broker of (identity, system)."""

    def __init__(
        self,
        group: TaskGroup,
        journal: Journal,
        logs: LogStore,
        clock: Clock,
        publisher_for: Callable[[str, str], Publisher | None],
    ) -> None:
        self._group = group
        self._journal = journal
        self._logs = logs
        self._clock = clock
        self._publisher_for = publisher_for
        self._stranded: list[Callable[[], None]] = []
        """Results that no configured identity can send any more."""
        self._couriers: set[Courier] = set()

    def trouble_of(self, identity: str) -> str:
        """What a result of an identity that is here waits for; "" if none waits."""
        return next(
            (courier.trouble for courier in self._couriers if courier.identity == identity and courier.trouble), ""
        )

    @property
    def identities(self) -> frozenset[str]:
        """Whose results wait here."""
        return frozenset(courier.identity for courier in self._couriers)

    def reroute(self) -> None:
        """The configuration is another: results go by the new ways to the brokers, at the latest at the next try."""
        for courier in self._couriers:
            publisher = self._publisher_for(courier.identity, courier.system)
            if publisher is not None:
                self._group.start_soon(courier.publisher.close)
                courier.publisher = publisher
        stranded, self._stranded = self._stranded, []
        for recover in stranded:
            recover()

    def keep(self, courier: Courier, parcel: Parcel) -> None:
        """Go on publishing a result that could not be routed, by a way of its own: the lane's is the lane's."""
        courier.publisher = self._publisher_for(courier.identity, courier.system) or courier.publisher

        async def unless_it_is_out() -> None:
            entry = await self._entry_of(courier.attempt_id)
            if entry is not None and entry.state is OutboxState.PENDING:
                await courier.redeliver(parcel)

        self._group.start_soon(self._despite_faults, courier, partial(courier.redeliver, parcel), unless_it_is_out)

    def take_over(
        self,
        attempt_id: str,
        claim: Claim,
        hold_seconds: float,
        on_reported: Callable[[Claim | None], Awaitable[None]],
    ) -> None:
        """``recover`` for the entry of an attempt of this daemon; without one its result is out, and reported."""

        async def once_it_is_found() -> None:
            while True:
                try:
                    entry = await self._entry_of(attempt_id)
                except HostFault as fault:
                    log.warning("attempt %s: its result stays in the outbox for now: %s", attempt_id, fault)
                    await self._clock.sleep(FAULT_PAUSE_SECONDS)
                else:
                    break
            if entry is None:
                await on_reported(claim)
            else:
                self.recover(entry, claim, hold_seconds, on_reported)

        self._group.start_soon(once_it_is_found)

    async def _entry_of(self, attempt_id: str) -> OutboxEntry | None:
        """The entry of an attempt. Raises HostFault."""
        after = 0
        while entries := await self._journal.outbox(after=after):
            for entry in entries:
                if entry.attempt_id == attempt_id:
                    return entry
            after = entries[-1].position
        return None

    def recover(
        self,
        entry: OutboxEntry,
        claim: Claim | None,
        hold_seconds: float,
        on_reported: Callable[[Claim | None], Awaitable[None]],
    ) -> None:
        """Send what a daemon before, or a job that was cut off, left: LogStart, lines, the result, its copy."""
        publisher = self._publisher_for(entry.identity, entry.system)
        if publisher is None:
            log.error(
                "the result of attempt %s stays in the outbox: no identity %s with system %s is configured",
                entry.attempt_id,
                entry.identity,
                entry.system,
            )
            self._stranded.append(partial(self.recover, entry, claim, hold_seconds, on_reported))
            return
        address = entry.result.log_address
        courier = Courier(
            system=entry.system,
            identity=entry.identity,
            attempt_id=entry.attempt_id,
            logs=address or entry.result.res_address,
            publisher=publisher,
            records=self._journal,
            clock=self._clock,
            hold_seconds=hold_seconds,
            log_refused=address is None,
        )

        async def again() -> None:
            now = await self._entry_of(entry.attempt_id)
            await (on_reported(claim) if now is None else self._recover(now, courier, claim, on_reported))

        send = partial(self._recover, entry, courier, claim, on_reported)
        self._group.start_soon(self._despite_faults, courier, send, again)

    async def _despite_faults(
        self, courier: Courier, send: Callable[[], Awaitable[None]], again: Callable[[], Awaitable[None]]
    ) -> None:
        """Send, and after a fault of this host do it ``again``, from what the journal says then.

        What it could not confirm in time may be written all the same, and the result out. All the rest may come again,
        for what must not is marked.
        """
        self._couriers.add(courier)
        try:
            while True:
                try:
                    await send()
                except HostFault as fault:
                    courier.trouble = str(fault)
                    log.warning("attempt %s: its result stays in the outbox for now: %s", courier.attempt_id, fault)
                    await self._clock.sleep(FAULT_PAUSE_SECONDS)
                    send = again
                else:
                    return
        finally:
            self._couriers.discard(courier)
            await courier.publisher.close()

    async def _recover(
        self,
        entry: OutboxEntry,
        courier: Courier,
        claim: Claim | None,
        on_reported: Callable[[Claim | None], Awaitable[None]],
    ) -> None:
        parcel = Parcel(entry.result.body, entry.result.res_address, on_log=entry.result.log_address is not None)
        if entry.log_marked:  # the copy is not sent twice, so the entry waits for RES alone, if that is not out already
            self._journal.log_done(entry.attempt_id)
            await on_reported(claim)
            if entry.state is OutboxState.PENDING:
                await courier.redeliver(parcel)
            return
        log.info("attempt %s: its result is in the outbox and is sent now", entry.attempt_id)
        if entry.state is OutboxState.PENDING and entry.result.message:
            await self._send_log(entry, courier)
        routed = await courier.deliver(parcel)
        await on_reported(claim)
        if not routed:
            await courier.redeliver(parcel)

    async def _send_log(self, entry: OutboxEntry, courier: Courier) -> None:
        """The rest of a log: its lines are confirmed in order, so the rest is all behind the last confirmed one."""
        await courier.open_log(entry.result.message)
        if entry.lines_confirmed >= entry.result.lines:
            return
        try:
            tail = self._logs.open_reader(entry.attempt_id)
        except LogMissingError:
            log.error("attempt %s: its local log is gone, its last lines cannot be sent", entry.attempt_id)  # noqa: TRY400
            return
        with tail:
            await tail.seek(entry.lines_confirmed + 1)
            await courier.send_lines(tail)
