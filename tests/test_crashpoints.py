"""Crash points: one that is named ends the process there and nowhere else; and no step can do without its points."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofborg_async import broker, crashpoints, journal, pipeline, supervisor
from ofborg_async.crashpoints import VARIABLE, CrashPoint, Side, Step, around, every_point
from ofborg_async.pipeline import ports

SCRIPT = """
import os
from ofborg_async.crashpoints import Step, arm, around
arm(os.environ)
print("armed", flush=True)
with around(Step.LOG_CREATED):
    pass
try:
    with around(Step.JOURNAL_BEGIN, Step.JOURNAL_PHASE):
        raise OSError
except OSError:
    print("failed", flush=True)
with around(Step.JOURNAL_BEGIN, Step.JOURNAL_PHASE):
    print("done", flush=True)
print("told", flush=True)
"""


def run(tmp_path: Path, named: str) -> tuple[int, list[str], bool]:
    """The script's exit status, what it said, and whether the file that named a point is still there."""
    file = tmp_path / "point"
    file.write_text(named + "\n")
    environment = {VARIABLE: str(file), "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, check=False, timeout=60
    )
    return done.returncode, done.stdout.decode().split(), file.exists()


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("before journal.begin", ["armed"]),
        ("before journal.phase", ["armed"]),
        ("after journal.begin", ["armed", "failed", "done"]),
        ("after journal.phase", ["armed", "failed", "done"]),
    ],
)
def test_a_named_point_ends_the_process_where_it_says(tmp_path: Path, point: str, said: list[str]) -> None:
    assert run(tmp_path, point) == (-signal.SIGKILL, said, False)


def test_another_point_does_not(tmp_path: Path) -> None:
    assert run(tmp_path, "after log.finished") == (0, ["armed", "failed", "done", "told"], True)


def test_without_the_variable_nothing_is_armed() -> None:
    assert crashpoints.arm({}) is None
    assert crashpoints.arm({VARIABLE: ""}) is None
    with around(*Step):
        pass


def test_each_step_has_its_two_points() -> None:
    assert len({str(point) for point in every_point()}) == 2 * len(Step)
    assert str(CrashPoint(Side.AFTER, Step.DELIVERY_ACK)) == "after delivery.ack"


# --- no step without points -------------------------------------------------------------------------------------------


def test_every_step_is_done_somewhere() -> None:
    package = Path(crashpoints.__file__).parent
    used = {
        node.attr
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Step"
    }
    assert used == set(Step.__members__)


def test_every_call_of_the_publisher_has_points() -> None:
    """What the port ``Publisher`` offers is called between points, and its confirmation is awaited between points."""
    methods = {name for name in vars(ports.Publisher) if not name.startswith("_")}
    methods -= {"wait_back", "close"}  # they publish nothing
    assert {"publish_result", "send_log"} <= methods
    found = [call for room in (pipeline, supervisor) for call in calls(room) if is_of_publisher(call.node, methods)]
    assert len(found) >= len(methods) + 1
    assert [call.where for call in found if not call.between_points] == []


def test_every_settlement_of_a_delivery_has_points() -> None:
    """``ack``, ``nack`` and ``reject`` of the library: written between points, or handed to what does that."""
    found = list(calls(broker))
    settlements = [call for call in found if name_of(call.node.func) in {"ack", "nack", "reject"}]
    handed = [call for call in found if name_of(call.node.func) == "_settle"]
    assert len(handed) == 3
    assert len(settlements) >= 3  # ack is handed over uncalled
    for call in handed:
        assert isinstance(call.node.args[0], ast.Attribute)
        assert call.node.args[0].attr.startswith("DELIVERY_")
    inside = {id(node) for call in handed for node in ast.walk(call.node)}
    assert [call.where for call in settlements if not call.between_points and id(call.node) not in inside] == []


def test_every_commit_has_points() -> None:
    """All writes to the journal go through one COMMIT."""
    commits = [
        call
        for call in calls(journal)
        if any(isinstance(argument, ast.Constant) and argument.value == "COMMIT" for argument in call.node.args)
    ]
    assert [(call.file, call.between_points) for call in commits] == [("writer.py", True)]


class Call:
    """A call in the source, and whether it stands in the body of a ``with around(...)``."""

    def __init__(self, file: Path, node: ast.Call, *, between_points: bool) -> None:
        self.file = file.name
        self.node = node
        self.between_points = between_points
        self.where = f"{file.name}:{node.lineno}: {ast.unparse(node)}"


def calls(room: object) -> Iterator[Call]:
    """Every call in a room's source."""
    for file in sorted(Path(str(vars(room)["__file__"])).parent.glob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        inside = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any(is_around(item.context_expr) for item in block.items)
            for statement in block.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield Call(file, node, between_points=id(node) in inside)


def is_around(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) == "around"


def is_of_publisher(node: ast.Call, methods: set[str]) -> bool:
    receiver, method = receiver_of(node.func), name_of(node.func)
    return (receiver == "publisher" and method in methods) or (receiver == "sent" and method == "wait")


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def receiver_of(function: ast.expr) -> str:
    return name_of(function.value) if isinstance(function, ast.Attribute) else ""
