"""Runs commands: the one way for the other rooms to start a process."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
from attrs import evolve, frozen

from ofborg_async.clock import Clock
from ofborg_async.errors import ExecutableMissingError, FaultKind, HostFault
from ofborg_async.process.child import Child, ChunkSink, Outputs
from ofborg_async.process.children import MARKER, OWN, Started
from ofborg_async.process.command import Command, Completed, StopPolicy
from ofborg_async.process.ending import SWEEP_SECONDS, TreeEnd, group_exists
from ofborg_async.process.lines import LineSplitter
from ofborg_async.process.lookup import ProgramLookup
from ofborg_async.process.records import ProcessRegistry
from ofborg_async.process.table import start_of_child, start_text
from ofborg_async.waiting import at_most

_log = logging.getLogger(__name__)

_DEFAULT_POLICY = StopPolicy()
_PROBE_SECONDS = 10.0
_REAP_SECONDS = 10.0
_LAST_SECONDS = 0.05
_numbers = itertools.count(1)


@frozen
class _Run:
    """A command on its way. ``prefix``: words before it that execute it."""

    command: Command
    outputs: Outputs
    what: str
    policy: Callable[[], StopPolicy]
    attempt_id: str
    prefix: tuple[str, ...] = ()
    on_start: Callable[[int], None] | None = None


class _Collector:
    """Keeps the first ``limit_bytes`` of what it is fed."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept = bytearray()
        self.truncated = False

    def feed(self, chunk: bytes) -> None:
        room = self._limit - len(self._kept)
        self._kept += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room

    def taken(self) -> bytes:
        return bytes(self._kept)


