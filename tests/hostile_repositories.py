"""Contents of pull requests that want to run something, or to write outside of the work tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from git_upstream import Changes, Executable, Link, Submodule, Upstream, git


def hooks(canary: Path) -> Changes:
    script = Executable(f"#!/bin/sh\ntouch {canary}\n".encode())
    names = ("post-checkout", "post-merge", "pre-commit", "post-index-change", "reference-transaction")
    return {f"{folder}/{name}": script for folder in ("hooks", ".githooks", "git/hooks") for name in names}


def filters(canary: Path) -> Changes:
    return {
        ".gitattributes": b"* filter=evil diff=evil merge=evil\n*.lfs filter=lfs\n",
        ".gitconfig": f'[filter "evil"]\n\tsmudge = touch {canary}\n\tclean = touch {canary}\n'.encode(),
        ".lfsconfig": b"[lfs]\n\turl = https://evil.example.org\n",
        "x.lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "pkgs/a.nix": b"theirs\n",
    }


def submodules(canary: Path) -> Changes:
    return {
        ".gitmodules": (
            f'[submodule "-u./x"]\n\tpath = sub\n\turl = ext::sh -c touch% {canary}\n\tupdate = !touch {canary}\n'
        ).encode(),
        "sub": Submodule("1" * 40),
    }


def links(canary: Path) -> Changes:
    return {
        "outside": Link(str(canary.parent)),
        "up": Link("../../../../../.."),
        "git": Link(".git"),
        "hook": Link(".git/hooks/post-checkout"),
        "self": Link("self"),
        ".gitattributes": Link("/dev/zero"),
        "pkgs/a.nix": Link("/etc/passwd"),
    }


CONTENTS: dict[str, Callable[[Path], Changes]] = {
    "hooks": hooks,
    "filters": filters,
    "submodules": submodules,
    "links": links,
}
"""Each makes contents that would make the file ``canary``, or lead to where it is."""

NAMES = (
    (".git", "hooks", "post-checkout"),
    (".GIT", "config"),
    ("git~1", "config"),
    (".git\u200c", "config"),
    ("..", "canary"),
    ("x", "..", "..", "canary"),
    (".git",),
)
"""Paths as no git makes them."""


def commit_of_names(upstream: Upstream, number: int, names: tuple[str, ...], canary: Path) -> str:
    """A pull request whose only file has the path ``names``; its head."""
    inner = git("hash-object", "-w", "--stdin", cwd=upstream.path, stdin=f"#!/bin/sh\ntouch {canary}\n".encode())
    mode = b"100755"
    for name in reversed(names):
        raw = mode + b" " + name.encode() + b"\0" + bytes.fromhex(inner)
        inner = git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", cwd=upstream.path, stdin=raw)
        mode = b"40000"
    head = git("commit-tree", "-m", "m", "-p", upstream.tip(), inner, cwd=upstream.path)
    git("update-ref", f"refs/pull/{number}/head", head, cwd=upstream.path)
    return head
