"""What is looked at: the daemon's process, its own count of tasks, and everything that it keeps on the disk. Linux."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.servers import LabError
from ofborg_async.lab.soak.trend import Kind, Measure
from ofborg_async.process.table import read_proc
from ofborg_async.waiting import within

KEPT_LOG_BYTES = 1 << 20
"""``daemon.log_keep_bytes`` of the soak: small, so that clearing them away is a part of it."""
_ASK_SECONDS = 10.0
_TASKS = re.compile(rb"^ofborg_async_tasks (\S+)$", re.MULTILINE)

MEASURES: tuple[Measure, ...] = (
    Measure("RSS", "MiB", least=1.0),
    Measure("descriptors", "", least=3),
    Measure("threads", "", least=1),
    Measure("children", "", least=2),
    Measure("tasks", "", least=5),
    Measure("journal", "KiB", least=512),
    Measure("journal, WAL", "KiB", Kind.BOUNDED, bound=4096 + 512, reason="SQLite's journal_size_limit"),
    Measure("process records", "KiB", Kind.BOUNDED, bound=272, reason="written anew at 256 KiB"),
    Measure("state, other files", "KiB", least=64),
    Measure(
        "build logs",
        "KiB",
        Kind.BOUNDED,
        bound=2 * KEPT_LOG_BYTES / 1024,
        reason=f"daemon.log_keep_bytes, here {KEPT_LOG_BYTES >> 10} KiB, and what comes before they are cleared",
    ),
    Measure("collector roots", "links", least=6),
    Measure(
        "mirror, loose objects",
        "",
        Kind.BOUNDED,
        bound=3500,
        reason="packed from 1000, on a busy host from 2000 on (checkout/maintenance.py), and what comes until it is",
    ),
    Measure("mirror, packs", "", Kind.BOUNDED, bound=50, reason="packed from 20, on a busy host from 40 on"),
    Measure("mirror, refs", "", least=0),
    Measure("mirror, packed", "KiB", Kind.HISTORY, reason="what was fetched stays as long as the mirror"),
    Measure("mirror, other files", "", least=3),
    Measure("roots, merges", "files", least=2000),
    Measure(
        "roots, commits seen", "KiB", Kind.BOUNDED, bound=3 * 20000 * 41 / 1024, reason="at most 20000 for each root"
    ),
    Measure("roots, other files", "", least=6),
    Measure("roots, other", "KiB", least=64),
)

_PLACES = {
    "logs": "build logs",
    "gcroots": "collector roots",
    "journal.sqlite3": "journal",
    "journal.sqlite3-wal": "journal, WAL",
    "processes.log": "process records",
}
_COUNTED = frozenset({"collector roots", "mirror, loose objects", "mirror, refs", "mirror, other files"})
_STATE = (
    *_PLACES.values(),
    *_COUNTED,
    "state, other files",
    "mirror, packs",
    "mirror, packed",
)


async def look(daemon: DaemonProcess, roots: Sequence[Path]) -> dict[str, float]:
    """A value for each of MEASURES. Raises LabError when the daemon does not run."""
    tasks = await _tasks(daemon)
    return {"tasks": tasks} | await anyio.to_thread.run_sync(_look, daemon.pid, daemon.state_dir, tuple(roots))


async def _tasks(daemon: DaemonProcess) -> float:
    """As an operator's Prometheus reads it."""
    page = b""
    with within(_ASK_SECONDS, "the daemon's metrics"):
        async with await anyio.connect_unix(daemon.socket_path) as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
            with suppress(anyio.EndOfStream):
                while True:
                    page += await stream.receive()
    found = _TASKS.search(page)
    if found is None:
        raise LabError("the daemon's metrics have no count of tasks")
    return float(found[1])


def _look(pid: int, state: Path, roots: Sequence[Path]) -> dict[str, float]:
    return _of_process(pid) | _of_state(state) | _of_roots(roots)


def _of_process(pid: int) -> dict[str, float]:
    place = Path("/proc") / str(pid)
    try:
        words = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        descriptors = len(list((place / "fd").iterdir()))
    except OSError as error:
        raise LabError(f"the daemon, process {pid}, does not run") from error
    return {
        "RSS": int(words["VmRSS"].split()[0]) / 1024,
        "descriptors": descriptors,
        "threads": int(words["Threads"]),
        "children": sum(info.ppid == pid for info in read_proc().values()),
    }


def _of_state(state: Path) -> dict[str, float]:
    found = dict.fromkeys(_STATE, 0.0)
    for path, status in _files(state):
        parts = path.relative_to(state).parts
        kib = status.st_blocks / 2
        name = _of_mirror(parts[2:]) if parts[0] == "mirrors" else _PLACES.get(parts[0], "state, other files")
        found[name] += 1 if name in _COUNTED else kib
        found["mirror, packs"] += name == "mirror, packed" and path.suffix == ".pack"
    return found


def _of_mirror(inside: Sequence[str]) -> str:
    """The measure of a file by its path inside a mirror."""
    if list(inside[:2]) == ["objects", "pack"]:
        return "mirror, packed"
    if list(inside[:1]) == ["refs"]:
        return "mirror, refs"
    loose = len(inside) == 3 and inside[0] == "objects" and len(inside[1]) == 2
    return "mirror, loose objects" if loose else "mirror, other files"


def _of_roots(roots: Sequence[Path]) -> dict[str, float]:
    found = dict.fromkeys(("roots, merges", "roots, commits seen", "roots, other files", "roots, other"), 0.0)
    for root in roots:
        for path, status in _files(root):
            inside = path.relative_to(root).parts
            if "ofborg-async" in inside and "objects" in inside:
                found["roots, merges"] += 1
            elif inside[-1].startswith("ofborg-async.seen"):
                found["roots, commits seen"] += status.st_size / 1024
            else:
                found["roots, other files"] += 1
                found["roots, other"] += status.st_blocks / 2
    return found


def _files(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below that is no directory; what vanishes meanwhile does not count."""
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder) / name
            with suppress(FileNotFoundError):
                yield path, path.lstat()
