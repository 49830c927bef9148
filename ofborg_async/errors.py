"""Errors that cross rooms.

Each carries fields, so that a caller decides on data and a person reads one clear sentence with its remedy.
Foreign exceptions are translated into these once, at the edge of the room that calls the foreign library.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class OfborgAsyncError(Exception):
    """Root of every error this package raises on purpose."""


class FaultKind(enum.StrEnum):
    """What a fault of the host is about: the columns of the host-fault matrix in docs/reliability.md."""

    NETWORK = "network"
    REPOSITORY = "repository"
    DISK = "disk"
    MEMORY = "memory"
    NIX_DAEMON = "nix-daemon"
    PROCESS = "process"
    LOCK = "lock"
    PERMISSION = "permission"
    OTHER = "other"


class HostFault(OfborgAsyncError):  # noqa: N818 - "fault" is the word of the documents for it
    """Something on this host or between it and its peers failed: never the pull request's fault.

    ``kind`` says what, ``detail`` what was seen, ``remedy`` what an operator can do ("" when waiting is all).
    """

    def __init__(self, kind: FaultKind, detail: str, *, remedy: str = "") -> None:
        self.kind = kind
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{kind}: {detail}" + (f" ({remedy})" if remedy else ""))


def host_fault_of(error: OSError, what: str) -> HostFault:
    """What the operating system refused as a HostFault (DISK, PERMISSION, OTHER) that names ``what`` and the path."""
    detail = f"{what}: {error.filename or ''}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostFault(FaultKind.DISK, detail, remedy="free disk space")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "let the daemon's user own its root and its state directory, with everything in them"
        return HostFault(FaultKind.PERMISSION, detail, remedy=remedy)
    return HostFault(FaultKind.OTHER, detail)


class CancelReason(enum.StrEnum):
    """Why an attempt is ended before its own end. Every cancellation has one."""

    OPERATOR = "cancelled by the operator"
    SUPERSEDED = "superseded by a newer head of the pull request"
    SHUTDOWN = "the builder is shutting down"
    DEADLINE = "over the time limit"


class DeadlineExceededError(OfborgAsyncError):
    """A wait was longer than its deadline. ``what`` names the wait, ``seconds`` the deadline."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what} took longer than {seconds:g} s")


class BrokerUnavailableError(OfborgAsyncError):
    """The broker cannot be used now (connection lost, cut or frozen); trying again later can help."""


class BrokerRefusedError(OfborgAsyncError):
    """The broker said no, translated.

    ``who`` (user), ``vhost``, ``resource`` ("queue 'build-inputs-x86_64-linux'", "" for the whole connection),
    ``said`` (the broker's own words), ``remedy`` (what to ask the broker's administrator for).
    """

    def __init__(self, *, who: str, vhost: str, resource: str, said: str, remedy: str) -> None:
        self.who = who
        self.vhost = vhost
        self.resource = resource
        self.said = said
        self.remedy = remedy
        where = f" {resource}" if resource else ""
        super().__init__(f"the broker refused user {who!r} on vhost {vhost!r}{where}: {said}. {remedy}")


class DeliveryLostError(OfborgAsyncError):
    """The channel of a delivery is gone: it was or will be redelivered; it can no longer be acknowledged."""


class UnroutableError(OfborgAsyncError):
    """The broker took a mandatory message but no queue would get it (or its exchange does not exist).

    ``permanent`` is True when the pair can never be routed: no exchange of that name, or both halves empty.
    """

    def __init__(self, exchange: str, routing_key: str, *, said: str, permanent: bool) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.said = said
        self.permanent = permanent
        super().__init__(f"no queue would receive exchange {exchange!r}, routing key {routing_key!r}: {said}")


class UndecodableError(OfborgAsyncError):
    """A message body is no build job. ``reason`` is one sentence that names the offending key."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class LockHeldError(OfborgAsyncError):
    """Another process holds a lock file. ``path``; ``holder_pid`` (None when it left no note); ``note`` (its words)."""

    def __init__(self, path: str, *, holder_pid: int | None, note: str = "") -> None:
        self.path = path
        self.holder_pid = holder_pid
        self.note = note
        who = f"process {holder_pid}" if holder_pid is not None else "another process"
        super().__init__(f"{path} is held by {who}" + (f" ({note})" if note else ""))


class ConfigFault:
    """One fault of a configuration: ``file``, ``key`` (dotted, "" for the file itself), ``message`` with remedy.

    ``line`` is counted from 1, None where it is not known.
    """

    __slots__ = ("file", "key", "line", "message")

    def __init__(self, file: str, key: str, message: str, line: int | None = None) -> None:
        self.file = file
        self.key = key
        self.message = message
        self.line = line

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line is not None else self.file
        return ": ".join(part for part in (where, self.key, self.message) if part)

    def __repr__(self) -> str:
        return f"ConfigFault({self!s})"


class ConfigError(OfborgAsyncError):
    """Every fault of a configuration at once, in ``faults``. ``run`` and ``check`` exit with 78 for it."""

    def __init__(self, faults: Sequence[ConfigFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class JournalUnusableError(OfborgAsyncError):
    """The journal cannot be read or is newer than this program: exit 78 with the remedy, never silently made anew."""

    def __init__(self, path: str, detail: str, *, remedy: str) -> None:
        self.path = path
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{path}: {detail}. {remedy}")


class ExecutableMissingError(HostFault):
    """A program that builds need is not on PATH."""

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            FaultKind.PROCESS,
            f"{program} was not found on PATH",
            remedy=f"install {program} or set PATH in the service",
        )
