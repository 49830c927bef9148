"""The side file that tells a restored backup from the journal itself.

``journal.generation`` holds the journal's lineage and how many transactions it had, written after each commit. Going
on with an older copy would publish results a second time under the same attempt ids and build finished jobs again, so
a database with fewer transactions than the side file, or another lineage, is refused. Deleting the side file is how an
operator says "this copy is the right one".

The file is written in place and not synced: after a SIGKILL it is at most one transaction behind, after a power cut
further behind, never ahead of a database that was synced first.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import JournalUnusableError

_log = logging.getLogger(__name__)
_FORMAT = re.compile(rb"([0-9a-f]{32}) ([0-9]{20})\n")


@frozen
class Generation:
    """Which journal (``lineage``, 32 hex digits) and how far it got (``commits``)."""

    lineage: str
    commits: int


class GenerationFile:
    """The side file at ``path``. Used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._failed = False

    def read(self) -> Generation | None:
        """What it says, None when there is none. Raises JournalUnusableError when it says nothing that can be read."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalUnusableError(
                str(self._path), f"it cannot be read: {error.strerror}", remedy=_OWNER
            ) from error
        match = _FORMAT.fullmatch(content)
        if match is None:
            raise JournalUnusableError(str(self._path), "it is damaged", remedy=_CONSENT)
        return Generation(match[1].decode(), int(match[2]))

    def check(self, found: Generation, database: Path) -> None:
        """Compare with what the database says of itself. Raises JournalUnusableError for an older or foreign one."""
        noted = self.read()
        if noted is None:
            return
        if noted.lineage != found.lineage:
            raise JournalUnusableError(
                str(database), f"it is not the journal that {self._path.name} tells of", remedy=_CONSENT
            )
        if found.commits < noted.commits:
            detail = f"it is an older copy: {found.commits} transactions, but {self._path.name} counted {noted.commits}"
            raise JournalUnusableError(str(database), detail, remedy=_CONSENT)

    def start(self, generation: Generation) -> None:
        """Make the file (anew) and keep it open for ``note``. Raises OSError."""
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, _encode(generation))
            os.fsync(descriptor)
            fresh.rename(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def note(self, generation: Generation) -> None:
        """Write down a commit. A failure only makes the check weaker: it is logged once."""
        try:
            os.pwrite(self._descriptor, _encode(generation), 0)
        except OSError as error:
            if not self._failed:
                _log.warning("%s: cannot be written: %s", self._path, error)
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _encode(generation: Generation) -> bytes:
    return b"%s %020d\n" % (generation.lineage.encode(), generation.commits)


_OWNER = "Give it back to the user that runs the daemon"
_CONSENT = (
    "Put the right files back (journal.sqlite3 with its -wal, journal.generation). To go on with what is there, "
    "knowing that results may be reported twice or be lost, delete journal.generation and start again"
)
