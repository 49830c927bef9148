"""Which messages are ours already: the rule for redelivery (promises, "AMQP"; architecture, "Exactly one result").

A message is known by its broker, queue, request_id and the hash of its body. The broker redelivers it when a channel
dies, also while its build runs on here; it may come to any lane of the daemon. Decisions are made synchronously, before
anything is awaited, so that two lanes never both take a message for new.
"""

from __future__ import annotations

import enum

from attrs import define, evolve, field

from ofborg_async.journal import JobKey
from ofborg_async.pipeline.ports import Delivery

REMEMBERED = 1000
"""Acknowledged messages that are remembered: a broker that is killed forgets what it took in its last half second."""

SURE_SECONDS = 30.0
"""After so long an acknowledgement is taken to be on the broker's disk, and the journal forgets the message."""


class Standing(enum.Enum):
    """How a delivery stands to what is known."""

    NEW = "a new job"
    RUNNING = "its attempt is running or reporting: hand the delivery over to it"
    FINISHED = "its attempt is over and reported: acknowledge"


@define(eq=False)
class Claim:
    """A message that an attempt has taken. ``deliveries`` are its unacknowledged copies, to be acknowledged at the end.

    ``number`` tells identical messages apart that are at work at the same time; the first is 1.
    """

    key: JobKey
    attempt_id: str
    number: int = 1
    deliveries: list[Delivery] = field(factory=list)
    reported: bool = False
    reported_at: float = 0.0
    _taken: list[Delivery] = field(factory=list)

    def report(self, now: float) -> None:
        """The attempt is reported, at ``now`` (monotonic seconds): what comes back is acknowledged."""
        self.reported, self.reported_at = True, now

    @property
    def lost(self) -> bool:
        """True when no delivery of it is left to acknowledge."""
        return all(delivery.lost for delivery in self.deliveries)

    def take_to_acknowledge(self) -> list[Delivery]:
        """Those of its deliveries that can be acknowledged and that nobody is acknowledging already."""
        found = [each for each in self.deliveries if not each.lost and all(each is not taken for taken in self._taken)]
        self._taken = [*(taken for taken in self._taken if not taken.lost), *found]
        return found

    def forget_deliveries(self) -> None:
        """They are acknowledged, or lost, or in the hands of who acknowledges them."""
        self.deliveries, self._taken = [], []

    @property
    def journal_key(self) -> JobKey:
        """The key as the journal has it, where a job runs once only."""
        return self.key if self.number == 1 else evolve(self.key, queue=f"{self.key.queue}#{self.number}")


def _read(key: JobKey) -> tuple[JobKey, int | None]:
    """The message's own key and the number in one as the journal has it: virtual hosts may have such a sign too."""
    queue, _, number = key.queue.rpartition("#")
    return (evolve(key, queue=queue), int(number)) if queue and number.isdecimal() else (key, None)


@define(eq=False)
class _Acknowledged:
    """A message that the broker took the acknowledgement of. ``told``: the journal has forgotten it.

    ``current`` is False once an identical message was published anew: what comes back is no copy of this one then.
    """

    claim: Claim
    at: float
    told: bool = False
    current: bool = True


class Claims:
    """All claims of the daemon."""

    def __init__(self) -> None:
        self._claims: dict[JobKey, list[Claim]] = {}
        self._acknowledged: dict[str, _Acknowledged] = {}

    def judge(self, key: JobKey, *, redelivered: bool) -> tuple[Standing, Claim | None]:
        """How a delivery with ``key`` stands, and the claim that it belongs to.

        While an attempt still holds a live delivery, only the broker's flag tells a redelivery from an identical
        message that was published anew; once it holds none, the message came back or will: it absorbs exactly one.
        After the acknowledgement, too, a redelivery is no new job: the broker died before that was on its disk.
        """
        candidates = self._claims.get(key, ())
        for claim in sorted(candidates, key=lambda claim: not claim.lost):
            if redelivered or claim.lost:
                return (Standing.FINISHED if claim.reported else Standing.RUNNING), claim
        for known in self._acknowledged.values() if redelivered else ():
            if known.current and known.claim.key == key:
                return Standing.FINISHED, known.claim
        return Standing.NEW, None

    def claim(self, key: JobKey, attempt_id: str, *deliveries: Delivery, reported_at: float | None = None) -> Claim:
        """Take a message for an attempt. A key as the journal has it gives the message's own, and the number."""
        key, noted = _read(key)
        claims = self._claims.setdefault(key, [])
        used = {claim.number for claim in claims}
        for known in self._acknowledged.values():
            if known.claim.key == key:
                known.current = False
                if not known.told:
                    used.add(known.claim.number)
        free = (number for number in range(1, len(used) + 2) if number not in used)
        number = next(free) if noted is None or noted in used else noted
        claim = Claim(key, attempt_id, number, list(deliveries))
        if reported_at is not None:
            claim.report(reported_at)
        claims.append(claim)
        return claim

    def adopt(self, claim: Claim, delivery: Delivery) -> None:
        """Give a redelivered copy to the attempt that has taken the message."""
        claim.deliveries = [known for known in claim.deliveries if not known.lost]
        claim.deliveries.append(delivery)

    def expire(self, before: float) -> None:
        """Forget what was reported before ``before`` (monotonic seconds) and never came back: another host took it."""
        for claims in list(self._claims.values()):
            for claim in list(claims):
                if claim.reported and claim.reported_at < before and claim.lost:
                    self.settle(claim)

    def acknowledged(self, claim: Claim, now: float) -> None:
        """The broker has processed the acknowledgement, at ``now``: settled, but a redelivery is still recognised."""
        self.settle(claim)
        claim.forget_deliveries()
        self._acknowledged.setdefault(claim.attempt_id, _Acknowledged(claim, now))

    def sure(self, before: float) -> list[str]:
        """Attempts acknowledged before ``before`` (monotonic seconds): the journal can forget them now."""
        return [known.claim.attempt_id for known in self._acknowledged.values() if not known.told and known.at < before]

    def forgotten(self, attempt_id: str) -> None:
        """The journal has forgotten an attempt that ``sure`` named."""
        self._acknowledged[attempt_id].told = True
        surplus = [attempt for attempt, known in self._acknowledged.items() if known.told][:-REMEMBERED]
        for attempt in surplus:
            del self._acknowledged[attempt]

    def settle(self, claim: Claim) -> None:
        """Forget a claim: nothing of it comes back any more, or the message was given back."""
        claims = self._claims.get(claim.key, [])
        if claim in claims:
            claims.remove(claim)
        if not claims:
            self._claims.pop(claim.key, None)
