"""The table of docs/architecture.md holds, and every wait without a deadline is one that people have read."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
supervisor/daemon.py: a signal comes
supervisor/daemon.py: the daemon runs until it is told to stop
supervisor/daemon.py: what would cut the body short: ended with the body
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

PRIMITIVES = frozenset(
    {
        *("wait", "wait_closed", "wait_readable", "wait_writable", "sleep_forever", "acquire", "accept"),
        *("receive", "receive_exactly", "receive_until", "receive_stream", "send", "send_all"),
        *("connect", "connect_tcp", "connect_unix", "open_unix_connection"),
        *("in_thread", "run_sync"),  # what a thread does: files, mostly
    }
)
"""What waits for something outside: awaited, it needs a bound. So does what of ours has such a name."""
TURNS = frozenset({"Lock", "Semaphore", "CapacityLimiter", "Condition"})
BOUNDS = frozenset({"within", "at_most", "idle", "patience"})
"""``patience`` is the broker's ``within``, which does not count the time in which it reads nothing (broker/kept.py)."""

FILES = "files: a call into a disk that does not answer cannot be ended, in a thread or not"
BARE = {
    "broker/dial.py: connect: self.underlay.connect": "aio_pika calls it within the connect timeout of dial()",
    "broker/dial.py: _renewed_context: in_thread": FILES,
    "broker/kept.py: patience: anyio.CancelScope": "the bound itself, moved while the broker blocks",
    "broker/publisher.py: open_log: async with self._line_turn": "who has the turn has patience in all it does",
    "broker/publisher.py: publish_log: confirmation.wait": "a confirmation has patience (broker/linechannel.py)",
    "broker/publisher.py: publish_result: async with self._result_turn": "who has the turn has patience in all it does",
    "broker/publisher.py: send_log: async with self._line_turn": "who has the turn has patience in all it does",
    "broker/publisher.py: send_log: lines.send": "writing has patience (broker/linechannel.py)",
    "checkout/disk.py: _remove_in_thread: in_thread": FILES,
    "checkout/maintenance.py: look: in_thread": FILES,
    "checkout/mirror.py: make_ready: in_thread": FILES,
    "checkout/tree.py: _make: in_thread": FILES,
    "checkout/tree.py: prune: in_thread": FILES,
    "checkout/tree.py: settle: in_thread": FILES,
    "cli/logs.py: _print: async for chunks": "a person reads until the log's end, and ends it earlier by ^C",
    "control/client.py: connect: anyio.connect_unix": "ControlClient asks within its call's seconds",
    "control/fetch.py: _next_event: self._stream.receive": "ControlClient reads within its call's seconds",
    "control/fetch.py: ask: self._stream.send": "ControlClient asks within its call's seconds",
    "control/fetch.py: fetch: connect": "ControlClient asks within its call's seconds",
    "control/http.py: _next_event: self._stream.receive": "Exchange.read has the seconds of a request",
    "control/http.py: _next_event: self._stream.send": "Exchange.read has the seconds of a request",
    "nix/engine.py: forget: in_thread": FILES,
    "nix/evaluate.py: _one_by_one: async with self._slots": "its holders are processes with deadlines of their own",
    "nix/evaluate.py: _together: async with self._slots": "its holders are processes with deadlines of their own",
    "nix/handshake.py: _greet: receiving.receive_exactly": "greet_daemon is within its seconds",
    "nix/handshake.py: _greet: stream.send": "greet_daemon is within its seconds",
    "nix/handshake.py: _number: receiving.receive_exactly": "greet_daemon is within its seconds",
    "pipeline/courier.py: _send_on: sent.wait": "a confirmation has patience (broker/linechannel.py)",
    "pipeline/courier.py: _send_on: tail.wait": "idle in journal/logwriter.py",
    "process/child.py: _activity: anyio.wait_readable": "Spawner.run has the command's deadline",
    "process/table.py: ps_table: in_thread": "ps has a deadline of its own",
    "remote/ssh.py: _log_in: asyncssh.connect": "open_remote is within its connect timeout",
    "remote/ssh.py: _open_channel: connection.open_unix_connection": "open_remote is within its connect timeout",
    "supervisor/deadholders.py: _look: in_thread": FILES,
    "supervisor/outbox.py: _despite_faults: send": "a courier's: each of its waits is in pipeline/courier.py",
    "supervisor/reload.py: reload: async with self._turn": "the reload before it reads files and dismisses identities",
    "supervisor/reload.py: reload: in_thread": FILES,
    "supervisor/startup.py: sweep: in_thread": FILES,
    "supervisor/view.py: _stream: reader.wait": "idle in journal/logwriter.py",
}
"""``file: function: what is called`` without a bound in this function, and who bounds it."""


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


