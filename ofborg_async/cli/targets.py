"""Which daemons a command speaks to: the one of this host, or many over SSH, each with its own deadline."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Generic, TypeVar

import anyio
from attrs import define, field, frozen

from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.control.problems import AnsweredError, NoDaemonError
from ofborg_async.remote.hosts import DEFAULT_REMOTE_SOCKET, HostSpec, read_fleet

_T = TypeVar("_T")


@frozen
class Answer(Generic[_T]):
    """What one daemon answered. ``where`` is the host as it was named, "" for this one."""

    where: str
    value: _T


@frozen
class Failure:
    """A daemon that did not answer, or answered with a problem."""

    where: str
    error: NoDaemonError | AnsweredError


@define
class Target:
    """One daemon. An SSH connection is opened with the first question, kept, and opened again after it broke."""

    spec: HostSpec | None
    socket: str
    patience_seconds: float
    _stack: AsyncExitStack = field(factory=AsyncExitStack)
    _client: ControlClient | None = None

    @property
    def where(self) -> str:
        """The host as it was named; "" for this one."""
        return "" if self.spec is None else str(self.spec)

    async def client(self) -> ControlClient:
        """The client, connected if that takes more than a socket. Raises NoDaemonError."""
        if self._client is None:
            if self.spec is None:
                connect = unix_connector(Path(self.socket))
            else:
                from ofborg_async.remote.ssh import open_remote  # SSH is imported by those who use it

                opening = open_remote(self.spec, self.socket, connect_seconds=self.patience_seconds)
                connect = await self._stack.enter_async_context(opening)
            self._client = ControlClient(connect, where=self.where or self.socket, call_seconds=self.patience_seconds)
        return self._client

    async def ask(self, question: Callable[[ControlClient], Awaitable[_T]]) -> Answer[_T] | Failure:
        """Ask; a daemon that does not answer is an answer too."""
        try:
            return Answer(self.where, await question(await self.client()))
        except NoDaemonError as error:
            await self.close()
            return Failure(self.where, error)
        except AnsweredError as error:
            return Failure(self.where, error)

    async def close(self) -> None:
        """Give the connection back; the next question opens a new one."""
        self._client = None
        await self._stack.aclose()


def _socket(arguments: Namespace) -> str | None:
    """The socket that the options name, or the configuration that they name. Raises ConfigError."""
    if arguments.config is None:
        socket: str | None = arguments.socket
        return socket
    from ofborg_async.config import control_socket_of  # a large room for one question, so only when it is asked

    found = control_socket_of(arguments.config, environ=os.environ)
    return None if found is None else str(found)


def _local_socket() -> str:
    from ofborg_async.config import default_control_socket

    return str(default_control_socket(os.environ))


@asynccontextmanager
async def open_targets(arguments: Namespace) -> AsyncIterator[list[Target]]:
    """The daemons that the options name, closed in the end. Raises ConfigError for a bad file of either kind."""
    specs: list[HostSpec] = list(arguments.host)
    if arguments.fleet is not None:
        specs.extend(read_fleet(arguments.fleet))
    targets: list[Target]
    socket = _socket(arguments)
    if specs:
        there = socket or DEFAULT_REMOTE_SOCKET
        targets = [Target(spec, there, arguments.patience) for spec in dict.fromkeys(specs)]
    else:
        targets = [Target(None, socket or _local_socket(), arguments.patience)]
    try:
        yield targets
    finally:
        for target in targets:
            await target.close()


async def ask_all(
    targets: Sequence[Target], question: Callable[[ControlClient], Awaitable[_T]]
) -> list[Answer[_T] | Failure]:
    """Ask all at once; the answers in the order of the targets.

    When some daemon has what was asked for, the others' "no such identity" is no failure and left out.
    """
    answers: dict[int, Answer[_T] | Failure] = {}

    async def ask(index: int, target: Target) -> None:
        answers[index] = await target.ask(question)

    async with anyio.create_task_group() as group:
        for index, target in enumerate(targets):
            group.start_soon(ask, index, target)
    ordered = [answers[index] for index in range(len(targets))]
    if any(isinstance(answer, Answer) for answer in ordered):
        return [answer for answer in ordered if not (isinstance(answer, Failure) and _is_not_found(answer.error))]
    return ordered


def _is_not_found(error: NoDaemonError | AnsweredError) -> bool:
    return isinstance(error, AnsweredError) and error.status == HTTPStatus.NOT_FOUND
