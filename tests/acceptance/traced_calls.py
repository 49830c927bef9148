"""The system calls of a running process, by strace(1): those of its own threads, not of the programs that it starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ofborg_async.lab.servers import LabError, Server, base_environment

_ATTACH_SECONDS = 30.0
_DETACH_SECONDS = 30.0
_FORBIDDEN = "Operation not permitted"

_OPTIONS = (
    "--follow-forks",  # all threads there are, and those to come; children too, hence:
    "--detach-on=execve",
    *("--trace=all", "--signal=none"),
    "--raw=all",  # no text from the process in the file, which could look like a line of its own
)


@asynccontextmanager
async def traced_calls(pid: int, file: Path) -> AsyncIterator[Counter[str]]:
    """Gives a counter that is filled, by the calls' names, when the block is left. ``file`` takes what strace writes.

    A child is let go when it executes its program. What it called before that, between vfork(2) and execve(2), is not
    counted. Skips the test where strace may not attach (ptrace(2), "Ptrace access mode checking").
    """
    tracer = Server(
        "strace",
        ["strace", *_OPTIONS, f"--output={file}", f"--attach={pid}"],
        env=base_environment(),
        log=file.with_suffix(".log"),
    )
    calls: Counter[str] = Counter()
    try:
        try:
            tracer.start()
            await tracer.ready(lambda: _is_traced(pid), _ATTACH_SECONDS)
        except LabError as error:
            if _FORBIDDEN in str(error):
                pytest.skip(f"strace may not attach here: {error}")
            raise
        yield calls
    finally:
        await tracer.terminate(_DETACH_SECONDS)
    calls.update(own_calls(file.read_text()))


def own_calls(trace: str) -> Counter[str]:
    """How often each call begins in a trace with thread numbers, but for children on their way to a program."""
    begun = re.findall(r"^(\d+) +(\w+)\(", trace, re.MULTILINE)
    children = {thread for thread, name in begun if name == "execve"}
    return Counter(name for thread, name in begun if thread not in children)


async def _is_traced(pid: int) -> bool:
    """Whether somebody traces every thread of a process."""
    try:
        return all(
            re.search(r"^TracerPid:\s+[1-9]", status.read_text(), re.MULTILINE)
            for status in Path(f"/proc/{pid}/task").glob("*/status")
        )
    except OSError:  # a thread that has ended meanwhile
        return False
