"""The one place where waiting begins: a wait has a deadline with a name, or it is idle and says why.

``anyio.fail_after`` and its kin are banned elsewhere by the linter, so that no wait without a name can creep in.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from ofborg_async.errors import DeadlineExceededError, FaultKind, HostFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_NO_THREAD = "can't start new thread"
"""What CPython says, as a plain RuntimeError, where the system refuses one."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[anyio.CancelScope]:
    """Give the body ``seconds``; raise DeadlineExceededError naming ``what`` when they are over.

    The caller's own cancellation passes through unchanged.
    """
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise DeadlineExceededError(what, seconds)


@contextmanager
def at_most(seconds: float) -> Iterator[anyio.CancelScope]:
    """Give the body ``seconds`` and go on quietly after; ``scope.cancelled_caught`` tells whether they were over."""
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        yield scope


@contextmanager
def idle(reason: str) -> Iterator[None]:
    """Mark a wait that has no deadline on purpose; ``reason`` says what ends it.

    A test lists every use, so that idle waits are a short list that people have read.
    """
    del reason  # read by people and by the test that greps for it
    yield


async def in_thread(work: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Do blocking ``work`` in a thread. With ``abandon_on_cancel`` a cancelled caller does not wait for its end.

    Raises what it raises, and HostFault (PROCESS) where the system gives no thread: it counts like a process.
    """
    try:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        remedy = "raise the limit of processes (TasksMax=, ulimit -u)"
        raise HostFault(FaultKind.PROCESS, "no thread can be started", remedy=remedy) from error
