"""Run the command as a process of its own, against a fake daemon in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FAKE_DAEMON = Path(__file__).parents[1] / "control" / "fake_daemon.py"
DEADLINE_SECONDS = 60


def environment(**extra: str) -> dict[str, str]:
    """A small environment, the same on every machine."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8"} | extra


def ofborg(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``ofborg-async ARGUMENTS``, its output captured."""
    return subprocess.run(
        [sys.executable, "-m", "ofborg_async", *arguments],
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@contextmanager
def fake_daemon(folder: Path, shown: str) -> Iterator[Path]:
    """A daemon that shows the snapshot ``well`` or ``all``; its socket."""
    path = folder / f"{shown}.sock"
    with subprocess.Popen(
        [sys.executable, FAKE_DAEMON, path, "0", shown], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            yield path
        finally:
            daemon.terminate()
            daemon.wait(timeout=DEADLINE_SECONDS)
