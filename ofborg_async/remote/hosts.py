"""Which hosts a command is for: ``user@host:port`` and fleet files. Pure; no SSH here."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import ConfigError, ConfigFault

DEFAULT_REMOTE_SOCKET = "/run/ofborg-async/control.sock"
"""Where a daemon that a service manager runs as a system service listens."""

# Strict, because OpenSSH's configuration may hand both to a shell (ProxyCommand, Match exec).
_SPEC = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+-]*)@)?"
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


@frozen
class HostSpec:
    """One host to reach over SSH. ``user`` and ``port`` None: what the SSH configuration says, or its defaults."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse_host(text: str) -> HostSpec:
    """Read ``[user@]host[:port]``; an IPv6 address stands in brackets. Raises ValueError with one sentence."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is no host; write user@host, user@host:port or user@[IPv6 address]:port")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{port} is no port; ports are 1 to 65535")
    return HostSpec(match["six"] or match["host"], match["user"], port)


def read_fleet(path: Path) -> tuple[HostSpec, ...]:
    """The hosts of a fleet file: one a line, ``#`` begins a comment. Raises ConfigError with every fault at once."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8"
        raise ConfigError([ConfigFault(str(path), "", f"the fleet file cannot be read: {reason}")]) from error
    hosts: list[HostSpec] = []
    faults: list[ConfigFault] = []
    for number, line in enumerate(text.split("\n"), 1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        try:
            hosts.append(parse_host(name))
        except ValueError as error:
            faults.append(ConfigFault(str(path), f"line {number}", str(error)))
    if not hosts and not faults:
        faults.append(ConfigFault(str(path), "", "the fleet file names no host; write one user@host a line"))
    if faults:
        raise ConfigError(faults)
    return tuple(dict.fromkeys(hosts))
