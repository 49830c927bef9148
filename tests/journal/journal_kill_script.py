"""A fixed run of a journal, killed at a given point. Run as a program (by test_journal_kill.py) it makes the deaths.

Arguments: a directory. For each point n it forks a child that works in ``<directory>/<kind>-<n>/state`` and dies there,
and notes in ``acknowledged`` each step whose call returned. It ends with the first n that no child reaches.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from journal_helpers import EPOCH, FakeClock, finish, make_attempt, make_result

from ofborg_async.journal import Journal
from ofborg_async.model.status import Phase

KEYS = [make_attempt(request_id=name).key for name in "abcd"]


async def note(journal: Journal) -> None:
    journal.phase("a", Phase.BUILD)
    journal.lines_confirmed("a", 7)


async def log_done(journal: Journal) -> None:
    journal.log_done("a")


STEPS: list[Callable[[Journal], Awaitable[object]]] = [
    lambda journal: journal.begin(make_attempt("a", request_id="a")),
    lambda journal: journal.begin(make_attempt("b", request_id="b")),
    note,
    lambda journal: journal.mark_log_started("a"),
    lambda journal: finish(journal, "a"),
    lambda journal: journal.requeued("b", "no space"),
    lambda journal: journal.begin(make_attempt("c", request_id="c")),
    lambda journal: journal.confirm_and_mark("a"),
    log_done,
    lambda journal: journal.acked("a"),
    lambda journal: finish(journal, "c", "Failure", result=make_result(b"c", log=None)),
    lambda journal: journal.unroutable("c", permanent=True),
    lambda journal: journal.acked("c"),
    lambda journal: journal.confirm_and_mark("c"),
    lambda journal: journal.set_pause("mac1-a", "maintenance", EPOCH.replace(year=2030)),
    lambda journal: journal.restarted("mac1-a"),
    lambda journal: journal.begin(make_attempt("d", request_id="d")),
]


async def snapshot(journal: Journal) -> tuple[object, ...]:
    """Everything a daemon can learn from the journal."""
    return (
        await journal.history(),
        await journal.outbox(),
        await journal.live_attempts(),
        [await journal.lookup(key) for key in KEYS],
        await journal.pauses(),
        await journal.counters(),
    )


async def run(directory: Path, kind: str, point: int) -> None:
    """Do the steps; the process ends before statement ``point``, or between commit ``point`` and what follows it."""
    acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    journal = await Journal.open(directory / "state", clock=FakeClock(), reserve_bytes=1 << 16)
    passed = 0

    def die_at_point(_: object) -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(die_at_point)

    if kind == "statement":
        await journal._writer.read(trace)
    else:
        commit = journal._writer._commit

        def committed(*arguments: Any) -> None:
            commit(*arguments)
            die_at_point(arguments)

        journal._writer._commit = committed  # type: ignore[method-assign,assignment]
    for step in STEPS:
        await step(journal)
        os.write(acknowledged, b".")


async def prepare(directory: Path) -> None:
    journal = await Journal.open(directory / "prepared" / "state", clock=FakeClock(), reserve_bytes=1 << 16)
    await journal.close()
    (directory / "prepared" / "acknowledged").touch()


def main(directory: Path) -> None:
    asyncio.run(prepare(directory))
    for kind in ("statement", "commit"):
        point = 1
        while True:
            place = directory / f"{kind}-{point}"
            shutil.copytree(directory / "prepared", place)
            child = os.fork()
            if child == 0:
                asyncio.run(run(place, kind, point))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            point += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
