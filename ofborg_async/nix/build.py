"""Runs nix-build for what was instantiated, streams its lines, and judges what came of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.result import BuildStatus, Status
from ofborg_async.nix import argv
from ofborg_async.nix.ahead import Ahead
from ofborg_async.nix.faults import fault_of_signal
from ofborg_async.nix.host import HostEvidence
from ofborg_async.nix.noise import without_restricted
from ofborg_async.nix.session import STOP_BUILD, Session
from ofborg_async.nix.verdict import Watch, gravest, status_of
from ofborg_async.process import Command

_log = logging.getLogger(__name__)

_HELD_LINES = 100
_LEAST_ARGUMENT_BYTES = 128 * 1024


class LineSink(Protocol):
    """Takes the lines of a build as they come."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Sync; never blocks for long."""
        ...


@frozen
class _Judged:
    """What came of a build. ``suspicion``: why a Failure may be the host's, "" if nothing says so.

    ``out_of_memory``: the kernel killed processes meanwhile, ours or others.
    """

    status: Status
    suspicion: str = ""
    out_of_memory: bool = False


class Build:
    """The build of one request. ``sink`` takes its lines. ``ahead`` is its process if that runs already."""

    def __init__(self, session: Session, request: EvalRequest, sink: LineSink, ahead: Ahead | None = None) -> None:
        self._session = session
        self._request = request
        self._sink = sink
        self._ahead = ahead

    async def run(self, evaluation: Evaluation) -> Status:
        """Build. Raises HostFault.

        A failure while a builder was killed, or while the kernel killed for want of memory, may be the host's. It is
        built once more, which builds only what failed. If the kernel kills again it is a HostFault; otherwise what
        failed twice has failed, so that a package which kills itself ends as a Failure.
        """
        first = await self._everything(evaluation) if self._ahead is None else await self._rest_of(self._ahead)
        if first.status is not BuildStatus.FAILURE or not first.suspicion:
            return first.status
        self._say(f"{first.suspicion}; building again what failed")
        second = await self._everything(evaluation)
        if second.status is BuildStatus.FAILURE and second.out_of_memory:
            remedy = "give the builder more memory or fewer builds at once"
            raise HostFault(FaultKind.MEMORY, f"{second.suspicion}, twice", remedy=remedy)
        return second.status

    async def _everything(self, evaluation: Evaluation) -> _Judged:
        judged = _Judged(BuildStatus.SUCCESS)
        for words in self._commands(evaluation):
            remaining_seconds = self._session.remaining_seconds(self._request.attempt_id)
            run = _Run(self._sink, self._session.evidence, may_be_useless=evaluation.derivations is not None)
            timed_out = remaining_seconds <= 0 or await self._nix_build(run, words, remaining_seconds)
            if timed_out:
                return self._timed_out()
            this = run.judge()
            if this is None:
                _log.info("attempt %s: what was instantiated is not usable any more", self._request.attempt_id)
                return await self._everything(evolve(evaluation, derivations=None))
            judged = _Judged(
                gravest(judged.status, this.status),
                judged.suspicion or this.suspicion,
                judged.out_of_memory or this.out_of_memory,
            )
        return judged

    async def _rest_of(self, ahead: Ahead) -> _Judged:
        run = _Run(self._sink, self._session.evidence, may_be_useless=False)
        done = await ahead.finish(run.take)
        if done.timed_out:
            return self._timed_out()
        run.returncode = done.returncode
        judged = run.judge()
        if judged is None:
            raise AssertionError("only a run that may be useless is")
        return judged

    def _timed_out(self) -> _Judged:
        self._say(f"the time limit of an attempt, {self._session.settings.attempt_timeout_seconds:g} s, is over")
        return _Judged(BuildStatus.TIMED_OUT)

    def _commands(self, evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
        """Command lines, one unless an argument list cannot take it all; none if there is nothing to build.

        nix-build without an argument would build the whole file.
        """
        settings, request = self._session.settings, self._request
        limit_bytes = max(os.sysconf("SC_ARG_MAX") // 2, _LEAST_ARGUMENT_BYTES)
        if evaluation.derivations is not None:
            for some in argv.batches(evaluation.derivations, limit_bytes):
                yield argv.build_derivations(settings, some)
        else:
            for some in argv.batches(evaluation.attempted, limit_bytes):
                yield argv.build_original(settings, request.system, request.subset, some)

    async def _nix_build(self, run: _Run, words: tuple[str, ...], seconds: float) -> bool:
        """One nix-build. True when its time was over."""
        request = self._request
        done = await self._session.spawner.stream(
            Command(words, self._session.environment(request), request.tree, request.descriptors),
            on_lines=run.take,
            line_bytes=self._session.limits.line_bytes,
            deadline_seconds=seconds,
            what=f"nix-build in {request.tree}",
            policy=STOP_BUILD,
            attempt_id=request.attempt_id,
        )
        self._session.book(request.attempt_id, done)
        run.returncode = done.returncode
        if done.timed_out:
            run.release()
        return done.timed_out

    def _say(self, text: str) -> None:
        self._sink.write([b"[ofborg-async: %s]" % text.encode()])


class _Run:
    """Takes the lines of one nix-build, passes them on, and judges it at its end.

    With ``may_be_useless``, lines are held back as long as they can be all that nix says of a derivation which it
    cannot build as it was instantiated, and ``judge`` gives None if they were: collected meanwhile, or an output it
    does not have.
    """

    def __init__(self, sink: LineSink, evidence: HostEvidence, *, may_be_useless: bool) -> None:
        self.returncode = 0
        self._sink = sink
        self._evidence = evidence
        self._oom_kills = evidence.oom_kills()
        self._watch = Watch()
        self._full_place: Path | None = None
        self._held: list[bytes] | None = [] if may_be_useless else None

    def take(self, lines: list[bytes]) -> None:
        lines = without_restricted(lines)
        if self._watch.feed(lines) and self._full_place is None:
            # Asked now, since what the builder wrote is removed when it has failed.
            self._full_place = self._evidence.full_place()
        if self._held is None:
            self._sink.write(lines)
            return
        self._held += lines
        if self._held and (not self._held[0].startswith(b"error: ") or len(self._held) > _HELD_LINES):
            self.release()

    def release(self) -> None:
        if self._held:
            self._sink.write(self._held)
        self._held = None

    def judge(self) -> _Judged | None:
        """What came of it, or None if it was useless. Raises HostFault when it is the host's."""
        if fault := fault_of_signal("nix-build", self.returncode):
            self.release()
            raise fault
        if self.returncode == 1:
            if fault := self._watch.host_fault():
                self.release()
                raise fault
            if self._held:
                return None
        self.release()
        status = status_of(self.returncode, self._watch)
        if status is not BuildStatus.FAILURE:
            return _Judged(status)
        if self._full_place is not None:
            detail = f"a build failed for want of space and {self._full_place} is below the floor"
            raise HostFault(FaultKind.DISK, detail, remedy="free disk space or inodes")
        out_of_memory = self._evidence.oom_kills() > self._oom_kills
        suspicion = ""
        if out_of_memory:
            suspicion = "the kernel killed processes of this host for want of memory meanwhile"
        elif self._watch.killed:
            suspicion = "a builder was killed (signal 9), as the kernel does when memory runs out"
        return _Judged(status, suspicion, out_of_memory)
