"""Tables: on the screen, and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ofborg_async.lab.bench.model import Of, Report, Row, Series

_SMALL, _LARGE = 10.0, 1000.0


def show(console: Console, report: Report) -> None:
    """One figure: medians, ratios, goals."""
    caption = (
        f"{report.seconds:.0f} s; load of the machine {report.load_before:.1f} before, {report.load_after:.1f} after"
    )
    table = Table(title=report.figure, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE)
    table.add_column("figure", overflow="fold")
    for name in ("unit", "ours", "(range)", "theirs", "ratio", "limit", "of it"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    table.add_column("goal", overflow="fold")
    for row in report.outcome.rows:
        table.add_row(
            row.name,
            row.unit,
            number(median(row.ours)),
            Text(_range(row.ours), style="dim"),
            number(median(row.theirs)) if row.theirs else "",
            _part(row, Of.THEIRS),
            number(median(row.limit)) if row.limit else "",
            _part(row, Of.LIMIT),
            _goals(row),
        )
    console.print(table)


def show_verdict(console: Console, reports: Iterable[Report]) -> None:
    """How many goals are met, and each that is not."""
    rows = [row for report in reports for row in report.outcome.rows]
    judged = [(row, goal, row.met(goal)) for row in rows for goal in row.goals]
    missed = [(row, goal) for row, goal, met in judged if met is False]
    told = sum(met is not None for _, _, met in judged)
    console.print(
        f"{told - len(missed)} of {told} goals met; {len(judged) - told} cannot be told from what was measured"
    )
    for row, goal in missed:
        console.print(Text(f"missed: {row.figure}, {row.name}: {row.part(goal.of):.3g}, goal {goal}", style="red"))


def markdown(reports: Iterable[Report]) -> str:
    """All rows as one table of Markdown: medians, with the goals they reach and miss."""
    lines = ["| figure | unit | ours | theirs | ratio | limit | of it | goal |", "|---|---|--:|--:|--:|--:|--:|---|"]
    for row in (row for report in reports for row in report.outcome.rows):
        cells = (
            row.name if row.name.startswith(row.figure) else f"{row.figure}: {row.name}",
            row.unit,
            number(median(row.ours)),
            number(median(row.theirs)) if row.theirs else "",
            _part(row, Of.THEIRS),
            number(median(row.limit)) if row.limit else "",
            _part(row, Of.LIMIT),
            _goals(row).plain.strip(),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(series: Series) -> str:
    return f"{number(min(series))}-{number(max(series))}" if len(series) > 1 else ""


def _part(row: Row, of: Of) -> str:
    part = row.part(of)
    return "" if part is None else f"{part:.2f}"


def _goals(row: Row) -> Text:
    text = Text()
    for goal in row.goals:
        met = row.met(goal)
        verdict, style = {True: ("met", "green"), False: ("NOT MET", "bold red"), None: ("?", "dim")}[met]
        text.append(f"{goal}: ", style="default").append(verdict, style=style).append("  ")
    return text


def number(value: float) -> str:
    """A number with three digits that say something."""
    if abs(value) >= _LARGE:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= _SMALL else f"{value:.3f}"
