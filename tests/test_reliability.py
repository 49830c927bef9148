"""The tables of docs/reliability.md: nothing promised is without a test, and no test is named that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ofborg_async.lab.chaos.plan import FaultKind

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(\w+)::(\w+)`")


def rows() -> list[list[str]]:
    """Cells of every row of every table, without heads and rules."""
    lines = PAGE.read_text().splitlines()
    tables = [line for line, following in zip(lines, [*lines[1:], ""], strict=True) if not following.startswith("|--")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables if line.startswith("| ")]
    return [row for row in cells if set(row) != {"---"}]


def existing() -> set[tuple[str, str]]:
    """(file, test) of every test there is, without ``test_``; of a model-based one its class."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add((path.stem.removeprefix("test_"), node.name.removeprefix("test_")))
            elif isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(".TestCase"):
                found.add((path.stem.removeprefix("test_"), ast.unparse(node.targets[0])))
    return found


def test_every_row_names_tests_that_exist() -> None:
    there = existing()
    for row in rows():
        named = NAMED.findall(row[-1])
        assert named, f"no test in the row of {row[0]}"
        missing = [name for name in named if name not in there]
        assert not missing, f"the row of {row[0]} names {missing}"


@pytest.mark.parametrize(
    "names",
    [
        [f"P{number}" for number in range(1, 15)],
        [f"D{number:02}" for number in range(1, 24)],
        [kind.value for kind in FaultKind],
    ],
    ids=["promises", "defects of the original", "faults of the campaign"],
)
def test_nothing_is_left_out(names: list[str]) -> None:
    firsts = [row[0] for row in rows()]
    assert [name for name in names if name not in firsts] == []
    assert len(firsts) == len(set(firsts)), "a row stands twice"
