"""Runs of nix-instantiate: one attr, several attrs, or a probe of ours; what each came to, as data."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import anyio
from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault, host_fault_of
from ofborg_async.model.evaluation import EvalRequest
from ofborg_async.nix import argv, links
from ofborg_async.nix.faults import fault_in, fault_of_signal, signal_name
from ofborg_async.nix.noise import has_printed, without_restricted
from ofborg_async.nix.session import STOP_EVALUATION, Session
from ofborg_async.nix.verdict import Watch
from ofborg_async.process import Command, Completed, LineSplitter
from ofborg_async.waiting import at_most

_log = logging.getLogger(__name__)

CAPTURE_BYTES = 4 * 1024 * 1024
"""What is kept of the lines of one evaluation."""

_PROBE_SECONDS = 60.0
_LINES_OF_THE_CAUSE = 50


@frozen
class Instantiated:
    """It succeeded. ``derivations`` None: it printed something, or what it gave cannot be told from its output."""

    derivations: tuple[str, ...] | None


@frozen
class Failed:
    """One attr cannot be instantiated; ``lines`` say why."""

    lines: list[bytes]


@frozen
class Stopped:
    """Several attrs: nix ended at the one with this index. ``overtime``: we ended it; ``killed``: a signal did."""

    index: int
    overtime: bool = False
    killed: bool = False


class Instantiation:
    """The runs of nix-instantiate for one request. ``cpu_seconds`` is what they have taken of a processor so far."""

    def __init__(self, session: Session, request: EvalRequest, links_dir: Path) -> None:
        self._session = session
        self._request = request
        self._links_dir = links_dir
        self._runs = 0
        self.cpu_seconds = 0.0

    async def several(self, attrs: list[str]) -> Instantiated | Stopped:
        """Instantiate ``attrs`` by one process, in the shared form.

        The deadline of an evaluation is each attr's own: it starts anew whenever nix is seen to have finished one, and
        the first one's time includes what all of them share. Raises ExecutableMissingError and HostFault of the spawn.
        """
        request = self._request
        if self._seconds() <= 0:
            return Stopped(0, overtime=True)
        root, nonce = self._new_root(), secrets.token_hex(8)
        words = argv.instantiate_shared(self._session.settings, request.system, request.subset, attrs, root, nonce)
        progress = _Progress(nonce, self._session.limits.line_bytes)
        with at_most(self._seconds()) as scope:

            def on_stderr(chunk: bytes) -> None:
                if progress.feed(chunk):
                    scope.deadline = anyio.current_time() + self._seconds()

            done = await self._capture(words, self._session.remaining_seconds(request.attempt_id), on_stderr=on_stderr)
        if scope.cancelled_caught or done.timed_out:
            return Stopped(progress.finished, overtime=True)
        if done.returncode == 0:
            return Instantiated(None if progress.has_printed() else self._derivations(done, root))
        return Stopped(progress.finished, killed=fault_of_signal("nix-instantiate", done.returncode) is not None)

    async def one(self, attr: str) -> Instantiated | Failed:
        """Instantiate ``attr`` by a process of its own, in the original's form, whose error lines are exact.

        Raises HostFault when it was killed, or when nix says that the host is at fault and that is confirmed.
        """
        outcome = await self._one(attr)
        fault = fault_said(outcome)
        if fault is None:
            return outcome
        _log.info("instantiating %r: %s; seeing whether it is the host", attr, fault)
        await self._probe()
        oom_kills = self._session.evidence.oom_kills()
        outcome = await self._one(attr)
        fault = fault_said(outcome)
        if fault is not None and (fault.kind is FaultKind.MEMORY or self._session.evidence.oom_kills() > oom_kills):
            raise fault
        return outcome

    async def _one(self, attr: str) -> Instantiated | Failed:
        if self._seconds() <= 0:
            return Failed([self._overtime_line()])
        root = self._new_root()
        done = await self._original(attr, root)
        if done.returncode == 0 and not done.timed_out:
            printed = has_printed(self._split(done.stderr))
            return Instantiated(None if printed else self._derivations(done, root))
        if done.stdout and not done.timed_out:
            # Some of several derivations were instantiated and printed, which reads otherwise without links.
            done = await self._original(attr, None)
            if done.returncode == 0 and not done.timed_out:
                return Instantiated(None)
        if not done.timed_out:
            self._check_links(root)
        lines = without_restricted(self._split(done.stdout + done.stderr))
        if done.stderr_truncated or done.stdout_truncated:
            lines.append(b"[ofborg-async: the rest of the error is left out]")
        if done.timed_out:
            return Failed([*lines, self._overtime_line()])
        if fault := fault_of_signal("nix-instantiate", done.returncode):
            raise fault
        if done.returncode < 0:
            lines.append(b"[ofborg-async: nix-instantiate ended by %s]" % signal_name(done.returncode).encode())
        return Failed(lines)

    async def _original(self, attr: str, root: str | None) -> Completed:
        request = self._request
        words = argv.instantiate_original(self._session.settings, request.system, request.subset, attr, root)
        return await self._capture(words, self._seconds(), merge=root is None)

    async def _probe(self) -> None:
        """Raise HostFault if nix cannot even instantiate a derivation of ours."""
        words = argv.probe(self._session.settings, f"ofborg-async-probe-{secrets.token_hex(8)}")
        done = await self._capture(words, _PROBE_SECONDS)
        if done.timed_out:
            raise HostFault(FaultKind.NIX_DAEMON, f"nix-instantiate does not answer within {_PROBE_SECONDS:g} s")
        if done.returncode != 0:
            lines = self._split(done.stderr)
            fault = next((fault for line in reversed(lines) if (fault := fault_in(line)) is not None), None)
            detail = b" ".join(lines[-3:]).decode(errors="replace")
            raise fault or HostFault(FaultKind.OTHER, f"nix-instantiate fails for a derivation of ours: {detail}")

    async def _capture(
        self,
        words: tuple[str, ...],
        seconds: float,
        *,
        merge: bool = False,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Completed:
        request = self._request
        done = await self._session.spawner.capture(
            Command(words, self._session.environment(request), request.tree, request.descriptors),
            deadline_seconds=max(seconds, 0.0),
            what=f"nix-instantiate in {request.tree}",
            policy=STOP_EVALUATION,
            limit_bytes=CAPTURE_BYTES,
            merge=merge,
            on_stderr=on_stderr,
            attempt_id=request.attempt_id,
        )
        self._session.book(request.attempt_id, done)
        self.cpu_seconds += done.cpu_seconds
        return done

    def _seconds(self) -> float:
        return self._session.evaluation_seconds(self._request.attempt_id)

    def _overtime_line(self) -> bytes:
        return self._session.overtime_line(self._request.attempt_id)

    def _new_root(self) -> str:
        """A name for links in a directory of their own: what an ended run left behind is in nobody's way."""
        self._runs += 1
        directory = self._links_dir / str(self._runs)
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise host_fault_of(error, "a directory for collector roots cannot be made") from error
        return str(directory / "d")

    def _check_links(self, root: str) -> None:
        """Raise HostFault where nix could not have made its links: it tells that as an error of the attr."""
        file = Path(root).with_name("writable")
        try:
            file.touch()
            file.unlink()
        except OSError as error:
            raise host_fault_of(error, "collector roots cannot be made") from error

    def _derivations(self, done: Completed, root: str) -> tuple[str, ...] | None:
        return None if done.stdout_truncated else links.derivations(done.stdout, root, os.readlink)

    def _split(self, output: bytes) -> list[bytes]:
        splitter = LineSplitter(self._session.limits.line_bytes)
        return splitter.feed(output) + splitter.finish()


