"""What the tests of the process room share: an environment that marks its processes, and waiting for conditions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio

from ofborg_async.process.table import read_proc, read_process

MARK = f"PROCESS_TEST={uuid.uuid4().hex}"
ENV = {"PATH": os.environ["PATH"], **dict([MARK.split("=")])}


class Registry:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def started(self, attempt_id: str, pid: int, start_time: str, argv0: str) -> None:
        self.calls.append(("started", attempt_id, pid, start_time, argv0))

    def ended(self, pid: int) -> None:
        self.calls.append(("ended", pid))


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
    assert condition(), what


def until_sync(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    over = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < over, what
        time.sleep(0.005)


def running(pid: int) -> bool:
    info = read_process(pid)
    return info is not None and info.alive


def marked() -> list[int]:
    """Living processes of these tests, wherever they went."""
    found = []
    for info in read_proc().values():
        if info.alive and info.pid != os.getpid():
            try:
                environment = Path(f"/proc/{info.pid}/environ").read_bytes()
            except OSError:
                continue
            if MARK.encode() in environment.split(b"\0"):
                found.append(info.pid)
    return found


def scenario(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A process of its own that runs ``body`` in an async function with ``spawner``, ``env`` and ``tmp``."""
    preamble = f"""
    import os, signal, sys, anyio
    from pathlib import Path
    from ofborg_async.clock import SystemClock
    from ofborg_async.process import *
    from ofborg_async.process.children import OWN
    tmp = Path({str(tmp_path)!r})
    env = {ENV!r}
    spawner = Spawner(SystemClock(), None)
    """
    indented = textwrap.indent(textwrap.dedent(body), "    ")
    script = f"{textwrap.dedent(preamble)}\nasync def main():\n{indented}\nanyio.run(main)\n"
    package_root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": package_root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 60.0) -> str:
    """Wait for a scenario to succeed; its output."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"scenario hangs: {output}") from None
    assert process.returncode == 0, output
    return output
