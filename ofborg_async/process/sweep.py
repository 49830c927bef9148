"""Processes that outlived the daemon that started them: found by its records, ended at the next start."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Container, Iterable
from pathlib import Path

import anyio

from ofborg_async.process.children import OWN, marker_of
from ofborg_async.process.command import StopPolicy
from ofborg_async.process.ending import TreeEnd
from ofborg_async.process.records import ProcessRecord
from ofborg_async.process.table import (
    ProcessTable,
    family,
    parse_start_text,
    process_table,
    read_processes,
    same_start,
    start_text,
)

_log = logging.getLogger(__name__)


def become_subreaper() -> bool:
    """Have orphans of commands found, ended and reaped by this process (Linux; False elsewhere). For the daemon alone.

    Not to be undone. From then on a child of this process in another session, which was not started by this room, is
    taken for such an orphan.
    """
    return OWN.become_subreaper()


async def end_leftovers(
    records: Iterable[ProcessRecord], policy: StopPolicy | None = None, *, attempt_ids: Collection[str] = ()
) -> list[ProcessRecord]:
    """End what is left of the recorded processes, their groups, sessions and descendants; return the records found.

    A record of an earlier boot, or whose number now belongs to another process, is ignored. Where the process itself
    is gone but its group or session is not, these are ended if they carry the attempt's marker in their environment.
    So are processes without a record, started in the last moment, that carry the marker of one of ``attempt_ids``
    (Linux); a record is made up for each. All are ended at the same time, within the grace and ten seconds. Raises
    HostFault (PROCESS) where processes cannot be listed.
    """
    grace_seconds = (policy or StopPolicy()).term_grace_seconds
    table = await process_table()
    found = [record for record in records if _still_there(record, table)]
    found += _unrecorded(table, attempt_ids, family(table, [record.pid for record in found], myself=os.getpid()))
    async with anyio.create_task_group() as endings:
        for record in found:
            _log.warning("ending %s (process %d), left over by an earlier run", record.argv0, record.pid)
            start = parse_start_text(record.start_time) or 0
            end = TreeEnd(record.pid, start, pause=anyio.sleep, find_orphans=lambda _: ())
            endings.start_soon(end.run, grace_seconds)
    return found


def records_of(pids: Iterable[int]) -> list[ProcessRecord]:
    """Records of those of the processes that a daemon of this program started, this one or another (Linux)."""
    found = [(info, marker_of(info.pid)) for info in read_processes(pids).values() if info.alive]
    return [
        ProcessRecord(marker.rpartition("/")[0], info.pid, start_text(info.start), name_of(info.pid))
        for info, marker in found
        if marker
    ]


def name_of(pid: int) -> str:
    """The name of a process's program, "" when there is no such process (Linux)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _still_there(record: ProcessRecord, table: ProcessTable) -> bool:
    start = parse_start_text(record.start_time)
    leader = table.get(record.pid)
    if start is None:
        return False
    if leader is not None:
        return leader.alive and same_start(leader.start, start)
    remains = [info for info in table.values() if record.pid in (info.pgid, info.sid)]
    return any(info.start >= start and _attempt_of(info.pid) == record.attempt_id for info in remains)


def _unrecorded(table: ProcessTable, attempt_ids: Collection[str], known: Container[int]) -> list[ProcessRecord]:
    if not attempt_ids:
        return []
    attempts = [(info, _attempt_of(info.pid)) for info in table.values() if info.alive and info.pid not in known]
    return [
        ProcessRecord(attempt, info.pid, start_text(info.start), "a process without a record")
        for info, attempt in attempts
        if attempt and attempt in attempt_ids
    ]


def _attempt_of(pid: int) -> str | None:
    attempt, slash, _ = marker_of(pid).rpartition("/")
    return attempt if slash else None
