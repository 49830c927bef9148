"""What came of nix-build: exit status and its own error lines to a status (wire document, "Exit codes"). Pure.

Exit codes are believed first. A nix-daemon makes 1 of all of them in many versions, so only then the texts decide.
Builders print into the same pipe, unmarked, so a builder can write such a line itself: it can choose between the three
ways in which its own package fails, no more, since it cannot change the exit code and the texts are not asked after
any other. What is said of the host is taken from the very last error alone, which nix prints when no builder is left.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from attrs import define, field

from ofborg_async.errors import HostFault
from ofborg_async.model.result import BuildStatus, Status, UnexpectedError
from ofborg_async.nix.faults import fault_in

_DISK_FULL = b"No space left on device"

# "\n" stands before each: a line's start. Wordings of 2.3, 2.8, 2.26 and 2.35. A builder that fails to make its output
# ends nix-build with 1 without any daemon too, which the original calls unexpected; so it is none of these.
_HASH_MISMATCH = re.compile(rb"\nerror: hash mismatch in fixed-output derivation '/")
_TIMED_OUT = re.compile(rb"\nerror: (?:.* )?timed out after \d+ seconds")
_FAILED = re.compile(
    rb"\n(?:(?:error: )?builder for '/.*'|\s+Reason: builder) failed (?:with exit code|due to signal) \d"
)
_KILLED = re.compile(rb"\n\s*(?:error: builder for '/.*'|Reason: builder) failed due to signal 9\b")
_TAIL_LINES = 200


@define
class Watch:
    """Remembers, in bounded memory, what the lines of a nix-build say. Feed it every batch of lines.

    ``killed``: nix says that a builder was killed by SIGKILL.
    """

    hash_mismatch: bool = False
    timed_out: bool = False
    failed: bool = False
    killed: bool = False
    _tail: deque[bytes] = field(factory=lambda: deque(maxlen=_TAIL_LINES))

    def feed(self, lines: Sequence[bytes]) -> bool:
        """Take the next lines. True when somebody says in them that the disk is full."""
        self._tail.extend(lines)
        text = b"\n" + b"\n".join(lines)
        if b"\nerror: " in text:
            self.hash_mismatch = self.hash_mismatch or _HASH_MISMATCH.search(text) is not None
            self.timed_out = self.timed_out or _TIMED_OUT.search(text) is not None
        self.failed = self.failed or (b" failed " in text and _FAILED.search(text) is not None)
        self.killed = self.killed or (b" failed due to signal 9" in text and _KILLED.search(text) is not None)
        return _DISK_FULL in text

    def host_fault(self) -> HostFault | None:
        """The fault of the host that nix's final error speaks of: the last line not indented and what follows it."""
        block: list[bytes] = []
        for line in reversed(self._tail):
            block.append(line)
            if line and not line.startswith(b" "):
                break
        if not block or not block[-1].startswith(b"error:"):
            return None
        return next((fault for line in block if (fault := fault_in(line)) is not None), None)


def status_of(returncode: int, watch: Watch) -> Status:
    """The status for an exit status of nix-build; a negative one is a signal that nobody of ours sent."""
    if returncode == 0:
        return BuildStatus.SUCCESS
    if returncode < 0:
        return UnexpectedError("unexpected build failure")
    # 0b11xxxx: 0x60 always, then what happened; a code without 0x04 is none of a failed build.
    if returncode & ~0x0F == 0x60 and returncode & 0x04:
        return _gravest(hash_mismatch=bool(returncode & 0x02), timed_out=bool(returncode & 0x01))
    if returncode == 1 and (watch.hash_mismatch or watch.timed_out or watch.failed):
        return _gravest(hash_mismatch=watch.hash_mismatch, timed_out=watch.timed_out)
    return UnexpectedError(f"command failed with exit code {returncode}")


def gravest(first: Status, second: Status) -> Status:
    """The graver of two statuses: an unexpected error, wrong hash, time-out, failure, success."""
    order = (BuildStatus.SUCCESS, BuildStatus.FAILURE, BuildStatus.TIMED_OUT, BuildStatus.HASH_MISMATCH)
    return max(
        first, second, key=lambda status: len(order) if isinstance(status, UnexpectedError) else order.index(status)
    )


def _gravest(*, hash_mismatch: bool, timed_out: bool) -> BuildStatus:
    if hash_mismatch:
        return BuildStatus.HASH_MISMATCH
    return BuildStatus.TIMED_OUT if timed_out else BuildStatus.FAILURE
