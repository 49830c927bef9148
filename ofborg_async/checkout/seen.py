"""The commits a root has fetched: a head that was force-pushed away is built only by a root that had it before.

The objects themselves lie in a mirror that other roots fill too, so that their presence says nothing about this root.
"""

from __future__ import annotations

from pathlib import Path

from ofborg_async.checkout import disk

_KEPT = 10_000
_LINE_BYTES = 41


class SeenCommits:
    """A file with one commit in each line, the newest last; the lanes of an identity append to it together.

    Once it has twice as many lines as are kept, the older half is dropped: what happens to be appended by another lane
    in that moment is forgotten, and fetched again when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest: tuple[str, ...] = ()

    def exists(self) -> bool:
        """Whether anything was ever recorded."""
        return self._path.exists()

    def add(self, *commits: str) -> None:
        """Record commits. Raises HostFault."""
        new = [commit for commit in dict.fromkeys(commits) if commit not in self._newest]
        if not new:
            return
        with disk.translated("what this root has seen cannot be recorded"), self._path.open("ab") as file:
            file.write("".join(f"{commit}\n" for commit in new).encode())
            full = file.tell() > 2 * _KEPT * _LINE_BYTES
        self._newest = commits
        if full:
            disk.write_lines(self._path, self.all()[-_KEPT:])

    def all(self) -> list[str]:
        """Every commit recorded, the newest last. Raises HostFault."""
        return disk.read_lines(self._path)
