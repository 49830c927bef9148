"""One attr, evaluated and built by one process: it saves the start of a second one, which is most of a small job.

``nix-build -E`` is given an expression of ours (``argv.build_ahead``) whose traces, with a random word in them that no
package knows, tell how far it is. nix-build looks an attr up, asks for the name of its derivation, then for the next
attr; when it has all it asks for their paths, and then builds. Our second "attr" is only a look at the first:

- ``root``: the file has been applied. What fails from here on fails below the attr, in frames of the package alone.
- ``peek``: the attr is found. The peek asks for its derivation's path, which writes it into the store, as nix-build
  itself would do next.
- the derivation and its output: it is instantiated. What is printed after this line is the build's; before it nothing
  can have been built but imports. Only a set that is a derivation gets so far: with a list, a set of sets or a function
  the peek ends the process, and the attr is evaluated as before.
- ``failed``: its path cannot be had. nix-build asks for it once more, and says why as nix-instantiate does.

What makes it equal to nix-instantiate and nix-build one after the other:

- The build is that of the same derivation and output by the same program with the same options.
- What the evaluation prints begins the log of the build, as with a nix-build that evaluates for the second time after
  nix-instantiate. What it imports is built by then, so those lines are left out (``noise.printed_again``).
- Errors are taken as they are only from an evaluation that failed between ``root`` and ``peek``, or after ``failed``
  with nothing else in between (then nothing was printed twice), if no frame of our expression shows in them, as it may
  where nix remembers a failure, and the host is not named. Anything else is evaluated anew in the original's form. The
  name of the root, which has the random word, is taken out of the message that an attr is missing.
- The time limit of an evaluation ends it before the derivation is named, that of the attempt after; the time between
  TERM and KILL changes likewise.
- Running, it protects the derivation from the collector. A build that has to begin again may find it collected, or
  evaluates in the original's form anyway since something was printed.

Once the derivation is named we do not end the process for a reason of our own: on a busy host a small derivation is
built before we have read its name, or before a signal arrives, and no second build would print those lines again. (It
is ended if it printed more than is kept, or if the output has a name that no command line can have.)

A large evaluation gains nothing, and keeps its memory for as long as the build takes. So ``Evaluator`` does not begin
one where the last evaluation was large.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from enum import Enum

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ofborg_async.errors import HostFault
from ofborg_async.model.evaluation import EvalRequest
from ofborg_async.nix import argv
from ofborg_async.nix.faults import fault_of_signal
from ofborg_async.nix.instantiate import CAPTURE_BYTES, Failed, Instantiated, fault_said
from ofborg_async.nix.noise import has_printed, printed_again, without_restricted
from ofborg_async.nix.session import STOP_BUILD, STOP_EVALUATION, Session
from ofborg_async.process import Command, Completed, cpu_seconds_of
from ofborg_async.waiting import at_most, idle

# The mark at its end tells that the name of the output has no newline.
_DERIVATION = re.compile(rb"(/[^\n!]*/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+\.drv![0-9A-Za-z+\-._?=]+)!")
_OURS = "«string»".encode()

LinesSink = Callable[[list[bytes]], None]
_Outcome = Instantiated | Failed | HostFault | None


class _Stage(Enum):
    BEGUN = "begun"
    ROOT = "root"
    PEEK = "peek"
    FAILED = "failed"
    INSTANTIATED = "instantiated"


_STAGES = {b"root": _Stage.ROOT, b"peek": _Stage.PEEK, b"failed": _Stage.FAILED}


class Ahead:
    """The process of one plain attr. It is begun by ``evaluate`` and may run on until ``finish``.

    ``cpu_seconds`` is what the evaluation took of a processor; where the system does not tell, of time.
    """

    def __init__(self, session: Session, request: EvalRequest, attr: str) -> None:
        self._session = session
        self._request = request
        self._nonce = secrets.token_hex(8)
        self._words = argv.build_ahead(session.settings, request.system, request.subset, attr, self._nonce)
        self._stage = _Stage.BEGUN
        self._kept_bytes = 0
        # Lines so far: of the evaluation, then those of the build until somebody takes them.
        self._lines: list[bytes] = []
        self._lines_at_stage = 0
        self._sink: LinesSink | None = None
        self._outcome: _Outcome = None
        self._scope = anyio.CancelScope()
        self._task_status: TaskStatus[_Outcome]
        self._done: Completed | None = None
        self._fault: HostFault | None = None
        self._ended = anyio.Event()
        self.runs_on = False
        self.cpu_seconds = 0.0
        self._pid = 0
        self._began = session.clock.monotonic()

    async def evaluate(self, group: TaskGroup) -> Instantiated | Failed | None:
        """Begin, in ``group``, and return when the attr is instantiated or the process has ended.

        With ``runs_on`` it goes on building what it instantiated, until the group is cancelled, and ``finish`` has to
        take it over. None: evaluate in the original's form. Raises HostFault.
        """
        outcome: _Outcome = await group.start(self._run)
        if isinstance(outcome, HostFault):
            raise outcome
        return outcome

    async def finish(self, sink: LinesSink) -> Completed:
        """Give all lines of the build to ``sink`` until it ends; ``timed_out``: at the end of the attempt's time.

        Raises HostFault.
        """
        if self._lines:
            sink(self._lines)
        self._sink = sink
        with idle("the build that runs already: the attempt's time limits it"):
            await self._ended.wait()
        if self._done is None:
            raise self._fault or AssertionError("a process that was not cancelled has ended")
        return self._done

    async def _run(self, *, task_status: TaskStatus[_Outcome]) -> None:
        self._task_status = task_status
        await self._process()
        if not self.runs_on:
            task_status.started(self._fault or self._outcome)
        self._ended.set()

    async def _process(self) -> None:
        session, request = self._session, self._request
        seconds = session.evaluation_seconds(request.attempt_id)
        with at_most(seconds) as self._scope:
            try:
                done = await session.spawner.stream(
                    Command(self._words, session.environment(request), request.tree, request.descriptors),
                    on_lines=self._take,
                    on_start=self._started,
                    line_bytes=session.limits.line_bytes,
                    deadline_seconds=max(0.0, session.remaining_seconds(request.attempt_id)),
                    what=f"nix-build of one attr in {request.tree}",
                    policy=lambda: STOP_BUILD if self.runs_on else STOP_EVALUATION,
                    attempt_id=request.attempt_id,
                )
            except HostFault as fault:
                self._fault = fault
            else:
                session.book(request.attempt_id, done)
                self._done = done
                if not self.runs_on:
                    self.cpu_seconds = done.cpu_seconds
        if self._fault is None and self._stage is not _Stage.INSTANTIATED:
            self._outcome = self._of_its_end()

    def _started(self, pid: int) -> None:
        self._pid = pid

    def _take(self, lines: list[bytes]) -> None:
        if self._sink is not None:
            self._sink(lines)
        elif self._stage is _Stage.INSTANTIATED:
            self._lines += lines
        else:
            self._evaluating(lines)

    def _evaluating(self, lines: list[bytes]) -> None:
        ours = b"trace: %s " % self._nonce.encode()
        for number, line in enumerate(lines, start=1):
            if not line.startswith(ours):
                self._keep(line)
                continue
            self._lines_at_stage = len(self._lines)
            said = line.removeprefix(ours)
            if said not in _STAGES:
                self._instantiated(said, lines[number:])
                return
            self._stage = _STAGES[said]

    def _keep(self, line: bytes) -> None:
        self._kept_bytes += len(line) + 1
        if self._kept_bytes <= CAPTURE_BYTES:
            self._lines.append(line)

    def _instantiated(self, derivation: bytes, rest: list[bytes]) -> None:
        if self._scope.cancel_called:
            return  # its time was over just before, and its end is under way
        self._stage = _Stage.INSTANTIATED
        match = _DERIVATION.fullmatch(derivation)
        if match is None or self._kept_bytes > CAPTURE_BYTES:
            self._scope.cancel()
            return
        self._outcome = Instantiated(None if has_printed(self._lines) else (match[1].decode(),))
        self._lines = printed_again(self._lines) + rest
        self._scope.deadline = float("inf")
        self.runs_on = True
        spent = cpu_seconds_of(self._pid)
        self.cpu_seconds = self._session.clock.monotonic() - self._began if spent is None else spent
        self._task_status.started(self._outcome)

    def _of_its_end(self) -> _Outcome:
        """What it came to, when it ended or was ended before a derivation was named."""
        root = argv.ahead_root(self._nonce).encode() + b"."
        lines = without_restricted([line.replace(root, b"") for line in self._lines])
        done = self._done
        if done is None or done.timed_out:
            return Failed([*lines, self._session.overtime_line(self._request.attempt_id)])
        if fault := fault_of_signal("nix-build", done.returncode):
            return fault
        failed = Failed(lines)
        since = self._lines[self._lines_at_stage :]
        known = self._stage is _Stage.ROOT or (
            self._stage is _Stage.FAILED and b"".join(since[:1]).startswith(b"error:")
        )
        text = b"\n".join(lines)
        if done.returncode <= 0 or not known or self._kept_bytes > CAPTURE_BYTES or fault_said(failed):
            return None
        return None if _OURS in text or self._nonce.encode() in text else failed
