"""What runs on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ofborg_async.lab.farm import NIX_DAEMON_VARIABLE

needs_own_builds = pytest.mark.skipif(
    NIX_DAEMON_VARIABLE in os.environ, reason="about builds that are the daemon's own children (tests/hardened.py)"
)


def processes_with(text: str) -> list[str]:
    """Command lines and environments of running processes that mention ``text``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                words = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in words:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
