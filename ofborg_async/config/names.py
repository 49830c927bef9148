"""What a public name must not give away (requirements R24, R25), and which names the daemon needs itself."""

from __future__ import annotations

import re
from pathlib import Path

from ofborg_async.config.places import Host

STATE_NAMES = frozenset({"mirrors", "logs", "journal", "outbox", "gcroots", "locks", "run", "tmp"})
STATE_PREFIXES = ("control.", "daemon.", "journal.", "processes.")
TELLS_NOTHING = frozenset(
    {
        "root",
        "nobody",
        "ofborg",
        "builder",
        "nix",
        "nixos",
        "nixbld",
        "localhost",
        "debian",
        "ubuntu",
        "linux",
        "darwin",
    }
)
LEAST_LETTERS = 3


def resemblance(name: str, host: Host) -> str:
    """What of this host an identity's name shows, in words; "" if nothing."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    for kind, private in (("the user name", host.user_name), ("the host name", host.host_name.split(".")[0])):
        lowered = private.lower()
        telling = len(lowered) >= LEAST_LETTERS and lowered.lstrip("_") not in TELLS_NOTHING
        if telling and (lowered in words or lowered == name.lower() or (len(lowered) > 5 and lowered in name.lower())):
            return f"{kind} {private!r}"
    return ""


def is_personal(path: Path, host: Host) -> bool:
    """Whether a resolved path lies under a home directory."""
    return any(path.is_relative_to(folder) for folder in host.homes)


def is_reserved(name: str) -> bool:
    """Whether ``<state_dir>/<name>`` is a place of the daemon itself, so that a root cannot be there by default."""
    return name.lower() in STATE_NAMES or name.lower().startswith(STATE_PREFIXES)
