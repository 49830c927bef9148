"""What a snapshot amounts to: all well, something degraded, an identity down. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from ofborg_async.model.status import AmqpState, IdentitySnapshot, IdentityState


class Verdict(enum.StrEnum):
    """The three verdicts of ``status``; their order is their gravity."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


_DOWN = frozenset({IdentityState.FAILED, IdentityState.QUARANTINED})
_DEGRADED = frozenset({IdentityState.STARTING, IdentityState.BACKOFF})
_WELL = frozenset({AmqpState.CONSUMING, AmqpState.HOLDING})


def identity_verdict(identity: IdentitySnapshot) -> Verdict:
    """One identity: down when only a person or a long wait brings it back, degraded when it works on that itself.

    Healthy means consuming (or not consuming on purpose: busy, paused, draining).
    """
    if identity.state in _DOWN or any(system.amqp is AmqpState.REFUSED for system in identity.systems):
        return Verdict.DOWN
    unwell = any(system.amqp not in _WELL for system in identity.systems)
    if identity.state in _DEGRADED or unwell or identity.results_waiting:
        return Verdict.DEGRADED
    return Verdict.OK


def overall_verdict(identities: Iterable[IdentitySnapshot], *, disk_free_bytes: int, disk_floor_bytes: int) -> Verdict:
    """The daemon: the gravest of its identities; below the disk's floor at least degraded."""
    verdicts = [identity_verdict(identity) for identity in identities]
    if Verdict.DOWN in verdicts:
        return Verdict.DOWN
    if Verdict.DEGRADED in verdicts or disk_free_bytes < disk_floor_bytes:
        return Verdict.DEGRADED
    return Verdict.OK
