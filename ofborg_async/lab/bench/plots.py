"""Plots: a picture for each Plot of a figure, and one of all ratios to the other builder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from ofborg_async.lab.bench.model import Goal, Of, Panel, Plot, Report, Row

_PANEL_INCHES = (4.8, 3.6)
_ROW_INCHES = 0.3
_DPI = 130
_COLOURS = ("#1b6ca8", "#e07a1f", "#2f8f5b", "#8a4f9e")
_MET, _MISSED, _NO_GOAL, _FAINT = "#2f8f5b", "#c0392b", "#8c8c8c", "#d9d9d9"
_HEADROOM = 1.18
_BAND_PARTS = 1.6
_STYLE: Any = {  # its type lists every key there is, in some versions of matplotlib only
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
_THOUSAND, _MILLION = 1_000, 1_000_000


def draw(directory: Path, reports: Sequence[Report]) -> list[Path]:
    """Write the pictures; their paths. Earlier ones of the same names are replaced."""
    mpl.use("agg")
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        written = [_picture(directory, plot) for report in reports for plot in report.outcome.plots]
        if ratios := _ratios(directory, reports):
            written.append(ratios)
    return written


def _picture(directory: Path, plot: Plot) -> Path:
    """All panels beside each other."""
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(plot.panels), height), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(plot.panels), squeeze=False)[0], plot.panels, strict=True):
        _panel(axes, panel, plot)
    figure.suptitle(plot.title, fontsize=12, fontweight="bold")
    return _save(figure, directory, plot.title)


def _panel(axes: Axes, panel: Panel, plot: Plot) -> None:
    """Medians as lines from zero up; the bands are all repetitions, cut where they go far beyond."""
    for (name, points), colour in zip(panel.curves.items(), _COLOURS, strict=False):
        places = [place for place, _ in points]
        axes.fill_between(
            places, [min(runs) for _, runs in points], [max(runs) for _, runs in points], color=colour, alpha=0.15, lw=0
        )
        axes.plot(places, [median(runs) for _, runs in points], "o-", color=colour, ms=4, lw=1.6, label=name)
    if plot.log_x:
        axes.set_xscale("log")
    ticks = sorted({place for points in panel.curves.values() for place, _ in points})
    axes.set_xticks(ticks, [_amount(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    medians = [median(runs) for points in panel.curves.values() for _, runs in points]
    highest = max(max(runs) for points in panel.curves.values() for _, runs in points)
    top = min(highest, _BAND_PARTS * max(medians))  # one run that was disturbed must not make all others flat
    axes.set_ylim(min(0.0, min(medians) * _HEADROOM), max(top * _HEADROOM, panel.least_top))
    axes.set(title=panel.title, xlabel=plot.x_label, ylabel=panel.unit)
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
    if len(panel.curves) > 1:
        axes.legend()


def _ratios(directory: Path, reports: Sequence[Report]) -> Path | None:
    """Every ratio to the other builder with its goal, on a logarithmic axis; None where there was no other builder."""
    rows = [row for report in reports for row in report.outcome.rows]
    shown = [(row, part) for row in reversed(rows) if (part := row.part(Of.THEIRS))]
    if not shown:
        return None
    figure = Figure(figsize=(10, 1.4 + _ROW_INCHES * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, (row, part) in enumerate(shown):
        goal = next((goal for goal in row.goals if goal.of is Of.THEIRS), None)
        _ratio(axes, place, part, goal)
    axes.set_xscale("log")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_yticks(range(len(shown)), [_label(row) for row, _ in shown])
    axes.axvline(1.0, color="#444444", lw=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="both", color=_FAINT, lw=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("ours / theirs, ratio of the medians; the stroke is the goal: green met, red missed")
    axes.set_title("Beside the other builder", fontsize=12, fontweight="bold")
    return _save(figure, directory, "ratios")


def _ratio(axes: Axes, place: int, part: float, goal: Goal | None) -> None:
    colour = _NO_GOAL if goal is None else _MET if goal.met_by(part) else _MISSED
    axes.plot([1.0, part], [place, place], color=colour, lw=2.2, alpha=0.6, solid_capstyle="butt")
    axes.plot([part], [place], "o", color=colour, ms=6)
    axes.text(1.01, place, f"{part:.3g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=colour)
    if goal is not None:
        axes.plot([goal.bound] * 2, [place - 0.38, place + 0.38], color="black", lw=1.6)


def _label(row: Row) -> str:
    return row.name if row.name.startswith(row.figure) else f"{row.figure}: {row.name}"


def _amount(value: float) -> str:
    """How people write round numbers: 1, 250, 50k, 1M."""
    for size, letter in ((_MILLION, "M"), (_THOUSAND, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _save(figure: Figure, directory: Path, title: str) -> Path:
    path = directory / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png")
    figure.savefig(path, dpi=_DPI)
    return path
