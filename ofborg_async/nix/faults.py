"""Error texts of nix that are about this host, not about a package. Pure.

A package can put any text after ``error: `` by ``throw``. So what an evaluation says is believed only when a probe of
ours fails too, or when a second evaluation says again that memory ran out (who can say that falsely can also use it
all up). What nix-build says last is its own, since builders cannot print after it; only where it evaluates (the
original's form, after something was printed) a package could throw such a text then and not before. That costs the
retries of a fault of the host, which are bounded, and ends as an unexpected error.
"""

from __future__ import annotations

import re
import signal

from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault


@frozen
class _Text:
    kind: FaultKind
    pattern: re.Pattern[bytes]
    remedy: str


def _texts(kind: FaultKind, remedy: str, *patterns: bytes) -> _Text:
    return _Text(kind, re.compile(rb"(?i)^\s*error: .*(?:" + b"|".join(patterns) + rb")"), remedy)


_TEXTS = (
    _texts(
        FaultKind.DISK,
        "free space or inodes on the disks of the nix store, of its database and of the builds",
        rb"no space left on device",
        rb"disk quota exceeded",
        rb"database or disk is full",
        rb"read-only file system",
        rb"disk I/O error",
        rb"input/output error",
    ),
    _texts(
        FaultKind.MEMORY,
        "give the builder more memory or fewer builds and evaluations at once",
        rb"out of memory",
        rb"cannot allocate memory",
        rb"std::bad_alloc",
    ),
    _texts(
        FaultKind.NIX_DAEMON,
        "see whether nix-daemon runs and what it logged",
        rb"cannot connect to (?:socket|daemon)",
        rb"cannot open connection to remote store",
        rb"connection reset by peer",
        rb"connection refused",
        rb"unexpected end-of-file",
        rb"nix daemon disconnected unexpectedly",
        rb"broken pipe",
        rb"protocol mismatch",
        rb"database is (?:locked|busy)",
        rb"sqlite database '.*' is busy",
    ),
    _texts(
        FaultKind.PROCESS,
        "raise the limits of processes and open files of the nix store's user",
        rb"unable to fork",
        rb"unable to start thread",
        rb"resource temporarily unavailable",
        rb"too many open files",
        rb"interrupted by the user",
    ),
    _texts(
        FaultKind.PERMISSION,
        "see nix.conf (build-users-group, sandbox) and remove /homeless-shelter if it exists",
        rb"home directory '.*' exists",
        rb"build users group '.*' (?:has no members|does not exist)",
        rb"unable to start build process",
        rb"cloning builder process: ",
        rb"setting up a private mount namespace",
        rb"while setting up the build environment",
        rb"cannot set host name",
        rb"unable to make .* private",
        rb"kernel namespaces that are required for sandboxing",
    ),
    _texts(
        FaultKind.PERMISSION,
        "see to whom the nix store and its state belong, and whether they are mounted read-only",
        rb"remounting .* writable",  # what nix as root tries first with a read-only store
        rb"creating directory '[^']*/\.links': permission denied",
        rb"opening lock file '[^']*': permission denied",
    ),
    _texts(
        FaultKind.OTHER,
        "see the state directory of nix",
        rb"'[^']*/nix/var/nix/",  # such as two processes that make the same new store
    ),
)

_FROM_OUTSIDE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def fault_in(line: bytes) -> HostFault | None:
    """The fault of the host that an error line of nix speaks of, or None."""
    for text in _TEXTS:
        if text.pattern.match(line):
            return HostFault(text.kind, line.strip().decode(errors="replace")[:500], remedy=text.remedy)
    return None


def fault_of_signal(program: str, returncode: int) -> HostFault | None:
    """The fault of the host when ``program`` was ended by a signal that we did not send, or None.

    SIGKILL is what the kernel sends when memory runs out; the others are sent by people and service managers. A crash
    (SIGSEGV, SIGABRT ...) is nobody's: None.
    """
    if returncode == -signal.SIGKILL:
        return HostFault(
            FaultKind.MEMORY,
            f"{program} was killed (SIGKILL), as the kernel does when memory runs out",
            remedy="see the kernel's log; give the builder more memory or fewer builds and evaluations at once",
        )
    if -returncode in _FROM_OUTSIDE:
        return HostFault(FaultKind.PROCESS, f"{program} was ended from outside by {signal_name(returncode)}")
    return None


def signal_name(returncode: int) -> str:
    """The name of the signal in a negative exit status, such as ``SIGSEGV``."""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
