"""A daemon whose long periods are short, so that forty minutes see what is kept for hours and days come and go.

``python -m ofborg_async.lab.soak.shortday WORDS...`` is the daemon of these words: a day of the history has four
minutes, merges are kept for two minutes instead of an hour, and what is old is looked for every half minute. Else it is
the real one.
"""

from __future__ import annotations

import sys

from ofborg_async.checkout import preparation, tree
from ofborg_async.journal import history
from ofborg_async.lab.altered import altered, become_daemon
from ofborg_async.supervisor import daemon

DAY_SECONDS = 240.0
MERGE_SECONDS = 120.0
LOOK_SECONDS = 30.0


def prefix() -> tuple[str, ...]:
    """For ``DaemonProcess``."""
    return altered("ofborg_async.lab.soak.shortday")


def main(words: list[str]) -> int:
    """Become the daemon. Returns its exit status."""
    history.DAY_MS = round(1000 * DAY_SECONDS)
    daemon.PRUNE_SECONDS = LOOK_SECONDS
    vars(tree)["_KEPT_OBJECTS_SECONDS"] = MERGE_SECONDS
    vars(preparation)["_PRUNE_SECONDS"] = MERGE_SECONDS
    return become_daemon(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
