"""Who holds a lock file that has no note in it: the original builder leaves none."""

from __future__ import annotations

import os
from pathlib import Path


def flock_holder(path: Path) -> str:
    """``process 123 (git)`` from the kernel's table of locks (proc_locks(5)); "" where it does not tell."""
    try:
        found = path.stat()
        table = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in table.splitlines():
        words = line.split()
        # A waiter's line has an arrow before its kind.
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place:
            return f"process {words[4]}{_program(words[4])}"
    return ""


def _program(pid: str) -> str:
    try:
        name = (Path("/proc") / pid / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({name})"
