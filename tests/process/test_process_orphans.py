"""Orphans that the kernel gives to this process, in processes of their own: being a subreaper cannot be undone."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_helpers import finish, scenario

# Leaves a daemon behind. argv: "clear" or "keep" for its environment, and how long to live on. Prints the daemon's pid.
LEAVE = """
import os, sys, time
environment = {} if sys.argv[1] == "clear" else dict(os.environ)
reading, writing = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.set_inheritable(writing, True)
        for descriptor in 0, 1, 2:
            os.close(descriptor)
        code = "import os, time; os.write(%d, str(os.getpid()).encode()); os.close(%d); time.sleep(1000)"
        os.execve(sys.executable, [sys.executable, "-c", code % (writing, writing)], environment)
    os._exit(0)
os.wait()
os.close(writing)
print(os.read(reading, 99).decode(), flush=True)
time.sleep(float(sys.argv[2]))
"""

PREAMBLE = """
import time
from ofborg_async.process.table import read_process, read_proc
QUICK = StopPolicy(term_grace_seconds=0.3, drain_seconds=0.3)
def leave(environment, seconds):
    return Command((sys.executable, str(tmp / "leave.py"), environment, str(seconds)), env)
def alive(pid):
    info = read_process(pid)
    return info is not None and info.alive
async def until(condition):
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)
assert OWN.become_subreaper()
"""


def run(tmp_path: Path, body: str) -> None:
    (tmp_path / "leave.py").write_text(LEAVE)
    finish(scenario(tmp_path, PREAMBLE + body))


@pytest.mark.parametrize("environment", ["keep", "clear"])
@pytest.mark.parametrize(("seconds", "ended_by"), [(0, "itself"), (1000, "its deadline")])
def test_a_daemon_that_escaped_is_ended_with_its_command(
    tmp_path: Path, environment: str, seconds: int, ended_by: str
) -> None:
    run(
        tmp_path,
        f"""
for deadline in (1, 5, 25):
    done = await spawner.capture(leave({environment!r}, {seconds}), deadline_seconds=deadline, what="x", policy=QUICK)
    if done.stdout:
        break
assert done.timed_out == ({ended_by!r} == "its deadline"), done
assert not alive(int(done.stdout))
assert [i for i in read_proc().values() if i.ppid == os.getpid()] == []
""",
    )


@pytest.mark.parametrize("environment", ["keep", "clear"])
def test_an_orphan_of_another_running_command_is_left_to_it(tmp_path: Path, environment: str) -> None:
    run(
        tmp_path,
        f"""
pids = []
def on_lines(lines):
    pids.append(int(lines[0]))
async with anyio.create_task_group() as tasks:
    async def build():
        await spawner.stream(leave({environment!r}, 1000), on_lines=on_lines, line_bytes=1000, deadline_seconds=6000,
                             what="a build", policy=QUICK)
    tasks.start_soon(build)
    await until(lambda: pids)
    for _ in range(3):
        await spawner.stream(Command(("true",), env), on_lines=print, line_bytes=1000, deadline_seconds=60, what="true")
        assert alive(pids[0])
    tasks.cancel_scope.cancel()
assert not alive(pids[0])
assert [i for i in read_proc().values() if i.ppid == os.getpid()] == []
""",
    )


def test_an_orphan_whose_environment_tells_is_ended_though_others_run(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
async with anyio.create_task_group() as tasks:
    async def other():
        await spawner.capture(Command(("sleep", "1000"), env), deadline_seconds=6000, what="other", policy=QUICK)
    tasks.start_soon(other)
    await until(lambda: OWN.running)
    lines = []
    await spawner.stream(leave("keep", 0), on_lines=lines.extend, line_bytes=1000, deadline_seconds=60, what="a build")
    assert not alive(int(lines[0]))
    lines.clear()
    await spawner.stream(leave("clear", 0), on_lines=lines.extend, line_bytes=1000, deadline_seconds=60, what="a build")
    assert alive(int(lines[0]))  # it might be the other's
    tasks.cancel_scope.cancel()
assert not alive(int(lines[0]))
""",
    )


def test_orphans_of_a_command_that_was_killed_from_outside(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
pids = []
async with anyio.create_task_group() as tasks:
    async def build():
        done = await spawner.stream(
            leave("clear", 1000), on_lines=lambda lines: pids.append(int(lines[0])), line_bytes=1000,
            deadline_seconds=6000, what="a build", policy=QUICK)
        assert (done.returncode, done.timed_out) == (-9, False), done
    tasks.start_soon(build)
    await until(lambda: pids)
    os.kill(next(iter(OWN.running)), signal.SIGKILL)
assert not alive(pids[0])
""",
    )


def test_orphans_that_exit_are_reaped_while_a_command_runs(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
import ofborg_async.process.spawner as module
module._REAP_SECONDS = 0.05
def zombies():
    return [i for i in read_proc().values() if i.ppid == os.getpid() and not i.alive]
async with anyio.create_task_group() as tasks:
    async def build():
        text = f"for i in 1 2 3; do (true & exec true); done; touch {tmp}/made; exec sleep 1000"
        await spawner.capture(Command(("sh", "-c", text), env), deadline_seconds=6000, what="sh", policy=QUICK)
    tasks.start_soon(build)
    await until((tmp / "made").exists)
    await until(lambda: not zombies())
    tasks.cancel_scope.cancel()
""",
    )


def test_children_of_others_are_left_alone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
import subprocess, asyncio
other = subprocess.Popen(["sleep", "1000"])
exits = subprocess.Popen(["sh", "-c", "exit 9"])
asyncios = await asyncio.create_subprocess_exec("sh", "-c", "exit 8")
await until(lambda: read_process(exits.pid).state == "Z")
await spawner.stream(leave("clear", 0), on_lines=print, line_bytes=1000, deadline_seconds=60, what="a build")
assert exits.wait() == 9
assert await asyncios.wait() == 8
assert other.poll() is None
other.kill()
other.wait()
""",
    )


def test_a_child_that_waits_to_be_reaped_costs_no_look_at_the_whole_host(tmp_path: Path) -> None:
    """In a pool there is nearly always one, of ours; the host may have thousands of processes."""
    run(
        tmp_path,
        """
import subprocess
import ofborg_async.process.children as module
if module._listed_children() is None:
    sys.exit(0)  # this kernel does not list children
def forbidden():
    raise AssertionError("all processes were listed")
module.read_proc = forbidden
exits = subprocess.Popen(["true"])
await until(lambda: read_process(exits.pid).state == "Z")
await spawner.capture(Command(("true",), env), deadline_seconds=60, what="true")
assert exits.wait() == 0
""",
    )
