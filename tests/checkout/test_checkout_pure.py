"""Layout, judgement of a stranger's words, and the reading of git's: all without a disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from checkout_bench import NIXPKGS_DIGEST, job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ofborg_async.checkout.layout import branch_key, layout_of, mirror_name
from ofborg_async.checkout.validate import is_commit_name, judge_job, refuse_branch, refuse_url
from ofborg_async.checkout.words import read_failure
from ofborg_async.errors import FaultKind
from ofborg_async.model.checkout import Gone, Refused

ALL = ("https", "http", "ssh", "git", "file")
USUAL = ("https", "ssh", "git", "http")
ROOT = Path("/root-of-a")


def test_places_are_those_of_the_original() -> None:
    layout = layout_of(ROOT, "NixOS/nixpkgs", "a", None)
    project = ROOT / "repo" / NIXPKGS_DIGEST
    assert (layout.clone, layout.clone_lock) == (project / "clone", project / "clone.lock")
    assert (layout.tree, layout.tree_lock) == (project / "builder/a", project / "builder/a.lock")


def test_further_system_lies_beside_the_first() -> None:
    layout = layout_of(ROOT, "NixOS/nixpkgs", "a", "aarch64-darwin")
    assert layout.tree == ROOT / "repo" / NIXPKGS_DIGEST / "builder" / "a.aarch64-darwin"
    assert layout.tree_lock.name == "a.aarch64-darwin.lock"
    # An identity of that very name has the same lock, so that both exclude each other in the one tree.
    assert layout == layout_of(ROOT, "NixOS/nixpkgs", "a.aarch64-darwin", None)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\0b", "a.lock", "x" * 300])
def test_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        layout_of(ROOT, "o/n", name, None)
    with pytest.raises(ValueError, match="cannot name a folder"):
        layout_of(ROOT, "o/n", "a", f"{name}/x")


@given(st.text())
def test_any_repository_name_stays_below_the_root(full_name: str) -> None:
    layout = layout_of(ROOT, full_name, "a", None)
    assert layout.project.parent == ROOT / "repo"
    assert len(layout.project.name) == 32


def test_keys_differ() -> None:
    assert mirror_name("https://a") != mirror_name("https://b")
    assert branch_key("foo") != branch_key("foo/bar")


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/NixOS/nixpkgs.git",
        "https://user:secret@example.org:8443/x",
        "http://localhost:3000/x/y",
        "git://example.org/x",
        "ssh://git@example.org:22/x",
        "ssh://example.org/~user/x",
        "git@github.com:NixOS/nixpkgs.git",
        "example.org:x",
        "https://[::1]/x",
        "file:///srv/git/x",
        "/srv/git/x",
        "https://example.org/with%20space",
        "https://example.org/a?b=c#d",
    ],
)
def test_usual_urls(url: str) -> None:
    assert refuse_url(url, ALL) == ""


HOSTILE_URLS = [
    "",
    "-",
    "--upload-pack=touch /tmp/x",
    "-u./x",
    "ext::sh -c touch% /tmp/x",
    "ext::sh",
    "fd::17",
    "https::https://example.org/x",
    "HTTPS://example.org/x",
    "ftp://example.org/x",
    "ssh://-oProxyCommand=touch%20x/y",
    "ssh://%2doProxyCommand=x/y",
    "ssh://git@-oProxyCommand=x/y",
    "ssh://-l@example.org/y",
    "-oProxyCommand=x:y",
    "git@-oProxyCommand=x:y",
    "git@:y",
    ":y",
    "example.org:",
    "https:///x",
    "https://",
    "https://example.org",
    "https://example.org/",
    "https://example.org:port/x",
    "https://example.org\n/x",
    "https://example.org/x%0ahost=evil",
    "https://example.org/x%00",
    "https://exa mple.org/x",
    "https://example.org\\@evil.org/x",
    "file://host/x",
    "file://",
    "relative/path",
    "./x",
    "../x",
    "x",
    "C:\\x",
    "https://example.org/\u202ex\u2028",
    "https://example.org/\ud800",
    "/srv\n/x",
    "https://example.org/" + "x" * 5000,
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_hostile_urls(url: str) -> None:
    assert refuse_url(url, ALL)
    outcome = judge_job(job_of(url, 1, "0" * 40), ALL)
    assert isinstance(outcome, Refused)
    assert outcome.detail.isascii()
    assert len(outcome.detail) < 800


@pytest.mark.parametrize("url", ["file:///srv/git/x", "/srv/git/x", "/etc"])
def test_local_repositories_only_where_they_are_allowed(url: str) -> None:
    assert "file is not among the allowed transports" in refuse_url(url, USUAL)


def test_transports_that_are_not_configured() -> None:
    assert refuse_url("http://example.org/x", ("https",))
    assert refuse_url("git@example.org:x", ("https",))
    assert refuse_url("ext://example.org/x", (*ALL, "ext"))


@settings(max_examples=300)
@given(
    st.text(max_size=30)
    | st.text("ab/.~^:?*[\\@{}-lock ", max_size=12)
    | st.from_regex(r"[a-c]{1,3}(/[a-c.]{1,6}){0,3}")
)
def test_branches_are_judged_as_git_does(branch: str) -> None:
    """Nothing passes that git-check-ref-format refuses, and nothing well-formed is refused but a leading dash."""
    if "\0" in branch or any("\ud800" <= character <= "\udfff" for character in branch):
        assert refuse_branch(branch)
        return
    refused = BRANCHES.get(branch)
    if refused is None:
        refused = BRANCHES[branch] = _git_refuses(branch)
    assert bool(refuse_branch(branch)) == (refused or branch.startswith("-"))


BRANCHES: dict[str, bool] = {}


def _git_refuses(branch: str) -> bool:
    return subprocess.run(["git", "check-ref-format", f"refs/heads/{branch}"], check=False).returncode != 0


@pytest.mark.parametrize(
    "branch",
    [
        "",
        "--output=x",
        "-x",
        "a..b",
        "a b",
        "a\nb",
        "a:b",
        "+a:refs/heads/x",
        "a^{tree}",
        "a@{1}",
        "a*",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a.",
        "a\\b",
        "x" * 300,
        "a/" * 600 + "a",
        "\ud800",
    ],
)
def test_hostile_branches(branch: str) -> None:
    assert refuse_branch(branch)
    assert isinstance(judge_job(job_of("https://example.org/x", 1, "0" * 40, branch), ALL), Refused)


@pytest.mark.parametrize("branch", ["master", "release-24.05", "a/b/c", "\u00fcml\u00e4ut", "a'b\"c$(d)", "@", "HEAD"])
def test_usual_branches(branch: str) -> None:
    assert refuse_branch(branch) == ""
    assert judge_job(job_of("https://example.org/x", 1, "0" * 40, branch), ALL) is None


@pytest.mark.parametrize(
    "head", ["", "HEAD", "a" * 39, "a" * 41, "A" * 40, "g" * 40, "--output=F", "a" * 40 + "\n", "-" * 40]
)
def test_heads_that_are_none(head: str) -> None:
    assert not is_commit_name(head)
    assert isinstance(judge_job(job_of("https://example.org/x", 1, head), ALL), Gone)


def test_commit_names() -> None:
    assert is_commit_name("0123456789abcdef0123456789abcdef01234567")
    assert is_commit_name("0" * 64)


def test_numbers() -> None:
    assert isinstance(judge_job(job_of("https://example.org/x", -1, "0" * 40), ALL), Refused)
    assert isinstance(judge_job(job_of("https://example.org/x", 2**64, "0" * 40), ALL), Refused)


@pytest.mark.parametrize(
    ("said", "returncode", "kind"),
    [
        ("fatal: unable to access 'https://x/': Could not resolve host: x", 128, FaultKind.NETWORK),
        (
            "ssh: connect to host x port 22: Connection refused\nfatal: Could not read from remote",
            128,
            FaultKind.NETWORK,
        ),
        ("git@x: Permission denied (publickey).\nfatal: Could not read from remote", 128, FaultKind.NETWORK),
        ("error: RPC failed; curl 92 HTTP/2 stream 5 was not closed cleanly\nfatal: early EOF", 128, FaultKind.NETWORK),
        ("fatal: the remote end hung up unexpectedly", 128, FaultKind.NETWORK),
        ("fatal: sha1 file '/x/tmp' write error: No space left on device", 128, FaultKind.DISK),
        ("fatal: index-pack died of signal 9", 128, FaultKind.MEMORY),
        ("fatal: Out of memory, malloc failed (tried to allocate 5 bytes)", 128, FaultKind.MEMORY),
        ("", -9, FaultKind.MEMORY),
        ("", -11, FaultKind.PROCESS),
        ("error: insufficient permission for adding an object to repository database", 128, FaultKind.PERMISSION),
        ("fatal: cannot create '/x/y': Permission denied", 128, FaultKind.PERMISSION),
        ("remote: error: object file x is empty\nfatal: the remote end hung up", 128, FaultKind.REPOSITORY),
        ("something new", 128, FaultKind.REPOSITORY),
    ],
)
def test_failures_by_their_words(said: str, returncode: int, kind: FaultKind) -> None:
    reading = read_failure(said.encode(), returncode)
    assert (reading.kind, reading.damaged) == (kind, False)


def test_missing_refs_are_named() -> None:
    said = b"fatal: Couldn't find remote ref refs/pull/1/head"
    assert read_failure(said, 128).missing_ref == "refs/pull/1/head"


def test_words_are_capped_and_not_repeated() -> None:
    reading = read_failure(b"error: bad object x\n" * 1000 + b"\xff\nfatal: end\n" + b"x" * 10_000, 128)
    assert reading.damaged
    assert len(reading.words) < 700
    assert read_failure(b"a\na\nb\n", 1).words == "a; b"
