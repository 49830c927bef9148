"""What the tests of the lock room share: bind mounts, holders in other processes, and looking at locks from outside."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

PACKAGE_ROOT = str(Path(__file__).parents[2])


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.002)
    assert condition(), what


def can_mount() -> bool:
    """Whether this user may make bind mounts here."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="bind mounts need root")


@contextmanager
def bind_mount(source: Path, target: Path) -> Iterator[Path]:
    """Show ``source`` at ``target`` too."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Not root for a while: root may do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def is_free(path: Path) -> bool:
    """Whether nobody at all holds a lock on a file, asked through an open file of its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def held_elsewhere(path: Path, contents: bytes = b"") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds a lock on ``path`` until its input ends."""
    path.write_bytes(contents)
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'rb+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
