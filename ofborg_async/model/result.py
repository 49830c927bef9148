"""What goes out for a job (wire document, "What goes out"): statuses and the messages that carry them."""

from __future__ import annotations

import enum

from attrs import frozen

from ofborg_async.model.job import PullRequest, Repo


class BuildStatus(enum.StrEnum):
    """The plain statuses of a BuildResult, spelled as on the wire."""

    SKIPPED = "Skipped"
    SUCCESS = "Success"
    FAILURE = "Failure"
    TIMED_OUT = "TimedOut"
    HASH_MISMATCH = "HashMismatch"


@frozen
class UnexpectedError:
    """The one status with a text: ``{"UnexpectedError": {"err": ...}}``."""

    err: str


Status = BuildStatus | UnexpectedError


def status_name(status: Status) -> str:
    """The status in one word, for journals, metrics and people."""
    return "UnexpectedError" if isinstance(status, UnexpectedError) else status.value


@frozen
class LogStart:
    """Opens the log of an attempt; at most one on LOG for each attempt."""

    system: str
    identity: str
    attempt_id: str
    attempted_attrs: tuple[str, ...]
    skipped_attrs: tuple[str, ...]


@frozen
class BuildResult:
    """The result of an attempt. ``output`` is the last lines; both lists are None after a merge conflict."""

    repo: Repo
    pr: PullRequest
    system: str
    output: tuple[str, ...]
    attempt_id: str
    request_id: str
    status: Status
    skipped_attrs: tuple[str, ...] | None
    attempted_attrs: tuple[str, ...] | None
