"""Instantiates the attrs of a job: together where that works, alone where exact error lines are needed.

``strategy`` says how they are spread and why.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskGroup

from ofborg_async.errors import HostFault
from ofborg_async.model.evaluation import EvalRequest, Evaluation, SkippedAttr
from ofborg_async.nix import argv, strategy
from ofborg_async.nix.ahead import Ahead
from ofborg_async.nix.instantiate import Failed, Instantiated, Instantiation
from ofborg_async.nix.session import Session

_log = logging.getLogger(__name__)

_ERROR_BYTES = 8 * 1024 * 1024
"""What the error lines of one job may take in memory, all attrs together."""


class Evaluator:
    """One evaluation of one request, with at most ``parallel`` processes at a time.

    ``building`` is where a build may begin, if any. ``ahead`` is the one that has begun there, None when there is none.
    """

    def __init__(
        self, session: Session, request: EvalRequest, parallel: int, building: TaskGroup | None = None
    ) -> None:
        self.ahead: Ahead | None = None
        self._building = building
        self._session = session
        self._request = request
        self._parallel = max(1, parallel)
        self._instantiation = Instantiation(session, request, session.new_links_dir(request.attempt_id))
        self._slots = anyio.CapacityLimiter(self._parallel)
        self._skipped: dict[int, list[bytes]] = {}
        self._found: list[tuple[Sequence[int], tuple[str, ...] | None]] = []
        self._error_room_bytes = _ERROR_BYTES
        self._fault: HostFault | None = None

    async def run(self) -> Evaluation:
        """Instantiate. Raises HostFault."""
        accepted = [index for index, attr in enumerate(self._request.attrs) if not self._refuse(index, attr)]
        if len(accepted) != 1 or not await self._build_ahead(*accepted):
            await self._evaluate(accepted)
            if len(accepted) == 1:
                self._session.last_cpu_seconds = self._instantiation.cpu_seconds
        attrs = self._request.attrs
        return Evaluation(
            attempted=tuple(attr for index, attr in enumerate(attrs) if index not in self._skipped),
            skipped=tuple(SkippedAttr(attrs[index], tuple(lines)) for index, lines in sorted(self._skipped.items())),
            derivations=self._derivations(),
        )

    async def _evaluate(self, indexes: list[int]) -> None:
        sizes_bytes = [argv.shared_bytes(self._request.attrs[index]) for index in indexes]
        async with anyio.create_task_group() as group:
            for part in strategy.parts(sizes_bytes, self._parallel):
                group.start_soon(self._guarded, group, self._together, [indexes[place] for place in part])
        if self._fault is not None:
            raise self._fault

    async def _build_ahead(self, index: int) -> bool:
        """Evaluate the only attr by the process that builds it, if it is small. False when that is not known."""
        attr = self._request.attrs[index]
        is_small = self._session.last_cpu_seconds < strategy.SMALL_CPU_SECONDS
        if self._building is None or not is_small or not argv.is_plain(attr):
            return False
        if self._session.evaluation_seconds(self._request.attempt_id) <= 0:
            return False
        ahead = Ahead(self._session, self._request, attr)
        outcome = await ahead.evaluate(self._building)
        if outcome is None:
            return False
        self._session.last_cpu_seconds = ahead.cpu_seconds
        if isinstance(outcome, Failed):
            self._skip(index, outcome.lines)
        else:
            self._found.append(([index], outcome.derivations))
            self.ahead = ahead if ahead.runs_on else None
        return True

    def _refuse(self, index: int, attr: str) -> bool:
        reason = argv.refusal(attr)
        if reason is not None:
            self._skip(index, [b"[ofborg-async: this attribute is refused: %s]" % reason.encode()])
        return reason is not None

    async def _guarded(
        self, group: TaskGroup, work: Callable[[TaskGroup, list[int]], Awaitable[None]], indexes: list[int]
    ) -> None:
        """Do ``work``; a fault of the host ends the whole evaluation, without a group of exceptions around it."""
        try:
            await work(group, indexes)
        except HostFault as fault:
            self._fault = self._fault or fault
            group.cancel_scope.cancel()

    async def _together(self, group: TaskGroup, indexes: list[int]) -> None:
        """Evaluate attrs by one process, as long as that is worth it."""
        for _ in range(strategy.ROUNDS):
            if len(indexes) <= 1:
                break
            async with self._slots:
                outcome = await self._instantiation.several([self._request.attrs[index] for index in indexes])
            if isinstance(outcome, Instantiated):
                self._found.append((indexes, outcome.derivations))
                return
            if outcome.killed or outcome.index >= len(indexes):
                _log.info("nix-instantiate of %d attrs ended early (%s); one by one", len(indexes), outcome)
                break
            culprit = indexes.pop(outcome.index)
            if outcome.overtime:
                self._skip(culprit, [self._session.overtime_line(self._request.attempt_id)])
            else:
                group.start_soon(self._guarded, group, self._one_by_one, [culprit])
        for first in range(1, min(self._parallel, len(indexes))):
            group.start_soon(self._guarded, group, self._one_by_one, indexes[first :: self._parallel])
        await self._one_by_one(group, indexes[:: self._parallel])

    async def _one_by_one(self, _: TaskGroup, indexes: list[int]) -> None:
        """Evaluate each attr by a process of its own."""
        for index in indexes:
            async with self._slots:
                outcome = await self._instantiation.one(self._request.attrs[index])
            if isinstance(outcome, Failed):
                self._skip(index, outcome.lines)
            else:
                self._found.append(([index], outcome.derivations))

    def _skip(self, index: int, lines: list[bytes]) -> None:
        kept = []
        for line in lines:
            self._error_room_bytes -= len(line) + 1
            if self._error_room_bytes < 0:
                kept.append(b"[ofborg-async: the rest of the error is left out: this job has too many errors]")
                break
            kept.append(line)
        self._skipped[index] = kept

    def _derivations(self) -> tuple[str, ...] | None:
        """All derivations in the job's order; None when an evaluation printed, or when the order cannot be told."""
        found = sorted(self._found, key=lambda part: part[0][0])
        order = [index for indexes, _ in found for index in indexes]
        if order != sorted(order):
            return None
        together: list[str] = []
        for _, derivations in found:
            if derivations is None:
                return None
            together += derivations
        return tuple(together)
