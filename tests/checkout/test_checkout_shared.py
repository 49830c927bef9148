"""Identities that share a mirror, and lanes that share a root, at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
from checkout_bench import SYSTEMS, Bench, job_of
from git_upstream import Upstream, git, picture

from ofborg_async.checkout import GitWorkspace
from ofborg_async.model.job import BuildJob


def size_of(place: Path) -> int:
    """Bytes of all files below."""
    return sum(path.lstat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())


async def test_four_identities_at_once(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    workspaces = {name: bench.workspace(name) for name in names}
    heads = {number: upstream.pull_request(number, {f"new{number}": b"%d\n" % number}) for number in range(8)}
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    expected = {number: upstream.reference(tmp_path / str(number), "master", heads[number]) for number in heads}

    async def lane(place: int, name: str) -> None:
        for round_number in range(4):
            number = (place * 3 + round_number) % len(heads)
            path = await bench.ready(workspaces[name], job_of(upstream.url, number, heads[number]))
            assert picture(path) == expected[number]

    async with anyio.create_task_group() as group:
        for place, name in enumerate(names):
            group.start_soon(lane, place, name)
    assert len([path for path in bench.mirror(upstream.url).parent.iterdir() if path.is_dir()]) == 1
    for name in names:
        git("fsck", "--no-dangling", cwd=bench.tree(name))
    assert bench.locks.statistics() == ()


async def test_two_lanes_of_one_identity(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """They share the root, its clone and what it has seen, and never a tree."""
    lanes = [bench.workspace(system=system) for system in SYSTEMS]
    heads = [upstream.pull_request(number, {"new": b"%d\n" % number}) for number in range(6)]
    expected = [upstream.reference(tmp_path / str(number), "master", head) for number, head in enumerate(heads)]
    inside: set[Path] = set()

    async def job(workspace: GitWorkspace, number: int) -> None:
        task = job_of(upstream.url, number, heads[number])
        async with workspace.lease(task, "attempt") as lease:
            await workspace.prepare(task, "attempt", lease, bench.phases.append)
            path = bench.tree() if workspace is lanes[0] else bench.tree().with_name(f"a.{SYSTEMS[1]}")
            assert path not in inside
            inside.add(path)
            assert picture(path) == expected[number]
            await anyio.sleep(0.01)
            assert picture(path) == expected[number]
            inside.remove(path)

    async with anyio.create_task_group() as group:
        for number in range(6):
            for workspace in lanes:
                group.start_soon(job, workspace, number)


async def test_history_is_kept_once(bench: Bench, upstream: Upstream) -> None:
    """Four roots, a history much larger than a tree, over a transport that makes no hard links."""
    for _ in range(6):
        upstream.commit("refs/heads/master", {"big": os.urandom(1_000_000)})
    upstream.commit("refs/heads/master", {"big": None})
    head = upstream.pull_request(1, {"new": b"1\n"})

    async def build(name: str) -> None:
        await bench.ready(bench.workspace(name), job_of(upstream.url, 1, head))

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c", "d"):
            group.start_soon(build, name)
    assert size_of(bench.mirror(upstream.url)) < 7_000_000
    assert sum(size_of(bench.root(name)) for name in ("a", "b", "c", "d")) < 200_000


async def test_warm_jobs_leave_little_behind(bench: Bench, upstream: Upstream) -> None:
    """Refs do not grow with jobs; merges of the past are deleted."""
    workspace = bench.workspace()
    upstream.commit("refs/heads/master", {"pkgs/c.nix": b"moved\n"})

    async def run(numbers: range) -> None:
        for number in numbers:
            parent = git("rev-parse", "refs/heads/master~1", cwd=upstream.path)
            head = upstream.commit(f"refs/pull/{number}/head", {f"new{number}": b"1\n"}, parents=[parent])
            await bench.ready(workspace, job_of(upstream.url, number, head))

    await run(range(3))
    refs = git("for-each-ref", "--format=%(refname)", cwd=bench.mirror(upstream.url))
    await run(range(3, 8))
    assert git("for-each-ref", "--format=%(refname)", cwd=bench.mirror(upstream.url)) == refs
    objects = bench.tree() / ".git/ofborg-async/objects"
    files = [path for folder in objects.glob("??") for path in folder.iterdir()]
    assert len(files) >= 8
    for path in files:
        os.utime(path, (1, 1))
    bench.start()
    workspace = bench.workspace()
    await run(range(8, 9))
    left = [path for folder in objects.glob("??") for path in folder.iterdir()]
    assert 1 <= len(left) <= 3
    git("fsck", "--no-dangling", cwd=bench.tree())
    await run(range(9, 10))


async def test_what_was_seen_is_bounded(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job: BuildJob = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    await bench.ready(workspace, job)
    seen = bench.tree().parent.parent / "ofborg-async.seen"
    assert job.pr.head_sha in seen.read_text()
    seen.write_text("".join(f"{number:040x}\n" for number in range(20_001)))
    head = upstream.commit("refs/pull/1/head", {"new": b"2\n"})
    await bench.ready(workspace, job_of(upstream.url, 1, head))
    lines = seen.read_text().splitlines()
    assert len(lines) == 10_000
    assert lines[-1] == head


async def test_local_repository_is_fetched_first_without_a_search_for_deltas(bench: Bench, upstream: Upstream) -> None:
    """The search is most of the time of a clone; what the other side's packs have as deltas comes as deltas."""
    rows = [b"%064x\n" % (number * 0x9E3779B97F4A7C15) for number in range(2000)]
    for number in range(60):
        upstream.commit("refs/heads/master", {"big": b"".join([*rows[:number], b"changed\n", *rows[number:]])})
    head = upstream.pull_request(7, {"new": b"1\n"})
    git("repack", "-a", "-d", "-q", cwd=upstream.path)
    await bench.ready(bench.workspace(), job_of(upstream.url, 7, head))
    await bench.ready(bench.workspace("b"), job_of(upstream.url, 7, head))
    searched = ["pack.window=0" not in " ".join(words) for words in bench.spawner.commands if "fetch" in words]
    assert searched == [False, True]
    (theirs,) = upstream.path.glob("objects/pack/*.pack")
    (ours,) = bench.mirror(upstream.url).glob("objects/pack/*.pack")
    assert ours.stat().st_size < 2 * theirs.stat().st_size
