"""Long-lived programs of the lab: started and ended by plain calls, so that any event loop, or none, may use them.

``process/`` ends what it started before it returns and belongs to one event loop; a broker that serves a whole test
run outlives many. Hence the lab's servers are spawned here, the lab's commands by ``process/``.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import signal
import socket
import subprocess  # noqa: TID251 - servers outlive the calls of process/ (see above)
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.process.table import read_proc
from ofborg_async.waiting import at_most, within

LOOPBACK = "127.0.0.1"

# Below the ports that systems give to outgoing connections: one of these, taken while a server is restarted, would be
# in its way.
_PORTS = range(20_000, 32_000)
_claimed: set[int] = set()
_POLL_SECONDS = 0.02
_REAP_SECONDS = 10.0
_TAIL_BYTES = 4000

_GUARD = 'read -r _; kill -s KILL -- "-$1"'
"""Waits for the end of a pipe that this process holds: nothing of the lab outlives it, however it dies."""


class LabError(OfborgAsyncError):
    """A private part did not do what was asked; the message has its last words."""


class Process(Protocol):
    """A process that was started, the first of its group: what is needed of subprocess.Popen."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has exited. Raises subprocess.TimeoutExpired after ``timeout`` seconds."""


Spawn = Callable[[Sequence[str], Mapping[str, str], Path], Process]
"""Starts words with an environment, and appends what they print to a file. Raises FileNotFoundError."""


def spawn_here(argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
    """A child of this process."""
    with log.open("ab") as output:
        return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)


class Server:
    """A program that runs until it is ended, in a process group of its own, its output appended to ``log``.

    It stays in the caller's session, for ``process/`` takes children of other sessions for orphans. A second small
    process kills its group when this process dies without saying so.
    """

    def __init__(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path, spawn: Spawn = spawn_here
    ) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self.env = env
        self._spawn = spawn
        self._popen: Process | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its first process, which is also its process group. Raises LabError when it was never started."""
        if self._popen is None:
            raise LabError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not exited."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it runs or before it was started."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Spawn it. Raises LabError when it runs already or its program is missing."""
        if self.running:
            raise LabError(f"{self.name} runs already")
        self.kill()
        try:
            self._popen = self._spawn(self._argv, self.env, self.log)
        except FileNotFoundError as error:
            raise LabError(f"{self.name}: {self._argv[0]} is missing: `make install` installs it") from error
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._popen.pid)], stdin=subprocess.PIPE, process_group=0
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group. Nothing happens when it is gone."""
        if self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def stop_at_once(self) -> None:
        """SIGSTOP, and return once all threads stand still: a signal takes effect a moment after it is sent (Linux)."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + _REAP_SECONDS
        while sys.platform == "linux" and not _stands_still(self.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 10)

    def kill(self) -> None:
        """SIGKILL it and what descends from it, and reap it. Nothing happens when it does not run."""
        if self._popen is not None:
            family = _stopped_family(self._popen.pid) if self.running else []
            self.signal(signal.SIGKILL)
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._popen.wait(_REAP_SECONDS)
        self._dismiss_guard()

    async def terminate(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL when it has not exited after ``grace_seconds``."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        with at_most(grace_seconds):
            while self.running:
                await anyio.sleep(_POLL_SECONDS)
        self.kill()

    def last_words(self) -> str:
        """The end of its output."""
        text = self.log.read_bytes() if self.log.exists() else b""
        return text[-_TAIL_BYTES:].decode(errors="replace")

    async def ready(self, condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Poll ``condition`` until it is true. Raises LabError when the server exits first or ``seconds`` are over."""
        with within(seconds, f"the start of {self.name}"):
            while not await condition():
                if not self.running:
                    raise LabError(f"{self.name} exited at its start:\n{self.last_words()}")
                await anyio.sleep(_POLL_SECONDS)

    def _dismiss_guard(self) -> None:
        """Before the number of the group can be given out again."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait(_REAP_SECONDS)
            if self._guard.stdin is not None:
                self._guard.stdin.close()
            self._guard = None


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now, and that no lab of this user is given while this process lives.

    A broker that is down for a moment leaves its port open to others: hence the claim. Other programs know nothing of
    it: be ready to ask again.
    """
    for _ in range(1000):
        port = random.choice(_PORTS)
        if _is_free(port) and _claim(port):
            return port
    raise LabError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only fading out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _claim(port: int) -> bool:
    """Lock the byte of a common file that has the port's number; the kernel frees it with the process (fcntl(2))."""
    if port in _claimed:  # a lock of our own would be given once more
        return False
    try:
        fcntl.lockf(_claims_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _claimed.add(port)
    return True


@functools.cache
def _claims_file() -> int:
    """Never closed: with any descriptor of a file go all its process's locks on it."""
    path = Path(tempfile.gettempdir(), f"ofborg-async-lab-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


async def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of the loopback."""
    try:
        async with await anyio.connect_tcp(LOOPBACK, port):
            return True
    except OSError:
        return False


def base_environment(**more: str) -> dict[str, str]:
    """What every program of the lab gets: PATH with the places of system programs, a fixed locale, and ``more``."""
    places = [*filter(None, os.environ.get("PATH", os.defpath).split(os.pathsep)), "/usr/sbin", "/sbin"]
    return {"PATH": os.pathsep.join(dict.fromkeys(places)), "LC_ALL": "C.UTF-8", **more}


def _stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped (state T of proc(5)), or it is gone."""
    try:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return True
    return all(state in {"T", "t", "Z"} for state in states)


def _stopped_family(root: int) -> list[int]:
    """What descends from ``root``, stopped, so that it cannot fork any more while it is listed and killed.

    Only Linux lists it cheaply; elsewhere the process group is all that is ended.
    """
    found: dict[int, None] = {}
    fresh = [root]
    while fresh and sys.platform == "linux":
        for pid in fresh:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            found[pid] = None
        table = read_proc()
        fresh = [info.pid for info in table.values() if info.ppid in found and info.pid not in found]
    return list(found)
