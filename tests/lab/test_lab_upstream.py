from __future__ import annotations

from pathlib import Path

import pytest

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LabError, base_environment
from ofborg_async.lab.upstream import Upstream, create_upstream, package_set


async def git(*words: str, cwd: Path) -> str:
    return (await run("git", *words, env=base_environment(), cwd=cwd)).decode()


async def test_master_has_the_package_set_under_odd_names_too(upstream: Upstream, tmp_path: Path) -> None:
    await git("clone", "-q", upstream.url, "clone", cwd=tmp_path)
    for path, content in package_set().items():
        assert (tmp_path / "clone" / path).read_text() == content


async def test_a_pull_request_conflicts_once_master_changed_the_same_line(upstream: Upstream) -> None:
    head = await upstream.open_pr(7, {"doc/readme": "from the pull request", "new": "file"})
    assert head == await upstream.sha("refs/pull/7/head")
    await git("merge-tree", "--write-tree", "master", head, cwd=upstream.path)
    await upstream.advance_master({"doc/readme": "from master"})
    with pytest.raises(LabError, match="CONFLICT"):
        await git("merge-tree", "--write-tree", "master", head, cwd=upstream.path)


async def test_pull_requests_move_on_are_replaced_and_vanish(upstream: Upstream) -> None:
    first = await upstream.open_pr(1, {"a": "1"})
    second = await upstream.push(1, {"a": None, "b": "2"})
    assert (await git("rev-parse", f"{second}^", cwd=upstream.path)).strip() == first
    assert "a\n" not in await git("ls-tree", "--name-only", second, cwd=upstream.path)
    third = await upstream.force_push(1, {"c": "3"})
    parents = await git("rev-parse", f"{third}^", "master", cwd=upstream.path)
    assert len(set(parents.split())) == 1
    await upstream.delete_pr(1)
    with pytest.raises(LabError):
        await upstream.sha("refs/pull/1/head")
    assert await upstream.sha() != third


async def test_the_same_steps_give_the_same_commits(tmp_path: Path) -> None:
    one, two = [await create_upstream(tmp_path / name, {"file": b"\xff"}) for name in ("one", "two")]
    assert await one.open_pr(1, {"x": "y"}) == await two.open_pr(1, {"x": "y"})


async def test_a_git_daemon_serves_it(upstream: Upstream, tmp_path: Path) -> None:
    async with upstream.served() as url:
        assert url.startswith("git://127.0.0.1:")
        assert await upstream.sha() in await git("ls-remote", url, cwd=tmp_path)
    with pytest.raises(LabError):
        await git("ls-remote", url, cwd=tmp_path)


def test_a_job_is_one(tmp_path: Path) -> None:
    job = Upstream(tmp_path, "file:///x").job(5, "a" * 40, ["ok"], subset="NixOS")
    assert job["pr"] == {"target_branch": "master", "number": 5, "head_sha": "a" * 40}
    assert job["logs"] == ["logs", "lab/packages.5"]
    assert job["subset"] == "NixOS"
