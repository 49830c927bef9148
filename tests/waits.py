"""Waiting in tests: for a condition, with a deadline that says what did not come about."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar, overload

import anyio

T = TypeVar("T")


@overload
async def eventually(what: str, condition: Callable[[], Awaitable[T]], seconds: float = 30.0) -> T: ...
@overload
async def eventually(what: str, condition: Callable[[], T], seconds: float = 30.0) -> T: ...
async def eventually(what: str, condition: Callable[[], T | Awaitable[T]], seconds: float = 30.0) -> T:
    """Poll a condition, plain or async, until it gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        value: T = await found if isawaitable(found) else found
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s, last seen {value!r}"
        await anyio.sleep(0.02)
