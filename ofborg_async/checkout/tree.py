"""The work tree of one system of an identity: made, brought into a known state, moved from commit to commit.

A dirty tree must never be built. What makes sure of it, cheapest first:

- Before each job everything that is not tracked is removed (``clean -ffdx``), while the fetch runs. That is 0.12 s of a
  tree with 40,000 files, and there is no way to know that nobody dropped a file there.
- The forced checkout looks at every tracked file and writes those anew that are not as the index has them.
- So the index must be true. Its fingerprint is taken after our checkout; when it differs before the next one, or when
  the last job did not end well, or after a start, the index is thrown away and made from the contents of all files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

from ofborg_async.checkout import disk
from ofborg_async.checkout.git import BoundGit, GitFault, text_of
from ofborg_async.checkout.layout import Layout
from ofborg_async.checkout.seen import SeenCommits
from ofborg_async.checkout.validate import is_commit_name
from ofborg_async.checkout.words import read_failure
from ofborg_async.process import Completed
from ofborg_async.waiting import in_thread

_ATTRIBUTE_FILES = ":(top,glob)**/.gitattributes"
_KEPT_OBJECTS_SECONDS = 3600.0
_REMOTE_REFS = "+refs/heads/*:refs/remotes/origin/*"
# A checkout that cannot remove or replace something warns, and exits with 0. What else it says may come from a
# stranger's .gitattributes.
_LEFT_BEHIND = re.compile(rb"(?:unable to|cannot|failed to|could not) (?:unlink|rmdir|remove|create|symlink|stat)")


@frozen
class Fingerprint:
    """What changes when anybody but us uses git in the tree.

    HEAD, and (inode, size, mtime, ctime) of files of its repository.
    """

    head: str
    files: tuple[tuple[int, int, int, int], ...]


@frozen
class TreeState:
    """How our last job left the tree: merged from ``base`` (``branch`` of ``url``) and ``head`` to ``commit``."""

    url: str
    branch: str
    base: str
    head: str
    commit: str
    fingerprint: Fingerprint
    pruned_at_seconds: float


@frozen
class Settled:
    """The tree before a job.

    ``commit`` is what its files are, None if nothing. ``base`` is what that was merged onto, None if unknown. ``sure``:
    our own last job left it so, and no file had to be read.
    """

    commit: str | None
    base: str | None
    sure: bool


@frozen
class WorkTree:
    """The tree of ``layout``, whose lock the caller and ``git`` hold. ``borrowed``: the mirror's objects."""

    git: BoundGit
    layout: Layout
    url: str
    borrowed: Path

    @property
    def objects(self) -> Path:
        """Where merges are written: of use until the tree moves on, so that old ones can simply be deleted."""
        return self.layout.own_directory / "objects"

    @property
    def scratch(self) -> Path:
        """A directory for merges."""
        return self.layout.own_directory / "scratch"

    @property
    def _mixed(self) -> Path:
        """Exists while files may have been written under attributes other than the commit's own."""
        return self.layout.own_directory / "mixed"

    async def settle(self, state: TreeState | None) -> Settled:
        """Bring the tree into a known state, whatever happened to it; make it if there is none. Raises HostFault."""
        if state is not None and state.url == self.url and state.fingerprint == self.fingerprint():
            await self._clean()
            return Settled(state.commit, state.base, sure=True)
        await disk.discard_leftovers(self.layout.tree)
        if (self.layout.git_directory / "HEAD").is_file():
            await in_thread(self._clear)
        else:
            await disk.discard(self.layout.tree)
            await self._make()
        await self._point_at_remote()
        commit = await self._rebuild_index()
        await self._clean()
        return Settled(commit, None, sure=False)

    async def move(self, settled: Settled, commit: str, base: str) -> None:
        """Make the files those of ``commit``, which was merged onto ``base``. Raises HostFault."""
        compared = () if (settled.commit, settled.base) == (commit, base) else (settled.commit, base)
        others = [other for other in dict.fromkeys(compared) if other is not None and other != commit]
        if self._mixed.exists() or await self._attributes_differ(commit, others):
            await self._render_anew(commit, base)
        else:
            await self._checkout(commit)
        if settled.commit and not settled.sure:
            await self._verify()

    async def set_origin(self, branch: str, base: str) -> None:
        """Set ``refs/remotes/origin/<branch>``, also where a branch became a folder or the other way round (D05)."""
        ref = f"refs/remotes/origin/{branch}"
        try:
            await self._run("update-ref", ref, base)
        except GitFault:
            await self._remove_refs_in_the_way(ref)
            await self._run("update-ref", ref, base)

    def fingerprint(self) -> Fingerprint | None:
        """What the tree's repository looks like; None when it is incomplete."""
        directory = self.layout.git_directory
        try:
            head = (directory / "HEAD").read_text(encoding="utf-8", errors="replace").strip()
            files = tuple(
                _stat(directory / name) for name in ("HEAD", "index", "config", "info", "objects/info/alternates")
            )
        except OSError:
            return None
        return Fingerprint(head, files)

    async def prune(self) -> None:
        """Delete merges of the past. Only for a tree whose merge is younger than that. Raises HostFault."""
        await in_thread(self._prune)

    async def discard(self) -> None:
        """Move the tree aside and delete it; the next ``settle`` makes it. Raises HostFault."""
        await disk.discard(self.layout.tree)

    # --- settling

    def _clear(self) -> None:
        """Clear away what killed commands left, and files of the repository that would change what git does."""
        directory = self.layout.git_directory
        disk.remove_stale_locks(directory)
        with disk.translated("the repository of a work tree cannot be cleared"):
            for name in ("attributes", "sparse-checkout", "grafts"):
                (directory / "info" / name).unlink(missing_ok=True)
        self._borrow(self.layout.tree)

    def _borrow(self, tree: Path) -> None:
        """Let the tree use the objects of the mirror, and those of our merges; whatever else it uses, it keeps."""
        final, now = self.layout.git_directory, tree / ".git"
        merges = now / "ofborg-async" / "objects"
        with disk.translated("the directory for merges cannot be made"):
            for folder in (merges / "info", now / "objects" / "info", now / "info"):
                folder.mkdir(parents=True, exist_ok=True)
        alternates = now / "objects" / "info" / "alternates"
        old = disk.read_lines(alternates)
        new = list(dict.fromkeys([*old, str(self.borrowed), str(final / "ofborg-async" / "objects")]))
        if new != old:
            disk.write_lines(alternates, new)
        disk.write_lines(merges / "info" / "alternates", [str(final / "objects")])

    async def _make(self) -> None:
        """Make an empty tree, all of it or nothing."""
        new = disk.fresh_sibling(self.layout.tree)
        await self.git.run(None, "init", "--quiet", "--template=", str(new), what="making a work tree")
        await in_thread(partial(self._borrow, new))
        with disk.translated("a work tree cannot be made"):
            new.rename(self.layout.tree)

    async def _point_at_remote(self) -> None:
        asked = await self._run("config", "--get", "remote.origin.url", expected=(0, 1))
        if text_of(asked) != self.url:
            await self._run("config", "--replace-all", "remote.origin.url", self.url)
            await self._run("config", "--replace-all", "remote.origin.fetch", _REMOTE_REFS)

    async def _rebuild_index(self) -> str | None:
        """Make the index from HEAD and the contents of all files; the commit, None if there is nothing to go by."""
        index = self.layout.git_directory / "index"
        with disk.translated("the index cannot be removed"):
            index.unlink(missing_ok=True)
        asked = await self._run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", expected=(0, 1, 128))
        commit = text_of(asked)
        if asked.returncode != 0 or not is_commit_name(commit):
            return None
        try:
            await self._run("reset", "--mixed", "--quiet", "--refresh", commit)
        except GitFault as fault:
            if not fault.reading.damaged:
                raise
            # Objects of the old commit are gone with a mirror that was lost: its files are of no use.
            with disk.translated("the index cannot be removed"):
                index.unlink(missing_ok=True)
            return None
        return commit

    async def _clean(self) -> None:
        done = await self._run("clean", "-ffdx", "--quiet")
        if done.stderr.strip():
            raise GitFault("cleaning the work tree", 0, read_failure(b"failed to remove: " + done.stderr, 0))

    # --- moving

    async def _attributes_differ(self, commit: str, others: Sequence[str]) -> bool:
        """Whether attributes (eol, encoding) changed between ``commit`` and any of the others.

        git writes a file only when its content differs: after a change of ``.gitattributes`` alone the others stay as
        they were written, so that the tree would depend on what was checked out before.
        """
        if not others:
            return False
        done = await self._run(
            "diff-tree",
            "--stdin",
            "-r",
            "-m",
            "--name-only",
            "--no-commit-id",
            "--",
            _ATTRIBUTE_FILES,
            stdin=f"{commit} {' '.join(others)}\n".encode(),
        )
        return bool(done.stdout.strip())

    async def _render_anew(self, commit: str, base: str) -> None:
        """Write every file, as a fresh checkout of ``base`` and a merge onto it would have it."""
        with disk.translated("a work tree cannot be written anew"):
            self._mixed.touch()
            (self.layout.git_directory / "index").unlink(missing_ok=True)
        # Without an index that is everything: a .gitattributes left over would count.
        await self._clean()
        await self._checkout(base)
        await self._checkout(commit)
        if not await self._attributes_differ(commit, [base] if base != commit else []):
            with disk.translated("a work tree cannot be written anew"):
                self._mixed.unlink()

    async def _checkout(self, commit: str) -> None:
        done = await self._run("checkout", "--quiet", "--force", "--detach", commit)
        if _LEFT_BEHIND.search(done.stderr):
            await self._clean()
            await self._verify()

    async def _verify(self) -> None:
        """Raise GitFault (damaged) unless the files are exactly those of HEAD."""
        words = ("status", "--porcelain", "--ignored", "--untracked-files=all", "--ignore-submodules=none")
        done = await self._run(*words)
        if done.stdout:
            said = b"bad index: the work tree is not clean after a checkout\n" + done.stdout
            raise GitFault("checking a work tree", 0, read_failure(said, 0))

    # --- the rest

    async def has_commit(self, commit: str, tips: Sequence[str], seen: SeenCommits) -> bool:
        """Whether ``commit`` is one, reachable from ``tips`` or from what the root has seen. Raises HostFault."""
        asked = await self._run("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", expected=(0, 1, 128))
        if text_of(asked) != commit:
            return False
        for known in (tips, seen.all()):
            excluded = "".join(f"^{tip}\n" for tip in known)
            done = await self._run(
                "rev-list", "--max-count=1", "--ignore-missing", "--stdin", stdin=f"{commit}\n{excluded}".encode()
            )
            if not done.stdout.strip():
                return True
        return False

    async def known_commits(self) -> list[str]:
        """The commits of all refs and of their logs: what the original had fetched. Raises HostFault."""
        refs = await self._run("for-each-ref", "--format=%(objectname)")
        logs = await self._run("rev-list", "--walk-reflogs", "--all", "--ignore-missing", expected=(0, 128))
        return list(dict.fromkeys([*text_of(logs).splitlines(), *text_of(refs).splitlines()]))

    def _prune(self) -> None:
        with disk.translated("old merges cannot be deleted"):
            index = self.layout.git_directory / "index"
            for path in disk.older_files(self.objects, index.stat().st_mtime - _KEPT_OBJECTS_SECONDS):
                path.unlink(missing_ok=True)

    async def _remove_refs_in_the_way(self, ref: str) -> None:
        """Delete the refs that ``ref`` cannot exist beside, and its own file if that is broken."""
        parts = ref.split("/")
        above = ["/".join(parts[:depth]) for depth in range(4, len(parts))]
        asked = await self._run("for-each-ref", "--format=%(refname)", *above, f"{ref}/")
        names = [name for name in text_of(asked).splitlines() if name in above or name.startswith(f"{ref}/")]
        file = self.layout.git_directory / ref
        if file.is_file():
            with disk.translated("a broken ref cannot be removed"):
                file.unlink()
        if names:
            await self._run("update-ref", "--stdin", stdin="".join(f"delete {name}\n" for name in names).encode())

    async def _run(self, *words: str, expected: tuple[int, ...] = (0,), stdin: bytes | None = None) -> Completed:
        return await self.git.run(
            self.layout.git_directory,
            *words,
            what="the work tree",
            work_tree=self.layout.tree,
            stdin=stdin,
            expected=expected,
        )


def _stat(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