class Spawner:
    """Starts processes, each the leader of a session of its own, and ends whatever they started before it returns.

    ``registry`` is told of each, for the sweep after a crash. One Spawner serves the whole daemon.
    """

    def __init__(self, clock: Clock, registry: ProcessRegistry | None) -> None:
        self._clock = clock
        self._registry = registry
        self._programs = ProgramLookup()
        self._death_signal: tuple[str, ...] | None = None

    async def capture(
        self,
        command: Command,
        *,
        deadline_seconds: float,
        what: str,
        policy: StopPolicy = _DEFAULT_POLICY,
        limit_bytes: int = 1 << 20,
        merge: bool = False,
        on_stderr: ChunkSink | None = None,
        attempt_id: str = "",
    ) -> Completed:
        """Run ``command`` and return the first ``limit_bytes`` of its output and of its error output.

        ``merge`` puts both into ``stdout``, in the order written. ``on_stderr`` is also given each chunk of the error
        output as it comes. ``what`` names the wait in logs and errors. When ``deadline_seconds`` are over its tree is
        ended and the result says ``timed_out``. A cancellation goes on once the tree is ended. Raises
        ExecutableMissingError, HostFault (MEMORY or PROCESS).
        """
        stdout, stderr = _Collector(limit_bytes), _Collector(limit_bytes)
        to_stderr = stderr.feed if on_stderr is None else _both(stderr.feed, on_stderr)
        outputs = Outputs(stdout.feed, None if merge else to_stderr)
        run = _Run(command, outputs, what=what, policy=lambda: policy, attempt_id=attempt_id)
        done = await self._run(run, deadline_seconds)
        return evolve(
            done,
            stdout=stdout.taken(),
            stderr=stderr.taken(),
            stdout_truncated=stdout.truncated,
            stderr_truncated=stderr.truncated,
        )

    async def stream(
        self,
        command: Command,
        *,
        on_lines: Callable[[list[bytes]], None],
        line_bytes: int,
        deadline_seconds: float,
        what: str,
        policy: StopPolicy | Callable[[], StopPolicy] = _DEFAULT_POLICY,
        on_start: Callable[[int], None] | None = None,
        attempt_id: str = "",
    ) -> Completed:
        """Run ``command`` and hand over its lines as they come, from one pipe for output and error output.

        ``on_lines`` gets one or more lines as LineSplitter cuts them, each at most ``line_bytes``; what it raises ends
        the tree and goes on. ``policy`` may be a function, asked when it is ended. ``on_start`` is given its number.
        The command also gets SIGTERM when this daemon dies, where util-linux is installed. Otherwise like ``capture``,
        with empty ``stdout`` and ``stderr``.
        """
        splitter = LineSplitter(line_bytes)

        def take(chunk: bytes) -> None:
            if lines := splitter.feed(chunk):
                on_lines(lines)

        prefix = await self._death_signal_prefix(command)
        run = _Run(
            command,
            Outputs(take, None, big=True),
            what=what,
            policy=policy if callable(policy) else lambda: policy,
            attempt_id=attempt_id,
            prefix=prefix,
            on_start=on_start,
        )
        done = await self._run(run, deadline_seconds)
        if rest := splitter.finish():
            on_lines(rest)
        return done

    async def _run(self, run: _Run, deadline_seconds: float) -> Completed:
        began = self._clock.monotonic()
        child, started = self._start(run)
        timed_out = False
        try:
            if self._registry is not None:
                self._registry.started(run.attempt_id, child.pid, start_text(started.start), run.command.argv[0])
            if run.on_start is not None:
                run.on_start(child.pid)
            with at_most(deadline_seconds):
                while child.returncode is None:
                    with at_most(_REAP_SECONDS):
                        await child.wait()
                    OWN.reap_adopted()
            timed_out = child.returncode is None
            if not timed_out:
                with at_most(run.policy().drain_seconds):
                    await child.drain()
        finally:
            await self._finish(run, child, started)
        if child.sink_error is not None:
            raise child.sink_error
        if child.returncode is None:
            raise HostFault(
                FaultKind.PROCESS, f"{run.what}: process {child.pid} cannot be ended: it hangs in the kernel"
            )
        return Completed(
            returncode=child.returncode,
            stdout=b"",
            stderr=b"",
            stdout_truncated=False,
            stderr_truncated=False,
            duration_seconds=self._clock.monotonic() - began,
            peak_rss_bytes=child.peak_rss_bytes,
            cpu_seconds=child.cpu_seconds,
            timed_out=timed_out,
        )

    def _start(self, run: _Run) -> tuple[Child, Started]:
        command = run.command
        marker = f"{run.attempt_id}/{next(_numbers)}"
        env = {**command.env, MARKER: marker}
        executable = self._programs.find(command.argv[0], command.env.get("PATH", ""))
        try:
            if run.prefix:
                child = Child(command, [*run.prefix, executable, *command.argv[1:]], run.prefix[0], env, run.outputs)
            else:
                child = Child(command, command.argv, executable, env, run.outputs)
        except OSError as error:
            raise _translated(error, command, executable, run.what) from error
        started = Started(child.pid, start_of_child(child.pid, self._clock.now()), marker)
        OWN.running[child.pid] = started
        return child, started

    async def _finish(self, run: _Run, child: Child, started: Started) -> None:
        """End what still runs of it, whatever happens to the caller meanwhile."""
        gone = False
        try:
            OWN.reap_adopted()
            gone = not self._something_left(run, child, started) or await self._end_tree(run, child, started)
        finally:
            del OWN.running[child.pid]
            child.close()
            if self._registry is not None and gone:
                self._registry.ended(child.pid)

    async def _end_tree(self, run: _Run, child: Child, started: Started) -> bool:
        """True once the child is reaped and all it started are gone."""
        policy = run.policy()
        grace_seconds, drain_seconds = policy.term_grace_seconds, policy.drain_seconds

        async def pause(seconds: float) -> None:
            await child.serve(seconds)
            OWN.reap_adopted()

        end = TreeEnd(child.pid, started.start, pause=pause, find_orphans=lambda table: OWN.orphans_of(started, table))
        with anyio.CancelScope(shield=True), at_most(grace_seconds + 2 * SWEEP_SECONDS + drain_seconds):
            survivors = await end.run(grace_seconds)
            while not survivors and child.returncode is None:
                await child.serve(_LAST_SECONDS)
            with at_most(drain_seconds):
                await child.drain()
            return not survivors
        return False

    def _something_left(self, run: _Run, child: Child, started: Started) -> bool:
        if child.returncode is None or group_exists(child.pid):
            return True
        # Where the kernel does not list children, looking for orphans costs some ms: spent after builds and odd ends.
        thorough = run.outputs.big or child.returncode < 0 or child.reading
        return OWN.may_have_orphans(started, thorough=thorough)

    async def _death_signal_prefix(self, command: Command) -> tuple[str, ...]:
        """The words before a command that make the kernel send it SIGTERM when the daemon is gone (prctl(2), Linux).

        Only for builds: it is one exec more, 0.7 ms. () where there is no setpriv that can do it.
        """
        if self._death_signal is None:
            self._death_signal = ()
            with suppress(ExecutableMissingError):
                words = (self._programs.find("setpriv", command.env.get("PATH", "")), "--pdeathsig", "TERM", "--")
                probe = Command((*words, words[0], "--dump"), command.env)
                if (await self.capture(probe, deadline_seconds=_PROBE_SECONDS, what="setpriv")).returncode == 0:
                    self._death_signal = words
        return self._death_signal


def _both(first: ChunkSink, second: ChunkSink) -> ChunkSink:
    def feed(chunk: bytes) -> None:
        first(chunk)
        second(chunk)

    return feed


def _translated(error: OSError, command: Command, executable: str, what: str) -> HostFault:
    if error.errno == errno.ENOENT and command.cwd is not None and not command.cwd.is_dir():
        return HostFault(FaultKind.PROCESS, f"{what}: the working directory {command.cwd} does not exist")
    if error.errno == errno.ENOENT and not Path(executable).exists():
        return ExecutableMissingError(command.argv[0])
    # ENOENT for a file that is there: the interpreter it names is not.
    detail = f"{what}: {executable} cannot be started: {os.strerror(error.errno or 0)}"
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        remedy = "free memory, or raise the limit of processes (TasksMax=, ulimit -u)"
        return HostFault(FaultKind.MEMORY, detail, remedy=remedy)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return HostFault(FaultKind.PROCESS, detail, remedy="raise the limit of open files (LimitNOFILE=, ulimit -n)")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):  # its input goes through a file
        return HostFault(FaultKind.DISK, detail, remedy="free disk space where temporary files go")
    return HostFault(FaultKind.PROCESS, detail)
