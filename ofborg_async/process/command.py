"""What is run, how it is ended, and what came of it: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import Attribute, field, frozen


def _without_nul(_instance: object, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError(f"{attribute.name} names no program")
    if any("\0" in word for word in value):
        raise ValueError(f"{attribute.name} has a NUL character, which no program can be given: {value!r}")


@frozen
class Command:
    """A program and its surroundings; nothing else of the daemon's reaches it.

    ``argv[0]`` is looked up on ``env["PATH"]`` unless it has a slash. ``env`` is the complete environment
    but for one variable, by which orphans are recognised (``children.MARKER``).
    ``descriptors`` are open files passed on under their own numbers, such as lock files. ``stdin`` None: ``/dev/null``.
    """

    argv: tuple[str, ...] = field(validator=_without_nul)
    env: Mapping[str, str]
    cwd: Path | None = None
    descriptors: tuple[int, ...] = ()
    stdin: bytes | None = None


@frozen
class StopPolicy:
    """How a process tree is ended, and how long its output is awaited after its first process has exited.

    ``term_grace_seconds`` between TERM and KILL; ``drain_seconds`` for a pipe that a descendant holds open.
    """

    term_grace_seconds: float = 5.0
    drain_seconds: float = 2.0


@frozen
class Completed:
    """What came of a command.

    ``returncode`` is negative for the signal that ended it. ``stdout`` and ``stderr`` hold at most the limit asked
    for; ``..._truncated`` tells that there was more. ``peak_rss_bytes`` is the largest resident size of the process or
    of one it waited for, 0 when unknown: the kernel counts the daemon's own size at the spawn into it, so it is known
    only when larger than that. ``cpu_seconds`` counts the same processes. ``timed_out``: its deadline was over, and we
    ended it.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    duration_seconds: float
    peak_rss_bytes: int
    cpu_seconds: float
    timed_out: bool
