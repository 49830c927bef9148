"""The commands that ask a running daemon or tell it something, on this host or on many."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
from attrs import evolve
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from ofborg_async.cli.answers import exit_status, picture, print_answers, print_documents
from ofborg_async.cli.render_grid import make_console
from ofborg_async.cli.render_lists import render_broken_lock, render_history, render_locks
from ofborg_async.cli.render_status import render_status
from ofborg_async.cli.status_codes import EX_CONFIG, EX_FAILURE, EX_OK, VERDICT_STATUS
from ofborg_async.cli.targets import Answer, Failure, ask_all, open_targets
from ofborg_async.cli.text import span
from ofborg_async.clock import SystemClock
from ofborg_async.control.client import ControlClient
from ofborg_async.control.problems import AnsweredError, UnknownNameError
from ofborg_async.control.values import (
    SCHEMA,
    broken_lock_document,
    history_document,
    locks_document,
    reload_document,
    status_document,
)
from ofborg_async.control.verdict import identity_verdict
from ofborg_async.control.visible import visible
from ofborg_async.model.status import DaemonSnapshot

_T = TypeVar("_T")

_WATCH_SECONDS = 2.0


# --- looking ------------------------------------------------------------------------------------------------------


def status(arguments: Namespace) -> int:
    """What the daemon and its identities are doing; the verdict is the exit status."""
    question = partial(_ask_status, identity=arguments.identity)
    judge = partial(_judge, identity=arguments.identity)
    if arguments.watch:
        return _watch(arguments, question, judge)
    answers = anyio.run(_ask, arguments, question)
    if arguments.json:
        print_documents(answers, status_document)
    else:
        print_answers(answers, render_status)
    return exit_status(answers, judge)


def locks(arguments: Namespace) -> int:
    """Holder, age and waiters of each lock; or free one of them."""
    if arguments.key is not None:
        question = partial(ControlClient.break_lock, key=arguments.key)
        return _show(arguments, question, render_broken_lock, broken_lock_document)
    return _show(arguments, ControlClient.locks, render_locks, locks_document)


def history(arguments: Namespace) -> int:
    """Finished attempts, newest first."""
    question = partial(ControlClient.history, identity=arguments.identity, since=arguments.since, limit=arguments.limit)
    return _show(arguments, question, render_history, history_document)


def why(arguments: Namespace) -> int:
    """The one reason why an identity is not building now."""
    return _show(
        arguments,
        lambda client: client.why(arguments.identity),
        lambda reason, _: Text(visible(reason)),
        lambda reason: {"schema": SCHEMA, "identity": arguments.identity, "why": reason},
    )


def _show(
    arguments: Namespace,
    question: Callable[[ControlClient], Awaitable[_T]],
    render: Callable[[_T, int], RenderableType],
    document: Callable[[_T], Mapping[str, Any]],
    judge: Callable[[_T], int] = lambda _: EX_OK,
) -> int:
    answers = anyio.run(_ask, arguments, question)
    if arguments.json:
        print_documents(answers, document)
    else:
        print_answers(answers, render)
    return exit_status(answers, judge)


async def _ask(arguments: Namespace, question: Callable[[ControlClient], Awaitable[_T]]) -> list[Answer[_T] | Failure]:
    async with open_targets(arguments) as targets:
        return await ask_all(targets, question)


async def _ask_status(client: ControlClient, *, identity: str | None) -> DaemonSnapshot:
    snapshot = await client.status()
    if identity is None:
        return snapshot
    names = [row.name for row in snapshot.identities]
    if identity not in names:
        unknown = UnknownNameError("identity", identity, names)
        raise AnsweredError(HTTPStatus.NOT_FOUND, str(unknown), remedy=unknown.remedy)
    return evolve(snapshot, identities=tuple(row for row in snapshot.identities if row.name == identity))


def _judge(snapshot: DaemonSnapshot, *, identity: str | None) -> int:
    verdict = snapshot.verdict if identity is None else identity_verdict(snapshot.identities[0])
    return VERDICT_STATUS.get(verdict, EX_FAILURE)


def _watch(
    arguments: Namespace,
    question: Callable[[ControlClient], Awaitable[DaemonSnapshot]],
    judge: Callable[[DaemonSnapshot], int],
) -> int:
    """Draw in place until Ctrl-C, then leave the last picture; its verdict is the exit status."""
    console = make_console()
    seen: list[Sequence[Answer[DaemonSnapshot] | Failure]] = []

    async def draw() -> None:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            async with open_targets(arguments) as targets:
                while True:
                    seen[:] = [await ask_all(targets, question)]
                    live.update(picture(seen[0], lambda value: render_status(value, console.width)), refresh=True)
                    await SystemClock().sleep(_WATCH_SECONDS)

    try:
        anyio.run(draw)
    except KeyboardInterrupt:
        if not seen:
            raise
    if console.is_terminal:
        print_answers(seen[0], render_status)
    return exit_status(seen[0], judge)


# --- telling ------------------------------------------------------------------------------------------------------


def pause(arguments: Namespace) -> int:
    """Take no new job until resumed."""
    until = "until resumed" if arguments.for_seconds is None else f"for {span(arguments.for_seconds)}"
    return _tell(
        arguments,
        lambda client: client.pause(arguments.identities, reason=arguments.reason, for_seconds=arguments.for_seconds),
        f"{_named(arguments)}: paused {until}",
    )


def resume(arguments: Namespace) -> int:
    """Undo pause, drain and quarantine."""
    return _tell(arguments, lambda client: client.resume(arguments.identities), f"{_named(arguments)}: resumed")


def drain(arguments: Namespace) -> int:
    """Take no new job and finish the running one; with --wait, return when that is done."""

    async def order(client: ControlClient) -> None:
        await client.drain(arguments.identities, deadline_seconds=arguments.deadline)
        if arguments.wait:
            if sys.stderr.isatty():
                print("waiting for jobs to end; Ctrl-C ends the wait, not the drain", file=sys.stderr)
            await client.wait_drained(arguments.identities)

    done = "drained" if arguments.wait else "draining: no new job is taken"
    return _tell(arguments, order, f"{_named(arguments)}: {done}")


def cancel(arguments: Namespace) -> int:
    """End one build and report it."""
    done = f"attempt {visible(arguments.attempt)} is being ended and will be reported"
    return _tell(arguments, lambda client: client.cancel(arguments.attempt), done)


def restart(arguments: Namespace) -> int:
    """Start one identity anew."""
    done = f"{visible(arguments.identity)}: restarting"
    return _tell(arguments, lambda client: client.restart(arguments.identity), done)


def reload(arguments: Namespace) -> int:
    """Apply a changed configuration, and say for each identity what that changes."""
    return _show(
        arguments,
        ControlClient.reload,
        lambda report, _: Text("\n".join(visible(sentence) for sentence in report.sentences())),
        reload_document,
        lambda report: EX_OK if report.ok else EX_CONFIG,
    )


def stop(arguments: Namespace) -> int:
    """Stop the daemon."""

    async def order(client: ControlClient) -> None:
        await client.stop()
        if arguments.wait:
            await client.wait_stopped()

    return _tell(arguments, order, "the daemon has stopped" if arguments.wait else "the daemon is stopping")


def _tell(arguments: Namespace, order: Callable[[ControlClient], Awaitable[None]], done: str) -> int:
    answers = anyio.run(_ask, arguments, order)
    print_answers(answers, lambda _value, _width: Text(done))
    return exit_status(answers)


def _named(arguments: Namespace) -> str:
    return visible(", ".join(arguments.identities)) or "all identities"
