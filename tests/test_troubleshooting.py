"""docs/troubleshooting.md: what it quotes is said somewhere, and every warning and error of the log stands in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ofborg_async"
DOCUMENT = ROOT / "docs" / "troubleshooting.md"
ROOMS = tuple(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "lab")
GRAVE = {"warning", "error", "critical"}


def entries() -> list[tuple[str, ...]]:
    """The quoted messages: each the fixed parts of one, in order. ``...`` stands for what differs."""
    rows = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return [tuple(part.strip() for part in row.split("...") if part.strip()) for row in rows]


def sources() -> Iterator[ast.AST]:
    files = [*PACKAGE.glob("*.py"), *(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))]
    for file in files:
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


def grave_messages() -> set[str]:
    """The format of each warning and error that is logged."""
    return {
        node.args[0].value
        for node in sources()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in GRAVE
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def fixed_parts(message: str) -> tuple[str, ...]:
    """A format without its conversions."""
    return tuple(part.strip() for part in re.split(r"%[-#0-9.]*[a-zA-Z]", message) if part.strip(" :;,()."))


def test_what_is_quoted_is_said() -> None:
    texts = [node.value for node in sources() if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    unsaid = [part for entry in entries() for part in entry if not any(part in text for text in texts)]
    assert unsaid == []
    assert len(entries()) > 60


def test_every_warning_and_error_of_the_log_stands_in_it() -> None:
    known = [" ".join(entry) for entry in entries()]
    missing = [
        message
        for message in sorted(grave_messages())
        if not any(all(part in entry for part in fixed_parts(message)) for entry in known if fixed_parts(message))
    ]
    assert missing == []
