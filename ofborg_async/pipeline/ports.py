"""What the pipeline needs of the other rooms, as protocols. Contracts stand here, with every error callers may see.

Any method may also raise the cancellation of its task; each cleans up after itself then (processes ended, locks
given back). All but the ones marked "sync" may wait, each bounded by a deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from anyio.abc import TaskGroup

from ofborg_async.model.checkout import CheckoutOutcome
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.job import Address, BuildJob
from ofborg_async.model.result import Status
from ofborg_async.model.status import Phase


class LineSink(Protocol):
    """Takes the lines of an attempt as they come."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Sync, never blocks on the broker. ``lines`` without their newline, each at most the configured length."""
        ...


# --- broker -------------------------------------------------------------------------------------------------------


class Delivery(Protocol):
    """One message taken from a queue and not yet acknowledged."""

    @property
    def queue(self) -> str:
        """The queue it came from."""
        ...

    @property
    def body(self) -> bytes:
        """The message itself, of any size the broker let through."""
        ...

    @property
    def redelivered(self) -> bool:
        """The broker's flag; a hint only."""
        ...

    @property
    def returns(self) -> int:
        """How often it has returned to its queue, by the count of a quorum queue; 0 on a queue that does not count."""
        ...

    @property
    def lost(self) -> bool:
        """True once its channel is gone."""
        ...

    async def ack(self) -> None:
        """Acknowledge and wait until the broker is known to have processed it (a call behind it was answered).

        Raises DeliveryLostError: the channel went first, so whether it was processed is unknown.
        """
        ...

    async def requeue(self) -> None:
        """Give it back to the queue. Does nothing when the delivery is lost: the broker has requeued it itself."""
        ...

    async def reject(self) -> None:
        """Drop it without requeue. Raises DeliveryLostError."""
        ...


class Confirmation(Protocol):
    """A batch on LOG that has been written and whose confirms are awaited."""

    async def wait(self) -> None:
        """Return once all of it is confirmed. Raises as ``send_log``; all batches sent later are lost then too."""
        ...


class Publisher(Protocol):
    """Publishes for one system of one identity, on connections that do not consume.

    While the broker blocks the connection (an alarm) every method waits; its call deadline starts once unblocked. A
    call that fails leaves nothing of its own unsent in a buffer.
    """

    async def publish_result(self, to: Address, body: bytes) -> None:
        """Publish on RES: mandatory, persistent, confirmed. Returns once the broker confirmed it as routed.

        Each call uses a message_id of its own. Raises UnroutableError, BrokerUnavailableError, BrokerRefusedError,
        DeadlineExceededError.
        """
        ...

    async def open_log(self) -> None:
        """Make the log channel ready, so that what is marked "sent once" next really leaves. Raises as above."""
        ...

    async def send_log(self, to: Address, bodies: Sequence[bytes]) -> Confirmation:
        """Write a batch on LOG behind those sent before; it waits while too much is unconfirmed. Raises as publish_log.

        After an error the caller goes on from the first batch whose ``wait`` did not return.
        """
        ...

    async def publish_log(self, to: Address, bodies: Sequence[bytes]) -> None:
        """Publish a batch on LOG in order; returns once all are confirmed. All batches use one channel.

        Raises BrokerUnavailableError (all, some or none arrived), BrokerRefusedError (for instance no such exchange;
        nothing of it arrived), DeadlineExceededError. The caller sends a batch of LogMsg again, and LogStart and
        BuildResult never.
        """
        ...

    async def wait_back(self) -> None:
        """Wait until there is a new connection: what failed for want of one is worth another try now. No deadline."""
        ...

    async def close(self) -> None:
        """Give back what it holds of the connection, until it is used again. Bounded; raises nothing."""
        ...


# --- checkout -----------------------------------------------------------------------------------------------------


class Lease(Protocol):
    """The exclusive right to one work tree, held for the whole of a job."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Open lock files to pass to every child, so that the tree stays busy until orphans are gone."""
        ...


class Workspace(Protocol):
    """The work tree of one system of one identity."""

    def lease(self, job: BuildJob, attempt_id: str) -> AbstractAsyncContextManager[Lease]:
        """Wait in a fair queue for the job's work tree; hold it. Raises HostFault (LOCK, PERMISSION)."""
        ...

    async def prepare(self, job: BuildJob, attempt_id: str, lease: Lease, on_phase: PhaseSink) -> CheckoutOutcome:
        """Fetch, merge and check out. Raises HostFault (NETWORK, REPOSITORY, DISK ...): worth retrying."""
        ...

    async def release(self, attempt_id: str) -> None:
        """Forget what was kept for an attempt (its keep-ref), once nothing will build from it. Raises HostFault."""
        ...


class PhaseSink(Protocol):
    """Told when a job enters a phase."""

    def __call__(self, phase: Phase) -> None:
        """Sync."""
        ...


# --- nix ----------------------------------------------------------------------------------------------------------


class Nix(Protocol):
    """Evaluation and builds for one identity."""

    async def evaluate(self, request: EvalRequest, building: TaskGroup | None = None) -> Evaluation:
        """Instantiate. Raises HostFault (MEMORY, DISK, NIX_DAEMON, PROCESS): worth retrying. A deadline skips attrs.

        The build may begin at once in ``building``, where nothing is raised; ``build`` takes it over. The caller
        cancels the group when it needs it no more.
        """
        ...

    async def build(self, request: EvalRequest, evaluation: Evaluation, sink: LineSink) -> Status:
        """Build what was instantiated; every line goes to ``sink`` before this returns.

        Raises HostFault when what ended the build is the host's (killed from outside, no memory, full disk, lost
        nix-daemon); a deadline of the whole attempt gives BuildStatus.TIMED_OUT.
        """
        ...

    def peak_rss_bytes(self, attempt_id: str) -> int:
        """Sync. The largest resident size of one process of the attempt so far, 0 when unknown. Until ``forget``."""
        ...

    async def forget(self, attempt_id: str) -> None:
        """Drop the collector roots of an attempt."""
        ...


# --- budget -------------------------------------------------------------------------------------------------------


class Budget(Protocol):
    """A number of slots of the host, shared fairly by weight between identities."""

    def slot(self, identity: str, weight: int) -> AbstractAsyncContextManager[None]:
        """Wait in turn for a slot and hold it."""
        ...
