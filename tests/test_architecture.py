"""The table of docs/architecture.md holds, and every wait without a deadline is one that people have read."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ofborg_async"

IDLE = """
broker/intake.py: a job from the queue
broker/intake.py: the delivery to be lost
broker/kept.py: a new connection: whoever waits for it pauses between tries, and has the pause for a deadline
broker/kept.py: the broker to be reachable
broker/kept.py: the broker to end its alarm
broker/kept.py: the connection to end
control/client.py: the daemon's end: its stop has limits of its own
control/client.py: the next lines of a log: ended by the attempt's end, or by the caller
control/http.py: the next lines of a log: ended by the attempt's end, or by the peer's leaving
control/http.py: the peer's leaving: ended by the end of the stream
control/server.py: the next connection: ended by the daemon's stop
journal/logwriter.py: the build prints a line, or ends
lab/proxy.py: a connection of the lab: its ends decide
locks/manager.py: the holders before it end their jobs, each of which has a deadline
nix/ahead.py: the build that runs already: the attempt's time limits it
supervisor/budget.py: a slot is given in turn; the holder's own deadlines bound it
supervisor/daemon.py: the daemon runs until it is told to stop
supervisor/identity.py: failed until an operator restarts it
supervisor/identity.py: its lanes end: what they do then has deadlines
supervisor/identity.py: jobs have limits of their own
supervisor/identity.py: not quarantined
supervisor/identity.py: paused, drained, quarantined or stopped until an operator or a timer says otherwise
supervisor/reload.py: a SIGHUP asks for a reload
supervisor/task.py: the broker takes the lines when it can; the result is safe in the outbox
supervisor/task.py: the log opens when the evaluation ends, which has a deadline
"""
"""Every use of ``idle`` with its reason. A new line needs an answer to: what ends this wait, whatever fails?"""


def test_the_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_a_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {module.removeprefix("ofborg_async.") for contract in contracts for module in contract["source_modules"]}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    rooms |= {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    # cli may import everything; it stands in the contracts for AMQP and SSH.
    assert rooms == named


def test_every_idle_wait_is_listed_with_its_reason() -> None:
    assert sorted(idle_waits()) == IDLE.strip().splitlines()


def idle_waits() -> list[str]:
    """Every call of ``idle`` in the package, as ``file: reason``."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) == "idle":
                (reason,) = node.args
                assert isinstance(reason, ast.Constant), f"{file}:{node.lineno}: the reason must stand where it is used"
                found.append(f"{file.relative_to(PACKAGE)}: {reason.value!s}")
    return found


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
