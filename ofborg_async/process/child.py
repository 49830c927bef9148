"""One child: spawned, its pipes read while it runs, reaped by us alone.

Its pipes and its exit are gathered in one selector, whose own descriptor is what the event loop waits for: so one task
serves a child, there is nothing to hand over when it is cancelled, and the event loop's child watchers never see it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import selectors
import signal
import subprocess  # noqa: TID251 - this is the room that spawns
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial

import anyio
from attrs import frozen

from ofborg_async.process.command import Command
from ofborg_async.process.exitwatch import ExitWatch
from ofborg_async.waiting import at_most

_log = logging.getLogger(__name__)

ChunkSink = Callable[[bytes], None]

_CHUNK_BYTES = 256 * 1024
_PIPE_BYTES = 1024 * 1024
# A child that quickly writes small pieces is read every 5 ms instead of at each piece.
_SMALL_BYTES = 32 * 1024
_GATHER_SECONDS = 0.005
_POLL_SECONDS = 0.02
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # getrusage(2)


@frozen
class Outputs:
    """Where the bytes go. ``stderr`` None: into the pipe of stdout, in the order written. ``big``: a large pipe."""

    stdout: ChunkSink
    stderr: ChunkSink | None
    big: bool = False


class Child:
    """A process from its spawn on, leader of a group and a session of its own. One task uses it, and closes it.

    ``returncode`` is None until it is reaped; then ``cpu_seconds`` and ``peak_rss_bytes`` are set as in Completed.
    ``sink_error`` is what a sink raised; its output is thrown away from then on, so that the child can still be ended.
    """

    def __init__(
        self, command: Command, argv: Sequence[str], executable: str, env: Mapping[str, str], outputs: Outputs
    ) -> None:
        """Spawn it. Raises the OSError of pipe(2), fork(2) or execve(2); nothing is left behind then."""
        self.returncode: int | None = None
        self.cpu_seconds = 0.0
        self.peak_rss_bytes = 0
        self.sink_error: Exception | None = None
        self._selector = selectors.DefaultSelector()
        self._watch: ExitWatch | None = None
        self._gather = False
        self._read_at = 0.0
        with ExitStack() as on_error:
            on_error.callback(self._close_descriptors)
            self._popen = self._spawn(command, argv, executable, env, outputs)
            on_error.pop_all()
        self.pid = self._popen.pid
        # vfork makes the child's peak begin with ours, so that a smaller one cannot be known.
        self._own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._watch_exit()

    @property
    def reading(self) -> bool:
        """Whether somebody still has an output pipe open."""
        return any(key.fileobj is not self._watch for key in self._selector.get_map().values())

    async def wait(self) -> None:
        """Serve the pipes until the child has exited. Cancellable, and callable again. Raises what a sink raised."""
        while self.returncode is None:
            await self._activity()
            self.pump()
            if self.sink_error is not None:
                raise self.sink_error

    async def drain(self) -> None:
        """Read until nobody has the pipes open any more. Errors of sinks are kept."""
        while self.reading:
            if not self.pump():
                await self._activity()

    async def serve(self, seconds: float) -> None:
        """See to what happens for ``seconds``, or until the child exits."""
        exited = self.returncode
        with at_most(seconds):
            while self.returncode == exited:
                await self._activity()
                self.pump()

    def pump(self) -> bool:
        """See to what has happened, without waiting; at most one chunk of each pipe. False when nothing had."""
        ready = self._selector.select(0)
        for key, _ in ready:
            key.data()
        if self._watch is None and self.returncode is None:
            self._reap()
        return bool(ready)

    def close(self) -> None:
        """Give all descriptors back. A child that could not be ended is left to whoever looks for orphans."""
        self._close_descriptors()
        if self.returncode is None:
            self._popen.returncode = -signal.SIGKILL  # else Popen's finalizer would complain and reap it

    async def _activity(self) -> None:
        if self._gather and self._watch is not None and self.returncode is None:
            self._gather = False
            with at_most(_GATHER_SECONDS):
                await anyio.wait_readable(self._watch)
        elif self._watch is None and self.returncode is None:
            with at_most(_POLL_SECONDS):
                await anyio.wait_readable(self._selector)
        else:
            await anyio.wait_readable(self._selector)

    def _spawn(
        self, command: Command, argv: Sequence[str], executable: str, env: Mapping[str, str], outputs: Outputs
    ) -> subprocess.Popen[bytes]:
        with ExitStack() as ours:
            stdin = subprocess.DEVNULL
            if command.stdin is not None:
                # A file needs nobody to feed it, and cannot block whatever the child does.
                file = ours.enter_context(tempfile.TemporaryFile())
                file.write(command.stdin)
                file.seek(0)
                stdin = file.fileno()
            stdout = self._pipe(outputs.stdout, ours, big=outputs.big)
            stderr = stdout if outputs.stderr is None else self._pipe(outputs.stderr, ours, big=outputs.big)
            # No argument here may keep CPython from vfork (preexec_fn, user and group would): a fork costs 1 ms more.
            return subprocess.Popen(
                argv,
                executable=executable,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=command.cwd,
                env=env,
                pass_fds=command.descriptors,
                start_new_session=True,
            )

    def _watch_exit(self) -> None:
        """Have the selector tell of the exit; where that does not work ``_activity`` polls."""
        with suppress(OSError):
            watch = ExitWatch(self.pid)
            try:
                self._selector.register(watch, selectors.EVENT_READ, self._reap)
            except OSError:
                watch.close()
            else:
                self._watch = watch

    def _pipe(self, sink: ChunkSink, ours: ExitStack, *, big: bool) -> int:
        reader, writer = os.pipe()
        ours.callback(os.close, writer)
        self._selector.register(reader, selectors.EVENT_READ, partial(self._read, reader, sink))
        os.set_blocking(reader, False)
        if big and sys.platform == "linux":
            with suppress(OSError):  # over the user's share of pipe memory: the usual size does as well
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return writer

    def _read(self, reader: int, sink: ChunkSink) -> None:
        try:
            chunk = os.read(reader, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if chunk:
            now = anyio.current_time()
            self._gather = len(chunk) < _SMALL_BYTES and now - self._read_at < _GATHER_SECONDS
            self._read_at = now
            if self.sink_error is None:
                try:
                    sink(chunk)
                except Exception as error:  # noqa: BLE001 - raised again by wait(), and never while the child is ended
                    self.sink_error = error
        else:
            self._selector.unregister(reader)
            os.close(reader)

    def _reap(self) -> None:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG if self._watch is None else 0)
        except ChildProcessError:
            _log.error("process %d was reaped by another part of this process; its exit status is lost", self.pid)
            self.returncode = 255
        else:
            if pid == 0:
                return
            self.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
            if usage.ru_maxrss > self._own_peak:
                self.peak_rss_bytes = usage.ru_maxrss * _RSS_UNIT_BYTES
        self._popen.returncode = self.returncode
        if self._watch is not None:
            self._selector.unregister(self._watch)
            self._watch.close()
            self._watch = None

    def _close_descriptors(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._watch:
                os.close(key.fd)
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._selector.close()
