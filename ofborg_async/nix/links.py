"""What nix-instantiate prints with ``--add-root NAME --indirect``: the links' names. Pure.

The first link is ``NAME``, the next ``NAME-2`` and so on; an output other than ``out`` follows as ``!dev``, which is
not part of the link's name. nix 2.8 to 2.35 agree. A store that is not on this host has no links: then the derivation
itself is printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_LINE = re.compile(r"(/[^\n]*/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+\.drv)(![0-9A-Za-z+\-._?=]+)?")


def derivations(stdout: bytes, root: str, target_of: Callable[[str], str]) -> tuple[str, ...] | None:
    """Arguments for nix-build in the order printed, each with its output (``X.drv!out``), from all of ``stdout``.

    ``target_of`` reads a link. None when this is not exactly what nix prints for derivations: the name of an output is
    any text that a package chooses, newlines included, so nothing but the expected is believed.
    """
    try:
        *lines, rest = stdout.decode().split("\n")
    except UnicodeDecodeError:
        return None
    if rest:
        return None
    found = []
    for number, line in enumerate(lines, start=1):
        link = root if number == 1 else f"{root}-{number}"
        try:
            named = target_of(link) + line.removeprefix(link) if line.startswith(link) else line
        except OSError:
            return None
        match = _LINE.fullmatch(named)
        if match is None:
            return None
        found.append(f"{match[1]}{match[2] or '!out'}")
    return tuple(found)
