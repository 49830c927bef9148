"""What came of preparing a work tree for a job."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen


@frozen
class Ready:
    """The merged tree is at ``path`` (absolute, resolved). ``commit`` is its HEAD."""

    path: Path
    commit: str


@frozen
class MergeConflict:
    """The pull request does not merge into its target branch; the work tree was not touched."""

    detail: str


@frozen
class Gone:
    """The pull request's ref or its head commit does not exist: acknowledged, nothing is sent."""

    detail: str


@frozen
class Refused:
    """The job itself cannot be checked out (hostile URL or name, no such target branch): an UnexpectedError result."""

    detail: str


CheckoutOutcome = Ready | MergeConflict | Gone | Refused
