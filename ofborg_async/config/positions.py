"""The line on which a key of a TOML document stands, for messages: tomllib tells values but no places.

A line scanner, not a parser: it knows headers, keys at the start of a line and multi-line texts. A key inside an inline
table has the line of the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ofborg_async.config.strict import KeyPath

PART = r"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
DOTTED = rf"{PART}(?:[ \t]*\.[ \t]*{PART})*"
ARRAY_HEADER = re.compile(rf"\s*\[\[\s*({DOTTED})\s*\]\]")
TABLE_HEADER = re.compile(rf"\s*\[\s*({DOTTED})\s*\]\s*(?:#.*)?$")
ASSIGNMENT = re.compile(rf"\s*({DOTTED})\s*=(.*)")
QUOTES = re.compile(r'"""|\'\'\'')


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """The line, counted from 1, of each table and each key that begins a line."""
    lines: dict[KeyPath, int] = {}
    counters: dict[KeyPath, int] = {}
    table: KeyPath = ()
    open_quotes = ""
    for number, line in enumerate(text.split("\n"), start=1):
        inside, open_quotes = bool(open_quotes), _quotes_after(line, open_quotes)
        if inside:
            continue
        if header := ARRAY_HEADER.match(line):
            path = _absolute(_parts(header.group(1)), counters)
            counters[path] = counters.get(path, -1) + 1
            table = (*path, counters[path])
            lines.setdefault(table, number)
            lines.setdefault(path, number)
        elif header := TABLE_HEADER.match(line):
            table = _absolute(_parts(header.group(1)), counters)
            lines.setdefault(table, number)
        elif assignment := ASSIGNMENT.match(line):
            lines.setdefault((*table, *_parts(assignment.group(1))), number)
    return lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of ``path``, or of the nearest table around it."""
    for length in range(len(path), 0, -1):
        found = lines.get(path[:length])
        if found is None:  # a dotted key of a table that has no line of its own: [nix] a.b = 1, asked for nix.a
            found = min((line for key, line in lines.items() if key[:length] == path[:length]), default=None)
        if found is not None:
            return found
    return None


def _parts(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(PART, dotted))


def _absolute(parts: KeyPath, counters: Mapping[KeyPath, int]) -> KeyPath:
    """``parts`` with the index of the newest item behind each array of tables that leads to them."""
    path: KeyPath = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if position < len(parts) - 1 and path in counters:
            path = (*path, counters[path])
    return path


def _quotes_after(line: str, open_quotes: str) -> str:
    """The kind of multi-line text that is open after ``line``; "" for none."""
    for match in QUOTES.finditer(line):
        if not open_quotes:
            open_quotes = match.group()
        elif match.group() == open_quotes:
            open_quotes = ""
    return open_quotes
