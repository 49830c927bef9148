"""What git's error output means, read in its C locale. Pure.

git exits with 1 or 128 for nearly everything, so its words are all there is to tell a full disk from a lost network.
"""

from __future__ import annotations

import re

from attrs import evolve, frozen

from ofborg_async.errors import FaultKind

_LONGEST_QUOTE = 600

_MISSING_REF = re.compile(r"couldn't find remote ref (\S+)", re.IGNORECASE)
_OTHER_HASH = re.compile(r"mismatched algorithms")
_DISK = re.compile(r"No space left on device|Out of diskspace|Disk quota exceeded|File too large")
_MEMORY = re.compile(r"out of memory|Cannot allocate memory|unable to create thread|signal 9", re.IGNORECASE)
_BAD_PATH = re.compile(r"invalid path '|File name too long|Illegal byte sequence")
_NETWORK = re.compile(
    r"Could not resolve|[Cc]onnection (?:refused|reset|timed out|closed)|Failed to connect|unable to connect"
    r"|Connection to .* closed|unable to access|hung up unexpectedly|early EOF|RPC failed|timed? ?out"
    r"|Network is unreachable|No route to host|Permission denied \(|Host key verification failed"
    r"|Could not read from remote repository|does not appear to be a git repository|repository .* not found"
    r"|Authentication failed|could not read Username|SSL|gnutls|TLS|HTTP/?[0-9. ]+ [45]\d\d|curl \d+",
)
_OBJECTS_DAMAGED = re.compile(
    r"is corrupt|corrupt loose object|object file .* is empty|does not match index|is too small|is far too short"
    r"|bad (?:object|tree object)|did not send all necessary objects|invalid object|not something we can merge"
    r"|is not a tree|[Nn]ot a valid (?:object|commit) name|unable to (?:read|parse|unpack)|cannot be mapped|inflate:"
    r"|[Cc]ould not (?:parse|read) (?:object|tree|commit|[0-9a-f]{40})|missing (?:blob|tree|commit)"
    r"|object directory .* does not exist"
)
_DAMAGED = re.compile(
    r"bad (?:config|index|signature)|invalid gitfile|fatal: not (?:a git repository|in a git directory)"
    r"|index file (?:corrupt|smaller)|packed-refs|reference broken|unable to (?:rmdir|unlink|resolve reference)"
    r"|failed to remove|cannot create directory|is beyond a symbolic link"
)
_LOCKED = re.compile(r"Unable to create '.*\.lock': File exists")
_PERMISSION = re.compile(r"Permission denied|insufficient permission|Read-only file system|Operation not permitted")


@frozen
class Reading:
    """What a failed git command was about. ``words`` are git's own, capped.

    - ``damaged``: something of ours on disk is broken, and making it anew can help. ``objects_damaged``: it is objects,
      which may be those of a mirror.
    - ``locked``: a lock file is in the way, which a command that was killed left there.
    - ``missing_ref``: the remote ref that does not exist, "" if it was something else.
    - ``other_hash``: the remote's objects are named by another hash.
    - ``bad_path``: the repository has a path that no file can have, or that leads out of the tree.
    """

    kind: FaultKind
    remedy: str = ""
    words: str = ""
    damaged: bool = False
    objects_damaged: bool = False
    locked: bool = False
    missing_ref: str = ""
    other_hash: bool = False
    bad_path: bool = False


# The first that matches says it all.
_PLAIN = (
    (_MEMORY, Reading(FaultKind.MEMORY, "free memory; the kernel's log tells whether it killed a process")),
    (_DISK, Reading(FaultKind.DISK, "free disk space")),
    (_OTHER_HASH, Reading(FaultKind.REPOSITORY, other_hash=True)),
    (_BAD_PATH, Reading(FaultKind.REPOSITORY, bad_path=True)),
    (_NETWORK, Reading(FaultKind.NETWORK)),
)
_NOT_OURS = "let the daemon's user own its root and its state directory, with everything in them"


def read_failure(error_output: bytes, returncode: int) -> Reading:
    """What a git command that failed with ``returncode`` (negative: a signal) meant."""
    text = error_output.decode(errors="replace").strip()
    words = quoted(text)
    if returncode < 0:
        text += f"\nkilled by signal {-returncode}"
        words = f"killed by signal {-returncode}; {words}"
    # What the other side's git says is passed on with this prefix, and is nothing of ours.
    ours = "\n".join(line for line in text.splitlines() if not line.startswith("remote:"))
    if missing := _MISSING_REF.search(ours):
        return Reading(FaultKind.REPOSITORY, words=words, missing_ref=missing.group(1))
    for pattern, reading in _PLAIN:
        if pattern.search(ours):
            return evolve(reading, words=words)
    if returncode < 0:
        return Reading(FaultKind.PROCESS, words=words)
    objects_damaged = _OBJECTS_DAMAGED.search(ours) is not None
    denied = _PERMISSION.search(ours) is not None
    return Reading(
        FaultKind.PERMISSION if denied else FaultKind.REPOSITORY,
        _NOT_OURS if denied else "",
        words,
        damaged=objects_damaged or _DAMAGED.search(ours) is not None,
        objects_damaged=objects_damaged,
        locked=_LOCKED.search(ours) is not None,
    )


def quoted(text: str) -> str:
    """The words of git on one line, without repetitions, capped: the end of a long output says most."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
    joined = "; ".join(lines)
    return joined if len(joined) <= _LONGEST_QUOTE else f"...{joined[-_LONGEST_QUOTE:]}"
