"""What a unit of the lab's own systemd runs for each connection: the program that the peer asks for, with its rights.

One line of JSON comes (``argv``, ``env``, ``cwd``, ``log``), two go back: ``pid`` at its start and ``returncode`` at
its end, as subprocess.Popen counts it. When the peer is gone, so is the program. It is a script that imports nothing of
the package.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess  # noqa: TID251 - no event loop, and nothing of the package

_CONNECTION = 0
"""Where systemd puts it (StandardInput=socket)."""


def main() -> None:
    """Serve the one connection."""
    with socket.socket(fileno=_CONNECTION) as connection, connection.makefile("rb") as peer:
        asked = json.loads(peer.readline())
        with open(asked["log"], "ab") as log:  # noqa: PTH123 - a name from outside
            program = subprocess.Popen(
                asked["argv"],
                env=asked["env"],
                cwd=asked["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        _tell(connection, pid=program.pid)
        select.select([os.pidfd_open(program.pid), connection.fileno()], [], [])
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
        else:
            _tell(connection, returncode=program.returncode)


def _tell(connection: socket.socket, **words: int) -> None:
    connection.sendall(json.dumps(words).encode() + b"\n")


if __name__ == "__main__":
    main()
