"""A program: runs a command and publishes its lines as log messages, as fast as that can be done in Python.

``bulk URL EXCHANGE CONFIRMS COMMAND...``. Frames of many messages are put into one buffer and written without waiting
for anything; with CONFIRMS 1 the broker confirms them, which is awaited once, at the end. Its result, a JSON object on
stdout, says how long it took until the broker had taken all, and at what cost.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from json.encoder import encode_basestring
from select import select
from time import perf_counter, process_time
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.header import ProtocolHeader

F = TypeVar("F", bound=Frame)

_CHUNK_BYTES = 256 * 1024
_CHANNEL = 1
_TIMEOUT_SECONDS = 120.0
_HEAD = '{"system":"x86_64-linux","identity":"bench-01","attempt_id":"00000000-0000-4000-8000-000000000000"'
_PROPERTIES = struct.pack(">H", 1 << 15 | 1 << 12) + b"\x10application/json\x02"  # AMQP 0-9-1, 4.2.6.1
_END = b"\xce"


class Bulk:
    """A connection with one channel."""

    def __init__(self, url: str, exchange: str, *, confirms: bool) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "", place.port or 0), timeout=_TIMEOUT_SECONDS)
        self._received = b""
        self._confirms = confirms
        self._published = 0
        self._socket.sendall(ProtocolHeader(0, 9, 1).marshal())
        self._await(commands.Connection.Start)
        response = f"\0{unquote(place.username or '')}\0{unquote(place.password or '')}"
        self._send(0, commands.Connection.StartOk({}, "PLAIN", response, "en_US"))
        tune = self._await(commands.Connection.Tune)
        self._send(0, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self._send(0, commands.Connection.Open(unquote(place.path[1:])))
        self._await(commands.Connection.OpenOk)
        self._send(_CHANNEL, commands.Channel.Open())
        self._await(commands.Channel.OpenOk)
        if confirms:
            self._send(_CHANNEL, commands.Confirm.Select())
            self._await(commands.Confirm.SelectOk)
        method = frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key="bench.1"), _CHANNEL)
        size = 2 + 2 + 8 + len(_PROPERTIES)
        self._before = method + struct.pack(">BHIHH", 2, _CHANNEL, size, commands.Basic.frame_id, 0)
        self._between = _PROPERTIES + _END + struct.pack(">BH", 3, _CHANNEL)

    def publish(self, number: int, lines: Sequence[bytes]) -> None:
        """Publish lines, the first of which has this number."""
        pieces: list[bytes] = []
        before, between = self._before, self._between
        for line_number, line in enumerate(lines, number):
            text = encode_basestring(line.decode(errors="replace"))
            body = f'{_HEAD},"line_number":{line_number},"output":{text}}}'.encode()
            size = len(body)
            pieces += (before, struct.pack(">Q", size), between, struct.pack(">I", size), body, _END)
        self._published += len(lines)
        if self._confirms:  # or they would fill the broker's buffers, and it would stop reading
            self._received += self._socket.recv(_CHUNK_BYTES) if select([self._socket], [], [], 0)[0] else b""
        self._socket.sendall(b"".join(pieces))

    def finish(self) -> None:
        """Wait until the broker has taken all: it answers a method after what came before it on its channel."""
        if self._confirms:
            while self._await(commands.Basic.Ack).delivery_tag < self._published:
                pass
        else:
            self._send(_CHANNEL, commands.Basic.Qos(prefetch_count=1))
            self._await(commands.Basic.QosOk)

    def _send(self, channel: int, method: Frame) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _await(self, wanted: type[F]) -> F:
        while True:
            if len(self._received) > 7:
                taken, _, method = frame.unmarshal(self._received)
                if taken:
                    self._received = self._received[taken:]
                    if not isinstance(method, wanted):
                        raise SystemExit(f"the broker said {method}, not {wanted.name}")
                    return method
            more = self._socket.recv(_CHUNK_BYTES)
            if not more:
                raise SystemExit("the broker closed the connection")
            self._received += more


def main(url: str, exchange: str, confirms: str, *command: str) -> None:
    """Connect, run the command, publish its lines, tell what it took. Exits with the command's status."""
    bulk = Bulk(url, exchange, confirms=confirms == "1")
    began, cpu_began = perf_counter(), process_time()
    read_end, write_end = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_end, descriptor) for descriptor in (1, 2)]
    # Python ignores SIGPIPE, and a builder that inherited that would never notice that nobody reads on.
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsigdef=[signal.SIGPIPE])
    os.close(write_end)
    number, rest = 1, b""
    while chunk := os.read(read_end, _CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        bulk.publish(number, lines)
        number += len(lines)
    _, status = os.waitpid(pid, 0)
    bulk.finish()
    seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "lines": number - 1}))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
