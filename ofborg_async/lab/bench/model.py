"""What the benchmarks give: rows with goals, and curves. Frozen values, no I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from attrs import frozen

Series = tuple[float, ...]
"""One value for each repetition."""

Points = tuple[tuple[float, Series], ...]
"""Repetitions at each place of the horizontal axis."""


class Of(enum.StrEnum):
    """What a goal is a part of: the other builder's figure, the bare tools' figure, or one in the figure's own unit."""

    THEIRS = "theirs"
    LIMIT = "limit"
    ITSELF = "itself"


@frozen
class Goal:
    """A bound on ours as a part of ``of``: at most ``bound``, or at least."""

    bound: float
    of: Of = Of.THEIRS
    at_least: bool = False

    def met_by(self, part: float) -> bool:
        """Whether a value reaches it."""
        return part >= self.bound if self.at_least else part <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}" + ("" if self.of is Of.ITSELF else f" of {self.of}")


@frozen
class Row:
    """One figure. ``theirs`` and ``limit`` are empty where nothing was measured; ``unit`` is of all three."""

    figure: str
    name: str
    unit: str
    ours: Series
    theirs: Series = ()
    limit: Series = ()
    goals: tuple[Goal, ...] = ()

    def part(self, of: Of) -> float | None:
        """The median of ours, as a part of the median of ``of``; None where that was not measured."""
        if of is Of.ITSELF:
            return median(self.ours)
        whole = self.theirs if of is Of.THEIRS else self.limit
        return median(self.ours) / median(whole) if whole and median(whole) else None

    def met(self, goal: Goal) -> bool | None:
        """Whether ours reaches ``goal``; None when it cannot be told from what was measured."""
        part = self.part(goal.of)
        return None if part is None else goal.met_by(part)


@frozen
class Panel:
    """Curves of one unit over one another. The vertical axis begins at zero and shows at least ``least_top``."""

    title: str
    unit: str
    curves: Mapping[str, Points]
    least_top: float = 1e-9


@frozen
class Plot:
    """A picture: panels over the same horizontal axis, which is logarithmic with ``log_x``."""

    title: str
    x_label: str
    panels: tuple[Panel, ...]
    log_x: bool = False


@frozen
class Outcome:
    """All of one figure: its rows and plots."""

    rows: tuple[Row, ...]
    plots: tuple[Plot, ...] = ()


@frozen
class Report:
    """An outcome and the circumstances: the load of the machine (1 minute) before and after, and how long it took."""

    figure: str
    outcome: Outcome
    load_before: float
    load_after: float
    seconds: float


def document(reports: Sequence[Report], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``benchmarks.json``."""
    return {
        "machine": dict(machine),
        "figures": [
            {
                "figure": report.figure,
                "seconds": round(report.seconds, 1),
                "load_before": report.load_before,
                "load_after": report.load_after,
                "rows": [_row(row) for row in report.outcome.rows],
                "plots": [_plot(plot) for plot in report.outcome.plots],
            }
            for report in reports
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    measured = {"ours": row.ours, "theirs": row.theirs, "limit": row.limit}
    return {
        "name": row.name,
        "unit": row.unit,
        **{who: {"median": median(series), "runs": list(series)} for who, series in measured.items() if series},
        "ratio": row.part(Of.THEIRS),
        "of_limit": row.part(Of.LIMIT),
        "goals": [{"bound": g.bound, "of": g.of.value, "at_least": g.at_least, "met": row.met(g)} for g in row.goals],
    }


def _plot(plot: Plot) -> dict[str, Any]:
    return {
        "title": plot.title,
        "x": plot.x_label,
        "panels": [
            {
                "title": panel.title,
                "unit": panel.unit,
                "curves": {
                    name: [{"x": place, "median": median(runs), "runs": list(runs)} for place, runs in points]
                    for name, points in panel.curves.items()
                },
            }
            for panel in plot.panels
        ],
    }
