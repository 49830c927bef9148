"""Commands of the lab: run to their end, their output returned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofborg_async.clock import SystemClock
from ofborg_async.lab.servers import LabError
from ofborg_async.process import Command, Spawner

_spawner = Spawner(SystemClock(), None)
_LIMIT_BYTES = 64 << 20


async def run(
    *argv: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes | None = None,
    deadline_seconds: float = 60.0,
) -> bytes:
    """Run a command; its output. Raises LabError when it fails or takes longer, HostFault when it cannot be run."""
    command = Command(argv, env, cwd=cwd, stdin=stdin)
    done = await _spawner.capture(
        command, deadline_seconds=deadline_seconds, what=f"the lab's {argv[0]}", limit_bytes=_LIMIT_BYTES
    )
    if done.timed_out:
        raise LabError(f"{' '.join(argv)} took longer than {deadline_seconds:g} s")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout
