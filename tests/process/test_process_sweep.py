"""The daemon is killed; what it started is found by its records and ended."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from process_helpers import ENV, finish, marked, running, scenario, until, until_sync

from ofborg_async.process import ProcessRecord, StopPolicy, end_leftovers
from ofborg_async.process.table import parse_start_text, read_process, start_text

QUICK = StopPolicy(term_grace_seconds=0.3)

WITH_RECORDS = """
class Registry:
    def started(self, *fields):
        with open(tmp / "records", "a") as file:
            print(*fields, sep="|", file=file)
    def ended(self, pid):
        pass
spawner = Spawner(SystemClock(), Registry())
"""


def killed_daemon(tmp_path: Path, call: str) -> list[ProcessRecord]:
    """Kill a process that runs ``call`` once the file ``ready`` exists; what it had recorded."""
    daemon = scenario(tmp_path, WITH_RECORDS + call)
    # It may be up before it is recorded: that is a matter for the sweep by markers.
    until_sync(lambda: (tmp_path / "ready").exists() and bool(recorded(tmp_path)), "the child is up and recorded")
    daemon.kill()
    daemon.communicate()
    return recorded(tmp_path)


def recorded(tmp_path: Path) -> list[ProcessRecord]:
    """What of an attempt is recorded by now."""
    file = tmp_path / "records"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [line.rstrip("\n").split("|") for line in lines if line.endswith("\n")]
    records = [ProcessRecord(row[0], int(row[1]), row[2], row[3]) for row in rows]
    return [record for record in records if record.attempt_id]


@pytest.mark.parametrize(
    "child",
    [
        "touch $0/ready; sleep 1000",
        "trap '' TERM; touch $0/ready; while :; do sleep 0.01; done",
        "setsid sh -c 'trap \"\" TERM; touch $0/ready; sleep 1000' $0 & wait",
    ],
)
async def test_what_a_killed_daemon_left_is_ended(tmp_path: Path, child: str) -> None:
    call = f"""
await spawner.capture(Command(("sh", "-c", {child!r}, str(tmp)), env), deadline_seconds=900, what="x", attempt_id="a1")
"""
    records = killed_daemon(tmp_path, call)
    assert running(records[0].pid)
    ended = await end_leftovers(records, QUICK)
    assert ended == records
    assert not marked()
    assert await end_leftovers(records, QUICK) == []


def test_a_build_gets_term_when_its_daemon_is_killed(tmp_path: Path) -> None:
    child = f"trap 'touch {tmp_path}/told; exit' TERM; touch {tmp_path}/ready; while :; do sleep 0.01; done"
    call = f"""
await spawner.stream(Command(("sh", "-c", {child!r}), env), on_lines=print, line_bytes=1000, deadline_seconds=900,
                     what="x", attempt_id="a1")
"""
    killed_daemon(tmp_path, call)
    until_sync((tmp_path / "told").exists, "TERM came")
    until_sync(lambda: not marked(), "it has ended")


async def test_a_group_without_its_leader_is_ended_if_it_is_the_attempts(tmp_path: Path) -> None:
    child = f"trap '' HUP; sleep 1000 & touch {tmp_path}/ready"
    call = f"""
await spawner.capture(Command(("sh", "-c", {child!r}), env), deadline_seconds=900, what="x", attempt_id="a1",
                      policy=StopPolicy(drain_seconds=900))
"""
    (record,) = killed_daemon(tmp_path, call)
    await until(lambda: read_process(record.pid) is None, "the leader is gone")
    other = ProcessRecord("a2", record.pid, record.start_time, record.argv0)
    start = parse_start_text(record.start_time)
    assert start is not None
    later = ProcessRecord("a1", record.pid, start_text(start + 10**6), record.argv0)
    assert await end_leftovers([other, later], QUICK) == []
    assert len(marked()) == 1
    assert await end_leftovers([record], QUICK) == [record]
    assert not marked()


async def test_a_number_that_came_again_is_not_touched() -> None:
    process = subprocess.Popen(["sleep", "1000"], env=ENV, start_new_session=True)
    try:
        info = read_process(process.pid)
        assert info is not None
        boot, _, _ = start_text(info.start).partition("/")
        strangers = [
            ProcessRecord("a1", process.pid, start_text(info.start - 1), "sleep"),
            ProcessRecord("a1", process.pid, start_text(info.start + 1), "sleep"),
            ProcessRecord("a1", process.pid, f"other-{boot}/{info.start}", "sleep"),
            ProcessRecord("a1", process.pid, "nonsense", "sleep"),
        ]
        assert await end_leftovers(strangers, QUICK) == []
        assert process.poll() is None
        mine = ProcessRecord("a1", process.pid, start_text(info.start), "sleep")
        assert await end_leftovers([*strangers, mine], QUICK) == [mine]
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


async def test_a_process_without_a_record_is_found_by_its_attempt(tmp_path: Path) -> None:
    child = "touch $0/ready; setsid sleep 1000 & sleep 1000"
    call = f"""
await spawner.capture(Command(("sh", "-c", {child!r}, str(tmp)), env), deadline_seconds=900, what="x", attempt_id="a1")
"""
    killed_daemon(tmp_path, call)
    await until(lambda: len(marked()) == 3, "all three run")
    assert await end_leftovers([], QUICK, attempt_ids={"a", "1", "a11"}) == []
    assert len(marked()) == 3
    found = await end_leftovers([], QUICK, attempt_ids={"a0", "a1"})
    assert {(record.attempt_id, running(record.pid)) for record in found} == {("a1", False)}
    assert not marked()


def test_starts_of_other_boots_are_no_starts() -> None:
    assert parse_start_text(start_text(12345)) == 12345
    for text in ("", "/", "x/1", start_text(1) + "x", start_text(1) + "/1"):
        assert parse_start_text(text) is None


def test_a_daemon_that_ends_orderly_leaves_nothing(tmp_path: Path) -> None:
    body = """
with anyio.move_on_after(0.5):
    await spawner.capture(Command(("sh", "-c", "setsid sleep 1000 & sleep 1000"), env), deadline_seconds=900, what="x")
"""
    finish(scenario(tmp_path, body))
    assert not marked()
