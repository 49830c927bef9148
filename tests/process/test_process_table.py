from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from process_helpers import ENV

from ofborg_async.process.table import ProcessInfo, cpu_seconds_of, family, parse_ps, ps_table, read_proc, read_process


def table(*rows: tuple[int, int, int, int]) -> dict[int, ProcessInfo]:
    """Rows of pid, ppid, pgid, sid."""
    return {pid: ProcessInfo(pid, ppid, pgid, sid, 0, "S") for pid, ppid, pgid, sid in rows}


DAEMON = (50, 1, 50, 50)
INIT = (1, 0, 1, 1)
BYSTANDER = (60, 1, 60, 60)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(100, 50, 100, 100), (101, 100, 100, 100), (102, 101, 100, 100)], {100, 101, 102}),
        ([(100, 50, 100, 100), (101, 100, 101, 101), (102, 1, 101, 101)], {100, 101, 102}),  # the session of a builder
        (
            [(100, 50, 100, 100), (101, 1, 100, 100), (102, 1, 102, 100)],
            {100, 101, 102},
        ),  # orphans of group and session
        ([(101, 1, 100, 100), (102, 1, 102, 100), (103, 102, 103, 103)], {101, 102, 103}),  # the leader is gone
        ([(100, 50, 100, 100), (101, 100, 50, 50)], {100}),  # never the daemon's own group
        ([], set()),
    ],
)
def test_a_family(rows: list[tuple[int, int, int, int]], expected: set[int]) -> None:
    assert family(table(INIT, DAEMON, BYSTANDER, *rows), [100], myself=50).keys() == expected


def test_this_process_and_init_never_belong() -> None:
    assert family(table(INIT, DAEMON, BYSTANDER), [1, 50], myself=50) == {}


def test_a_name_with_brackets_and_spaces_does_not_confuse() -> None:
    rename = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') S (1 2', 0, 0, 0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", rename], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        info = read_process(process.pid)
        assert info is not None
        assert (info.ppid, info.pgid, info.sid) == (os.getpid(), os.getpgid(0), os.getsid(0))
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_a_process_has_taken_of_a_processor() -> None:
    before = time.process_time()
    shown = cpu_seconds_of(os.getpid())
    assert shown is not None
    assert before - 0.02 <= shown <= time.process_time() + 0.02  # it counts in hundredths
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert cpu_seconds_of(ended.pid) is None


async def test_ps_and_proc_agree_on_this_process() -> None:
    by_ps, by_proc = await ps_table(), read_proc()
    for pid in (os.getpid(), os.getppid()):
        ours, theirs = by_proc[pid], by_ps[pid]
        assert (theirs.pid, theirs.ppid, theirs.pgid) == (ours.pid, ours.ppid, ours.pgid)


def test_output_of_ps_on_macos() -> None:
    output = b"""    1     0     1 Ss   Tue 14 Jan 10:11:12 2025\n"""
    with pytest.raises(ValueError, match="does not match"):
        parse_ps(output)  # that would be another locale's order; the C locale has the month first
    (info,) = parse_ps(b"  812   700   812 R+   Tue Jan 14 10:11:12 2025    \n").values()
    assert info == ProcessInfo(812, 700, 812, 0, 1736849472, "R")
