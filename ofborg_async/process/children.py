"""The children of this process: those it started, and orphans the kernel gave it because it is their subreaper.

What stands here mirrors what the kernel keeps once for the whole process, hence one ``OWN`` for it.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.process.table import ProcessInfo, ProcessTable, read_proc, read_processes

_log = logging.getLogger(__name__)

MARKER = "_OFBORG_ASYNC_CHILD"
"""Environment variable of every child, ``ATTEMPT/NUMBER``: an orphan that kept its environment tells whose it was."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@frozen
class Started:
    """A child that this process started. ``start`` as in ProcessInfo, ``marker`` the value of its MARKER variable."""

    pid: int
    start: int
    marker: str


class Children:
    """All children of this process. Only asyncio's thread uses it."""

    def __init__(self) -> None:
        self.running: dict[int, Started] = {}
        self.adopts = False

    def become_subreaper(self) -> bool:
        """Let orphans of our children become ours, so that they can be found, ended and reaped (prctl(2), Linux).

        From then on each child of this process that this room did not start and that is not in the process's own
        session counts as such an orphan: it is ended. False where the system has no such thing.
        """
        if sys.platform == "linux":
            import ctypes  # its megabyte is spent only where it is used

            libc = ctypes.CDLL(None, use_errno=True)
            self.adopts = libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
            if not self.adopts:
                _log.warning("orphans of builds cannot be adopted: prctl: %s", os.strerror(ctypes.get_errno()))
        return self.adopts

    def adopted(self, table: ProcessTable) -> list[ProcessInfo]:
        """Orphans in ``table`` that became ours, running or waiting to be reaped."""
        us, session = os.getpid(), os.getsid(0)
        return [
            info
            for info in table.values()
            if info.ppid == us and info.pid not in self.running and info.sid != session and self.adopts
        ]

    def reap_adopted(self) -> None:
        """Let those orphans vanish which have exited. Costs one system call when no child has.

        What is found mostly is a child of ours that is not reaped yet. Nobody looks behind it: whoever runs it reaps it
        and calls this next. Else children are listed, if the kernel does that, and not all processes of the host.
        """
        zombie = _zombie() if self.adopts else None
        if zombie is None or zombie in self.running:
            return
        listed = _listed_children()
        table = read_proc() if listed is None else read_processes(pid for pid in listed if pid not in self.running)
        for orphan in self.adopted(table):
            if not orphan.alive:
                with suppress(ChildProcessError):
                    os.waitpid(orphan.pid, os.WNOHANG)

    def orphans_of(self, child: Started, table: ProcessTable) -> list[ProcessInfo]:
        """Orphans in ``table`` that descend from ``child``, or from none of the children that still run.

        The environment says it. An orphan without it (nix clears it for its builders) may be of any child that was
        started earlier: as long as another such child runs, it is left to that one.
        """
        others = [other for other in self.running.values() if other.pid != child.pid]
        markers = {other.marker for other in others}
        claimed = []
        for orphan in self.adopted(table):
            marker = marker_of(orphan.pid)
            if marker not in markers and (marker or all(other.start > orphan.start for other in others)):
                claimed.append(orphan)
        return claimed

    def may_have_orphans(self, child: Started, *, thorough: bool) -> bool:
        """Whether ``orphans_of`` is worth its listing of all processes, after ``child`` has been reaped.

        One or two system calls when nothing else runs, or where the kernel lists children. Where it does not and others
        run, only a ``thorough`` caller is told to look.
        """
        if not self.adopts or not _any_child():
            return False
        if self.running.keys() <= {child.pid}:
            return True
        listed = _listed_children()
        return thorough if listed is None else not self.running.keys() >= set(listed)


OWN = Children()


def marker_of(pid: int) -> str:
    """The marker in the environment of a process; "" when it has none or it cannot be read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{MARKER}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return ""


def _any_child() -> bool:
    try:
        _peek()
    except ChildProcessError:
        return False
    return True


def _zombie() -> int | None:
    """A child that has exited and not been reaped."""
    try:
        return _peek()
    except ChildProcessError:
        return None


def _peek() -> int | None:
    """``_zombie``. Raises ChildProcessError when there is no child at all."""
    if sys.platform == "linux":
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    else:
        found = None
    return None if found is None else found.si_pid


def _listed_children() -> list[int] | None:
    """This process's children; None where the kernel does not list them (CONFIG_PROC_CHILDREN)."""
    found: list[int] | None = None
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - after each command, at half the cost of Paths
        with (
            suppress(FileNotFoundError, ProcessLookupError),  # a thread that has just ended
            open(f"/proc/self/task/{task}/children", "rb", buffering=0) as file,  # noqa: PTH123 - as above
        ):
            found = [*(found or ()), *map(int, file.read().split())]
    return found
