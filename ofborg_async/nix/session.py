"""What the runs of nix for one identity have in common, and what is remembered of an attempt between them."""

from __future__ import annotations

from pathlib import Path

from attrs import define, field

from ofborg_async.clock import Clock
from ofborg_async.model.evaluation import EvalRequest
from ofborg_async.model.identity import LimitSettings, NixSettings
from ofborg_async.nix.environment import nix_environment
from ofborg_async.nix.host import HostEvidence
from ofborg_async.process import Completed, Spawner, StopPolicy

# On TERM nix ends the builders of an import, but it takes no notice while it computes.
STOP_EVALUATION = StopPolicy(term_grace_seconds=5.0)
# On TERM nix ends its builders and removes what they wrote; on KILL it does neither.
STOP_BUILD = StopPolicy(term_grace_seconds=30.0)


@define
class _Attempt:
    started: float
    peak_rss_bytes: int = 0
    evaluations: int = 0


@define
class Session:
    """Settings, tools and the attempts under way.

    ``path`` is the PATH of nix; ``roots`` holds the collector roots; ``evidence`` is what the host says of itself.
    ``last_cpu_seconds`` is what the evaluation of a single attr took last, of a processor.
    """

    settings: NixSettings
    limits: LimitSettings
    spawner: Spawner
    clock: Clock
    roots: Path
    path: str
    evidence: HostEvidence
    last_cpu_seconds: float = field(default=0.0, init=False)
    _attempts: dict[str, _Attempt] = field(factory=dict, init=False)

    def environment(self, request: EvalRequest) -> dict[str, str]:
        """The environment of a nix process for ``request``.

        Its caches are the attempt's own, unless they are configured. In HOME, as root, an evaluation that fetches would
        make /homeless-shelter, and then nix refuses every build without a sandbox.
        """
        caches = {"XDG_CACHE_HOME": str(self.attempt_dir(request.attempt_id) / "cache")}
        return caches | nix_environment(self.settings, request.tree, self.path)

    def remaining_seconds(self, attempt_id: str) -> float:
        """What is left of the attempt's time, which begins with its first evaluation. Negative when it is over."""
        spent = self.clock.monotonic() - self._attempt(attempt_id).started
        return self.settings.attempt_timeout_seconds - spent

    def evaluation_seconds(self, attempt_id: str) -> float:
        """What one evaluation may take that begins now. Negative when the attempt's time is over."""
        return min(self.settings.eval_timeout_seconds, self.remaining_seconds(attempt_id))

    def overtime_line(self, attempt_id: str) -> bytes:
        """The error line of an attr whose evaluation we ended."""
        seconds = self.settings.eval_timeout_seconds
        if self.remaining_seconds(attempt_id) > 0:
            return b"[ofborg-async: the evaluation was ended after its time limit of %g s]" % seconds
        return b"[ofborg-async: not evaluated: the time limit of the whole attempt is over]"

    def new_links_dir(self, attempt_id: str) -> Path:
        """A directory for the roots of one evaluation: it may be tried again for the same attempt."""
        attempt = self._attempt(attempt_id)
        attempt.evaluations += 1
        return self.attempt_dir(attempt_id) / str(attempt.evaluations)

    def attempt_dir(self, attempt_id: str) -> Path:
        """The directory with all roots and caches of an attempt. Raises ValueError for an id that is no plain name."""
        if not attempt_id.replace("-", "").isalnum():
            raise ValueError(f"an attempt's id names a directory, so it has letters, digits and dashes: {attempt_id!r}")
        return self.roots / attempt_id

    def book(self, attempt_id: str, done: Completed) -> None:
        """Remember the largest process of an attempt."""
        attempt = self._attempt(attempt_id)
        attempt.peak_rss_bytes = max(attempt.peak_rss_bytes, done.peak_rss_bytes)

    def peak_rss_bytes(self, attempt_id: str) -> int:
        """The largest resident size of a process of the attempt so far, 0 when unknown."""
        attempt = self._attempts.get(attempt_id)
        return attempt.peak_rss_bytes if attempt else 0

    def drop(self, attempt_id: str) -> None:
        """Forget an attempt."""
        self._attempts.pop(attempt_id, None)

    def _attempt(self, attempt_id: str) -> _Attempt:
        if attempt_id not in self._attempts:
            self._attempts[attempt_id] = _Attempt(self.clock.monotonic())
        return self._attempts[attempt_id]
