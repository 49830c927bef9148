"""The logs of builds: what is written is what is read, by number, while it is written and after a crash."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import LogMissingError, LogReader, LogStore, logreader, logwriter
from ofborg_async.model.identity import LimitSettings

LARGE = 1 << 30


def store_in(directory: Path) -> LogStore:
    return LogStore(directory, limits=LimitSettings())


def read_all(reader: LogReader, max_bytes: int = 1 << 16) -> list[bytes]:
    lines: list[bytes] = []
    while batch := reader.read(max_bytes):
        assert reader.next_line == len(lines) + len(batch) + 1
        lines += batch
    return lines


async def test_lines_are_read_while_they_are_written(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    with store.open_reader("a") as reader:
        assert reader.read(100) == []
        writer.write([b"one", b"", b"three\r"])
        assert (reader.next_line, reader.offset) == (1, 0)
        assert reader.read(100) == [b"one", b"", b"three\r"]
        assert (reader.next_line, reader.offset) == (4, writer.size_bytes)
        assert reader.read(100) == []
        writer.write([])
        writer.write([b"four"])
        await writer.finish()
        assert reader.read(100) == [b"four"]
        assert (writer.lines, writer.size_bytes) == (4, 17)
    assert store.path("a") == tmp_path / "logs" / "a.log"
    assert store.path("a").stat().st_mode & 0o777 == 0o600
    assert store.path("a").read_bytes() == b"one\n\nthree\r\nfour\n"


async def test_a_reader_waits_for_lines_and_for_the_end(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    read: list[bytes] = []
    reading = anyio.Event()

    async def follow() -> None:
        with store.open_reader("a") as reader:
            reading.set()
            while await reader.wait():
                read.extend(reader.read(100))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await reading.wait()
            for number in range(1000):
                writer.write([b"%d" % number])
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
            await writer.finish()
    assert read == [b"%d" % number for number in range(1000)]


async def test_waiting_for_what_is_there_returns_at_once(tmp_path: Path) -> None:
    writer = store_in(tmp_path).create("a")
    writer.write([b"x"])
    with anyio.fail_after(10):
        await writer.wait_beyond(0)
        await writer.finish()
        await writer.wait_beyond(2)
        await writer.finish()
    writer.write([b"too late"])
    assert writer.lines == 1


async def test_a_line_longer_than_the_read_is_read_whole(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    lines = [b"x" * 5000, b"y", b"z" * 70_000]
    writer.write(lines)
    with store.open_reader("a") as reader:
        first = reader.read(10)
        assert first[0] == lines[0]
        assert first + read_rest(reader, 10) == lines
    await writer.finish()


async def test_a_newline_inside_a_line_shifts_no_number(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    writer.write([b"one\ntwo", b"three"])
    assert writer.lines == 2
    with store.open_reader("a") as reader:
        assert read_all(reader) == [b"one two", b"three"] == list(writer.last_lines)
    await writer.finish()


async def test_a_log_over_its_limit_keeps_head_and_tail(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a", max_bytes=1000, tail_lines=5)
    lines = [b"%09d" % number for number in range(1000)]
    for start in range(0, 1000, 7):
        writer.write(lines[start : start + 7])
    assert (writer.lines, writer.size_bytes) == (100, 1000)
    await writer.finish()
    marker = b"[... 895 lines left out: the log is over its limit of 1000 bytes ...]"
    expected = [*lines[:100], marker, *lines[-5:]]
    with store.open_reader("a") as reader:
        assert read_all(reader) == expected
    assert writer.lines == len(expected)
    assert store.path("a").stat().st_size == writer.size_bytes
    assert writer.last_lines == tuple(lines[-10:])


async def test_a_log_just_over_its_limit_leaves_nothing_out(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a", max_bytes=1000, tail_lines=5)
    lines = [b"%09d" % number for number in range(105)]
    writer.write(lines)
    await writer.finish()
    with store.open_reader("a") as reader:
        assert read_all(reader) == lines


async def test_a_short_line_behind_one_that_did_not_fit_is_not_put_before_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a", max_bytes=20, tail_lines=1)
    writer.write([b"x" * 10, b"y" * 100, b"z"])
    writer.write([b"end"])
    await writer.finish()
    with store.open_reader("a") as reader:
        assert read_all(reader) == [
            b"x" * 10,
            b"[... 2 lines left out: the log is over its limit of 20 bytes ...]",
            b"end",
        ]


async def test_limits_of_the_identity_hold_where_none_are_given(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limits=LimitSettings(log_bytes=10, log_tail_lines=1))
    writer = store.create("a")
    writer.write([b"12345", b"6789", b"0", b"1", b"2"])
    await writer.finish()
    assert writer.lines == 3
    assert store.path("a").read_bytes().endswith(b"of 10 bytes ...]\n2\n")


async def test_a_line_cut_off_by_a_crash_is_not_read(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.path("a").write_bytes(b"one\ntwo\nthr")
    with store.open_reader("a") as reader:
        assert await reader.wait()
        assert read_all(reader) == [b"one", b"two"]
        assert not await reader.wait()
        assert await reader.seek(3)
        assert reader.read(100) == []
        assert not await reader.seek(4)


def test_lines_written_before_sigkill_are_there(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from ofborg_async.journal import LogStore\n"
        "from ofborg_async.model.identity import LimitSettings\n"
        "writer = LogStore(Path(sys.argv[1]), limits=LimitSettings()).create('a')\n"
        "for number in range(1000): writer.write([b'%d' % number] * 3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    with store_in(tmp_path).open_reader("a") as reader:
        assert read_all(reader) == [b"%d" % (number // 3) for number in range(3000)]


@pytest.mark.parametrize("ended", [False, True])
async def test_any_line_is_found_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ended: bool) -> None:
    monkeypatch.setattr(logwriter, "_INDEX_BYTES", 1000)
    monkeypatch.setattr(logreader, "_SCAN_BYTES", 300)
    store = store_in(tmp_path)
    writer = store.create("a")
    lines = [b"%d" % number + b"x" * (number * 37 % 101) for number in range(1, 1001)]
    lines[500] = b"y" * 2000  # longer than a scan
    for start in range(0, 1000, 13):
        writer.write(lines[start : start + 13])
    if ended:
        await writer.finish()
    else:
        assert len(writer._index_lines) > 20
    with store.open_reader("a") as reader:
        for line in (1, 2, 500, 501, 502, 503, 999, 1000, 7, 1):
            assert await reader.seek(line)
            assert reader.next_line == line
            assert reader.read(1)[0] == lines[line - 1]
        assert await reader.seek(1001)
        assert reader.read(100) == []
        assert not await reader.seek(1002)
        assert reader.next_line == 1001
    await writer.finish()


async def test_names_that_are_no_attempt_lead_nowhere(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "secret.log").write_bytes(b"secret\n")
    for name in ("../secret", "", "-x", ".", "a/b", "a\0b", "a" * 101, "a\n", "unknown"):
        with pytest.raises(LogMissingError):
            store.open_reader(name)
    for name in ("../new", "a/b"):
        with pytest.raises(LogMissingError):
            store.create(name)


async def test_a_log_is_made_once(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    with pytest.raises(HostFault, match="File exists") as error:
        store.create("a")
    assert error.value.kind is FaultKind.DISK
    await writer.finish()


async def test_the_oldest_logs_are_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ofborg_async.journal import logstore

    monkeypatch.setattr(logstore, "_PRUNE_BATCH_FILES", 3)
    store = store_in(tmp_path)
    writer = store.create("running")
    writer.write([b"x" * 4095])
    names = [f"a{number}" for number in range(10)]
    for age, name in enumerate(names):
        path = store.path(name)
        path.write_bytes(b"x" * 4096)
        os.utime(path, (1000 + age, 1000 + age))
    os.utime(store.path("running"), (1, 1))
    (tmp_path / "logs" / "notes.txt").write_bytes(b"x" * 4096)
    assert await store.prune(LARGE, ()) == 0
    assert await store.prune(11 * 4096, ()) == 0
    assert await store.prune(5 * 4096, {"a0", "outside"}) == 6
    left = {path.name for path in (tmp_path / "logs").iterdir()}
    assert left == {"running.log", "a0.log", "a7.log", "a8.log", "a9.log", "notes.txt"}
    assert await store.prune(0, {"a0"}) == 3
    await writer.finish()
    assert await store.prune(0, ()) == 2
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["notes.txt"]


async def test_logs_are_due_for_removal_once_much_was_written(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(3):
        writer = store.create(f"a{number}")
        writer.write([b"x" * 4095])
        await writer.finish()
        assert store.is_due(16 * 4096) is (number == 2)
    assert await store.prune(16 * 4096, ()) == 0
    assert not store.is_due(16 * 4096)


async def test_empty_logs_are_removed_too(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(20):
        await store.create(f"a{number}").finish()
    assert await store.prune(10 * 512, ()) == 10


async def test_a_reader_of_a_removed_log_reads_on(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    writer = store.create("a")
    writer.write([b"one", b"two"])
    await writer.finish()
    with store.open_reader("a") as reader:
        assert await store.prune(0, ()) == 1
        assert read_all(reader) == [b"one", b"two"]
    with pytest.raises(LogMissingError):
        store.open_reader("a")


async def test_a_folder_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    shutil.rmtree(tmp_path / "logs")
    writer = store.create("a")
    writer.write([b"one"])
    await writer.finish()
    assert store.path("a").read_bytes() == b"one\n"


async def test_a_folder_that_cannot_be_cleared_is_a_fault_of_the_host(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    shutil.rmtree(tmp_path / "logs")
    with pytest.raises(HostFault, match="No such file"):
        await store.prune(0, ())


async def test_a_disk_that_gives_nothing_back_is_a_fault_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    await store.create("a").finish()

    def failing(_descriptor: int, _size: int, _offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with store.open_reader("a") as reader:
        for read in (reader.wait(), reader.seek(2)):
            with pytest.raises(HostFault, match="cannot be read: Input/output error"):
                await read
        with pytest.raises(HostFault):
            reader.read(100)


async def test_finish_is_done_in_a_cancelled_task(tmp_path: Path) -> None:
    writer = store_in(tmp_path).create("a")
    writer.write([b"x"])
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            await writer.finish()
    assert scope.cancelled_caught
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer._descriptor)


LINE = st.binary(max_size=40).map(lambda line: line.replace(b"\n", b""))


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(LINE, max_size=20), max_size=20),
    max_bytes=st.integers(0, 2000),
    tail_lines=st.integers(0, 10),
    chunk=st.integers(1, 100),
)
def test_the_file_is_head_marker_and_tail_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[bytes]],
    max_bytes: int,
    tail_lines: int,
    chunk: int,
) -> None:
    async def run() -> None:
        store = store_in(tmp_path_factory.mktemp("log"))
        writer = store.create("a", max_bytes=max_bytes, tail_lines=tail_lines)
        read: list[bytes] = []
        with store.open_reader("a") as reader:
            for batch in batches:
                writer.write(batch)
                read += reader.read(chunk)
            await writer.finish()
            read += read_rest(reader, chunk)
        lines = [line for batch in batches for line in batch]
        fitting = 0
        room = max_bytes
        while fitting < len(lines) and len(lines[fitting]) < room:
            room -= len(lines[fitting]) + 1
            fitting += 1
        beyond = lines[fitting:]
        tail = beyond[-tail_lines:] if tail_lines else []
        left_out = len(beyond) - len(tail)
        marker = [b"[... %d lines left out: the log is over its limit of %d bytes ...]" % (left_out, max_bytes)]
        expected = [*lines[:fitting], *(marker if left_out else []), *tail]
        assert read == expected
        assert (writer.lines, writer.last_lines) == (len(expected), tuple(lines[-10:]))

    anyio.run(run)


def read_rest(reader: LogReader, chunk: int) -> list[bytes]:
    lines: list[bytes] = []
    while batch := reader.read(chunk):
        lines += batch
    return lines
