"""Evaluation and builds for one identity: the port ``Nix`` of the pipeline, by nix's command line tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from anyio.abc import TaskGroup

from ofborg_async.clock import Clock
from ofborg_async.errors import HostFault
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.identity import LimitSettings, NixSettings
from ofborg_async.model.result import Status
from ofborg_async.nix.ahead import Ahead
from ofborg_async.nix.build import Build, LineSink
from ofborg_async.nix.environment import places_of_builds
from ofborg_async.nix.evaluate import Evaluator
from ofborg_async.nix.host import HostEvidence, counter_of_kills
from ofborg_async.nix.session import Session
from ofborg_async.process import Spawner
from ofborg_async.waiting import in_thread


class NixEngine:
    """Runs nix-instantiate and nix-build for one identity.

    ``roots`` is the directory for collector roots and nix's caches, on a path that the collector can see, and owned by
    this daemon; ``path`` is the PATH of nix; ``parallel()`` is how many evaluations a job may run at once, asked when
    it starts; ``evidence`` is what the host says of memory and disks (by default of the places this identity's builds
    write to).
    """

    def __init__(
        self,
        settings: NixSettings,
        limits: LimitSettings,
        *,
        spawner: Spawner,
        clock: Clock,
        roots: Path,
        path: str,
        parallel: Callable[[], int],
        evidence: HostEvidence | None = None,
    ) -> None:
        floors = limits.disk_floor_bytes, limits.disk_floor_inodes
        evidence = evidence or HostEvidence(places_of_builds(settings), *floors, counter_of_kills(settings))
        self._session = Session(settings, limits, spawner, clock, roots.resolve(), path, evidence)
        self._parallel = parallel
        self._ahead: dict[str, Ahead] = {}

    async def evaluate(self, request: EvalRequest, building: TaskGroup | None = None) -> Evaluation:
        """Instantiate the attrs of a job; what cannot be is skipped, with its error lines.

        With ``building``, the build may begin there already: ``build`` takes it over, and to cancel the group ends it.
        Raises HostFault (MEMORY, DISK, NIX_DAEMON, PROCESS ...): worth retrying. ExecutableMissingError is one.
        """
        evaluator = Evaluator(self._session, request, self._parallel(), building)
        evaluation = await evaluator.run()
        if evaluator.ahead is not None:
            self._ahead[request.attempt_id] = evaluator.ahead
        return evaluation

    async def build(self, request: EvalRequest, evaluation: Evaluation, sink: LineSink) -> Status:
        """Build what ``evaluate`` gave; every line goes to ``sink`` before this returns.

        The attempt's time runs from its first evaluation; when it is over the status is TimedOut. Raises HostFault.
        """
        ahead = self._ahead.pop(request.attempt_id, None)
        return await Build(self._session, request, sink, ahead).run(evaluation)

    def peak_rss_bytes(self, attempt_id: str) -> int:
        """The largest resident size of one process of the attempt so far, 0 when unknown. Until ``forget``."""
        return self._session.peak_rss_bytes(attempt_id)

    async def forget(self, attempt_id: str) -> None:
        """Drop the collector roots and the caches of an attempt. Does nothing when there are none."""
        self._session.drop(attempt_id)
        self._ahead.pop(attempt_id, None)
        directory = self._session.attempt_dir(attempt_id)
        try:
            was_made = directory.exists()
        except OSError:  # what cannot be seen cannot be removed; the next start does
            was_made = False
        if was_made:
            with suppress(HostFault):  # as above
                await in_thread(partial(shutil.rmtree, directory, ignore_errors=True))
