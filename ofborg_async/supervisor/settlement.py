"""What becomes of a message at its end: acknowledged once its result is out, and given back only while that is safe."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from ofborg_async.errors import BrokerUnavailableError, DeadlineExceededError, DeliveryLostError

if TYPE_CHECKING:
    from ofborg_async.model.identity import LimitSettings
    from ofborg_async.pipeline.ports import Delivery
    from ofborg_async.supervisor.claims import Claim
    from ofborg_async.supervisor.services import Services

log = logging.getLogger(__name__)


def returns_spent(delivery: Delivery, limits: LimitSettings) -> bool:
    """Whether a message must not go back any more: the next return but one would make the broker drop it.

    One return is kept for a stop or a crash in the moment in which the message comes.
    """
    return delivery.returns >= max(1, limits.delivery_limit - 1)


async def reported(claim: Claim | None, services: Services) -> None:
    """A result that the outbox sent is out: its message, when it returns, is acknowledged; if it has returned, now."""
    if claim is not None:
        claim.report(services.clock.monotonic())
        if claim.deliveries:
            await acknowledge(claim, services)


async def acknowledge(claim: Claim, services: Services) -> None:
    """Acknowledge what is left of a claim's deliveries; settle it once the broker is known to have processed one.

    When all are lost the claim stays: the message comes back and is acknowledged then.
    """
    acked = False
    for delivery in claim.take_to_acknowledge():
        with suppress(DeliveryLostError, BrokerUnavailableError, DeadlineExceededError):
            await delivery.ack()
            acked = True
    if acked:
        services.claims.acknowledged(claim, services.clock.monotonic())
    else:
        log.warning("attempt %s: no delivery is left to acknowledge; it will be when it returns", claim.attempt_id)
