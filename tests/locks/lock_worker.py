"""A process that takes and gives back locks as it is told, for the model-based test.

Its input has a JSON list of commands on each line, carried out without a pause in between; its output a JSON event on
each line: ``{"got": n}``, ``{"gone": n}`` (cancelled or refused: "why"), ``{"done": n}``, ``{"state": ...}`` for
``state``.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from ofborg_async.clock import SystemClock
from ofborg_async.errors import LockHeldError
from ofborg_async.locks import FileLock, LockManager, RootLock, acquire_root_lock


class Worker:
    """Tasks that want locks, by number."""

    def __init__(self) -> None:
        self.manager = LockManager(SystemClock())
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.endings: dict[int, anyio.Event] = {}
        self.locks: dict[int, FileLock] = {}
        self.roots: dict[int, RootLock] = {}

    async def want(self, number: int, path: Path) -> None:
        scope, ending = self.scopes[number], self.endings[number]
        with scope:
            async with self.manager.hold_file(path, holder=str(number), job=None, deadline_seconds=600) as lock:
                self.locks[number] = lock
                mark(path, number)
                tell(got=number)
                try:
                    await ending.wait()
                finally:
                    unmark(path, number)
                    del self.locks[number]
        del self.scopes[number], self.endings[number]
        tell(**{"gone" if scope.cancelled_caught else "done": number})

    async def take_root(self, number: int, path: Path) -> None:
        try:
            taken = acquire_root_lock(path, identity=str(number), clock=SystemClock(), deadline_seconds=0)
            self.roots[number] = await taken
        except LockHeldError as error:
            tell(gone=number, why=str(error))
        else:
            tell(got=number)

    def carry_out(self, command: dict[str, Any], tasks: anyio.abc.TaskGroup) -> None:
        match command:
            case {"want": number, "path": path}:
                self.scopes[number], self.endings[number] = anyio.CancelScope(), anyio.Event()
                tasks.start_soon(self.want, number, Path(path))
            case {"release": number}:
                self.endings[number].set()
            case {"cancel": number}:
                if number in self.scopes:
                    self.scopes[number].cancel()
            case {"lend": number}:  # the descriptor, to a child that the tester ends
                with subprocess.Popen(
                    ["sh", "-c", "sleep 600 & echo $!"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    pass_fds=[self.locks[number].fileno()],
                ) as child:
                    assert child.stdout is not None
                    tell(lent=int(child.stdout.readline()))
            case {"root": number, "path": path}:
                tasks.start_soon(self.take_root, number, Path(path))
            case {"leave": number}:
                self.roots.pop(number).close()
                tell(done=number)
            case {"reset": _}:
                for scope in self.scopes.values():
                    scope.cancel()
                while self.roots:
                    self.roots.popitem()[1].close()
            case {"state": _}:
                tasks.start_soon(self.report)

    async def report(self) -> None:
        """A task, so that tasks begun before it are on their way."""
        queues = {}
        for lock in self.manager.statistics():
            first = [] if lock.holder in (None, "another process") else [lock.holder]
            queues[lock.key] = [*first, *lock.waiters]
        tell(state=queues, descriptors=len(list(Path("/proc/self/fd").iterdir())))


def mark(path: Path, number: int) -> None:
    """Say beside the lock that it is held. Whoever finds a mark by another living process has seen a breach."""
    place = path.with_name(path.name + ".inside")
    with suppress(FileNotFoundError):
        pid = place.read_text().split()[0]
        if Path(f"/proc/{pid}").exists():
            tell(breach=number, by=place.read_text())
    place.write_text(f"{os.getpid()} {number}")


def unmark(path: Path, number: int) -> None:
    place = path.with_name(path.name + ".inside")
    if place.read_text() != f"{os.getpid()} {number}":
        tell(breach=number, by=place.read_text())
    place.unlink()


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


async def main() -> None:
    worker = Worker()
    text = b""
    async with anyio.create_task_group() as tasks:
        while True:
            await anyio.wait_readable(0)
            text += os.read(0, 65536)
            *lines, text = text.split(b"\n")
            for line in lines:
                for command in json.loads(line):
                    worker.carry_out(command, tasks)


if __name__ == "__main__":
    anyio.run(main)
