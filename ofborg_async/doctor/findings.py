"""What an examination found: frozen values."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from attrs import frozen


class Verdict(enum.StrEnum):
    """How a thing stands. A warning is for an operator to judge; with a failure jobs fail, or harm the host."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Group(enum.StrEnum):
    """What findings are shown under, in this order."""

    CONFIGURATION = "configuration"
    HOST = "host"
    NIX = "nix"
    STORAGE = "roots and disks"
    BROKER = "broker"
    PUBLIC = "in public"


_STATUS = {Verdict.OK: 0, Verdict.WARNING: 1, Verdict.FAILURE: 2}


@frozen
class Finding:
    """One thing that was looked at.

    ``requirement`` is its number in the operating guide's list ("R18"), "" for what goes beyond it. ``subject`` names
    the thing, ``cause`` what was seen, ``remedy`` what to do, "" where nothing is to be done.
    """

    group: Group
    requirement: str
    subject: str
    verdict: Verdict
    cause: str
    remedy: str = ""


@frozen
class Report:
    """Everything that was found, in the order of the groups."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Report:
        """Sorted by group; within one as they came."""
        order = list(Group)
        return cls(tuple(sorted(findings, key=lambda finding: order.index(finding.group))))

    @property
    def verdict(self) -> Verdict:
        """The gravest of all."""
        return max((finding.verdict for finding in self.findings), key=_STATUS.__getitem__, default=Verdict.OK)

    @property
    def exit_status(self) -> int:
        """0 all well, 1 warnings, 2 failures (interface document)."""
        return _STATUS[self.verdict]
