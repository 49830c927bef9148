"""Locks and roots of two real processes against a model of what they should be."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lock_helpers import PACKAGE_ROOT, bind_mount, can_mount, is_free

SECONDS = 30.0
pytestmark = pytest.mark.timeout(900)  # many small waits for another process, on a machine that has others to run
MOUNTS = can_mount()


class Process:
    """One worker: told what to do, asked what happened."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("lock_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PACKAGE_ROOT},
        )
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._text = b""
        self.events: list[dict[str, Any]] = []
        self.tell({"state": 0})
        self.descriptors = self.wait_for("state")["descriptors"]

    def tell(self, *commands: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(commands).encode() + b"\n")
        self._process.stdin.flush()

    def read(self, seconds: float) -> bool:
        """Take what it said within ``seconds``; False if nothing."""
        assert self._process.stdout is not None
        if not self._selector.select(seconds):
            return False
        chunk = os.read(self._process.stdout.fileno(), 65536)
        assert chunk, "the worker has died"
        *lines, self._text = (self._text + chunk).split(b"\n")
        self.events += map(json.loads, lines)
        breaches = [event for event in self.events if "breach" in event]
        assert not breaches, breaches
        return True

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event that has ``name``; it is taken out of ``events``, earlier ones stay."""
        over = time.monotonic() + SECONDS
        while True:
            for event in self.events:
                if name in event:
                    self.events.remove(event)
                    return event
            assert self.read(max(0.0, over - time.monotonic())), f"no {name!r}: {self.events}"

    def reset(self) -> None:
        """Have it let go of everything."""
        self.tell({"reset": 0})
        while True:
            self.tell({"state": 0})
            state = self.wait_for("state")
            if state["descriptors"] == self.descriptors and not state["state"]:
                break
        self.events.clear()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class Pool:
    """Workers that have nothing to do, since starting one takes longer than all that is asked of it."""

    def __init__(self) -> None:
        self._idle: list[Process] = []

    def take(self) -> Process:
        return self._idle.pop() if self._idle else Process()

    def give_back(self, worker: Process) -> None:
        worker.reset()
        self._idle.append(worker)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()


POOL = Pool()


@pytest.fixture(scope="module", autouse=True)
def _close_pool() -> Iterator[None]:
    yield
    POOL.close()


class LockMachine(RuleBasedStateMachine):
    """Two workers and a few lock files with several paths each.

    The model: for each worker and file the queue of those who want it, in the order in which they asked; for each file
    who is inside, and children to whom its descriptor was lent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        top = Path(self.stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        (top / "a/in").mkdir(parents=True)
        (top / "to-a").symlink_to("a")
        self.paths = {"a": [top / "a/lock", top / "to-a/lock"], "in": [top / "a/in/lock", top / "to-a/in/lock"]}
        if MOUNTS:
            bound = self.stack.enter_context(bind_mount(top / "a", top / "bound"))
            self.paths["a"].append(bound / "lock")
            self.paths["in"].append(bound / "in/lock")
        for paths in self.paths.values():
            paths[0].touch()
        self.workers = [POOL.take(), POOL.take()]
        self.queues: dict[tuple[int, str], list[int]] = {(w, f): [] for w in (0, 1) for f in self.paths}
        self.inside: dict[str, int | None] = dict.fromkeys(self.paths)
        self.children: dict[str, list[int]] = {file: [] for file in self.paths}
        self.numbers = iter(range(10**9))

    def teardown(self) -> None:
        for worker in self.workers:
            POOL.give_back(worker)
        for pid in chain(*self.children.values()):
            os.kill(pid, signal.SIGKILL)
        self.stack.close()

    def where(self, number: int) -> tuple[int, str]:
        (place,) = [place for place, queue in self.queues.items() if number in queue]
        return place

    def everybody(self) -> list[int]:
        return sorted(chain(*self.queues.values()))

    def forget(self, number: int) -> None:
        worker, file = self.where(number)
        self.queues[worker, file].remove(number)
        if self.inside[file] == number:
            self.inside[file] = None

    def settle(self) -> None:
        """Wait until every file that can be taken by somebody is, by the first of a worker's queue."""
        for file, holder in self.inside.items():
            heads = {self.queues[w, file][0]: w for w in (0, 1) if self.queues[w, file]}
            if holder is None and heads and not self.children[file]:
                self.inside[file] = self.next_inside(heads)

    def next_inside(self, heads: dict[int, int]) -> int:
        over = time.monotonic() + SECONDS
        while True:
            for head, worker in heads.items():
                if {"got": head} in self.workers[worker].events:
                    self.workers[worker].events.remove({"got": head})
                    return head
            assert time.monotonic() < over, f"nobody was given the lock: {heads}, {[w.events for w in self.workers]}"
            for worker in heads.values():
                self.workers[worker].read(0.01)

    @rule(worker=st.integers(0, 1), data=st.data())
    def want(self, worker: int, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.paths)))
        number = next(self.numbers)
        path = data.draw(st.sampled_from(self.paths[file]))
        self.workers[worker].tell({"want": number, "path": str(path)})
        self.queues[worker, file].append(number)
        self.settle()

    @precondition(lambda self: any(holder is not None for holder in self.inside.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([holder for holder in self.inside.values() if holder is not None]))
        worker, _ = self.where(number)
        self.workers[worker].tell({"release": number})
        assert self.workers[worker].wait_for("done") == {"done": number}
        self.forget(number)
        self.settle()

    @precondition(lambda self: self.everybody())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.everybody()))
        worker, _ = self.where(number)
        self.workers[worker].tell({"cancel": number})
        assert self.workers[worker].wait_for("gone") == {"gone": number}
        self.forget(number)
        self.settle()

    @precondition(lambda self: self.pairs())
    @rule(data=st.data(), released_first=st.booleans(), pauses=st.integers(0, 3))
    def release_while_the_next_is_cancelled(self, data: st.DataObject, released_first: bool, pauses: int) -> None:
        holder, following = data.draw(st.sampled_from(self.pairs()))
        worker, _ = self.where(holder)
        # Commands that do nothing let the event loop take some steps between the two.
        commands: list[dict[str, object]] = [{"release": holder}, {"cancel": following}]
        for command in commands if released_first else reversed(commands):
            self.workers[worker].tell(command)
            for _ in range(pauses):
                self.workers[worker].tell()
        assert self.workers[worker].wait_for("done") == {"done": holder}
        assert self.workers[worker].wait_for("gone") == {"gone": following}
        got = {"got": following}  # it may have been inside for a moment
        if got in self.workers[worker].events:
            self.workers[worker].events.remove(got)
        self.forget(holder)
        self.forget(following)
        self.settle()

    def pairs(self) -> list[tuple[int, int]]:
        """Holders with somebody behind them in their worker's queue."""
        return [
            (queue[0], queue[1])
            for queue in self.queues.values()
            if len(queue) > 1 and queue[0] in self.inside.values()
        ]

    @rule(number=st.integers(0, 19))
    def kill_now_and_then(self, number: int) -> None:
        if number > 1:
            return
        self.workers[number].kill()
        for (worker, file), queue in self.queues.items():
            if worker == number:
                if self.inside[file] in queue:
                    self.inside[file] = None
                queue.clear()
        self.workers[number] = POOL.take()
        self.settle()

    @precondition(lambda self: any(holder is not None for holder in self.inside.values()))
    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from([file for file, holder in self.inside.items() if holder is not None]))
        number = self.inside[file]
        assert number is not None
        worker, _ = self.where(number)
        self.workers[worker].tell({"lend": number})
        self.children[file].append(self.workers[worker].wait_for("lent")["lent"])

    @precondition(lambda self: any(self.children.values()))
    @rule(data=st.data())
    def end_child(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from([file for file, children in self.children.items() if children]))
        os.kill(self.children[file].pop(0), signal.SIGKILL)
        self.settle()

    @invariant()
    def the_kernel_agrees(self) -> None:
        for file, paths in self.paths.items():
            if self.inside[file] is not None or self.children[file]:
                assert not is_free(paths[0])
            else:
                over = time.monotonic() + SECONDS  # a killed child is a moment in dying
                while not is_free(paths[0]):
                    assert time.monotonic() < over, f"{file} stays locked"

    @invariant()
    def the_workers_agree(self) -> None:
        for number, worker in enumerate(self.workers):
            worker.tell({"state": 0})
            state = worker.wait_for("state")
            assert worker.events == []
            queues = [[str(n) for n in q] for (w, _), q in self.queues.items() if w == number and q]
            assert sorted(state["state"].values()) == sorted(queues)
            assert state["descriptors"] == worker.descriptors + sum(map(len, queues))


