"""A real upstream repository with pull requests, as GitHub keeps them: ``refs/pull/N/head`` in a bare repository."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LOOPBACK, Server, base_environment, free_port, listens

Changes = Mapping[str, str | bytes | None]
"""Paths and their new contents; None deletes a path."""

OWNER, NAME = "lab", "packages"

_GIT_DAEMON_SECONDS = 20.0
_FIRST_COMMIT_SECONDS = 1_700_000_000  # commits are a second apart, so that the same steps give the same SHAs
_DEADLINE_SECONDS = 600.0


def package_set() -> dict[str, str]:
    """The files that the recordings of the original builder were made with: one attribute for each kind of outcome."""
    data = files("ofborg_async.lab") / "data"
    return {
        "default.nix": (data / "default.nix").read_text("utf-8"),
        "nixos/release.nix": (data / "release.nix").read_text("utf-8"),
        "doc/readme": "base",
        "a b/ü.txt": "odd names",
    }


class Upstream:
    """A bare repository in ``path``. Its one branch is ``master``; ``url`` is what a job's ``clone_url`` says."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self._moments = itertools.count(_FIRST_COMMIT_SECONDS)

    async def sha(self, ref: str = "refs/heads/master") -> str:
        """The commit of a ref. Raises LabError when there is none."""
        return (await self._git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")).strip()

    async def advance_master(self, changes: Changes) -> str:
        """One more commit on master; its SHA."""
        return await self.commit("refs/heads/master", changes, parents=[await self.sha()])

    async def open_pr(self, number: int, changes: Changes, *, base: str = "refs/heads/master") -> str:
        """Pull request ``number`` with one commit on ``base``, a ref or SHA; the SHA of its head."""
        return await self.commit(_head(number), changes, parents=[await self.sha(base)])

    async def push(self, number: int, changes: Changes) -> str:
        """One more commit on a pull request; its new head."""
        return await self.commit(_head(number), changes, parents=[await self.sha(_head(number))])

    async def force_push(self, number: int, changes: Changes, *, base: str = "refs/heads/master") -> str:
        """Replace all commits of a pull request by one on ``base``; the new head. The old one is lost."""
        await self.sha(_head(number))
        return await self.open_pr(number, changes, base=base)

    async def delete_pr(self, number: int) -> None:
        """Remove the ref of a pull request."""
        await self._git("update-ref", "-d", _head(number), await self.sha(_head(number)))

    async def commit(self, ref: str, changes: Changes, *, parents: Iterable[str]) -> str:
        """Point ``ref`` at a new commit with ``changes`` to its first parent; its SHA. The ref moves also backwards."""
        moment = next(self._moments)
        stream = [f"commit {ref}\ncommitter lab <lab@localhost> {moment} +0000\ndata 6\nchange\n".encode()]
        words = itertools.chain(["from"], itertools.repeat("merge"))
        of_parents = [f"{word} {parent}\n".encode() for word, parent in zip(words, parents, strict=False)]
        if not of_parents:
            stream.insert(0, f"reset {ref}\n".encode())
        stream += of_parents
        stream += [_change(path, content) for path, content in changes.items()]
        await self._git("fast-import", "--quiet", "--force", "--date-format=raw", stdin=b"".join(stream))
        return await self.sha(ref)

    def job(self, number: int, head_sha: str, attrs: Iterable[str], **more: Any) -> dict[str, Any]:
        """A build job about a pull request, as the wire has it; ``more`` are further keys of the message."""
        full_name = f"{OWNER}/{NAME}"
        return {
            "repo": {"owner": OWNER, "name": NAME, "full_name": full_name, "clone_url": self.url},
            "pr": {"target_branch": "master", "number": number, "head_sha": head_sha},
            "subset": None,
            "attrs": list(attrs),
            "request_id": f"request-{number}-{head_sha[:8]}",
            "logs": ["logs", f"{full_name.lower()}.{number}"],
            "statusreport": ["build-results", None],
        } | more

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The URL of a git daemon that serves the repository while the block runs."""
        port = free_port()
        words = ["git", "daemon", "--export-all", f"--listen={LOOPBACK}", f"--port={port}", "--reuseaddr"]
        words += [f"--base-path={self.path.parent}", str(self.path.parent)]
        log = self.path.parent / f"{self.path.name}.daemon.log"
        server = Server("git daemon", words, env=_environment(), log=log)
        try:
            server.start()
            await server.ready(lambda: listens(port), _GIT_DAEMON_SECONDS)
            yield f"git://{LOOPBACK}:{port}/{self.path.name}"
        finally:
            server.kill()

    async def _git(self, *words: str, stdin: bytes | None = None) -> str:
        output = await run(
            "git", *words, env=_environment(), cwd=self.path, stdin=stdin, deadline_seconds=_DEADLINE_SECONDS
        )
        return output.decode()


async def create_upstream(path: Path, contents: Changes | None = None) -> Upstream:
    """A new repository in ``path`` whose master has one commit with ``contents``, by default the package set."""
    await run("git", "init", "--quiet", "--bare", "--initial-branch=master", str(path), env=_environment())
    upstream = Upstream(path, f"file://{path}")
    await upstream.commit("refs/heads/master", package_set() if contents is None else contents, parents=[])
    return upstream


def _head(number: int) -> str:
    return f"refs/pull/{number}/head"


def _environment() -> dict[str, str]:
    return base_environment(HOME="/nonexistent", GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL="/dev/null")


def _change(path: str, content: str | bytes | None) -> bytes:
    quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    if content is None:
        return f'D "{quoted}"\n'.encode()
    data = content.encode() if isinstance(content, str) else content
    return f'M 100644 inline "{quoted}"\ndata {len(data)}\n'.encode() + data + b"\n"
