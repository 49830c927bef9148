"""A job's way to its work tree, with every outcome it can have."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from checkout_bench import NIXPKGS_DIGEST, SYSTEMS, Bench, job_of, with_head
from git_upstream import Upstream, git, picture

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.checkout import Gone, MergeConflict, Ready, Refused
from ofborg_async.model.identity import LimitSettings
from ofborg_async.model.status import Phase

if TYPE_CHECKING:
    from ofborg_async.checkout import GitWorkspace
    from ofborg_async.pipeline.ports import Workspace

    def is_the_port(workspace: GitWorkspace) -> Workspace:
        return workspace


async def test_merges_into_the_moved_branch(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    head = upstream.pull_request(7, {"pkgs/a.nix": b"changed\n"})
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    outcome = await bench.prepare(bench.workspace(), job_of(upstream.url, 7, head))
    assert isinstance(outcome, Ready)
    assert outcome.path == bench.tree().resolve()
    assert outcome.path.parent.parent.name == NIXPKGS_DIGEST
    assert picture(outcome.path) == upstream.reference(tmp_path / "reference", "master", head)
    assert git("rev-parse", "HEAD", cwd=outcome.path) == outcome.commit
    assert git("log", "-1", "--format=%s|%an|%ae|%cn", cwd=outcome.path) == (
        "Automatic merge for GrahamCOfBorg|ofborg|ofborg@example.org|ofborg"
    )
    assert git("log", "-1", "--format=%P", cwd=outcome.path) == f"{upstream.tip()} {head}"
    assert bench.phases == [Phase.FETCH, Phase.CHECKOUT]


async def test_fast_forward_and_up_to_date_make_no_commit(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    head = upstream.pull_request(7, {"pkgs/a.nix": b"changed\n"})
    assert await bench.prepare(workspace, job_of(upstream.url, 7, head)) == Ready(bench.tree(), head)
    upstream.commit("refs/heads/master", {"x": b"merged\n"}, parents=[upstream.tip(), head])
    assert await bench.prepare(workspace, job_of(upstream.url, 7, head)) == Ready(bench.tree(), upstream.tip())
    assert (bench.tree() / "x").exists()


async def test_what_is_merged_is_the_head_of_the_message_not_the_tip(bench: Bench, upstream: Upstream) -> None:
    first = upstream.pull_request(7, {"pkgs/a.nix": b"first\n"})
    upstream.commit("refs/pull/7/head", {"pkgs/a.nix": b"second\n"})
    path = await bench.ready(bench.workspace(), job_of(upstream.url, 7, first))
    assert (path / "pkgs/a.nix").read_bytes() == b"first\n"


async def test_conflict_leaves_the_tree_alone(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    good = upstream.pull_request(1, {"new": b"1\n"})
    path = await bench.ready(workspace, job_of(upstream.url, 1, good))
    before = picture(path), (path / ".git/index").stat().st_mtime_ns
    bad = upstream.pull_request(2, {"pkgs/a.nix": b"theirs\n"})
    upstream.commit("refs/heads/master", {"pkgs/a.nix": b"ours\n"})
    bench.phases.clear()
    outcome = await bench.prepare(workspace, job_of(upstream.url, 2, bad))
    assert isinstance(outcome, MergeConflict)
    assert "pkgs/a.nix" in outcome.detail
    assert bench.phases == [Phase.FETCH]
    assert (picture(path), (path / ".git/index").stat().st_mtime_ns) == before


async def test_unrelated_histories_are_a_conflict(bench: Bench, upstream: Upstream) -> None:
    head = upstream.commit("refs/pull/7/head", {"other": b"1\n"}, parents=[])
    assert isinstance(await bench.prepare(bench.workspace(), job_of(upstream.url, 7, head)), MergeConflict)


async def test_missing_pull_request_is_gone(bench: Bench, upstream: Upstream) -> None:
    assert await bench.prepare(bench.workspace(), job_of(upstream.url, 9, "0" * 40)) == Gone(
        "the remote has no refs/pull/9/head"
    )


@pytest.mark.parametrize(
    "head", ["0" * 40, "0" * 64, "not a sha", "", "--output=/tmp/x", "HEAD", "A" * 40], ids=lambda head: head[:12]
)
async def test_head_that_is_no_commit_of_the_pull_request_is_gone(bench: Bench, upstream: Upstream, head: str) -> None:
    upstream.pull_request(7, {"new": b"1\n"})
    assert isinstance(await bench.prepare(bench.workspace(), job_of(upstream.url, 7, head)), Gone)


async def test_objects_that_are_no_commits_are_gone(bench: Bench, upstream: Upstream) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    git("tag", "-a", "-m", "t", "tagged", head, cwd=upstream.path)
    git("update-ref", "refs/pull/8/head", git("rev-parse", f"{head}^{{tree}}", cwd=upstream.path), cwd=upstream.path)
    workspace = bench.workspace()
    await bench.ready(workspace, job_of(upstream.url, 7, head))
    for name in (f"{head}^{{tree}}", f"{head}:new", "refs/tags/tagged"):
        sha = git("rev-parse", name, cwd=upstream.path)
        assert isinstance(await bench.prepare(workspace, job_of(upstream.url, 7, sha)), Gone), name
    tree = git("rev-parse", "refs/pull/8/head", cwd=upstream.path)
    assert isinstance(await bench.prepare(workspace, job_of(upstream.url, 8, tree)), Gone)


async def test_commit_of_another_pull_request_is_gone(bench: Bench, upstream: Upstream) -> None:
    upstream.pull_request(7, {"new": b"1\n"})
    other = upstream.pull_request(8, {"new": b"2\n"})
    assert isinstance(await bench.prepare(bench.workspace(), job_of(upstream.url, 7, other)), Gone)


async def test_missing_target_branch_is_refused(bench: Bench, upstream: Upstream) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    outcome = await bench.prepare(bench.workspace(), job_of(upstream.url, 7, head, "nowhere"))
    assert outcome == Refused("the target branch 'nowhere' does not exist")


async def test_no_target_branch_means_the_default_branch(bench: Bench, tmp_path: Path) -> None:
    upstream = Upstream(tmp_path / "trunk", default_branch="trunk")
    upstream.commit("refs/heads/trunk", {"default.nix": b"{}\n"})
    head = upstream.pull_request(7, {"new": b"1\n"}, base="refs/heads/trunk")
    path = await bench.ready(bench.workspace(), job_of(upstream.url, 7, head, None))
    assert git("rev-parse", "refs/remotes/origin/trunk", cwd=path) == upstream.tip("refs/heads/trunk")
    git("symbolic-ref", "HEAD", "refs/heads/none", cwd=upstream.path)
    outcome = await bench.prepare(bench.workspace("b"), job_of(upstream.url, 7, head, None))
    assert isinstance(outcome, Refused)


async def test_tree_keeps_the_remote_and_its_branch(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    for branch in ("master", "release/1", "release/2"):
        if branch != "master":
            upstream.commit(f"refs/heads/{branch}", {"of": branch.encode()}, parents=[upstream.tip()])
        head = upstream.pull_request(7, {"new": branch.encode()}, base=f"refs/heads/{branch}")
        path = await bench.ready(workspace, job_of(upstream.url, 7, head, branch))
        assert git("rev-parse", f"origin/{branch}", cwd=path) == upstream.tip(f"refs/heads/{branch}")
    assert git("config", "remote.origin.url", cwd=path) == upstream.url
    assert git("config", "remote.origin.fetch", cwd=path) == "+refs/heads/*:refs/remotes/origin/*"


async def test_branch_becomes_a_folder_and_back(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    for branch, gone in (("foo", None), ("foo/bar", "foo"), ("foo/baz", None), ("foo", "foo/bar,foo/baz")):
        for name in (gone or "").split(",") if gone else ():
            upstream.delete(f"refs/heads/{name}")
        upstream.commit(f"refs/heads/{branch}", {"of": branch.encode()}, parents=[upstream.tip()])
        head = upstream.pull_request(7, {"new": branch.encode()}, base=f"refs/heads/{branch}")
        path = await bench.ready(workspace, job_of(upstream.url, 7, head, branch))
        assert git("rev-parse", f"origin/{branch}", cwd=path) == upstream.tip(f"refs/heads/{branch}")
        assert (path / "of").read_text() == branch


async def test_clone_url_changes_under_one_name(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    workspace = bench.workspace()
    head = upstream.pull_request(7, {"new": b"1\n"})
    path = await bench.ready(workspace, job_of(upstream.url, 7, head))
    moved = Upstream(tmp_path / "moved")
    moved.commit("refs/heads/master", {"all": b"new\n"})
    head = moved.pull_request(7, {"new": b"2\n"})
    assert await bench.ready(workspace, job_of(moved.url, 7, head)) == path
    assert set(picture(path)) == {"all", "new"}
    assert git("config", "remote.origin.url", cwd=path) == moved.url
    assert git("config", "remote.origin.url", cwd=path.parent.parent / "clone") == moved.url


async def test_further_systems_have_trees_of_their_own(bench: Bench, upstream: Upstream) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    first = await bench.ready(bench.workspace(system=SYSTEMS[0]), job_of(upstream.url, 7, head))
    second = await bench.ready(bench.workspace(system=SYSTEMS[1]), job_of(upstream.url, 7, head))
    assert (first.name, second.name) == ("a", "a.aarch64-linux")
    assert first.parent == second.parent


async def test_root_behind_a_symbolic_link_is_resolved(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    bench.root("a").parent.mkdir(parents=True)
    bench.root("a").symlink_to(tmp_path / "elsewhere")
    head = upstream.pull_request(7, {"new": b"1\n"})
    path = await bench.ready(bench.workspace(), job_of(upstream.url, 7, head))
    assert path.is_relative_to(tmp_path / "elsewhere")


async def test_repository_that_is_not_there_is_a_fault_of_the_network(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(HostFault) as caught:
        await bench.prepare(bench.workspace(), job_of(f"file://{tmp_path}/nothing", 7, "0" * 40))
    assert caught.value.kind == FaultKind.NETWORK
    assert "nothing" in str(caught.value)


@pytest.mark.parametrize("url", ["git://127.0.0.1:{port}/x", "ssh://nobody@127.0.0.1:{port}/x"])
async def test_nobody_listens(bench: Bench, url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there; not listening, so that it refuses
        workspace = bench.workspace(schemes="git,ssh")
        with pytest.raises(HostFault) as caught:
            await bench.prepare(workspace, job_of(url.format(port=taken.getsockname()[1]), 7, "0" * 40))
    assert caught.value.kind == FaultKind.NETWORK


async def test_ssh_asks_nobody_and_has_deadlines(tmp_path: Path) -> None:
    bin_directory, words = tmp_path / "bin", tmp_path / "words"
    bin_directory.mkdir()
    (bin_directory / "ssh").write_text(
        f'#!/bin/sh\necho "$@" >> {words}\necho "git@example.org: Permission denied (publickey)." >&2\nexit 255\n'
    )
    (bin_directory / "ssh").chmod(0o755)
    bench = Bench(tmp_path / "host", {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"})
    with pytest.raises(HostFault) as caught:
        await bench.prepare(bench.workspace(schemes="ssh"), job_of("git@example.org:o/n.git", 7, "0" * 40))
    assert caught.value.kind == FaultKind.NETWORK
    assert "publickey" in str(caught.value)
    assert words.read_text().startswith("-o BatchMode=yes -o ConnectTimeout=30 ")


def make_silent(upstream: Upstream, place: Path) -> None:
    """From now on the repository answers nothing: whoever opens it waits."""
    (place / "fifo" / "info").mkdir(parents=True)
    os.mkfifo(place / "fifo" / "info" / "alternates")
    (upstream.path / "objects/info/alternates").write_text(f"{place}/fifo\n")


async def test_fetch_has_a_deadline(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    make_silent(upstream, tmp_path)
    limits = LimitSettings(fetch_timeout_seconds=0.5, checkout_timeout_seconds=60.0)
    with pytest.raises(HostFault) as caught:
        await bench.prepare(bench.workspace(limits=limits), job_of(upstream.url, 7, head))
    assert caught.value.kind == FaultKind.NETWORK
    assert "0.5 s" in str(caught.value)


async def test_cancelled_fetch_gives_everything_back(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    make_silent(upstream, tmp_path)
    workspace = bench.workspace()
    async with anyio.create_task_group() as group:
        group.start_soon(bench.prepare, workspace, job_of(upstream.url, 7, head))
        while "fetch" not in bench.spawner.names():
            await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert bench.locks.statistics() == ()
    (upstream.path / "objects/info/alternates").unlink()
    path = await bench.ready(workspace, job_of(upstream.url, 7, head))
    assert (path / "new").exists()


async def test_repository_of_another_hash_is_refused(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "sha256"
    git("init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=master", str(place))
    tree = git("mktree", cwd=place, stdin=b"")
    head = git("commit-tree", "-m", "m", tree, cwd=place)
    for ref in ("refs/heads/master", "refs/pull/7/head"):
        git("update-ref", ref, head, cwd=place)
    outcome = await bench.prepare(bench.workspace(), job_of(f"file://{place}", 7, head))
    assert isinstance(outcome, Refused)
    assert "SHA-256" in outcome.detail


async def test_root_that_cannot_be_made_is_a_fault(bench: Bench, upstream: Upstream) -> None:
    bench.root("a").parent.mkdir(parents=True)
    bench.root("a").write_text("a file")
    with pytest.raises(HostFault, match="cannot be made"):
        await bench.prepare(bench.workspace(), job_of(upstream.url, 7, "0" * 40))


async def test_warm_job_starts_few_commands(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    for number in (1, 2):
        head = upstream.pull_request(number, {f"new{number}": b"1\n"})
        await bench.ready(workspace, job_of(upstream.url, number, head))
    bench.spawner.commands.clear()
    head = upstream.pull_request(3, {"new3": b"1\n"})
    await bench.ready(workspace, job_of(upstream.url, 3, head))
    assert sorted(bench.spawner.names()) == ["checkout", "clean", "diff-tree", "fetch"]
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    bench.spawner.commands.clear()
    await bench.ready(workspace, job_of(upstream.url, 3, head))
    assert sorted(bench.spawner.names()) == [
        "checkout",
        "clean",
        "diff-tree",
        "fetch",
        "merge-tree",
        "update-ref",
    ]
    bench.spawner.commands.clear()
    await bench.ready(workspace, job_of(upstream.url, 3, head))
    assert sorted(bench.spawner.names()) == ["checkout", "clean", "fetch"]


async def test_force_pushed_head_is_built_by_the_root_that_had_it(bench: Bench, upstream: Upstream) -> None:
    mine, other = bench.workspace("a"), bench.workspace("b")
    old = upstream.pull_request(7, {"new": b"old\n"})
    tip = upstream.commit("refs/pull/7/head", {"more": b"old\n"})
    job = job_of(upstream.url, 7, old)
    await bench.ready(mine, with_head(job, tip))
    new = upstream.pull_request(7, {"new": b"new\n"})
    await bench.ready(mine, with_head(job, new))
    await bench.ready(other, with_head(job, new))
    for sha in (tip, old):
        assert (await bench.ready(mine, with_head(job, sha)) / "new").read_bytes() == b"old\n"
        assert isinstance(await bench.prepare(other, with_head(job, sha)), Gone)
    bench.start()  # it is remembered beyond a restart
    assert (await bench.ready(bench.workspace("a"), with_head(job, old)) / "new").read_bytes() == b"old\n"
    assert isinstance(await bench.prepare(bench.workspace("b"), with_head(job, old)), Gone)


async def test_collecting_the_mirror_leaves_trees_whole(bench: Bench, upstream: Upstream) -> None:
    """Whatever became of the pull request: what a tree stands on is kept by refs."""
    workspace = bench.workspace()
    old = upstream.pull_request(7, {"new": b"old\n"})
    await bench.ready(workspace, job_of(upstream.url, 7, old))
    upstream.pull_request(7, {"new": b"new\n"})
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    path = await bench.ready(workspace, job_of(upstream.url, 7, old))
    await workspace.release("attempt")
    git("gc", "--prune=now", "--quiet", cwd=bench.mirror(upstream.url))
    git("fsck", "--strict", "--no-dangling", cwd=path)
    assert git("log", "-1", "--format=%P", cwd=path) == f"{upstream.tip()} {old}"
    new = upstream.tip("refs/pull/7/head")
    for head in (old, new, new):  # its refs are packed now
        await bench.ready(workspace, job_of(upstream.url, 7, head))
