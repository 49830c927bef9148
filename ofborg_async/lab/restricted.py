"""Daemons of the lab with no more rights than the service unit gives: systemd starts them, when told where to ask it.

``tests/hardened.py`` runs a systemd of its own (``systemd``) with a socket at which ``starter`` answers under the
unit's own directives, and names that socket in the environment of the tests.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess  # noqa: TID251 - for the one exception that callers know
from collections.abc import Mapping, Sequence
from pathlib import Path

from ofborg_async.lab.servers import LabError, Process, Spawn, spawn_here

SOCKET_VARIABLE = "OFBORG_ASYNC_LAB_STARTER"
"""The path of the socket; without it daemons are children of this process."""

_ANSWER_SECONDS = 30.0


def daemons_spawn() -> Spawn:
    """How the daemons of this run are started."""
    place = os.environ.get(SOCKET_VARIABLE)
    return spawn_here if place is None else _Starter(Path(place))


class _Starter:
    """A ``Spawn`` by way of the socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        log.touch()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(self._path))
        asked = {"argv": list(argv), "env": dict(env), "cwd": os.getcwd(), "log": str(log)}  # noqa: PTH109 - a string
        connection.sendall(json.dumps(asked).encode() + b"\n")
        return _Started(connection, argv)


class _Started:
    """A ``Process`` that is the unit's."""

    def __init__(self, connection: socket.socket, argv: Sequence[str]) -> None:
        self._connection = connection
        self._argv = argv
        self._heard = b""
        self._returncode: int | None = None
        self.pid = self._answer("pid")

    def poll(self) -> int | None:
        if self._returncode is None:
            try:
                return self.wait(0)
            except subprocess.TimeoutExpired:
                pass
        return self._returncode

    def wait(self, timeout: float | None = None) -> int:
        if self._returncode is None:
            self._connection.settimeout(timeout)
            try:
                self._returncode = self._answer("returncode")
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(list(self._argv), timeout or 0.0) from None
            self._connection.close()
        return self._returncode

    def _answer(self, word: str) -> int:
        """Raises LabError when the unit's process ends without an answer."""
        while b"\n" not in self._heard:
            more = self._connection.recv(1024)
            if not more:
                self._connection.close()
                raise LabError(f"systemd started nothing for {' '.join(self._argv)}: its unit failed")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        number: int = json.loads(line)[word]
        return number
