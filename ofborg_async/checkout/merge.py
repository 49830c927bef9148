"""Merges a pull request as ``git merge`` in a checkout of the target branch would, without a checkout.

``git merge-tree`` reads attributes (``merge=union``, ``-merge`` ...) from the files of a work tree only, so it is given
one of its own with nothing in it but the target branch's ``.gitattributes`` for the files that both sides changed.
Those are known from a first run without any; mostly there are none, and that run is the result.

Whether there is anything to merge is told from the result: only when one side has all of the other, the merged tree is
the tree of one of them. So ``merge-base`` is asked in doubt only, and commits are read and written without a process.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

from ofborg_async.checkout import disk
from ofborg_async.checkout.git import BoundGit, GitFault, text_of
from ofborg_async.checkout.objects import Commit, read_commit, write_commit
from ofborg_async.checkout.validate import is_commit_name
from ofborg_async.checkout.words import quoted, read_failure
from ofborg_async.model.checkout import Gone, MergeConflict
from ofborg_async.process import Completed

MESSAGE = "Automatic merge for GrahamCOfBorg"

_ATTRIBUTES = ".gitattributes"
_OUTPUT_LIMIT_BYTES = 64 << 20
_REFUSED = 128
_UNRELATED = b"refusing to merge unrelated histories"


@frozen
class Merging:
    """Merges in the repository ``git_directory``: new objects go to ``objects``, files for git to ``scratch``.

    What was fetched last is in ``borrowed``. ``author`` signs the merge. ``trees`` remembers the tree of the last base:
    mostly the next job has the same one, and it may be in a pack.
    """

    git: BoundGit
    git_directory: Path
    objects: Path
    scratch: Path
    borrowed: Path
    author: str
    trees: dict[str, str]

    async def merge(self, base: str, head: str) -> str | MergeConflict | Gone:
        """The commit that ``git merge head`` on a checkout of ``base`` would lead to: one of the two, or a new one.

        Raises HostFault.
        """
        newest = read_commit(self.borrowed, head)
        if newest is not None and base in newest.parents:
            return head
        of_head = newest.tree if newest is not None else await self._ask_tree(head)
        if of_head is None:
            return Gone(f"{head} is no commit")
        of_base = await self._tree_of_base(base)
        tree = await self._merge_trees(base, head)
        if isinstance(tree, MergeConflict):
            return tree
        if tree in (of_base, of_head):
            ancestor = text_of(await self._run("merge-base", base, head))
            if ancestor in (base, head):
                return head if ancestor == base else base
        return write_commit(self.objects, Commit(tree, (base, head)), self.author, MESSAGE)

    async def _tree_of_base(self, base: str) -> str | None:
        known = self.trees.get(base)
        if known is None:
            read = read_commit(self.borrowed, base)
            known = read.tree if read is not None else await self._ask_tree(base)
            self.trees.clear()
            if known is not None:
                self.trees[base] = known
        return known

    async def _ask_tree(self, commit: str) -> str | None:
        """The tree of an object; None when it is no commit."""
        words = ("cat-file", "--batch-check=%(objecttype) %(objectname)")
        done = await self._run(*words, stdin=f"{commit}\n{commit}^{{tree}}\n".encode())
        kind, _, named = text_of(done).partition("\n")
        if kind.endswith(" missing"):
            said = done.stderr + f"missing commit {commit}".encode()
            raise GitFault("merging", done.returncode, read_failure(said, done.returncode))
        tree = named.removeprefix("tree ")
        return tree if kind.startswith("commit ") and is_commit_name(tree) else None

    async def _merge_trees(self, base: str, head: str) -> str | MergeConflict:
        self._empty_scratch()
        first = await self._merge_tree(base, head)
        if first.returncode == _REFUSED and _UNRELATED in first.stderr:
            return MergeConflict("the histories are unrelated")
        merged = _Merged.read(first)
        paths = sorted(set(_attribute_files(merged.both_changed)))
        if paths and await self._lay_out(base, paths):
            merged = _Merged.read(await self._merge_tree(base, head))
            self._empty_scratch()
        return merged.tree if merged.clean else MergeConflict(merged.detail)

    async def _merge_tree(self, base: str, head: str) -> Completed:
        return await self._run(
            "merge-tree",
            "--write-tree",
            "-z",
            "--messages",
            base,
            head,
            expected=(0, 1, _REFUSED),
            work_tree=self.scratch,
            limit_bytes=_OUTPUT_LIMIT_BYTES,
        )

    async def _lay_out(self, base: str, paths: list[str]) -> bool:
        """Write those of the files that ``base`` has into the scratch directory; whether there were any."""
        asked = "".join(f"{base}:{path}\n" for path in paths)
        done = await self._run(
            "cat-file",
            "--batch=%(objecttype) %(objectsize)",
            stdin=asked.encode(errors="surrogateescape"),
            limit_bytes=_OUTPUT_LIMIT_BYTES,
        )
        found = False
        rest = done.stdout
        with disk.translated("attributes cannot be written"):
            for path in paths:
                header, _, rest = rest.partition(b"\n")
                kind, _, size = header.rpartition(b" ")
                if not size.isdigit():  # "missing"
                    continue
                content, rest = rest[: int(size)], rest[int(size) + 1 :]
                if kind == b"blob":
                    found = True
                    (self.scratch / path).parent.mkdir(parents=True, exist_ok=True)
                    (self.scratch / path).write_bytes(content)
        return found

    def _empty_scratch(self) -> None:
        with disk.translated("the directory for merging cannot be emptied"):
            if not self.scratch.is_dir() or any(self.scratch.iterdir()):
                shutil.rmtree(self.scratch, ignore_errors=True)
                self.scratch.mkdir(parents=True, exist_ok=True)

    async def _run(
        self,
        *words: str,
        expected: tuple[int, ...] = (0,),
        work_tree: Path | None = None,
        stdin: bytes | None = None,
        limit_bytes: int = 1 << 20,
    ) -> Completed:
        return await self.git.run(
            self.git_directory,
            *words,
            what="merging",
            work_tree=work_tree,
            environment={"GIT_OBJECT_DIRECTORY": str(self.objects)},
            stdin=stdin,
            expected=expected,
            limit_bytes=limit_bytes,
        )


@frozen
class _Merged:
    """What merge-tree printed: the ``tree``, whether it is without conflicts, the paths it merged line by line."""

    tree: str
    clean: bool
    both_changed: tuple[str, ...]
    detail: str

    @classmethod
    def read(cls, done: Completed) -> _Merged:
        """Read the output of ``-z --messages`` (git-merge-tree(1), "OUTPUT").

        Exit code 1 is a conflict only with a tree; without one (a missing commit) it is a fault of this host.
        """
        tree, _, rest = done.stdout.partition(b"\0")
        name = tree.decode(errors="replace")
        if not is_commit_name(name):
            raise GitFault("merging", done.returncode, read_failure(done.stderr, done.returncode))
        # The entries of conflicting files end with an empty one, which is all there is of them in a clean merge.
        messages = rest[1:] if rest.startswith(b"\0") else rest.partition(b"\0\0")[2]
        fields = iter(messages.decode(errors="surrogateescape").split("\0"))
        both_changed: list[str] = []
        conflicts: list[str] = []
        for count in fields:
            if not count.isdigit():
                break
            paths = list(itertools.islice(fields, int(count)))
            kind, text = next(fields, ""), next(fields, "")
            if kind == "Auto-merging":
                both_changed += paths
            elif kind.startswith("CONFLICT"):
                conflicts.append(text)
        return cls(name, done.returncode == 0, tuple(both_changed), quoted("\n".join(conflicts)))


def _attribute_files(paths: Iterable[str]) -> Iterator[str]:
    """The attribute files that apply to ``paths``: in the same folder and in all above.

    A stranger's tree can have names in it that lead elsewhere; git checks none of that out, and nothing is written
    there.
    """
    for path in paths:
        folders = path.split("/")[:-1]
        if any(name.lower() in {"", ".", "..", ".git"} or "\n" in name for name in folders):
            continue
        for depth in range(len(folders) + 1):
            yield "/".join((*folders[:depth], _ATTRIBUTES))
