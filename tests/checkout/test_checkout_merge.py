"""The tree that is built is the one that a fresh checkout and ``git merge`` give, whatever was checked out before."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from checkout_bench import Bench, job_of
from git_upstream import Changes, Entry, Executable, Link, Submodule, UnmergeableError, Upstream, git, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofborg_async.model.checkout import MergeConflict, Ready

LINES = [b"%d\n" % number for number in range(12)]


def text(*changed: int, word: bytes = b"x") -> bytes:
    """Twelve lines, some of them changed."""
    return b"".join(word + b"\n" if number in changed else line for number, line in enumerate(LINES))


async def compare(bench: Bench, upstream: Upstream, place: Path, number: int, head: str) -> str:
    """Prepare a job and do it by hand; what came of both."""
    workspace = bench.workspace()
    try:
        expected = upstream.reference(place, "master", head)
    except UnmergeableError:
        return "unmergeable"
    outcome = await bench.prepare(workspace, job_of(upstream.url, number, head))
    if expected is None:
        assert isinstance(outcome, MergeConflict), outcome
        return "conflict"
    assert isinstance(outcome, Ready), outcome
    assert picture(outcome.path) == expected
    return "merged"


ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.sets(st.integers(0, 11), max_size=3).map(lambda changed: text(*changed)),
    st.sets(st.integers(0, 11), max_size=3).map(lambda changed: text(*changed, word=b"y")),
    st.just(Executable(text(1))),
    st.sampled_from([Link("a"), Link("../b"), Link("/etc/passwd"), Link("d")]),
    st.just(Submodule("1" * 40)),
    st.none(),
)
ATTRIBUTES: st.SearchStrategy[Entry] = st.sampled_from(
    [
        b"* merge=union\n",
        b"a -merge\n",
        b"* text=auto eol=crlf\n",
        b"a text eol=crlf\n",
        b"* text\n* ident\n",
        b"* export-ignore export-subst filter=lfs diff=none\n",
        b"a working-tree-encoding=UTF-16\n",
        b"[attr]odd -text\n* odd bad..name\n",
        None,
    ]
)
PATHS = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d", "f/g/h/a", "f", "n ew", "\u00fc"]
CHANGES = st.tuples(
    st.dictionaries(st.sampled_from(PATHS), ENTRIES, min_size=1, max_size=4),
    st.dictionaries(st.sampled_from([".gitattributes", "d/.gitattributes"]), ATTRIBUTES, max_size=1),
).map(lambda parts: {**parts[0], **parts[1]})


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(first=CHANGES, steps=st.lists(st.tuples(CHANGES, CHANGES), min_size=2, max_size=3))
def test_any_history(first: Changes, steps: list[tuple[Changes, Changes]]) -> None:
    async def run(place: Path) -> None:
        upstream, bench = Upstream(place / "upstream"), Bench(place / "host")
        base: dict[str, Entry] = {path: text() for path in ("a", "b", "c", "d/a", "d/b", "d/e/a", "f/g/h/a")}
        upstream.commit("refs/heads/master", {**base, **first})
        workspace = bench.workspace()
        for number, (theirs, ours) in enumerate(steps, 1):
            head = upstream.pull_request(number, theirs)
            upstream.commit("refs/heads/master", ours)
            try:
                expected = upstream.reference(place / f"reference-{number}", "master", head)
            except UnmergeableError:
                continue
            outcome = await bench.prepare(workspace, job_of(upstream.url, number, head))
            if expected is None:
                assert isinstance(outcome, MergeConflict), outcome
            else:
                assert isinstance(outcome, Ready), outcome
                assert picture(outcome.path) == expected

    with tempfile.TemporaryDirectory() as place:
        asyncio.run(run(Path(place)))


@pytest.mark.parametrize(
    ("attributes", "theirs", "expected"),
    [
        ({}, text(3), "conflict"),
        ({".gitattributes": b"f merge=union\n"}, text(3), "merged"),
        ({"d/.gitattributes": b"f merge=union\n"}, text(3), "merged"),
        ({"other/.gitattributes": b"f merge=union\n"}, text(3), "conflict"),
        ({".gitattributes/f": b"* -merge\n", "d/.gitattributes": b"f merge=union\n"}, text(3), "merged"),
        ({}, text(9), "merged"),
        ({".gitattributes": b"* -merge\n"}, text(9), "conflict"),
        ({"d/.gitattributes": b"f binary\n"}, text(9), "conflict"),
    ],
)
async def test_merge_attributes_are_those_of_the_target_branch(
    bench: Bench, upstream: Upstream, tmp_path: Path, attributes: Changes, theirs: bytes, expected: str
) -> None:
    upstream.commit("refs/heads/master", {"d/f": text()})
    head = upstream.pull_request(7, {"d/f": theirs})
    upstream.commit("refs/heads/master", {"d/f": text(3, word=b"y"), **attributes})
    assert await compare(bench, upstream, tmp_path / "reference", 7, head) == expected


async def test_attributes_of_the_last_job_do_not_count(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    upstream.commit("refs/heads/master", {"f": text()})
    first = upstream.pull_request(1, {".gitattributes": b"f merge=union\n"})
    second = upstream.pull_request(2, {"f": text(3)})
    upstream.commit("refs/heads/master", {"f": text(3, word=b"y")})
    assert await compare(bench, upstream, tmp_path / "1", 1, first) == "merged"
    assert await compare(bench, upstream, tmp_path / "2", 2, second) == "conflict"


async def test_files_are_written_as_a_fresh_checkout_would(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """Line ends follow attributes that changed while the file did not, in one workspace from job to job."""
    workspace = bench.workspace()
    upstream.commit("refs/heads/master", {"f": text(), "g": text()})
    plain = upstream.pull_request(1, {"g": text(1)})
    crlf = upstream.pull_request(2, {".gitattributes": b"* text eol=crlf\n", "g": text(2)})
    for step, (number, head) in enumerate([(1, plain), (2, crlf), (1, plain), (2, crlf), (2, crlf)]):
        path = await bench.ready(workspace, job_of(upstream.url, number, head))
        assert picture(path) == upstream.reference(tmp_path / str(step), "master", head)
        if step == 3:
            upstream.commit("refs/heads/master", {"h": b"moved\n"})
            bench.start()
            workspace = bench.workspace()
    upstream.commit("refs/heads/master", {".gitattributes": b"* text eol=crlf\n"})
    for number, head in ((1, plain), (2, crlf)):
        path = await bench.ready(workspace, job_of(upstream.url, number, head))
        assert picture(path) == upstream.reference(tmp_path / f"after-{number}", "master", head)
        assert (path / "f").read_bytes().startswith(b"0\r\n")


async def test_attribute_files_at_names_that_lead_elsewhere_are_not_written(
    bench: Bench, upstream: Upstream, tmp_path: Path
) -> None:
    """A target branch whose trees have ``..`` in them: nothing of it leaves the tree."""
    workspace = bench.workspace()

    def tree(content: bytes) -> str:
        blob = git("hash-object", "-w", "--stdin", cwd=upstream.path, stdin=content)
        attributes = git("hash-object", "-w", "--stdin", cwd=upstream.path, stdin=b"* merge=union\n")
        inner = git(
            "mktree",
            cwd=upstream.path,
            stdin=f"100644 blob {attributes}\t.gitattributes\n100644 blob {blob}\tf\n".encode(),
        )
        for _ in range(6):
            raw = b"40000 ..\0" + bytes.fromhex(inner)
            inner = git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", cwd=upstream.path, stdin=raw)
        return inner

    def commit(ref: str, content: bytes, *parents: str) -> str:
        words = [word for parent in parents for word in ("-p", parent)]
        sha = git("commit-tree", "-m", "m", *words, tree(content), cwd=upstream.path)
        git("update-ref", ref, sha, cwd=upstream.path)
        return sha

    base = commit("refs/heads/master", text())
    head = commit("refs/pull/7/head", text(3), base)
    commit("refs/heads/master", text(3, word=b"y"), base)
    outcome = await bench.prepare(workspace, job_of(upstream.url, 7, head))
    assert isinstance(outcome, MergeConflict)
    assert not list(tmp_path.rglob(".gitattributes"))
