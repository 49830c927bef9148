"""Commands that do not end by themselves, or leave something behind: real processes and signals."""

from __future__ import annotations

import platform
import shutil
import signal
import sys
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from process_helpers import ENV, Registry, marked, running, until

from ofborg_async.clock import SystemClock
from ofborg_async.errors import CancelReason
from ofborg_async.process import Command, Completed, Spawner, StopPolicy
from ofborg_async.process.table import read_proc

QUICK = StopPolicy(term_grace_seconds=0.3, drain_seconds=0.3)
PATIENT = StopPolicy(term_grace_seconds=30, drain_seconds=30)

# Says its pid, then leaves its group, its session and, with an intermediate parent that exits, its parent.
DAEMONISE = """
import os, sys, time
if os.fork():
    os.wait()
    if sys.argv[1] == "stay":
        time.sleep(1000)
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.write(1, b"%d\\n" % os.getpid())
for descriptor in 0, 1, 2:
    os.close(descriptor)
time.sleep(1000)
"""


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def script(text: str) -> Command:
    return Command(("sh", "-c", text), ENV)


async def timed_out(spawner: Spawner, what: str | Command, policy: StopPolicy) -> Completed:
    """Run a command that prints ``ready`` first into its deadline; a longer one if it was not ready by then."""
    command = script(what) if isinstance(what, str) else what
    for seconds in (0.3, 1, 4, 16):
        done = await spawner.capture(command, deadline_seconds=seconds, what="a command", policy=policy)
        assert done.timed_out, done
        if done.stdout.startswith(b"ready\n"):
            return evolve(done, stdout=done.stdout.removeprefix(b"ready\n"))
    raise AssertionError(f"it is never ready: {done}")


async def test_a_deadline_ends_the_tree_with_term(spawner: Spawner) -> None:
    done = await timed_out(spawner, "echo ready; sleep 1000 & sleep 1000", PATIENT)
    assert (done.stdout, done.returncode) == (b"", -signal.SIGTERM)
    assert done.duration_seconds < 25


async def test_what_is_printed_while_it_is_ended_is_kept(spawner: Spawner) -> None:
    last = "head -c 300000 /dev/zero; echo the end; exit 7"
    done = await timed_out(spawner, f"trap '{last}' TERM; echo ready; while :; do sleep 0.01; done", PATIENT)
    assert (len(done.stdout), done.stdout[-8:], done.returncode) == (300_008, b"the end\n", 7)


async def test_a_full_pipe_is_read_to_its_end(spawner: Spawner) -> None:
    text = "trap 'yes | head -n 500000; exit' TERM; echo ready; while :; do sleep 0.01; done"
    for seconds in (0.3, 1, 4, 16):
        lines: list[bytes] = []
        done = await spawner.stream(
            script(text), on_lines=lines.extend, line_bytes=99, deadline_seconds=seconds, what="a shell", policy=PATIENT
        )
        if lines:
            break
    assert (done.timed_out, lines.count(b"y")) == (True, 500_000)


async def test_a_loop_that_ignores_term_is_killed_after_the_grace(spawner: Spawner) -> None:
    done = await timed_out(spawner, "trap '' TERM; echo ready; while :; do :; done", QUICK)
    assert done.returncode == -signal.SIGKILL
    assert done.duration_seconds >= 0.6


async def test_a_stopped_child_takes_its_term(spawner: Spawner) -> None:
    done = await timed_out(spawner, "echo ready; kill -STOP $$", PATIENT)
    assert done.returncode == -signal.SIGTERM
    assert done.duration_seconds < 25


async def test_the_rest_of_the_group_gets_its_grace(spawner: Spawner, tmp_path: Path) -> None:
    tidy = f"trap 'sleep 0.3; echo tidied > {tmp_path}/tidied; exit' TERM; echo ready; while :; do sleep 0.01; done"
    await timed_out(spawner, f"({tidy}) & sleep 1000", PATIENT)
    assert (tmp_path / "tidied").read_text() == "tidied\n"


async def test_a_grandchild_that_holds_the_pipe_is_not_waited_for(spawner: Spawner) -> None:
    done = await spawner.capture(
        script("sleep 1000 & echo $!"), deadline_seconds=30, what="a shell", policy=StopPolicy(5, 0.2)
    )
    assert (done.returncode, done.timed_out) == (0, False)
    assert 0.2 <= done.duration_seconds < 5
    assert not running(int(done.stdout))


async def test_a_grandchild_may_finish_its_sentence(spawner: Spawner) -> None:
    done = await spawner.capture(
        script("(sleep 0.2; echo late) & echo soon"), deadline_seconds=30, what="a shell", policy=PATIENT
    )
    assert done.stdout == b"soon\nlate\n"


async def test_a_quiet_process_left_in_the_group_is_ended(spawner: Spawner) -> None:
    done = await spawner.capture(script("sleep 1000 >&- 2>&- & echo $!"), deadline_seconds=30, what="a shell")
    assert not running(int(done.stdout))


