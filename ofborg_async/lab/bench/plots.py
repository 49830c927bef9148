"""Plots: a picture for each Plot of a figure, and one of all ratios to the other builder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ofborg_async.lab.bench.model import Of, Plot, Report

_BAR_INCHES = 0.32
_DPI = 110


def draw(directory: Path, reports: Sequence[Report]) -> list[Path]:
    """Write the pictures; their paths. Earlier ones of the same names are replaced."""
    mpl.use("agg")
    directory.mkdir(parents=True, exist_ok=True)
    written = [_curves(directory, plot) for report in reports for plot in report.outcome.plots]
    if ratios := _ratios(directory, reports):
        written.append(ratios)
    return written


def _curves(directory: Path, plot: Plot) -> Path:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in plot.curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    if plot.log_x:
        axes.set_xscale("log")
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return _save(figure, directory, plot.title)


def _ratios(directory: Path, reports: Sequence[Report]) -> Path | None:
    """Every ratio to the other builder with its goal; None where there was no other builder."""
    rows = [row for report in reports for row in report.outcome.rows]
    bars = [(row, part) for row in reversed(rows) if (part := row.part(Of.THEIRS)) is not None]
    if not bars:
        return None
    figure = Figure(figsize=(9, 1.5 + _BAR_INCHES * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (row, part) in enumerate(bars):
        goal = next((goal for goal in row.goals if goal.of is Of.THEIRS), None)
        colour = "tab:grey" if goal is None else "tab:green" if goal.met_by(part) else "tab:red"
        axes.barh(place, part, color=colour)
        if goal is not None:
            axes.plot([goal.bound] * 2, [place - 0.45, place + 0.45], color="black")
    axes.set_yticks(range(len(bars)), [f"{row.figure}: {row.name}" for row, _ in bars], fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.5, linestyle="dotted")
    axes.set(title="Ours / theirs; the stroke is the goal", xlabel="ratio of the medians")
    return _save(figure, directory, "ratios")


def _save(figure: Figure, directory: Path, title: str) -> Path:
    plain = title.lower().replace("%", "percent").replace("µ", "u")
    path = directory / (re.sub(r"[^a-z0-9]+", "-", plain).strip("-") + ".png")
    figure.savefig(path, dpi=_DPI)
    return path
