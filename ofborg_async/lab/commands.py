"""Commands of the lab: run to their end, their output returned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofborg_async.clock import SystemClock
from ofborg_async.lab.servers import LabError
from ofborg_async.process import Command, Completed, Spawner

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
    done = await _run(Command(argv, env, cwd=cwd, stdin=stdin), deadline_seconds)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout


async def ask(*argv: str, env: Mapping[str, str], deadline_seconds: float = 60.0) -> tuple[int, str]:
    """Run a command whose failure is an answer too; its exit status and what it printed. Raises as ``run`` else."""
    done = await _run(Command(argv, env), deadline_seconds)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


async def _run(command: Command, deadline_seconds: float) -> Completed:
    done = await _spawner.capture(
        command, deadline_seconds=deadline_seconds, what=f"the lab's {command.argv[0]}", limit_bytes=_LIMIT_BYTES
    )
    if done.timed_out:
        raise LabError(f"{' '.join(command.argv)} took longer than {deadline_seconds:g} s")
    return done
