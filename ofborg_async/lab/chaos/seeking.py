"""Faults wait for what they strike: for a while, after which they have not struck."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import anyio

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.chaos.builders import Builder
from ofborg_async.waiting import at_most

LOOK_SECONDS = 30.0
POLL_SECONDS = 0.05
_UP_SECONDS = 20.0

T = TypeVar("T")


async def sought(look: Callable[[], T]) -> T | None:
    """What ``look`` returns once it is true; after LOOK_SECONDS what it returned last, which is not.

    ``look`` may strike at once, and meet a disk that another fault has filled or made read-only: it is asked anew.
    """
    found = _seen(look)
    with at_most(LOOK_SECONDS):
        while not found:
            await anyio.sleep(POLL_SECONDS)
            found = _seen(look)
    return found


def _seen(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC):
            raise
        return None


async def until_up(builder: Builder) -> None:
    """Wait for a builder that was just launched."""
    with at_most(_UP_SECONDS):
        while builder.pids:
            try:
                await builder.held_locks()
            except OfborgAsyncError:
                await anyio.sleep(POLL_SECONDS)
            else:
                return
