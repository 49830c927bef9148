"""Roots told apart by what is on disk, not by their names: symlinks and bind mounts give one directory many paths.

A directory is its (device, inode), and so is each of its ancestors, on every path by which it can be seen: a bind
mount may show the inside of another root, and its path there does not pass through that root.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.locks.mounts import visible_paths

Node = tuple[int, int]
"""Device and inode."""


@frozen
class RootId:
    """What a root is on disk.

    ``path`` is resolved; ``missing`` are its last names as far as they do not exist yet. ``node`` is its nearest
    existing directory, and ``ancestors`` are all directories above that one, with a path for each.
    """

    path: Path
    missing: tuple[str, ...]
    node: Node
    ancestors: dict[Node, Path]

    def contains(self, other: RootId) -> bool:
        """Whether ``other`` is the same directory or inside."""
        if self.missing:
            return self.node == other.node and other.missing[: len(self.missing)] == self.missing
        return self.node == other.node or self.node in other.ancestors


@frozen
class RootConflict:
    """Two identities whose roots are one directory or nested; ``why`` is one sentence with both names and paths."""

    first: str
    second: str
    why: str


def identify_root(path: Path) -> RootId:
    """What ``path`` is on disk; it need not exist yet. Raises HostFault (PERMISSION) if it cannot be looked at."""
    try:
        resolved = path.resolve()
        existing = next(place for place in (resolved, *resolved.parents) if _exists(place))
        missing = resolved.relative_to(existing).parts
        node = _node(existing)
        ancestors = {_node(parent): parent for seen in visible_paths(existing) for parent in seen.parents}
    except (OSError, RuntimeError) as error:  # RuntimeError: what resolve() raises for these, before Python 3.13
        raise HostFault(
            FaultKind.PERMISSION,
            f"the root {path} cannot be looked at: {error}",
            remedy="give the daemon's user access to all its parent directories",
        ) from error
    return RootId(resolved, missing, node, ancestors)


def find_conflicts(roots: Sequence[tuple[str, Path]]) -> list[RootConflict]:
    """Every pair of ``(identity, root)`` of which one root is the other or inside it. Raises as identify_root."""
    known = [(name, path, identify_root(path)) for name, path in roots]
    conflicts = []
    for (name, path, root), (other_name, other_path, other) in itertools.combinations(known, 2):
        if root.contains(other) and other.contains(root):
            how = "are the same directory"
        elif root.contains(other):
            how = f"are nested: that of {other_name} is inside that of {name}"
        elif other.contains(root):
            how = f"are nested: that of {name} is inside that of {other_name}"
        else:
            continue
        why = f"the roots of {name} ({_shown(path, root)}) and {other_name} ({_shown(other_path, other)}) {how}"
        conflicts.append(RootConflict(name, other_name, why))
    return conflicts


def _exists(place: Path) -> bool:
    """Unlike Path.exists, raises OSError for symlinks in a circle."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _node(directory: Path) -> Node:
    found = directory.stat()
    return found.st_dev, found.st_ino


def _shown(path: Path, root: RootId) -> str:
    return f"{path}" if path == root.path else f"{path}, which is {root.path}"