class RootMachine(RuleBasedStateMachine):
    """Two daemons that take roots: no two that are equal or nested are ever held at once, by whatever path."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        top = Path(self.stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        (top / "a/in/deep").mkdir(parents=True)
        (top / "a/out").mkdir()
        (top / "ab").mkdir()
        (top / "to-in").symlink_to("a/in")
        # Each path with the place it leads to.
        self.places = {name: name for name in ("a", "a/in", "a/in/deep", "a/out", "ab")}
        self.places |= {"to-in": "a/in", "to-in/deep": "a/in/deep", "a/in/../out": "a/out"}
        if MOUNTS:
            self.stack.enter_context(bind_mount(top / "a/in", top / "bound"))
            self.places |= {"bound": "a/in", "bound/deep": "a/in/deep"}
        self.top = top
        self.workers = [POOL.take(), POOL.take()]
        self.held: dict[int, tuple[int, str]] = {}
        self.numbers = iter(range(10**9))

    def teardown(self) -> None:
        for worker in self.workers:
            POOL.give_back(worker)
        self.stack.close()

    def excluded(self, place: str) -> bool:
        other = [Path(held) for _, held in self.held.values()]
        mine = Path(place)
        return any(mine == held or mine in held.parents or held in mine.parents for held in other)

    @rule(worker=st.integers(0, 1), data=st.data())
    def take(self, worker: int, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.places)))
        number = next(self.numbers)
        self.workers[worker].tell({"root": number, "path": str(self.top / path)})
        if self.excluded(self.places[path]):
            event = self.workers[worker].wait_for("gone")
            assert event["gone"] == number
            assert "is held by" in event["why"]
        else:
            assert self.workers[worker].wait_for("got") == {"got": number}, self.held
            self.held[number] = worker, self.places[path]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        worker, _ = self.held.pop(number)
        self.workers[worker].tell({"leave": number})
        assert self.workers[worker].wait_for("done") == {"done": number}

    @rule(number=st.integers(0, 19))
    def kill_now_and_then(self, number: int) -> None:
        if number > 1:
            return
        self.workers[number].kill()
        self.held = {n: (worker, place) for n, (worker, place) in self.held.items() if worker != number}
        self.workers[number] = POOL.take()


for machine, examples in ((LockMachine, 8), (RootMachine, 6)):
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )

TestLocks = LockMachine.TestCase
TestRoots = RootMachine.TestCase
