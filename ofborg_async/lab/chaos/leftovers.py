"""What is left behind: messages, locks, and after a stop processes and held lock files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.chaos.builders import Builder
from ofborg_async.lab.chaos.ground import DISKS, Ground
from ofborg_async.lab.chaos.plan import SYSTEMS, FaultKind
from ofborg_async.lab.chaos.repositoryfaults import identity_of, repositories
from ofborg_async.lab.chaos.verdict import Finding, Sort
from ofborg_async.lab.wiretap import job_queue
from ofborg_async.process.table import ProcessInfo, read_proc
from ofborg_async.waiting import at_most

_VANISH_SECONDS = 10.0
_POLL_SECONDS = 0.1
_PLACES = (*DISKS, "roots")
_USED_AGAIN_SECONDS = 2.0
_KILLS_GIT = frozenset(
    {
        FaultKind.DAEMON_KILLED,
        FaultKind.DAEMON_RESTARTED,
        FaultKind.DAEMON_CUT_SHORT,
        FaultKind.HURRIED,
        FaultKind.IDENTITY_RESTARTED,
        FaultKind.CHILD_KILLED,
        FaultKind.CHILD_STOPPED,
        FaultKind.UPSTREAM_SILENT,
    }
)


async def look(ground: Ground) -> list[Finding]:
    """Stop the builders and look. Everything found is left behind."""
    found: list[str] = []
    for stand in ground.stands:
        found += await locks_told(stand.builder)
    for stand in ground.stands:
        try:
            if any(statuses := await stand.builder.stop()):
                found.append(f"a stop ended with {statuses}")
        except OfborgAsyncError as error:
            found.append(f"a stop did not end: {error}")
            stand.builder.close()
    for name, queue in (await ground.broker.list_queues()).items():
        if name in map(job_queue, SYSTEMS) and queue.messages:
            found.append(f"{queue.messages} messages in {name}")
    found += await _processes(ground)
    killed = any(fault.kind in _KILLS_GIT for fault in ground.done)
    for number, stand in enumerate(ground.stands):
        found += [f"held after the stop: {path}" for path in held_files(stand.builder)]
        stale = stale_locks(repositories(ground, number), ground.planted, killed=killed)
        found += [f"a lock of git's: {path}" for path in stale]
    return [Finding(Sort.LEFT_BEHIND, text) for text in found]


def stale_locks(places: Sequence[Path], planted: Mapping[Path, tuple[int, int]], *, killed: bool) -> list[Path]:
    """Lock files of git's in repositories that somebody should have removed.

    Those that the campaign planted may be there still: they are removed when a git is stopped by one. If a git may have
    been ``killed``, its own may be there where nobody came by since, as when another daemon got the job.
    """
    found = []
    for place in places:
        locks = [lock for lock in sorted(place.rglob("*.lock")) if planted.get(lock) != identity_of(lock)]
        last_use = max((path.stat().st_mtime for path in place.iterdir() if path.suffix != ".lock"), default=0.0)
        found += [lock for lock in locks if not killed or lock.stat().st_mtime + _USED_AGAIN_SECONDS < last_use]
    return found


def held_files(builder: Builder) -> list[Path]:
    """Files of locks, below the roots and beside the mirrors, that a process has."""
    files = [path for root in builder.roots for path in sorted(root.rglob("*.lock"))]
    return [path for path in (*files, *sorted(builder.mirrors.glob("*.lock"))) if _is_held(path)]


async def locks_told(builder: Builder) -> list[str]:
    """What a builder tells of the locks that are held, or that it tells nothing."""
    try:
        return [f"lock held: {lock}" for lock in await builder.held_locks()]
    except OfborgAsyncError as error:
        return [f"no word of the locks that are held: {error}"]


async def _processes(ground: Ground) -> list[str]:
    """Processes that know the place of a builder, its store, or a job's token."""
    places = [
        os.fsencode(ground.store.directory),
        *(
            os.fsencode(ground.directory / f"daemon-{number}" / name)
            for number in range(len(ground.stands))
            for name in _PLACES
        ),
    ]
    ours = {os.getpid(), *([ground.nix_daemon.pid] if ground.nix_daemon is not None else [])}
    tokens = [b"echo token " + job.token.encode() for job in ground.jobs.values()]

    def known(info: ProcessInfo) -> bool:
        if info.pid in ours or not info.alive:
            return False
        words, environment = _read(info.pid, "cmdline"), _read(info.pid, "environ")
        if any(place in words or place in environment for place in places):
            return True
        return any(token in words for token in tokens) and _below(info.pid, ground.store.directory)

    left = ["nobody has looked"]
    with at_most(_VANISH_SECONDS):
        while left:
            left = [f"process {info.pid}: {_shown(info.pid)}" for info in read_proc().values() if known(info)]
            await anyio.sleep(_POLL_SECONDS)
    return left


def _shown(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:160]


def _below(pid: int, directory: Path) -> bool:
    """Whether a process in a sandbox has its root below the store's directory: tokens are the same in other rounds."""
    with suppress(OSError):
        return os.fsencode(directory) in (Path("/proc") / str(pid) / "mountinfo").read_bytes()
    return False


def _read(pid: int, name: str) -> bytes:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / name).read_bytes()
    return b""


def _is_held(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
