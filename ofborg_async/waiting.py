"""The one place where waiting begins: a wait has a deadline with a name, or it is idle and says why.

``anyio.fail_after`` and its kin are banned elsewhere by the linter, so that no wait without a name can creep in.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from ofborg_async.errors import DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
