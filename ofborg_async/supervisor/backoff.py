"""How long to wait before trying again, and when to stop trying. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random


class Backoff:
    """Doubling pauses with jitter: ``first_seconds`` to ``max_seconds``; a success starts over."""

    def __init__(self, first_seconds: float, max_seconds: float, random: Random | None = None) -> None:
        self._first = first_seconds
        self._max = max_seconds
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._failures = 0

    def next_seconds(self) -> float:
        """Seconds to wait after one more failure: at least half of the doubled value, so that crowds spread."""
        whole = min(self._max, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return whole * (0.5 + self._random.random() / 2)

    def skip(self, failures: int) -> None:
        """Count ``failures`` without waiting."""
        self._failures += failures

    def reset(self) -> None:
        """Forget the failures."""
        self._failures = 0


def doubling(first_seconds: float, max_seconds: float, random: Random | None = None) -> Callable[[int], float]:
    """A Backoff as a function of the number of failures in a row, from 1."""

    def pause(failures: int) -> float:
        backoff = Backoff(first_seconds, max_seconds, random)
        backoff.skip(failures - 1)
        return backoff.next_seconds()

    return pause


class RestartIntensity:
    """More than ``intensity`` restarts within ``period_seconds`` is too many (as in Erlang's supervisors)."""

    def __init__(self, intensity: int, period_seconds: float) -> None:
        self._intensity = intensity
        self._period = period_seconds
        self._times: deque[float] = deque()
        self.total = 0

    def restarted(self, now_seconds: float) -> bool:
        """Book a restart at ``now_seconds`` (monotonic); True while another one is allowed."""
        self.total += 1
        self._times.append(now_seconds)
        while self._times and now_seconds - self._times[0] > self._period:
            self._times.popleft()
        return len(self._times) <= self._intensity

    def forgive(self) -> None:
        """Start counting anew: the operator restarted it."""
        self._times.clear()