class _Progress:
    """Reads the error output of a run of several: how many attrs are finished, whether anything else was printed."""

    def __init__(self, nonce: str, line_bytes: int) -> None:
        self.finished = 0
        self._printed = False
        self._nonce = nonce
        self._splitter = LineSplitter(line_bytes)

    def feed(self, chunk: bytes) -> bool:
        """Take a chunk; True when one more attr is finished."""
        before = self.finished
        rest = []
        for line in self._splitter.feed(chunk):
            if line == argv.marker(self._nonce, self.finished):
                self.finished += 1
            else:
                rest.append(line)
        self._printed = self._printed or has_printed(rest)
        return self.finished > before

    def has_printed(self) -> bool:
        """Whether there was more than our own lines, now that all is read."""
        return self._printed or has_printed(self._splitter.finish())


def fault_said(outcome: Instantiated | Failed) -> HostFault | None:
    """The fault of the host that an error speaks of: nix names the cause in its first or, newer, in its last lines."""
    lines = outcome.lines if isinstance(outcome, Failed) else []
    many = len(lines) > 2 * _LINES_OF_THE_CAUSE
    causes = [*lines[:_LINES_OF_THE_CAUSE], *lines[-_LINES_OF_THE_CAUSE:]] if many else lines
    watch = Watch()
    watch.feed(causes)
    if watch.killed:
        return HostFault(FaultKind.PROCESS, "the builder of an import was killed (signal 9)")
    return next((fault for line in causes if (fault := fault_in(line)) is not None), None)
