"""A table that hides nothing: columns that do not fit go, and what has no column stands in lines below its row."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

PIPED_WIDTH = 160
_GAP = 2
_INDENT = 4


@frozen
class Column:
    """One column. ``droppable`` ones go, the last first, when the width is too small; ``flexible`` is cut to fit."""

    title: str
    droppable: bool = False
    flexible: bool = False


@frozen
class Row:
    """One row: a cell for each column, and lines that stand below it, indented, wrapped, never cut."""

    cells: tuple[Text, ...]
    details: tuple[Text, ...] = ()


class _Console(Console):
    """rich's, without its own exit when the reader of a pipe has left: ``main`` knows what to do then."""

    def on_broken_pipe(self) -> None:
        """Called while BrokenPipeError is handled: let it go on."""
        raise  # noqa: PLE0704 - the error that rich is handling


def make_console() -> Console:
    """A console for text that others wrote: no markup, no guessing; 160 columns wide when nobody looks."""
    console = _Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:  # noqa: SLF001 - as rich itself looks it up
        console.width = PIPED_WIDTH
    return console


def render_grid(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Group:
    """The table as lines of text, at most ``width`` wide where its essential cells allow it."""
    widths = [
        max(len(column.title), *(row.cells[index].cell_len for row in rows), 0) for index, column in enumerate(columns)
    ]
    shown = _fit(columns, widths, width)
    lines: list[Text | Padding] = [
        _line([Text(columns[i].title, style="bold") for i in shown], [widths[i] for i in shown])
    ]
    for row in rows:
        lines.append(_line([row.cells[i] for i in shown], [widths[i] for i in shown]))
        lines.extend(Padding(detail, (0, 0, 0, _INDENT), expand=False) for detail in row.details)
    return Group(*lines)


def _fit(columns: Sequence[Column], widths: list[int], width: int) -> list[int]:
    """The indices of the columns that stay; the flexible one's width is made to fit."""
    shown = list(range(len(columns)))

    def excess() -> int:
        return sum(widths[i] for i in shown) + _GAP * (len(shown) - 1) - width

    for index in [i for i in shown if columns[i].flexible]:
        widths[index] = max(widths[index] - max(0, excess()), len(columns[index].title), min(widths[index], 24))
    for index in reversed(range(len(columns))):
        if excess() > 0 and columns[index].droppable:
            shown.remove(index)
    return shown


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=False, overflow="fold")
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        shown = cell.copy()
        shown.truncate(width, overflow="ellipsis")
        line.append_text(shown)
        if index < len(cells) - 1:
            line.append(" " * (width - shown.cell_len + _GAP))
    return line
