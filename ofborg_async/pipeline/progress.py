"""How far an attempt is: written by the pipeline, read by ``status`` as a snapshot."""

from __future__ import annotations

from ofborg_async.clock import Clock, rfc3339
from ofborg_async.model.job import BuildJob
from ofborg_async.model.status import JobSnapshot, Phase
from ofborg_async.pipeline.ports import PhaseSink


class Progress:
    """Phase, durations and line counts of one attempt.

    ``limit_seconds`` is the attempt's own deadline; ``on_phase`` is told of each phase that is entered.
    """

    def __init__(
        self, job: BuildJob, attempt_id: str, clock: Clock, *, limit_seconds: float, on_phase: PhaseSink
    ) -> None:
        self.job = job
        self.attempt_id = attempt_id
        self.lines = 0
        self.waiting_for = ""
        self.trouble = ""
        self.started_at = clock.now()
        self.durations_seconds: dict[str, float] = {}
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._on_phase = on_phase
        self._started = self._entered = self._last_line = clock.monotonic()
        self.phase = Phase.FETCH

    def enter(self, phase: Phase) -> None:
        """Go on to ``phase``; the time since the last change is booked on the phase that ends."""
        self._book()
        self.phase = phase
        self._on_phase(phase)

    def _book(self) -> None:
        now = self._clock.monotonic()
        spent = self.durations_seconds.get(self.phase.value, 0.0) + now - self._entered
        self.durations_seconds[self.phase.value] = spent
        self._entered = now

    def count_lines(self, number: int) -> None:
        """Book ``number`` new lines."""
        self.lines += number
        self._last_line = self._clock.monotonic()

    def durations(self) -> dict[str, float]:
        """Seconds by phase, the current one included, rounded to a millisecond."""
        self._book()
        return {phase: round(seconds, 3) for phase, seconds in self.durations_seconds.items()}

    def snapshot(self) -> JobSnapshot:
        """A frozen copy for ``status``."""
        now = self._clock.monotonic()
        return JobSnapshot(
            attempt_id=self.attempt_id,
            request_id=self.job.request_id,
            repo=self.job.repo.full_name,
            pr=self.job.pr.number,
            attrs=self.job.attrs,
            phase=self.phase,
            started_at=rfc3339(self.started_at),
            elapsed_seconds=round(now - self._started, 3),
            limit_seconds=self._limit_seconds,
            quiet_seconds=round(now - self._last_line, 3),
            lines=self.lines,
            waiting_for=self.waiting_for,
            trouble=self.trouble,
        )
