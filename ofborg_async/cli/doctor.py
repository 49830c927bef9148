"""``doctor``: the examination of this host, as a list for people or as JSON."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from http import HTTPStatus
from typing import Any

import anyio
from attrs import asdict
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ofborg_async.cli.daemon import shared_roots
from ofborg_async.cli.render_grid import make_console
from ofborg_async.clock import SystemClock
from ofborg_async.config import load
from ofborg_async.control.problems import AnsweredError, UnknownNameError
from ofborg_async.control.values import SCHEMA
from ofborg_async.control.visible import visible
from ofborg_async.doctor import Finding, Group, Report, Verdict, examine_host
from ofborg_async.doctor.examination import only, report_faults
from ofborg_async.errors import ConfigError

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red"}
_INDENT = 9


def doctor(arguments: Namespace) -> int:
    """Examine this host; the verdict is the exit status. Raises AnsweredError for an identity that is not there."""
    report = _examine(arguments)
    if arguments.json:
        print(json.dumps(document_of(report), indent=2))
    else:
        make_console().print(render(report))
    return report.exit_status


def _examine(arguments: Namespace) -> Report:
    try:
        settings = load(arguments.config, environ=os.environ, root_conflicts=shared_roots)
    except ConfigError as error:
        return report_faults(error.faults)
    if arguments.identity is not None:
        names = [identity.name for identity in settings.identities]
        if arguments.identity not in names:
            unknown = UnknownNameError("identity", arguments.identity, names)
            raise AnsweredError(HTTPStatus.NOT_FOUND, str(unknown), remedy=unknown.remedy)
        settings = only(settings, arguments.identity)
    return anyio.run(examine_host, settings, SystemClock())


def document_of(report: Report) -> dict[str, Any]:
    """The report as JSON types."""
    return {"schema": SCHEMA, "verdict": report.verdict, "findings": [asdict(finding) for finding in report.findings]}


def render(report: Report) -> RenderableType:
    """The report for people: each group under its name, each finding with its cause and its remedy below it."""
    parts: list[RenderableType] = []
    for group in Group:
        if found := [finding for finding in report.findings if finding.group is group]:
            parts += [Text(group.value, "bold"), *(line for finding in found for line in _lines(finding)), Text("")]
    return Lines(*parts, _summary(report))


def _lines(finding: Finding) -> list[RenderableType]:
    head = Text.assemble((f"{finding.verdict:8} ", _STYLES[finding.verdict]), (visible(finding.subject), "bold"))
    if finding.requirement:
        head.append(f"  {finding.requirement}", "dim")
    below = [Text(visible(finding.cause))]
    if finding.remedy:
        below.append(Text(f"-> {visible(finding.remedy)}"))
    return [head, *(Padding(text, (0, 0, 0, _INDENT), expand=False) for text in below)]


def _summary(report: Report) -> Text:
    counts = {verdict: sum(finding.verdict is verdict for finding in report.findings) for verdict in Verdict}
    words = [f"{counts[verdict]} {name}" for verdict, name in _NAMES.items()]
    return Text(", ".join(words), _STYLES[report.verdict])


_NAMES = {Verdict.OK: "well", Verdict.WARNING: "to look at", Verdict.FAILURE: "to mend"}
