"""The command, as an operator runs it against a daemon."""

from __future__ import annotations

import os
import sys

import anyio

from ofborg_async.lab.farm import DaemonProcess


async def command(daemon: DaemonProcess, *words: str) -> tuple[int, str]:
    """Run ``ofborg-async`` against a daemon; its exit status and what it printed."""
    argv = [sys.executable, "-m", "ofborg_async", *words, "--socket", str(daemon.socket_path)]
    # Wide enough for paths of any length: what is said is of interest here, not where it is broken.
    done = await anyio.run_process(argv, check=False, env={**os.environ, "COLUMNS": "1000"})
    return done.returncode, (done.stdout + done.stderr).decode()
