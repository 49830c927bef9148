"""The real daemon with a part replaced: a program that comes before the daemon's own words, alters, and becomes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_WORDS_BEFORE = 3
"""``PYTHON -m ofborg_async``, which stand before the words of the command."""


def altered(module: str, *arguments: str) -> tuple[str, ...]:
    """The words before a daemon's own (``DaemonProcess(prefix=)``, the last of them) that run ``module`` instead.

    Its ``main`` gets ``arguments`` and then the daemon's words, with which it calls ``become_daemon``.
    """
    return (sys.executable, "-m", module, *arguments)


def become_daemon(words: Sequence[str]) -> int:
    """Run the command that the daemon's words ask for. Returns its exit status."""
    # Not at the top: the daemon's first act is to hold stop signals, and it imports what it needs after that.
    from ofborg_async.cli import main

    return main(words[_WORDS_BEFORE:])
