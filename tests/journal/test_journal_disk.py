"""A full disk, on a small file system of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from journal_helpers import FakeClock, copy_as_killed, finish, make_attempt, make_result, opened

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import Journal, LogStore, Seen, SeenState
from ofborg_async.model.identity import LimitSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
RESERVE = 2 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("only root may mount a small file system, and only on Linux is it a tmpfs")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=2000", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: a failed test may have left a file open, and a mount left behind would disturb every later run.
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left of the disk."""
    ballast = disk / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    os.write(descriptor, b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        os.close(descriptor)
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def shown_full(journal: Journal) -> bool:
    return journal.disk_full


async def begin_until_full(journal: Journal) -> int:
    """Begin attempts until the reserve is used; returns how many."""
    for number in range(1000):
        await journal.begin(make_attempt(f"fill{number}", request_id=f"fill{number}", body=bytes(20_000)))
        if journal.disk_full:
            return number + 1
    pytest.fail("the disk never was full")


async def test_results_are_recorded_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    state = small_disk / "state"
    async with opened(state, reserve_bytes=RESERVE) as journal:
        await journal.begin(make_attempt("a"))
        await journal.begin(make_attempt("b", request_id="b"))
        assert not shown_full(journal)
        ballast = fill(small_disk)
        count = await begin_until_full(journal)
        assert not (state / "journal.reserve").exists()
        await finish(journal, "a", result=make_result(b"x" * 60_000))
        await journal.requeued("b", "no space")
        killed = copy_as_killed(state, tmp_path / "killed")
        async with opened(killed) as copy:
            assert [entry.result.body for entry in await copy.outbox()] == [b"x" * 60_000]
            assert len(await copy.live_attempts()) == count + 1

        await journal.flush()
        assert shown_full(journal)
        ballast.unlink()
        await journal.flush()
        assert not shown_full(journal)
        assert (state / "journal.reserve").stat().st_size == RESERVE


async def test_a_disk_fuller_than_the_reserve_is_a_fault_of_the_host_and_heals(small_disk: Path) -> None:
    state = small_disk / "state"
    async with opened(state, reserve_bytes=RESERVE) as journal:
        await journal.begin(make_attempt("a"))
        ballast = fill(small_disk)
        await begin_until_full(journal)
        journal.lines_confirmed("a", 5)
        fill(small_disk)
        refused = make_attempt("huge", request_id="huge", body=bytes(MIB))
        with pytest.raises(HostFault) as fault:
            await journal.begin(refused)
        assert fault.value.kind is FaultKind.DISK
        assert "free some space" in fault.value.remedy
        assert shown_full(journal)
        # Also the note is now too much, or its page happens to fit: what counts is that it is not lost, nor raised.
        await journal.flush()
        ballast.unlink()
        assert await journal.lookup(refused.key) is None
        assert "huge" not in await journal.live_attempts()
        await finish(journal, "a")
        (entry,) = await journal.outbox()
        assert entry.lines_confirmed == 5  # the note waited for room


async def test_a_message_that_went_back_on_a_full_disk_can_be_taken_again(small_disk: Path) -> None:
    async with opened(small_disk / "state", reserve_bytes=RESERVE) as journal:
        await journal.begin(make_attempt("a"))
        ballast = fill(small_disk)
        await begin_until_full(journal)
        fill(small_disk)
        with pytest.raises(HostFault):
            await journal.requeued("a", "no space " * (MIB // 8))
        with pytest.raises(HostFault, match="went back is not written yet"):  # not an attempt of its own that runs
            await journal.begin(make_attempt("b"))
        ballast.unlink()
        await journal.begin(make_attempt("b"))
        assert "a" not in await journal.live_attempts()


async def test_on_a_full_disk_one_too_large_call_does_not_take_small_ones_with_it(small_disk: Path) -> None:
    failed: list[HostFault] = []

    async def begin_huge() -> None:
        try:
            await journal.begin(make_attempt("huge", request_id="huge", body=bytes(4 * MIB)))
        except HostFault as fault:
            failed.append(fault)

    async with opened(small_disk / "state", reserve_bytes=RESERVE) as journal:
        for number in range(5):
            await journal.begin(make_attempt(f"a{number}", request_id=str(number)))
        fill(small_disk)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin_huge)
            for number in range(5):
                tasks.start_soon(finish, journal, f"a{number}")
        assert len(failed) == 1
        assert len(await journal.outbox()) == 5


async def test_the_daemon_starts_on_a_full_disk(small_disk: Path) -> None:
    state = small_disk / "state"
    async with opened(state, reserve_bytes=RESERVE) as journal:
        await journal.begin(make_attempt("a"))
    fill(small_disk)
    async with opened(state, reserve_bytes=RESERVE) as journal:
        assert shown_full(journal)
        assert len(await journal.interrupted()) == 1
        assert await journal.lookup(make_attempt().key) == Seen(SeenState.IDLE, "", "", "", 1, 0)


async def test_no_inode_for_an_existing_journal_is_a_fault_of_the_host(small_disk: Path) -> None:
    """Else the daemon would say that a restart cannot help."""
    async with opened(small_disk / "state", reserve_bytes=RESERVE):
        pass
    with suppress(OSError):
        for number in range(2001):
            (small_disk / str(number)).touch()
    assert os.statvfs(small_disk).f_favail == 0
    with pytest.raises(HostFault) as fault:
        async with opened(small_disk / "state", reserve_bytes=RESERVE):
            pass
    assert fault.value.kind is FaultKind.DISK


async def test_no_room_for_a_journal_at_all_is_a_fault_of_the_host(small_disk: Path) -> None:
    (small_disk / "state").mkdir()
    fill(small_disk)
    with pytest.raises(HostFault) as fault:
        await Journal.open(small_disk / "state", clock=FakeClock())
    assert fault.value.kind is FaultKind.DISK


async def test_processes_are_recorded_again_once_there_is_room(small_disk: Path) -> None:
    state = small_disk / "state"
    async with opened(state, reserve_bytes=0) as journal:
        ballast = fill(small_disk)
        for pid in range(1000):
            journal.started("attempt", pid, "start", "x" * 100)
        assert (state / "processes.log").stat().st_size < 100_000
        ballast.unlink()
        journal.ended(0)
    async with opened(state, reserve_bytes=0) as journal:
        assert [left.pid for left in journal.leftovers()] == list(range(1, 1000))


@pytest.mark.parametrize("tail_lines", [5, 1000])
async def test_a_full_disk_costs_lines_of_the_log_never_the_build(small_disk: Path, tail_lines: int) -> None:
    store = LogStore(small_disk, limits=LimitSettings())
    writer = store.create("a", tail_lines=tail_lines)
    lines = [b"%06d " % number + b"x" * 93 for number in range(10_000)]
    writer.write(lines[:100])
    ballast = fill(small_disk)
    for start in range(100, len(lines), 100):
        writer.write(lines[start : start + 100])
    assert (writer.disk_full, store.disk_full) == (True, True)
    kept = writer.lines
    with store.open_reader("a") as reader:
        assert reader.read(100 * MIB) == lines[:kept]
    content = store.path("a").read_bytes()
    assert content.endswith(b"\n")
    assert writer.last_lines == tuple(lines[-10:])
    ballast.unlink()
    await writer.finish()
    left_out = len(lines) - kept - tail_lines
    marker = b"[... %d lines left out: the disk was full ...]" % left_out
    assert store.path("a").read_bytes().splitlines() == [*lines[:kept], marker, *lines[-tail_lines:]]
    assert writer.lines == kept + 1 + tail_lines
    assert not store.disk_full


async def test_a_log_ends_on_a_full_disk(small_disk: Path) -> None:
    store = LogStore(small_disk, limits=LimitSettings())
    writer = store.create("a")
    fill(small_disk)
    writer.write([b"x" * 5000] * 10)
    await writer.finish()
    content = store.path("a").read_bytes()
    assert content.count(b"\n") == writer.lines
    assert len(content) == writer.size_bytes
