"""Commits as loose objects: what git wrote is read, git reads what we write; and merges that are told from trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkout_bench import Bench, job_of
from git_upstream import Upstream, git

from ofborg_async.checkout.objects import Commit, identity, read_commit, write_commit
from ofborg_async.errors import FaultKind, HostFault


@pytest.fixture
def objects(upstream: Upstream) -> Path:
    return upstream.path / "objects"


def loose(objects: Path, name: str) -> Path:
    return objects / name[:2] / name[2:]


def tree_of(upstream: Upstream, commit: str) -> str:
    return git("rev-parse", f"{commit}^{{tree}}", cwd=upstream.path)


def test_commits_are_read_as_git_wrote_them(upstream: Upstream, objects: Path) -> None:
    root = upstream.tip()
    tree = tree_of(upstream, root)
    parents = [root, *(git("commit-tree", "-m", str(n), "-p", root, tree, cwd=upstream.path) for n in range(12))]
    for count in (0, 1, 2, 13):
        words = [word for parent in parents[:count] for word in ("-p", parent)]
        name = git("commit-tree", "-m", "m\n\nparent " + "0" * 40, *words, tree, cwd=upstream.path)
        assert read_commit(objects, name) == Commit(tree, tuple(parents[:count]))


def test_what_is_not_plainly_a_commit_is_for_git_to_say(upstream: Upstream, objects: Path) -> None:
    head = upstream.tip()
    git("tag", "-a", "-m", "t", "tagged", head, cwd=upstream.path)
    for other in ("0" * 40, tree_of(upstream, head), git("rev-parse", "tagged", cwd=upstream.path)):
        assert read_commit(objects, other) is None
    many = "".join(f"parent {number:040x}\n" for number in range(200))
    raw = f"tree {tree_of(upstream, head)}\n{many}author a <a> 1 +0000\ncommitter a <a> 1 +0000\n\nm\n".encode()
    long = git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", cwd=upstream.path, stdin=raw)
    assert read_commit(objects, long) is None  # its parents do not all fit, and half of them would be wrong


@pytest.mark.parametrize("content", [b"", b"no zlib", b"\x78\x9c\x03"], ids=["empty", "other", "cut"])
def test_damaged_object_is_for_git_to_say(upstream: Upstream, objects: Path, content: bytes) -> None:
    head = upstream.pull_request(7, {"new": b"1\n"})
    assert read_commit(objects, head) is not None
    loose(objects, head).chmod(0o600)
    loose(objects, head).write_bytes(content)
    assert read_commit(objects, head) is None


def test_packed_commit_is_for_git_to_say(upstream: Upstream, objects: Path) -> None:
    head = upstream.tip()
    git("repack", "-a", "-d", "-q", cwd=upstream.path)
    assert read_commit(objects, head) is None


def test_written_commit_is_the_one_that_git_would_write(upstream: Upstream, objects: Path) -> None:
    base, head = upstream.tip(), upstream.pull_request(7, {"new": b"1\n"})
    tree = tree_of(upstream, head)
    name = write_commit(
        objects, Commit(tree, (base, head)), identity("ofborg", "o@localhost", 1_700_000_000.9), "Merge"
    )
    raw = git("cat-file", "commit", name, cwd=upstream.path)
    assert raw.splitlines() == [
        f"tree {tree}",
        f"parent {base}",
        f"parent {head}",
        "author ofborg <o@localhost> 1700000000 +0000",
        "committer ofborg <o@localhost> 1700000000 +0000",
        "",
        "Merge",
    ]
    assert git("hash-object", "-t", "commit", "--stdin", cwd=upstream.path, stdin=f"{raw}\n".encode()) == name
    git("update-ref", "refs/heads/merged", name, cwd=upstream.path)
    git("fsck", "--strict", "--no-dangling", cwd=upstream.path)
    assert read_commit(objects, name) == Commit(tree, (base, head))
    assert (
        write_commit(objects, Commit(tree, (base, head)), identity("ofborg", "o@localhost", 1_700_000_000), "Merge")
        == name
    )
    assert not list(objects.rglob("tmp_obj*"))


@pytest.mark.parametrize(
    "name", ["ofborg", " .Jane <x> O'Doe\n; ", "a\nb", "ü\u2028", "<>", "", ".", "a\0b", "committer x <y> 1 +0000"]
)
def test_no_name_makes_a_commit_that_git_refuses(upstream: Upstream, objects: Path, name: str) -> None:
    tree = tree_of(upstream, upstream.tip())
    commit = write_commit(objects, Commit(tree, ()), identity(name, name, 1), "m")
    git("update-ref", "refs/heads/named", commit, cwd=upstream.path)
    git("fsck", "--strict", "--no-dangling", cwd=upstream.path)


def test_full_or_forbidden_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="a merge cannot be written") as caught:
        write_commit(tmp_path / "missing", Commit("0" * 40, ()), identity("a", "a", 1), "m")
    assert caught.value.kind is FaultKind.OTHER


# --- what a merge is told from


async def built(bench: Bench, upstream: Upstream, head: str) -> str | list[str]:
    """What is checked out for pull request 7 with this head: a commit that upstream has, or the parents of a merge."""
    path = await bench.ready(bench.workspace(), job_of(upstream.url, 7, head))
    commit, *found = git("log", "-1", "--format=%H %P", cwd=path).split()
    return commit if commit in git("rev-list", "--all", cwd=upstream.path).split() else found


@pytest.mark.parametrize("commits", [1, 3])
async def test_pull_request_on_the_newest_master_is_taken_as_it_is(
    bench: Bench, upstream: Upstream, commits: int
) -> None:
    head = upstream.pull_request(7, {"new": b"0\n"})
    for number in range(1, commits):
        head = upstream.commit("refs/pull/7/head", {"new": b"%d\n" % number})
    assert await built(bench, upstream, head) == head


async def test_pull_request_that_was_merged_is_master(bench: Bench, upstream: Upstream) -> None:
    old = upstream.tip()
    head = upstream.pull_request(7, {"new": b"1\n"})
    master = upstream.commit("refs/heads/master", {"new": b"1\n"}, parents=[old, head])
    assert await built(bench, upstream, head) == master
    assert await built(bench, upstream, master) == master


async def test_pull_request_without_a_change_is_a_merge_all_the_same(bench: Bench, upstream: Upstream) -> None:
    """Its tree, or master's, is the merged tree, though neither has the other."""
    old = upstream.tip()
    head = upstream.pull_request(7, {"new": b"1\n"})
    master = upstream.commit("refs/heads/master", {"new": b"1\n"}, parents=[old])
    assert await built(bench, upstream, head) == [master, head]


async def test_pull_request_that_comes_as_a_pack_is_merged(bench: Bench, upstream: Upstream) -> None:
    old = upstream.tip()
    await bench.ready(bench.workspace(), job_of(upstream.url, 7, upstream.pull_request(7, {"new": b"1\n"})))
    head = upstream.commit("refs/pull/7/head", {f"new{n}": b"%d\n" % n for n in range(150)}, parents=[old])
    master = upstream.commit("refs/heads/master", {"moved": b"1\n"})
    assert await built(bench, upstream, head) == [master, head]
    assert "cat-file" in bench.spawner.names()
