"""Lines that nix prints about itself. Pure.

Warnings about restricted settings are left out of everything published (wire document, "What is sent, in order"). Those
about the process, whatever it evaluates, are published but tell nothing about an evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_RESTRICTED = re.compile(
    rb"warning: ignoring the (?:user|client)-specified setting '.*', "
    rb"because it is a restricted setting and you are not a trusted user"
)
# nix-build prints these too, with the same options and configuration; the last comes of other processes at the same
# time.
_OF_THE_PROCESS = re.compile(
    rb"warning: (?:unknown (?:setting|experimental feature) '"
    rb"|experimental feature '[^']*' has been stabilized"
    rb"|\$HOME \('/homeless-shelter'\) is not owned by you"
    rb"|(?:error: )?SQLite database '.*' is busy)"
)


# What nix says when it builds or fetches what an evaluation imports (of what another process builds it says only that
# it will be built), and how the lines begin that an evaluation prints.
_OF_IMPORTS = re.compile(rb"(?:building|copying path) '/|  /\S+\.drv$")
_OF_EVALUATION = re.compile(rb"(?:trace|warning|evaluation warning): ")


def without_restricted(lines: list[bytes]) -> list[bytes]:
    """``lines`` without nix's warnings that a setting is restricted, in the words of old and of new versions."""
    if b"-specified setting '" not in b"\n".join(lines):  # one search for all: this sees every line of a build
        return lines
    return [line for line in lines if not _RESTRICTED.fullmatch(line)]


def has_printed(lines: Sequence[bytes]) -> bool:
    """Whether the evaluation itself printed something (a trace, a warning, a build it imports from)."""
    return any(not _RESTRICTED.fullmatch(line) and not _OF_THE_PROCESS.match(line) for line in lines)


def printed_again(lines: list[bytes]) -> list[bytes]:
    """What an evaluation that printed ``lines`` prints when it is repeated, and what it imports is there.

    Where something was imported, traces cannot be told from what its builders print but by how they begin: a further
    line of a trace is lost then.
    """
    if not any(_OF_IMPORTS.match(line) for line in lines):
        return lines
    return [line for line in lines if _OF_EVALUATION.match(line)]