@pytest.mark.parametrize("policy", [QUICK, PATIENT])
async def test_processes_in_sessions_of_their_own_end_with_the_tree(spawner: Spawner, policy: StopPolicy) -> None:
    builder = "trap '' TERM; echo ready; echo \\$\\$; while :; do sleep 0.01; done"
    done = await timed_out(spawner, f'setsid sh -c "{builder}" & wait', policy)
    assert not running(int(done.stdout))


async def test_a_family_that_forks_all_the_time_ends(spawner: Spawner) -> None:
    """Killed between two forks, the parent would leave children that nobody had listed."""
    breeder = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready\\n")
for _ in range(5000):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
    time.sleep(0.001)
"""
    await timed_out(spawner, Command((sys.executable, "-c", breeder), ENV), QUICK)
    assert not marked()


async def test_a_group_of_which_only_a_zombie_is_left_gets_no_grace(spawner: Spawner) -> None:
    """Its parent, in another session, does not reap it, as some init systems do not for a while."""
    careless = """
import os, signal, time
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    os.write(1, b"ready\\n")
time.sleep(1000)
"""
    done = await timed_out(spawner, Command((sys.executable, "-c", careless), ENV), PATIENT)
    assert done.duration_seconds < 25
    assert not marked()


async def test_cancellation_goes_on_once_every_descendant_is_gone(tmp_path: Path) -> None:
    registry = Registry()
    spawner = Spawner(SystemClock(), registry)
    text = f'setsid sh -c "trap \\"\\" TERM; echo up > {tmp_path}/up; sleep 1000" & sleep 1000 & sleep 1000'
    went_on = False
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            nonlocal went_on
            await spawner.capture(script(text), deadline_seconds=900, what="a shell", policy=QUICK)
            went_on = True

        tasks.start_soon(run)
        await until((tmp_path / "up").exists, "the child is up")
        assert len(marked()) >= 4
        tasks.cancel_scope.cancel(CancelReason.OPERATOR)
    assert not marked()
    assert not went_on
    assert [call[0] for call in registry.calls] == ["started", "ended"]


async def test_cancellation_while_it_is_ended_does_not_shorten_the_ending(spawner: Spawner, tmp_path: Path) -> None:
    text = f"trap 'touch {tmp_path}/told' TERM; touch {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await spawner.capture(script(text), deadline_seconds=900, what="a shell", policy=PATIENT)

        tasks.start_soon(run)
        await until((tmp_path / "up").exists, "the child is up")
        with anyio.CancelScope(shield=True):
            tasks.cancel_scope.cancel()
            await until((tmp_path / "told").exists, "the child got TERM")
            tasks.cancel_scope.cancel()
            assert len(marked()) >= 1
            (tmp_path / "go").touch()
    assert not marked()


async def test_what_a_sink_raises_ends_the_tree_and_goes_on(spawner: Spawner) -> None:
    def full(_lines: list[bytes]) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        await spawner.stream(
            script("yes & yes"), on_lines=full, line_bytes=1000, deadline_seconds=900, what="yes", policy=PATIENT
        )
    assert not marked()


async def test_a_sink_that_fails_only_at_the_end_fails_too(spawner: Spawner) -> None:
    def full(_lines: list[bytes]) -> None:
        raise OSError("no space left")

    stubborn = "trap 'echo dying' TERM; while :; do sleep 0.01; done"
    for text in ("echo once", "printf once", stubborn):
        with pytest.raises(OSError, match="no space left"):
            await spawner.stream(
                script(text), on_lines=full, line_bytes=1000, deadline_seconds=0.5, what="a shell", policy=QUICK
            )
        assert not marked()


@pytest.mark.skipif(shutil.which("nix-build") is None, reason="needs nix")
async def test_builders_of_a_killed_nix_build_end_with_it(spawner: Spawner, tmp_path: Path) -> None:
    """A single-user nix that gets no time to clean up leaves its builder, in a session of its own."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "nix.conf").write_text("build-users-group =\nsandbox = false\n")
    env = {
        **ENV,
        "NIX_REMOTE": "",
        "NIX_CONF_DIR": str(tmp_path / "conf"),
        "NIX_STORE_DIR": str(tmp_path / "store"),
        "NIX_STATE_DIR": str(tmp_path / "state"),
        "NIX_LOG_DIR": str(tmp_path / "log"),
        "HOME": str(tmp_path),
    }
    build = f"echo up > {tmp_path}/up; trap '' TERM; while :; do :; done"
    system = f"{platform.machine()}-linux"
    words = f'name = "x"; system = "{system}"; builder = "/bin/sh"; args = [ "-c" "{build}" ];'
    expression = f"derivation {{ {words} }}"
    command = Command(("nix-build", "--no-out-link", "-E", expression), env)
    lines: list[bytes] = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await spawner.stream(
                command,
                on_lines=lines.extend,
                line_bytes=1000,
                deadline_seconds=900,
                what="nix-build",
                policy=StopPolicy(term_grace_seconds=0),
            )

        tasks.start_soon(run)
        await until((tmp_path / "up").exists, f"the builder runs: {lines}")
        builders = [info for info in read_proc().values() if str(tmp_path) in command_line(info.pid) and info.alive]
        assert len({info.sid for info in builders}) == 2, "the builder has a session of its own"
        tasks.cancel_scope.cancel()
    assert not any(running(info.pid) for info in builders)
