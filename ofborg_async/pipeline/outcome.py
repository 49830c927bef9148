"""What became of an attempt, as data. The supervisor acts on it; nothing here does."""

from __future__ import annotations

from attrs import frozen

from ofborg_async.errors import HostFault
from ofborg_async.model.result import BuildStatus, Status, UnexpectedError
from ofborg_async.model.status import Phase


@frozen
class Report:
    """A result to publish on RES and, when ``on_log``, the same bytes on LOG.

    ``attempted`` and ``skipped`` together are the job's attrs, or both None after a merge conflict.
    """

    status: Status
    attempted: tuple[str, ...] | None
    skipped: tuple[str, ...] | None
    output: tuple[str, ...] = ()
    on_log: bool = True


@frozen
class Silent:
    """Acknowledge and send nothing; ``reason`` is for the history."""

    reason: str


@frozen
class HostTrouble:
    """The host failed in ``phase``, also after the retries in place: give the message back."""

    fault: HostFault
    phase: Phase


Outcome = Report | Silent | HostTrouble

MERGE_FAILED = Report(BuildStatus.FAILURE, None, None, ("Merge failed",), on_log=False)
"""The result of a merge conflict (wire document, "What is sent, in order")."""


def unexpected(reason: str, attrs: tuple[str, ...], output: tuple[str, ...] = ()) -> Report:
    """The result of a job that cannot be built for ``reason``: all attrs attempted, none skipped."""
    return Report(UnexpectedError(reason), attrs, (), output)
