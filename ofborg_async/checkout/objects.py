"""Commits read from and written to the loose objects of a repository, without a git command for it.

A process costs more than what is asked here: the first lines of a commit that was fetched a moment ago, and a new file
with a few lines in it. A loose object is its type, its size, a NUL and its content, compressed, in a file that is named
by the SHA-1 of all that (gitrepository-layout(5), "objects").
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from attrs import frozen

from ofborg_async.checkout import disk

_HEAD_BYTES = 4096
# All parents, so that the last is known to be the last by the line behind it.
_COMMIT = re.compile(rb"commit [0-9]+\0tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)author ")
# What git removes from both ends of a name or an address, and everywhere (ident.c).
_CRUD = "".join(map(chr, range(33))) + ".,:;<>\"\\'"
_NOWHERE = str.maketrans("", "", "\n<>\0")


@frozen
class Commit:
    """What a commit names: its tree and its parents, in their order."""

    tree: str
    parents: tuple[str, ...]


def read_commit(objects: Path, name: str) -> Commit | None:
    """The commit ``name`` among the loose objects of ``objects``.

    None when it is in a pack, no commit, or not to be read from its first 4 KiB: git must be asked then.
    """
    try:
        with _place(objects, name).open("rb") as file:
            start = zlib.decompressobj().decompress(file.read(_HEAD_BYTES), _HEAD_BYTES)
    except (OSError, zlib.error):
        return None
    found = _COMMIT.match(start)
    if found is None:
        return None
    return Commit(found[1].decode(), tuple(line[7:].decode() for line in found[2].splitlines()))


def write_commit(objects: Path, commit: Commit, author: str, message: str) -> str:
    """Write a commit as a loose object into ``objects``, and return its name. Raises HostFault.

    ``author`` as ``identity`` makes it. Like git it is not forced to the disk: what a crash of the host leaves half
    written there, the first job after it finds.
    """
    lines = [f"tree {commit.tree}", *(f"parent {parent}" for parent in commit.parents)]
    lines += [f"author {author}", f"committer {author}", "", message, ""]
    content = "\n".join(lines).encode(errors="surrogateescape")
    whole = b"commit %d\0" % len(content) + content
    name = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    path = _place(objects, name)
    with disk.translated("a merge cannot be written"):
        path.parent.mkdir(exist_ok=True)
        # A name that remove_half_objects knows.
        new = path.with_name(f"tmp_obj_{name}")
        new.write_bytes(zlib.compress(whole, 1))
        new.chmod(0o444)
        new.replace(path)
    return name


def identity(name: str, email: str, seconds: float) -> str:
    """Who did something and when, as a commit says it. A name without a letter left is ``unknown``."""
    cleaned = (text.strip(_CRUD).translate(_NOWHERE) for text in (name, email))
    shown_name, shown_email = (text or "unknown" for text in cleaned)
    return f"{shown_name} <{shown_email}> {int(seconds)} +0000"


def _place(objects: Path, name: str) -> Path:
    return objects / name[:2] / name[2:]
