"""Real upstream repositories with pull requests, the reference merge by plain git, and pictures of work trees."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

PLAIN_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nowhere",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "somebody",
    "GIT_AUTHOR_EMAIL": "somebody@example.org",
    "GIT_COMMITTER_NAME": "somebody",
    "GIT_COMMITTER_EMAIL": "somebody@example.org",
}


@frozen
class Executable:
    content: bytes


@frozen
class Link:
    target: str


@frozen
class Submodule:
    commit: str


Entry = bytes | Executable | Link | Submodule | None
Changes = Mapping[str, Entry]
Picture = dict[str, tuple[str, bytes]]


def git(*words: str, cwd: Path | None = None, stdin: bytes | None = None, check: bool = True) -> str:
    """Plain git, as a person would use it; its output."""
    done = subprocess.run(
        ["git", *words], cwd=cwd, env=PLAIN_ENVIRONMENT, input=stdin, capture_output=True, check=False, timeout=120
    )
    if check and done.returncode != 0:
        raise AssertionError(f"git {words}: {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="surrogateescape").strip()


class UnmergeableError(Exception):
    """Plain git refuses to merge for a reason that is no conflict."""


class Upstream:
    """A bare repository on this machine that jobs are about."""

    def __init__(self, path: Path, *, default_branch: str = "master") -> None:
        self.path = path
        self.url = f"file://{path}"
        self._moment = 1_700_000_000
        git("init", "--quiet", "--bare", f"--initial-branch={default_branch}", str(path))

    def commit(self, ref: str, changes: Changes, *, parents: Sequence[str] | None = None) -> str:
        """Put a commit on ``ref`` and return it. None deletes a path. By default its parent is what the ref is now."""
        if parents is None:
            tip = git("rev-parse", "--verify", "--quiet", ref, cwd=self.path, check=False)
            parents = [tip] if tip else []
        self._moment += 1
        lines = [f"commit {ref}\ncommitter s <s@e> {self._moment} +0000\ndata 1\nm\n".encode()]
        lines += [f"{word} {parent}\n".encode() for word, parent in zip(("from", "merge"), parents, strict=False)]
        lines += [_change(path, entry) for path, entry in changes.items() if entry is None]
        lines += [_change(path, entry) for path, entry in changes.items() if entry is not None]
        if not parents:
            git("update-ref", "-d", ref, cwd=self.path)
        git("fast-import", "--quiet", "--force", cwd=self.path, stdin=b"".join(lines))
        return git("rev-parse", ref, cwd=self.path)

    def pull_request(self, number: int, changes: Changes, *, base: str = "refs/heads/master") -> str:
        """A pull request with one commit on ``base``; its head."""
        parent = git("rev-parse", "--verify", base, cwd=self.path)
        return self.commit(f"refs/pull/{number}/head", changes, parents=[parent])

    def tip(self, ref: str = "refs/heads/master") -> str:
        return git("rev-parse", "--verify", ref, cwd=self.path)

    def delete(self, ref: str) -> None:
        git("update-ref", "-d", ref, cwd=self.path)

    def reference(self, place: Path, branch: str, head: str) -> Picture | None:
        """What a fresh checkout of the branch and ``git merge`` gives; None when that conflicts.

        Raises UnmergeableError when git does not even try, as when a file is not as its attributes ask for.
        """
        git("clone", "--quiet", "--no-checkout", self.url, str(place))
        git("fetch", "--quiet", "origin", "+refs/pull/*/head:refs/pulls/*", cwd=place)
        git("checkout", "--quiet", "--force", f"origin/{branch}", cwd=place)
        merged = subprocess.run(
            ["git", "merge", "--no-gpg-sign", "-m", "merge", head],
            cwd=place,
            env=PLAIN_ENVIRONMENT,
            capture_output=True,
            check=False,
            timeout=120,
        )
        if b"CONFLICT" not in merged.stdout and merged.returncode != 0:
            raise UnmergeableError(merged.stderr.decode(errors="replace"))
        return picture(place) if merged.returncode == 0 else None


def picture(tree: Path) -> Picture:
    """Every file, link and folder of a work tree, with kind, mode and content; without ``.git``."""
    found: Picture = {}
    for place, folders, files in os.walk(tree):
        if Path(place) == tree and ".git" in folders:
            folders.remove(".git")
        for name in (*folders, *files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            key = str(path.relative_to(tree))
            if stat.S_ISLNK(mode):
                found[key] = ("link", os.fsencode(path.readlink()))
            elif stat.S_ISDIR(mode):
                found[key] = ("folder", b"")
            else:
                found[key] = ("executable" if mode & stat.S_IXUSR else "file", path.read_bytes())
    return found


def _change(path: str, entry: Entry) -> bytes:
    quoted = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    match entry:
        case None:
            return f"D {quoted}\n".encode()
        case Submodule(commit):
            return f"M 160000 {commit} {quoted}\n".encode()
        case Link(target):
            mode, content = "120000", target.encode()
        case Executable(content):
            mode = "100755"
        case _:
            mode, content = "100644", entry
    return f"M {mode} inline {quoted}\ndata {len(content)}\n".encode() + content + b"\n"
