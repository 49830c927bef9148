"""Where things lie on disk (wire document, "On disk and in processes"). Pure: nothing here looks at the disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from attrs import frozen

_LONGEST_NAME_BYTES = 200


@frozen
class Layout:
    """The places of one repository in one root, for one system of one identity.

    ``clone`` (bare), ``tree`` and their lock files are the original's own. ``seen`` is ours: the commits this root
    fetched.
    """

    project: Path
    clone: Path
    clone_lock: Path
    tree: Path
    tree_lock: Path
    seen: Path

    @property
    def git_directory(self) -> Path:
        """The tree's repository."""
        return self.tree / ".git"

    @property
    def own_directory(self) -> Path:
        """Our own files about the tree, inside its repository, so that they share its fate."""
        return self.tree / ".git" / "ofborg-async"

    @property
    def keep_name(self) -> str:
        """Names the tree in a mirror that several roots borrow from."""
        return hashlib.sha256(str(self.tree).encode(errors="surrogateescape")).hexdigest()[:32]


def layout_of(root: Path, full_name: str, identity: str, further_system: str | None) -> Layout:
    """The places for the repository ``full_name`` under ``root``, which is absolute and resolved.

    ``further_system`` is None for the identity's first system, whose tree is where the original has it; the tree of any
    other system is ``<identity>.<system>``. Should that be another identity's name, both have the same lock file too,
    so they exclude each other as any two users of one tree do. Raises ValueError for an identity or a system that is no
    file name, or that ends as a lock file does.
    """
    name = identity if further_system is None else f"{identity}.{further_system}"
    _check_name(identity)
    _check_name(name)
    # The original names the folder so; it is no protection of anything.
    digest = hashlib.md5(full_name.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()
    project = root / "repo" / digest
    builder = project / "builder"
    return Layout(
        project=project,
        clone=project / "clone",
        clone_lock=project / "clone.lock",
        tree=builder / name,
        tree_lock=builder / f"{name}.lock",
        seen=project / "ofborg-async.seen",
    )


def mirror_name(url: str) -> str:
    """The folder name of the mirror of a clone URL."""
    return hashlib.sha256(url.encode()).hexdigest()


def branch_key(branch: str) -> str:
    """A name for a branch of which none can be a folder of another, as ``foo`` and ``foo/bar`` would be."""
    return hashlib.sha256(branch.encode()).hexdigest()[:40]


def _check_name(name: str) -> None:
    unusable = (
        not name
        or name.startswith(".")
        or name.endswith(".lock")
        or len(name.encode(errors="surrogateescape")) > _LONGEST_NAME_BYTES
        or any(character in "/\0\n" for character in name)
    )
    if unusable:
        raise ValueError(f"{name!r} cannot name a folder of work trees")
