"""``logs``: a build's log, as it is into a pipe, made safe on a terminal."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from functools import partial

import anyio

from ofborg_async.cli.answers import exit_status
from ofborg_async.cli.main import complain
from ofborg_async.cli.status_codes import EX_FAILURE, EX_OK
from ofborg_async.cli.targets import Answer, Failure, Target, ask_all, open_targets
from ofborg_async.cli.text import TerminalText
from ofborg_async.control.client import ControlClient


def logs(arguments: Namespace) -> int:
    """Print a log; with --follow, until its attempt has ended. Raises NoDaemonError when it was cut short."""
    return anyio.run(_logs, arguments)


async def _logs(arguments: Namespace) -> int:
    async with open_targets(arguments) as targets:
        found = targets[0] if len(targets) == 1 else await _who_has_it(targets, arguments.selector)
        if isinstance(found, int):
            return found
        client = await found.client()
        async with client.log(arguments.selector, follow=arguments.follow) as chunks:
            await _print(chunks)
        return EX_OK


async def _who_has_it(targets: list[Target], selector: str) -> Target | int:
    """The one host that knows the attempt or identity; an exit status when it is none, or several."""
    answers = await ask_all(targets, partial(_has, selector=selector))
    having = [answer.where for answer in answers if isinstance(answer, Answer)]
    if len(having) == 1:
        return next(target for target in targets if target.where == having[0])
    if having:
        print(
            f"ofborg-async: several hosts have that: {', '.join(having)}; name one of them with --host",
            file=sys.stderr,
        )
        return EX_FAILURE
    for answer in answers:
        if isinstance(answer, Failure):
            complain(answer.error)
    return exit_status(answers)


async def _has(client: ControlClient, *, selector: str) -> None:
    async with client.log(selector, follow=False):
        return


async def _print(chunks: AsyncIterator[bytes]) -> None:
    if not sys.stdout.isatty():
        async for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return
    safe = TerminalText()
    async for chunk in chunks:
        sys.stdout.write(safe.feed(chunk))
        sys.stdout.flush()
    sys.stdout.write(safe.feed(b"", final=True))
