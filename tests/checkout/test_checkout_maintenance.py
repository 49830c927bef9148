"""Mirrors are packed, and no root that borrows from one is ever the worse for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from checkout_bench import Bench, job_of, with_head
from git_upstream import Upstream, git
from hypothesis import Phase as Stage
from hypothesis import given, settings
from hypothesis import strategies as st
from waits import eventually

from ofborg_async.checkout import MirrorMaintenance, maintenance
from ofborg_async.checkout.maintenance import Heap, heap_of
from ofborg_async.model.checkout import Ready

ROOTS = ("a", "b")
NUMBERS = st.integers(1, 3)
STEPS = st.one_of(
    st.tuples(st.just("push"), NUMBERS, st.sampled_from([1, 130])),
    st.tuples(st.just("delete"), NUMBERS),
    st.tuples(st.just("move"), NUMBERS),
    st.tuples(st.just("job"), st.sampled_from(ROOTS), NUMBERS),
    st.tuples(st.just("job"), st.sampled_from(ROOTS), NUMBERS),
    st.tuples(st.just("old job"), st.sampled_from(ROOTS), st.integers(0, 20)),
    st.tuples(st.just("pack"), NUMBERS),
    st.tuples(st.just("kill"), st.integers(1, 12)),
    st.tuples(st.just("restart"), NUMBERS),
)


@pytest.fixture(autouse=True)
def always_worth_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "LOOSE_OBJECTS", 0)
    monkeypatch.setattr(maintenance, "PACKS", 0)


def git_that(place: Path, repack: str) -> dict[str, str]:
    """An environment whose git does something else when it is to repack."""
    real = shutil.which("git")
    shim = place / "bin" / "git"
    shim.parent.mkdir(parents=True, exist_ok=True)
    shim.write_text(f'#!/bin/sh\ncase " $* " in *" repack "*) {repack};; esac\nexec {real} "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}


def caretaker(bench: Bench, environment: dict[str, str] | None = None) -> MirrorMaintenance:
    return MirrorMaintenance(
        bench.mirrors,
        spawner=bench.spawner,
        locks=bench.locks,
        clock=bench.clock,
        environment=environment or dict(os.environ),
    )


class Story:
    """Two roots on one mirror; what happens to the remote, and in between the mirror is packed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bench = Bench(place / "host")
        self.upstream = Upstream(place / "upstream")
        self.upstream.commit("refs/heads/master", {"default.nix": b"{}\n"})
        self.workspaces = {name: self.bench.workspace(name) for name in ROOTS}
        self.heads: dict[str, list[tuple[int, str]]] = {name: [] for name in ROOTS}
        self.pushes = 0

    async def do(self, step: tuple[object, ...]) -> None:
        match step:
            case "push", int(number), int(files):
                self.pushes += 1
                changes = {f"new{index}": b"%d %d\n" % (self.pushes, index) for index in range(files)}
                self.upstream.pull_request(number, changes)
            case "delete", int(number):
                git("update-ref", "-d", f"refs/pull/{number}/head", cwd=self.upstream.path)
                git("gc", "--quiet", "--prune=now", cwd=self.upstream.path)
            case "move", _:
                self.pushes += 1
                self.upstream.commit("refs/heads/master", {"moved": b"%d\n" % self.pushes})
            case "job", str(root), int(number):
                await self.job(root, number)
            case "old job", str(root), int(choice) if self.heads[root]:
                number, head = self.heads[root][choice % len(self.heads[root])]
                await self.job(root, number, head)
            case "pack", _:
                await caretaker(self.bench).look(quiet=True)
            case "kill", int(milliseconds):
                command = f'exec timeout -s KILL {milliseconds / 1000} {shutil.which("git")} "$@"'
                await caretaker(self.bench, git_that(self.place, command)).look(quiet=True)
            case "restart", _:
                self.bench.start()
                self.workspaces = {name: self.bench.workspace(name) for name in ROOTS}
        self.check()

    async def job(self, root: str, number: int, head: str = "") -> None:
        there = git("rev-parse", "--verify", "--quiet", f"refs/pull/{number}/head", cwd=self.upstream.path, check=False)
        if there:
            job = with_head(job_of(self.upstream.url, number, there), head or there)
            outcome = await self.bench.prepare(self.workspaces[root], job)
            assert isinstance(outcome, Ready), outcome
            self.heads[root].append((number, head or there))

    def check(self) -> None:
        """Everything that a root stands on, and everything that it may be asked for again, is there."""
        for root in ROOTS:
            tree = self.bench.tree(root)
            if (tree / ".git").is_dir():
                git("fsck", "--strict", "--no-dangling", cwd=tree)
                seen = (tree.parent.parent / "ofborg-async.seen").read_bytes()
                git("rev-list", "--objects", "--quiet", "--stdin", cwd=tree, stdin=seen)