def test_every_wait_is_bounded_where_it_stands_or_is_listed_with_who_bounds_it() -> None:
    found: list[str] = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0]
        if room not in {"lab", "waiting.py"}:
            tree = ast.parse(file.read_text("utf-8"))
            waits = Waits(turns_of(tree))
            waits.visit(tree)
            found += [f"{file.relative_to(PACKAGE)}: {wait}" for wait in waits.bare]
    assert sorted(set(found)) == sorted(BARE)


@pytest.mark.parametrize(
    ("body", "bare"),
    [
        ("await event.wait()", 1),
        ("with within(1, 'it'):\n        await event.wait()", 0),
        ("with within(1, 'it'):\n        pass\n    await event.wait()", 1),
        ("with within(await event.wait(), 'it'):\n        pass", 1),
        ("with idle('x'):\n        async def g():\n            await anyio.sleep_forever()", 1),
        ("async with self.turn:\n        pass", 1),
        ("with at_most(1):\n        async with self.turn:\n            pass", 0),
        ("with anyio.CancelScope(deadline=1):\n        await event.wait()", 2),
        ("async with asyncio.timeout(1):\n        pass", 1),
        ("await thing.finish()", 0),
        ("await in_thread(work)", 1),
        ("async for each in things:\n        pass", 1),
        ("with at_most(1):\n        async for each in things:\n            pass", 0),
    ],
)
def test_bare_waits_are_seen(body: str, bare: int) -> None:
    waits = Waits(frozenset({"turn"}))
    waits.visit(ast.parse(f"async def f(self):\n    {body}"))
    assert len(waits.bare) == bare, waits.bare


def turns_of(tree: ast.AST) -> frozenset[str]:
    """The attributes that are made a lock or its like."""
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
    return frozenset(
        _name(target)
        for node in made
        if isinstance(node.value, ast.Call) and _name(node.value.func) in TURNS
        for target in node.targets
    )


class Waits(ast.NodeVisitor):
    """Collects, as ``function: call``, what waits and is in no bound of its own function; and bounds of other kinds."""

    def __init__(self, turns: frozenset[str]) -> None:
        self.bare: list[str] = []
        self._turns = turns
        self._function = ""
        self._bounded = False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = self._function, self._bounded
        self._function, self._bounded = node.name, False
        self.generic_visit(node)
        self._function, self._bounded = before

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - as ast names its nodes

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        before = self._bounded
        for item in node.items:
            self.visit(item)
            call = item.context_expr
            if isinstance(node, ast.AsyncWith) and _name(call) in self._turns:
                self._see(f"async with {ast.unparse(call)}")
            self._bounded |= isinstance(call, ast.Call) and _name(call.func) in BOUNDS
        for statement in node.body:
            self.visit(statement)
        self._bounded = before

    visit_AsyncWith = visit_With  # noqa: N815 - as ast names its nodes

    def visit_Await(self, node: ast.Await) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) in PRIMITIVES:
            self._see(ast.unparse(node.value.func))
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._see(f"async for {ast.unparse(node.iter)}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        timed = any(word.arg == "deadline" for word in node.keywords)
        if (_name(node.func) == "CancelScope" and timed) or ast.unparse(node.func) == "asyncio.timeout":
            self.bare.append(f"{self._function}: {ast.unparse(node.func)}")
        self.generic_visit(node)

    def _see(self, what: str) -> None:
        if not self._bounded:
            self.bare.append(f"{self._function}: {what}")


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
