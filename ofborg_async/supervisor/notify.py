"""Tell systemd that the daemon is ready, alive and stopping (sd_notify(3)); nothing happens under other managers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends to NOTIFY_SOCKET of ``environ``; ``watchdog_seconds`` is how often ``alive`` is due, None without one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds: float | None = None
        limit = environ.get("WATCHDOG_USEC", "")
        if self._address and limit.isdecimal() and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self.watchdog_seconds = int(limit) / 1e6 / 2  # twice as often as demanded, as the manual page advises
        self._unsaid = ""
        self._deaf = False

    def ready(self, status: str) -> None:
        """The daemon consumes; ``status`` is shown by systemctl."""
        self._send(f"READY=1\nSTATUS={status}\n")

    def alive(self) -> None:
        """Feed the watchdog, and say again what could not be said."""
        self._send("WATCHDOG=1\n", keep=False)

    def stopping(self) -> None:
        """The daemon stops on request."""
        self._send("STOPPING=1\n")

    def _send(self, message: str, *, keep: bool = True) -> None:
        """Send ``message`` without waiting; one to ``keep`` is said with the next when the manager's queue is full."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(0)
                channel.sendto((self._unsaid + message).encode(), address)
        except OSError as error:
            self._unsaid += message if keep else ""
            if not self._deaf:
                log.warning("the service manager was not told %r: %s", message.partition("\n")[0], error)
            self._deaf = True
        else:
            self._unsaid, self._deaf = "", False
