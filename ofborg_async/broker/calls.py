"""How this room calls aio-pika: exceptions translated at the call, closing bounded and quiet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

from ofborg_async.broker.refusals import Doing, translate
from ofborg_async.errors import OfborgAsyncError
from ofborg_async.waiting import at_most

logger = logging.getLogger(__name__)


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@contextmanager
def translated(doing: Doing) -> Iterator[None]:
    """Turn what aio-pika raises in the body into errors of this package. A deadline stands inside of it, not around.

    After a lost heartbeat aiormq raises CancelledError in tasks that nobody cancelled. Passed on, it would end the task
    without a trace; it is recognised by the task's count of cancellations, which did not change.

    Raises BrokerRefusedError, BrokerUnavailableError, and what the body raises of this package's own errors.
    """
    before = _cancellations()
    try:
        yield
    except OfborgAsyncError:
        raise
    except asyncio.CancelledError as error:
        if _cancellations() > before:
            raise
        raise translate(error, doing) from error
    except Exception as error:
        raise translate(error, doing) from error


async def close_quietly(close: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Close something of aio-pika's: shielded, bounded; a failure is of no interest, because it was to go anyway."""
    before = _cancellations()
    try:
        with anyio.CancelScope(shield=True), at_most(seconds):
            await close()
    except asyncio.CancelledError:
        if _cancellations() > before:
            raise
    except Exception as error:  # noqa: BLE001 - aiormq raises bare Exceptions here; the thing is gone either way
        logger.debug("closing: %r", error)
