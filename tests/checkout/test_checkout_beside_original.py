"""The original builder on the same root: before ours, after ours, in turns, and at the same moment."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from checkout_bench import NIXPKGS_DIGEST, SYSTEMS, Bench, job_of
from git_upstream import PLAIN_ENVIRONMENT, Upstream, git, picture

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.checkout import Gone
from ofborg_async.model.identity import LimitSettings


class Original:
    """What the original does on disk for a job (wire document, "On disk and in processes"), with plain git."""

    def __init__(self, root: Path, identity: str, url: str) -> None:
        self.project = root / "repo" / NIXPKGS_DIGEST
        self.clone = self.project / "clone"
        self.tree = self.project / "builder" / identity
        self.lock = self.project / "builder" / f"{identity}.lock"
        self.url = url

    def prepare(self, number: int, head: str, branch: str = "master") -> Path:
        self.tree.parent.mkdir(parents=True, exist_ok=True)
        with self.locked(self.project / "clone.lock"):
            if not self.clone.is_dir():
                git("clone", "--bare", self.url, str(self.clone))
        with self.locked(self.project / "clone.lock"):
            git("fetch", "origin", cwd=self.clone)
        with self.locked(self.lock):
            if not self.tree.is_dir():
                git("clone", "--shared", "--reference-if-able", str(self.clone), self.url, str(self.tree))
        for words in (
            ("fetch", "origin"),
            ("am", "--abort"),
            ("merge", "--abort"),
            ("reset", "--hard"),
            ("clean", "-x", "-d", "-f"),
            ("gc", "--quiet"),
            ("checkout", f"origin/{branch}"),
            ("fetch", "origin", f"+refs/pull/{number}/head:pr"),
            ("--no-pager", "show", "--quiet", head),
            ("merge", "--no-gpg-sign", "-m", "Automatic merge for GrahamCOfBorg", head),
        ):
            with self.locked(self.lock):
                git(*words, cwd=self.tree, check="--abort" not in words)
        return self.tree

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        with path.open("w") as file:  # which truncates it, as the original does
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@pytest.mark.parametrize("order", ["original first", "ours first"])
async def test_in_turns(bench: Bench, upstream: Upstream, tmp_path: Path, order: str) -> None:
    original = Original(bench.root("a"), "a", upstream.url)
    workspace = bench.workspace()
    for step in range(6):
        head = upstream.pull_request(step, {f"new{step}": b"1\n"})
        upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved %d\n" % step})
        if (step % 2 == 0) == (order == "original first"):
            path = original.prepare(step, head)
        else:
            path = await bench.ready(workspace, job_of(upstream.url, step, head))
        assert path == bench.tree()
        assert picture(path) == upstream.reference(tmp_path / str(step), "master", head)
        for repository in (original.tree, original.clone):
            git("fsck", "--no-dangling", cwd=repository)
        if step == 3:
            bench.start()
            workspace = bench.workspace()


async def test_what_the_original_had_fetched_counts(bench: Bench, upstream: Upstream) -> None:
    original = Original(bench.root("a"), "a", upstream.url)
    old = upstream.pull_request(7, {"new": b"old\n"})
    original.prepare(7, old)
    new = upstream.pull_request(7, {"new": b"new\n"})
    original.prepare(7, new)
    path = await bench.ready(bench.workspace("a"), job_of(upstream.url, 7, old))
    assert (path / "new").read_bytes() == b"old\n"
    assert isinstance(await bench.prepare(bench.workspace("b"), job_of(upstream.url, 7, old)), Gone)


async def test_clone_of_the_original_stays_its_own(bench: Bench, upstream: Upstream) -> None:
    original = Original(bench.root("a"), "a", upstream.url)
    original.prepare(1, upstream.pull_request(1, {"new": b"1\n"}))
    await bench.ready(bench.workspace(), job_of(upstream.url, 2, upstream.pull_request(2, {"new": b"2\n"})))
    assert not (original.clone / "objects/info/alternates").exists()


@pytest.mark.parametrize("half", ["empty", "refs missing"])
async def test_half_a_clone_is_made_whole(bench: Bench, upstream: Upstream, half: str) -> None:
    original = Original(bench.root("a"), "a", upstream.url)
    original.clone.mkdir(parents=True)
    if half == "refs missing":
        git("clone", "--bare", "--quiet", upstream.url, str(original.clone))
        (original.clone / "packed-refs").unlink()
    await bench.ready(bench.workspace(), job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"})))
    assert git("rev-parse", "HEAD", cwd=original.clone) == upstream.tip()
    original.prepare(2, upstream.pull_request(2, {"new": b"2\n"}))


async def test_half_a_tree_is_made_whole(bench: Bench, upstream: Upstream) -> None:
    """As a clone that was killed leaves it."""
    tree = bench.tree()
    tree.parent.mkdir(parents=True)
    git("init", "--quiet", str(tree))
    git("remote", "add", "origin", "https://example.org/elsewhere", cwd=tree)
    (tree / ".git/objects/pack/tmp_pack_x").write_bytes(b"x" * 1000)
    (tree / ".git/shallow.lock").touch()
    (tree / "half").write_text("x")
    path = await bench.ready(bench.workspace(), job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"})))
    assert set(picture(path)) == {"default.nix", "new", "pkgs", "pkgs/a.nix", "pkgs/b.nix"}
    assert git("config", "remote.origin.url", cwd=path) == upstream.url
    assert not (tree / ".git/objects/pack/tmp_pack_x").exists()


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock, as the original takes it, until its input is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=PLAIN_ENVIRONMENT,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()


@pytest.mark.parametrize("which", ["builder/a.lock", "clone.lock"])
async def test_lock_that_the_original_keeps_is_a_fault_that_names_it(
    bench: Bench, upstream: Upstream, which: str
) -> None:
    limits = LimitSettings(fetch_timeout_seconds=60.0, checkout_timeout_seconds=1.0)
    workspace = bench.workspace(limits=limits)
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    with held_elsewhere(bench.root("a") / "repo" / NIXPKGS_DIGEST / which) as holder:
        with pytest.raises(HostFault) as caught:
            await bench.prepare(workspace, job)
        assert caught.value.kind == FaultKind.LOCK
        assert which in str(caught.value)
        if sys.platform == "linux":
            assert f"process {holder.pid}" in str(caught.value)
    await bench.ready(workspace, job)


async def test_waits_for_the_original_and_keeps_it_waiting(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    lock = bench.root("a") / "repo" / NIXPKGS_DIGEST / "builder" / "a.lock"
    with held_elsewhere(lock) as holder:
        entered = anyio.Event()

        async def work() -> None:
            async with workspace.lease(job, "attempt") as lease:
                entered.set()
                assert _is_locked(lock)
                await workspace.prepare(job, "attempt", lease, bench.phases.append)
                assert _is_locked(lock)
                # A child that was given the descriptor keeps the tree busy for as long as it lives.
                assert all(os.path.samestat(os.fstat(number), lock.stat()) for number in lease.descriptors)

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            while not bench.locks.statistics() or bench.locks.statistics()[0].holder != "another process":
                await anyio.sleep(0.01)
            assert not entered.is_set()
            assert holder.stdin is not None
            holder.stdin.close()
    assert entered.is_set()
    assert not _is_locked(lock)


def _is_locked(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


async def test_lock_files_are_neither_written_nor_removed(bench: Bench, upstream: Upstream) -> None:
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    project = bench.root("a") / "repo" / NIXPKGS_DIGEST
    files = [project / "clone.lock", project / "builder/a.lock", project / f"builder/a.{SYSTEMS[1]}.lock"]
    files[1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("somebody's words\n")
    before = [file.stat().st_ino for file in files]
    for system in SYSTEMS:
        await bench.ready(bench.workspace(system=system), job)
    assert [file.stat().st_ino for file in files] == before
    assert {file.read_text() for file in files} == {"somebody's words\n"}


async def test_child_that_outlives_us_keeps_the_tree(bench: Bench, upstream: Upstream) -> None:
    """The lock belongs to the open file: a child that was given it holds it when we are long gone."""
    limits = LimitSettings(fetch_timeout_seconds=60.0, checkout_timeout_seconds=0.3)
    workspace = bench.workspace(limits=limits)
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    async with workspace.lease(job, "attempt") as lease:
        child = subprocess.Popen(["sleep", "60"], pass_fds=lease.descriptors, env=PLAIN_ENVIRONMENT)
    try:
        with pytest.raises(HostFault, match="is still held by"):
            async with workspace.lease(job, "attempt"):
                pass
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            async with workspace.lease(job, "attempt"):
                break
        except HostFault:
            continue
    else:
        pytest.fail("the lock was never given back")