@settings(max_examples=6, phases=[Stage.reuse, Stage.generate])  # making a failure smaller takes minutes
@given(st.lists(STEPS, min_size=6, max_size=16))
def test_no_root_is_the_worse_for_maintenance(steps: list[tuple[object, ...]]) -> None:
    """Promise 14: heads come, go and are replaced, and the mirror is packed, at times not to its end."""

    async def tell() -> None:
        with TemporaryDirectory(prefix="mirror-") as place:
            story = Story(Path(place))
            for step in (("push", 1, 1), ("job", "a", 1), *steps, ("push", 1, 1), ("pack", 1), ("old job", "a", 0)):
                await story.do(step)

    anyio.run(tell)


async def test_what_piles_up_is_packed_and_the_large_pack_is_left_alone(bench: Bench, upstream: Upstream) -> None:
    upstream.commit("refs/heads/master", {f"file{index}": b"%d\n" % index for index in range(300)})
    workspace = bench.workspace()
    mirror = bench.mirror(upstream.url)
    await bench.ready(workspace, job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"})))
    (large,) = (mirror / "objects/pack").glob("*.pack")
    for number in range(2, 8):
        await bench.ready(workspace, job_of(upstream.url, number, upstream.pull_request(number, {"n": b"%d" % number})))
    assert heap_of(mirror).loose > 10
    await caretaker(bench).look(quiet=True)
    assert heap_of(mirror) == Heap(0, 2)
    assert large.exists()
    bench.spawner.commands.clear()
    await caretaker(bench).look(quiet=True)  # nothing was fetched since
    assert bench.spawner.names() == []
    git("fsck", "--strict", cwd=bench.tree())


async def test_git_itself_maintains_nothing(bench: Bench, upstream: Upstream) -> None:
    """Every pack that a fetch made stays, where by their own configuration a second one is one too many."""
    workspace = bench.workspace()
    eager = "[gc]\n\tauto = 1\n\tautoPackLimit = 1\n\tautoDetach = false\n[maintenance]\n\tautoDetach = false\n"
    for number in range(1, 5):
        head = upstream.pull_request(number, {f"new{index}": b"%d %d\n" % (number, index) for index in range(130)})
        path = await bench.ready(workspace, job_of(upstream.url, number, head))
        mirror = bench.mirror(upstream.url)
        if number == 1:
            for config in (mirror / "config", path / ".git/config"):
                config.write_text(config.read_text() + eager)
        assert len(list(mirror.glob("objects/pack/*.pack"))) == number
    assert eager in (mirror / "config").read_text()
    assert eager in (path / ".git/config").read_text()


async def test_an_attempt_that_needs_the_mirror_ends_the_packing(
    bench: Bench, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_PATIENCE_SECONDS", 0.2)
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    await bench.ready(workspace, job)
    began = tmp_path / "began"
    slow = caretaker(bench, git_that(tmp_path, f"touch {began}; exec sleep 600"))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:

            async def look() -> None:
                await slow.look(quiet=True)

            group.start_soon(look)
            await eventually("it packs", began.exists)
            await bench.ready(workspace, job)
    await caretaker(bench).look(quiet=True)  # it was not forgotten
    assert heap_of(bench.mirror(upstream.url)).loose == 0


async def test_a_busy_host_packs_only_what_is_much(
    bench: Bench, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "LOOSE_OBJECTS", 4)
    monkeypatch.setattr(maintenance, "PACKS", 4)
    workspace = bench.workspace()
    mirror = bench.mirror(upstream.url)
    await bench.ready(workspace, job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"})))
    before = heap_of(mirror)
    assert before.is_over(1)
    assert not before.is_over(maintenance.BUSY_FACTOR)
    await caretaker(bench).look(quiet=False)
    assert heap_of(mirror) == before
    for number in range(2, 6):
        await bench.ready(workspace, job_of(upstream.url, number, upstream.pull_request(number, {"n": b"%d" % number})))
    await caretaker(bench).look(quiet=False)
    assert heap_of(mirror).loose == 0


async def test_a_mirror_that_is_used_or_broken_is_left_for_later(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    await bench.ready(workspace, job)
    mirror = bench.mirror(upstream.url)
    keeper = caretaker(bench)
    before = heap_of(mirror)
    async with bench.locks.hold_file(bench.mirrors.lock_of(mirror), holder="b", job="1", deadline_seconds=5):
        await keeper.look(quiet=True)
    assert heap_of(mirror) == before
    (mirror / "HEAD").rename(mirror / "gone")
    await keeper.look(quiet=True)
    (mirror / "gone").rename(mirror / "HEAD")
    bench.spawner.commands.clear()
    await keeper.look(quiet=True)  # an hour is not over
    assert bench.spawner.names() == []
