"""Commands that run to their own end: what goes in, what comes out, what cannot be started."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import tracemalloc
from pathlib import Path

import anyio
import pytest
from process_helpers import ENV, MARK, Registry, finish, scenario

from ofborg_async.clock import SystemClock
from ofborg_async.errors import ExecutableMissingError, FaultKind, HostFault
from ofborg_async.process import Command, Completed, Spawner
from ofborg_async.process.children import MARKER


async def sh(spawner: Spawner, script: str, **options: object) -> Completed:
    command = Command(("sh", "-c", script), ENV)
    return await spawner.capture(command, deadline_seconds=30, what="a shell", **options)  # type: ignore[arg-type]


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def lines_of(spawner: Spawner, script: str, line_bytes: int = 16384) -> list[bytes]:
    lines: list[bytes] = []
    command = Command(("sh", "-c", script), ENV)
    done = await spawner.stream(
        command, on_lines=lines.extend, line_bytes=line_bytes, deadline_seconds=60, what="a shell"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return lines


async def test_output_and_exit_status(spawner: Spawner) -> None:
    done = await sh(spawner, "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 3)
    assert (done.timed_out, done.stdout_truncated, done.stderr_truncated) == (False, False, False)
    assert 0 < done.duration_seconds < 30


async def test_a_signal_is_a_negative_exit_status(spawner: Spawner) -> None:
    assert (await sh(spawner, "kill -SEGV $$")).returncode == -signal.SIGSEGV


async def test_merged_output_keeps_its_order(spawner: Spawner) -> None:
    done = await sh(spawner, "for i in 1 2 3; do echo $i; echo $i >&2; done", merge=True)
    assert (done.stdout, done.stderr) == (b"1\n1\n2\n2\n3\n3\n", b"")


async def test_output_is_capped_and_says_so(spawner: Spawner) -> None:
    done = await sh(spawner, "head -c 3000000 /dev/zero; printf 12345 >&2", limit_bytes=5)
    assert (done.stdout, done.stdout_truncated) == (bytes(5), True)
    assert (done.stderr, done.stderr_truncated) == (b"12345", False)


async def test_standard_input(spawner: Spawner) -> None:
    assert (await sh(spawner, "cat")).stdout == b""
    big = os.urandom(1_000_000)
    done = await spawner.capture(Command(("cat",), ENV, stdin=big), deadline_seconds=30, what="cat")
    assert done.stdout == big
    ignored = await spawner.capture(Command(("true",), ENV, stdin=big), deadline_seconds=30, what="true")
    assert ignored.returncode == 0


async def test_environment_and_directory_are_the_commands_own(
    spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_DAEMON", "1")
    done = await spawner.capture(Command(("env",), ENV, cwd=tmp_path), deadline_seconds=30, what="env", attempt_id="a7")
    words = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert words.pop(MARKER).startswith("a7/")
    assert words == ENV
    assert MARK in done.stdout.decode()
    done = await spawner.capture(Command(("pwd",), ENV, cwd=tmp_path), deadline_seconds=30, what="pwd")
    assert done.stdout.decode().strip() == str(tmp_path)


async def test_a_child_leads_a_session_of_its_own(spawner: Spawner) -> None:
    done = await spawner.capture(Command(("cat", "/proc/self/stat"), ENV), deadline_seconds=30, what="cat")
    pid, _, _, _, pgid, sid = done.stdout.split()[:6]
    assert pid == pgid == sid


async def test_only_the_descriptors_named_reach_the_child(spawner: Spawner, tmp_path: Path) -> None:
    with (tmp_path / "kept").open("w") as kept, (tmp_path / "other").open("w") as other:
        os.set_inheritable(other.fileno(), True)  # noqa: FBT003 - its only form
        script = f"import os; os.write({kept.fileno()}, b'passed'); print(*os.listdir('/proc/self/fd'))"
        command = Command((sys.executable, "-c", script), ENV, descriptors=(kept.fileno(),))
        done = await spawner.capture(command, deadline_seconds=30, what="python")
        listing = 3  # the open directory itself
        assert {int(name) for name in done.stdout.split()} == {0, 1, 2, kept.fileno(), listing}, done
        assert not os.get_inheritable(kept.fileno())
    assert (tmp_path / "kept").read_text() == "passed"


async def test_spawning_leaks_no_descriptor(spawner: Spawner) -> None:
    before = open_descriptors()
    for _ in range(5):
        await sh(spawner, "echo x")
        with pytest.raises(HostFault):
            await spawner.capture(Command(("/nowhere/x",), ENV, stdin=b"y"), deadline_seconds=30, what="x")
    assert open_descriptors() == before


async def test_lines_are_split_capped_and_complete(spawner: Spawner) -> None:
    lines = await lines_of(spawner, r"printf 'a\r\n\303\244\342\200\250\377\nlast' >&2; exit 0")
    assert lines == [b"a", b"\xc3\xa4\xe2\x80\xa8\xff", b"last"]


async def test_200000_lines_keep_their_order(spawner: Spawner) -> None:
    lines = await lines_of(
        spawner, "seq -f 'line %.0f of a build that prints very much, as some of them really do' 200000"
    )
    assert len(lines) == 200_000
    assert all(line.startswith(b"line %d of" % number) for number, line in enumerate(lines, 1))


async def test_lines_come_while_the_child_runs(spawner: Spawner, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    os.mkfifo(answer)

    def on_lines(lines: list[bytes]) -> None:
        assert lines == [b"question"]
        answer.write_text("go\n")

    command = Command(("sh", "-c", f"echo question; read x < {answer}; test $x = go"), ENV)
    done = await spawner.stream(command, on_lines=on_lines, line_bytes=1000, deadline_seconds=30, what="a question")
    assert done.returncode == 0


async def test_a_line_of_100_megabytes_does_not_fill_the_memory(spawner: Spawner) -> None:
    await lines_of(spawner, "true")
    tracemalloc.start()
    try:
        lines = await lines_of(spawner, "head -c 100000000 /dev/zero; echo; echo next")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(lines[0]) <= 16384, lines[1:]] == [True, [b"next"]]
    assert peak < 2_000_000


async def test_cpu_and_peak_memory_of_the_child(spawner: Spawner) -> None:
    script = "x = bytearray(400_000_000)\nx[::4096] = bytes(len(x[::4096]))\nsum(range(3_000_000))"
    done = await spawner.capture(Command((sys.executable, "-c", script), ENV), deadline_seconds=60, what="python")
    assert done.returncode == 0, done.stderr
    assert 400_000_000 <= done.peak_rss_bytes < 600_000_000
    assert 0.02 < done.cpu_seconds < 60
    assert (await sh(spawner, "true")).peak_rss_bytes == 0  # smaller than this process: unknown, not wrong


async def test_a_missing_program_is_looked_for_again_and_a_removed_one_is_noticed(tmp_path: Path) -> None:
    spawner = Spawner(SystemClock(), None)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    command = Command(("program",), {**ENV, "PATH": f"{tmp_path}/first:{tmp_path}/second:{ENV['PATH']}"})
    for program in (tmp_path / "first/program", tmp_path / "second/program"):
        with pytest.raises(ExecutableMissingError, match="program was not found on PATH") as missing:
            await spawner.capture(command, deadline_seconds=30, what="a program")
        assert missing.value.program == "program"
        program.write_text("#!/bin/sh\necho here\n")
        program.chmod(0o755)
        for _ in range(2):
            assert (await spawner.capture(command, deadline_seconds=30, what="a program")).stdout == b"here\n"
        program.rename(program.with_name("away"))
    (tmp_path / "first/away").rename(tmp_path / "first/program")
    await spawner.capture(command, deadline_seconds=30, what="a program")
    (tmp_path / "first/program").rename(tmp_path / "second/program")
    assert (await spawner.capture(command, deadline_seconds=30, what="a program")).stdout == b"here\n"


async def test_the_working_directory_is_not_on_path(
    spawner: Spawner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_text("#!/bin/sh\necho evil\n")
    (tmp_path / "evil").chmod(0o755)
    command = Command(("evil",), {**ENV, "PATH": f":{ENV['PATH']}:"}, cwd=tmp_path)
    with pytest.raises(ExecutableMissingError):
        await spawner.capture(command, deadline_seconds=30, what="evil")


async def test_what_cannot_be_started_says_why(spawner: Spawner, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nowhere/interpreter\n")
    cases = [
        (Command(("sh",), ENV, cwd=tmp_path / "gone"), HostFault, "working directory .*gone does not exist"),
        (Command((str(tmp_path / "none"),), ENV), ExecutableMissingError, "none was not found"),
        (Command((str(script),), ENV), HostFault, "script cannot be started: Permission denied"),
        (Command(("true", "x" * 200_000), ENV), HostFault, "true cannot be started: Argument list too long"),
    ]
    for command, error, text in cases:
        with pytest.raises(error, match=text) as raised:
            await spawner.capture(command, deadline_seconds=30, what="a test")
        assert isinstance(raised.value, HostFault)
        assert raised.value.kind is FaultKind.PROCESS
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(HostFault, match="script cannot be started: No such file"):
        await spawner.capture(Command((str(script),), ENV), deadline_seconds=30, what="a test")


@pytest.mark.parametrize(
    ("limit", "kind", "remedy"),
    [("NPROC, (1, 1)", "memory", "TasksMax"), ("NOFILE, (used, used)", "process", "LimitNOFILE")],
)
def test_a_host_without_room_is_a_host_fault(tmp_path: Path, limit: str, kind: str, remedy: str) -> None:
    body = f"""
    import resource
    from ofborg_async.errors import HostFault
    if os.getuid() == 0:
        os.setuid(65534)  # limits of processes do not hold for root
    await spawner.capture(Command(("true",), env), deadline_seconds=30, what="true")
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_{limit})
    try:
        await spawner.capture(Command(("true",), env), deadline_seconds=30, what="true")
    except HostFault as fault:
        print(fault.kind, fault.remedy)
    """
    output = finish(scenario(tmp_path, body))
    assert output.startswith(kind)
    assert remedy in output


def test_a_nul_or_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        Command(("echo", "a\0b"), ENV)
    with pytest.raises(ValueError, match="names no program"):
        Command((), ENV)


async def test_the_registry_hears_of_start_and_end() -> None:
    registry = Registry()
    spawner = Spawner(SystemClock(), registry)
    done = await spawner.capture(Command(("sh", "-c", "echo $$"), ENV), deadline_seconds=30, what="sh", attempt_id="a1")
    (started, ended) = registry.calls
    pid = int(done.stdout)
    assert started[:3] == ("started", "a1", pid)
    assert started[4] == "sh"
    assert ended == ("ended", pid)


async def test_without_a_way_to_watch_the_exit_is_polled(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> None:
        raise OSError("no such thing here")

    monkeypatch.setattr("ofborg_async.process.child.ExitWatch", refuse)
    done = await sh(spawner, "echo out; exec >&- 2>&-; sleep 0.1; exit 5")
    assert (done.stdout, done.returncode, done.timed_out) == (b"out\n", 5, False)
    assert done.duration_seconds < 20


async def test_children_of_asyncio_keep_their_exit_status(spawner: Spawner) -> None:
    async def ours(status: int) -> None:
        assert (await sh(spawner, f"exit {status}")).returncode == status

    async def asyncios(status: int) -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
        assert await process.wait() == status

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for status in range(15):
                tasks.start_soon(ours, status)
                tasks.start_soon(asyncios, status)
