"""Messages and repositories that want to run something, or to read or write outside: canaries stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import evolve
from checkout_bench import Bench, job_of
from git_upstream import Changes, UnmergeableError, Upstream, git, picture
from hostile_repositories import CONTENTS, NAMES, commit_of_names

from ofborg_async.errors import HostFault
from ofborg_async.model.checkout import Gone, Ready, Refused
from ofborg_async.model.job import BuildJob


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that hostile words want to make, and a directory to be in while they are read."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path / "canary"


MESSAGES: dict[str, tuple[type, Callable[[BuildJob, str], BuildJob]]] = {
    "url is an option": (Refused, lambda job, canary: _url(job, f"--upload-pack=touch {canary}")),
    "url is a helper": (Refused, lambda job, canary: _url(job, f"ext::sh -c touch% {canary}")),
    "url is a helper without space": (Refused, lambda job, canary: _url(job, f"ext::touch%20{canary}")),
    "host is an option": (Refused, lambda job, canary: _url(job, f"ssh://-oProxyCommand=touch${{IFS}}{canary}/x")),
    "host is an escaped option": (Refused, lambda job, canary: _url(job, "ssh://%2doProxyCommand=touch/x")),
    "host is an option in short form": (Refused, lambda job, canary: _url(job, "-oProxyCommand=touch:x")),
    "path runs a shell": (Refused, lambda job, canary: _url(job, f"{job.repo.clone_url}';touch {canary};'")),
    # A path may be called so; git takes it as it is, and nothing is there.
    "path substitutes": (HostFault, lambda job, canary: _url(job, f"{job.repo.clone_url}$(touch${{IFS}}{canary})")),
    "branch is an option": (Refused, lambda job, canary: _branch(job, f"--output={canary}")),
    "branch is an upload pack": (Refused, lambda job, canary: _branch(job, f"--upload-pack=touch {canary}")),
    "branch is a refspec": (Refused, lambda job, canary: _branch(job, "master:refs/heads/evil")),
    "branch leads elsewhere": (Refused, lambda job, canary: _branch(job, "../../../../../evil")),
    "branch is a glob": (Refused, lambda job, canary: _branch(job, "*")),
    "head is an option": (Gone, lambda job, canary: _head(job, f"--output={canary}")),
    "head is an option of merge-tree": (Gone, lambda job, canary: _head(job, "--stdin")),
    "head is an expression": (Gone, lambda job, canary: _head(job, "HEAD^{/x}")),
    "name leads elsewhere": (
        Ready,
        lambda job, canary: evolve(job, repo=evolve(job.repo, full_name="../../../../evil")),
    ),
    "name has a NUL": (Ready, lambda job, canary: evolve(job, repo=evolve(job.repo, full_name="a\0b"))),
}
"""What each is answered with, and how it differs from an honest job."""


def _url(job: BuildJob, url: str) -> BuildJob:
    return evolve(job, repo=evolve(job.repo, clone_url=url))


def _branch(job: BuildJob, branch: str) -> BuildJob:
    return evolve(job, pr=evolve(job.pr, target_branch=branch))


def _head(job: BuildJob, head: str) -> BuildJob:
    return evolve(job, pr=evolve(job.pr, head_sha=head))


@pytest.mark.parametrize(("answer", "twist"), MESSAGES.values(), ids=MESSAGES)
async def test_messages_run_nothing(
    bench: Bench, upstream: Upstream, canary: Path, answer: type, twist: Callable[[BuildJob, str], BuildJob]
) -> None:
    workspace = bench.workspace(schemes="file,ssh,https")
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"new": b"1\n"}))
    before = git("for-each-ref", cwd=upstream.path)
    for tried, expected in ((twist(job, str(canary)), answer), (job, Ready), (twist(job, str(canary)), answer)):
        try:
            outcome: object = await bench.prepare(workspace, tried)
        except HostFault as fault:
            outcome = fault
        assert isinstance(outcome, expected), outcome
    assert not canary.exists()
    assert list(Path.cwd().iterdir()) == []
    assert not list(bench.place.parent.rglob("evil*"))
    assert git("for-each-ref", cwd=upstream.path) == before


async def test_refused_messages_reach_no_git(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace(schemes="https")
    job = job_of(upstream.url, 1, "0" * 40)
    assert isinstance(await bench.prepare(workspace, job), Refused)
    assert bench.spawner.commands == []
    # Should the judgement ever miss something, git is told too.
    environment = workspace._git._environment
    assert environment["GIT_ALLOW_PROTOCOL"] == "https"


@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
async def test_contents_run_nothing(
    bench: Bench, upstream: Upstream, tmp_path: Path, canary: Path, contents: Callable[[Path], Changes]
) -> None:
    workspace = bench.workspace()
    first = upstream.pull_request(1, contents(canary))
    second = upstream.pull_request(
        2, {"plain": b"1\n", "outside/canary": b"x\n", "git/config": b"x\n", "sub/x": b"x\n"}
    )
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    for step, (number, head) in enumerate(((1, first), (2, second), (1, first), (2, second))):
        if step == 2:
            bench.start()
            workspace = bench.workspace()
        path = await bench.ready(workspace, job_of(upstream.url, number, head))
        assert not canary.exists()
        with suppress(UnmergeableError):  # plain git dies of that .gitmodules
            assert picture(path) == upstream.reference(tmp_path / f"reference{step}", "master", head)
        assert (path / "pkgs/b.nix").read_bytes() == b"moved\n"
    assert not (path / ".git" / "modules").exists()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("names", NAMES, ids="/".join)
async def test_names_that_leave_the_tree_are_not_checked_out(
    bench: Bench, upstream: Upstream, canary: Path, names: tuple[str, ...]
) -> None:
    """Trees as no git makes them: refused by git at the checkout, a fault of this job only, and nothing is written."""
    head = commit_of_names(upstream, 1, names, canary)
    workspace = bench.workspace()
    good = job_of(upstream.url, 2, upstream.pull_request(2, {"good": b"1\n"}))
    path = await bench.ready(workspace, good)
    clean, config = picture(path), (path / ".git/config").read_bytes()
    outcome = await bench.prepare(workspace, job_of(upstream.url, 1, head))
    assert isinstance(outcome, Refused), outcome
    assert not canary.exists()
    assert not (path.parent / "canary").exists()
    assert await bench.ready(workspace, good) == path
    assert picture(path) == clean
    assert (path / ".git/config").read_bytes() == config


async def test_nothing_of_the_machine_or_the_user_counts(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """Configuration that would run something, in each place git looks at."""
    canary = tmp_path / "canary"
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True)
    script = tmp_path / "run"
    script.write_text(f"#!/bin/sh\ntouch {canary}\n")
    script.chmod(0o755)
    evil = f'[core]\n\thooksPath = {tmp_path}\n\tfsmonitor = {script}\n[filter "x"]\n\tsmudge = {script}\n'
    for place in (home / ".gitconfig", home / ".config/git/config"):
        place.write_text(evil)
    (home / ".config/git/attributes").write_text("* filter=x text eol=crlf\n")
    (tmp_path / "post-checkout").symlink_to(script)
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_CONFIG_SYSTEM": str(home / ".gitconfig"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": str(script),
        "GIT_DIR": str(tmp_path),
        "GIT_SSH_COMMAND": str(script),
        "GIT_EXTERNAL_DIFF": str(script),
        "GIT_TRACE": str(canary),
    }
    hostile = Bench(tmp_path / "hostile", environment)
    head = upstream.pull_request(1, {"new": b"1\n"})
    upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved\n"})
    path = await hostile.ready(hostile.workspace(), job_of(upstream.url, 1, head))
    assert (path / "new").read_bytes() == b"1\n"
    assert not canary.exists()


async def test_configuration_in_the_tree_runs_nothing(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """As somebody who once got to write into ``.git`` would leave it."""
    workspace = bench.workspace()
    head = upstream.pull_request(1, {"new": b"1\n", ".gitattributes": b"new text\n"})
    path = await bench.ready(workspace, job_of(upstream.url, 1, head))
    canary, script = tmp_path / "canary", tmp_path / "run"
    script.write_text(f"#!/bin/sh\ntouch {canary}\n")
    script.chmod(0o755)
    (path / ".git/hooks").mkdir(exist_ok=True)
    for name in ("post-checkout", "post-index-change", "reference-transaction"):
        (path / ".git/hooks" / name).symlink_to(script)
    for key in ("core.fsmonitor", "core.sshCommand", "core.gitProxy", "core.askPass", "core.pager", "diff.external"):
        git("config", key, str(script), cwd=path)
    for number in (2, 3):
        head = upstream.pull_request(number, {"other": b"%d\n" % number})
        upstream.commit("refs/heads/master", {"pkgs/b.nix": b"moved %d\n" % number})
        await bench.ready(workspace, job_of(upstream.url, number, head))
        bench.start()
        workspace = bench.workspace()
    assert not canary.exists()


async def test_tree_of_another_user_is_used_all_the_same(bench: Bench, upstream: Upstream) -> None:
    """A root and an upstream repository that belong to somebody else: ownership is not what decides here."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    heads = [upstream.pull_request(number, {"new": b"%d\n" % number}) for number in range(4)]
    await bench.ready(bench.workspace(), job_of(upstream.url, 0, heads[0]))
    for place in (bench.place, upstream.path):
        for path in (place, *place.rglob("*")):
            os.lchown(path, 12345, 12345)
    for number, url in ((1, upstream.url), (2, str(upstream.path)), (3, upstream.url)):
        bench.start()
        path = await bench.ready(bench.workspace(), job_of(url, number, heads[number]))
        assert (path / "new").read_bytes() == b"%d\n" % number
