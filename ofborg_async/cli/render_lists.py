"""``locks`` and ``history`` as text; built from snapshots and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from ofborg_async.cli.render_grid import Column, Row, render_grid
from ofborg_async.cli.text import minute, size, span
from ofborg_async.control.visible import visible
from ofborg_async.model.status import BrokenLock, HistoryEntry, LockSnapshot

_LOCK_COLUMNS = (Column("KIND"), Column("HOLDER"), Column("HELD"), Column("WAITERS"), Column("LOCK", flexible=True))
_HISTORY_COLUMNS = (
    Column("FINISHED"),
    Column("IDENTITY"),
    Column("STATUS"),
    Column("TOOK"),
    Column("PULL-REQUEST"),
    Column("SYSTEM", droppable=True),
    Column("PEAK", droppable=True),
    Column("LINES", droppable=True),
)
_STATUS_STYLE = {"Success": "green", "Skipped": "cyan"}


def render_locks(locks: Sequence[LockSnapshot], width: int) -> Group | Text:
    """A row for each lock, its path and waiters below."""
    if not locks:
        return Text("no lock is held or waited for")
    return render_grid(_LOCK_COLUMNS, [_lock(lock) for lock in locks], width)


def render_broken_lock(broken: BrokenLock, _width: int) -> Text:
    """What breaking a lock came to."""
    ended = ", ".join(visible(process) for process in broken.ended)
    how = f"its dead holder had left behind and kept it: {ended}; ended" if ended else "nobody holds it any more"
    return Text(f"{visible(broken.path)} is free: {how}")


def render_history(entries: Sequence[HistoryEntry], width: int) -> Group | Text:
    """A row for each attempt, newest first; attrs, phases and reason below."""
    if not entries:
        return Text("no attempt has finished in that time")
    return render_grid(_HISTORY_COLUMNS, [_attempt(entry) for entry in entries], width)


def _lock(lock: LockSnapshot) -> Row:
    holder = Text("free", "dim") if lock.holder is None else Text(visible(lock.holder), "bold")
    held = "-" if lock.holder is None else span(lock.held_seconds)
    details = [Text(visible(lock.path), "dim")] if lock.path else []
    by = [f"process {lock.holder_pid}"] if lock.holder_pid is not None else []
    by += [f"attempt {visible(lock.job)}"] if lock.job else []
    if by:
        details.append(Text(f"held by {', '.join(by)}"))
    if lock.waiters:
        details.append(Text("waiting, in this order: " + ", ".join(visible(name) for name in lock.waiters), "yellow"))
    cells = (Text(visible(lock.kind)), holder, Text(held), Text(str(len(lock.waiters))), Text(visible(lock.key)))
    return Row(cells, tuple(details))


def _attempt(entry: HistoryEntry) -> Row:
    cells = (
        Text(minute(entry.finished_at)),
        Text(visible(entry.identity), "bold"),
        Text(visible(entry.status), _STATUS_STYLE.get(entry.status, "red")),
        Text(span(sum(entry.durations_seconds.values()))),
        Text(f"{visible(entry.repo)}#{entry.pr}"),
        Text(visible(entry.system)),
        Text(size(entry.peak_memory_bytes) if entry.peak_memory_bytes else "-"),
        Text(str(entry.lines)),
    )
    return Row(cells, tuple(_attempt_details(entry)))


def _attempt_details(entry: HistoryEntry) -> Iterator[Text]:
    yield Text(" ".join(visible(attr) for attr in entry.attrs))
    if entry.reason:
        yield Text(visible(entry.reason), "yellow")
    phases = ", ".join(f"{visible(phase)} {span(seconds)}" for phase, seconds in entry.durations_seconds.items())
    yield Text(f"attempt {visible(entry.attempt_id)}" + (f": {phases}" if phases else ""), "dim")
