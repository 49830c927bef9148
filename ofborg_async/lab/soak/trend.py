"""Whether a series of samples grows. Pure.

The rule: the samples after the warm-up (the first fifth of the time) are cut into three thirds of equal time, and each
third is represented by its median, so that a job that happens to run in one sample counts for nothing.

- What must stay (``Kind.FLAT``) *grows* when the last third is above the middle one and above the first one, each by
  more than its tolerance (a hundredth of the middle third, and at least what the measure says). A leak that is smaller
  than the tolerance in a third of the time is not seen: a longer soak sees it.
- What is emptied from time to time (``Kind.BOUNDED``) *grows* when any sample is above the bound.
- What grows by design (``Kind.HISTORY``) is listed with its cost for each job and with what bounds it.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence

from attrs import frozen

WARM_UP = 0.2
_TOLERANCE = 0.01


class Kind(enum.Enum):
    """What is expected of a measure."""

    FLAT = "must not grow"
    BOUNDED = "stays below its bound"
    HISTORY = "grows by design"


@frozen
class Measure:
    """What is measured. ``least``: a difference in its unit that means nothing; ``bound`` and its ``reason``."""

    name: str
    unit: str
    kind: Kind = Kind.FLAT
    least: float = 0.0
    bound: float = 0.0
    reason: str = ""


@frozen
class Sample:
    """One look: seconds since the start, jobs that were over, and the value of each measure by its name."""

    seconds: float
    jobs: int
    values: dict[str, float]


@frozen
class Trend:
    """Medians of the thirds, the slope from the first to the last, and the verdict."""

    measure: Measure
    start: float
    middle: float
    end: float
    highest: float
    per_1000_jobs: float
    grows: bool

    @property
    def verdict(self) -> str:
        """In words."""
        if self.grows:
            return "GROWS"
        return {Kind.FLAT: "flat", Kind.BOUNDED: f"below {self.measure.bound:g}", Kind.HISTORY: "by design"}[
            self.measure.kind
        ]


def trend_of(measure: Measure, samples: Sequence[Sample]) -> Trend:
    """Judge one measure. Raises ValueError for fewer samples than make three thirds after the warm-up."""
    settled = after_warm_up(samples)
    first, middle, last = (_median(third, measure.name) for third in _thirds(settled))
    jobs = [statistics.median(sample.jobs for sample in third) for third in _thirds(settled)]
    highest = max(sample.values[measure.name] for sample in settled)
    tolerance = max(measure.least, _TOLERANCE * middle)
    grows = {
        Kind.FLAT: last - middle > tolerance and last - first > tolerance,
        Kind.BOUNDED: highest > measure.bound,
        Kind.HISTORY: False,
    }[measure.kind]
    slope = 1000 * (last - first) / (jobs[2] - jobs[0]) if jobs[2] > jobs[0] else 0.0
    return Trend(measure, first, middle, last, highest, slope, grows)


def after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that count."""
    if not samples:
        return []
    began, ended = samples[0].seconds, samples[-1].seconds
    return [sample for sample in samples if sample.seconds >= began + WARM_UP * (ended - began)]


def _thirds(samples: Sequence[Sample]) -> list[list[Sample]]:
    if len(samples) < 3:
        raise ValueError(f"{len(samples)} samples after the warm-up are too few to judge")
    count = len(samples)
    return [list(samples[count * number // 3 : count * (number + 1) // 3]) for number in range(3)]


def _median(samples: Sequence[Sample], name: str) -> float:
    return statistics.median(sample.values[name] for sample in samples)
