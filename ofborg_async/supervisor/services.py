"""What all lanes of the daemon share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from attrs import define, field

from ofborg_async.clock import Clock
from ofborg_async.errors import HostFault
from ofborg_async.journal import Journal, LogStore
from ofborg_async.model.identity import IdentitySettings
from ofborg_async.pipeline.courier import Courier, Parcel
from ofborg_async.supervisor.backoff import Backoff
from ofborg_async.supervisor.budget import HostBudget
from ofborg_async.supervisor.claims import Claim, Claims


class ResultKeeper(Protocol):
    """Goes on with results that cannot be routed, without their lane."""

    def keep(self, courier: Courier, parcel: Parcel) -> None:
        """Take over a result that stays in the outbox. Sync."""
        ...

    @property
    def identities(self) -> frozenset[str]:
        """Whose results it has. Sync."""
        ...

    def reroute(self) -> None:
        """Send by the ways to the brokers that a new configuration says. Sync."""
        ...

    def trouble_of(self, identity: str) -> str:
        """What a result of an identity that is here waits for; "" if none waits."""
        ...

    def take_over(
        self,
        attempt_id: str,
        claim: Claim,
        hold_seconds: float,
        on_reported: Callable[[Claim | None], Awaitable[None]],
    ) -> None:
        """Take over what a job that was cut off has recorded. Sync; the outbox's own task looks it up and sends it."""
        ...


@define
class Tally:
    """Counters since the start, for metrics."""

    undecodable: int = 0
    jobs_by_status: dict[str, int] = field(factory=dict)
    given_back: int = 0

    def ended(self, status: str) -> None:
        """Count a finished attempt."""
        self.jobs_by_status[status] = self.jobs_by_status.get(status, 0) + 1


@define
class Services:
    """Shared by every identity; each part guards itself."""

    clock: Clock
    state_dir: Path
    journal: Journal
    logs: LogStore
    claims: Claims
    builds: HostBudget
    evaluations: HostBudget
    outbox: ResultKeeper
    new_backoff: Callable[[], Backoff]
    root_fault: Callable[[IdentitySettings], HostFault | None]
    """Why the root of an identity is not the one that the daemon has taken, if it is not."""
    counters: Tally = field(factory=Tally)
