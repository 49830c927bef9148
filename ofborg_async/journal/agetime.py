"""The journal's own age, by which remembered deliveries expire.

The wall clock may be set back or forward while entries wait to expire, so their age follows the monotonic clock while
the daemon runs. Across a restart the wall clock is all there is: what it says has passed counts, and a step back counts
as nothing. So an entry is never revived, and never expires early for a step that happened while the daemon ran.
"""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import frozen

from ofborg_async.clock import Clock
from ofborg_async.journal.records import Milliseconds


@frozen
class Moment:
    """One moment: ``age_ms`` of the journal, ``wall_ms`` since 1970 in UTC."""

    age_ms: Milliseconds
    wall_ms: Milliseconds


class AgeClock:
    """Tells moments. ``last`` is the latest moment that the journal holds, None when it holds none."""

    def __init__(self, clock: Clock, last: Moment | None) -> None:
        self._clock = clock
        self._opened_monotonic = clock.monotonic()
        self._base_ms = 0
        if last is not None:
            self._base_ms = last.age_ms + max(0, to_ms(clock.now()) - last.wall_ms)

    def moment(self) -> Moment:
        """This moment."""
        passed_ms = round((self._clock.monotonic() - self._opened_monotonic) * 1000)
        return Moment(Milliseconds(self._base_ms + passed_ms), to_ms(self._clock.now()))


def to_ms(moment: datetime) -> Milliseconds:
    """An aware date as milliseconds since 1970."""
    return Milliseconds(round(moment.timestamp() * 1000))


def from_ms(milliseconds: int) -> datetime:
    """Milliseconds since 1970 as a date in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
