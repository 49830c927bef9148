"""Roots, the state directory, the files of the configuration, and the room on the disks (R08, R13, R15, R17, R25).

Equal and nested roots, roots below a home directory and passwords that others can read are faults of the configuration
already; here is what only the host can tell.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ofborg_async.doctor.findings import Finding, Group, Verdict
from ofborg_async.errors import HostFault
from ofborg_async.locks import Holder, holder_of, refuse_network_file_system
from ofborg_async.locks.rootlock import ROOT_LOCK_NAME
from ofborg_async.model.identity import IdentitySettings, LimitSettings
from ofborg_async.nix.environment import places_of_builds

_OTHER_BUILDER = "stop the other builder, or give this identity a root of its own"
_PLACES_OF_LOCKS = ("repo/*/builder/*.lock", "repo/*/clone.lock")


def examine_files(files: Iterable[Path], user_id: int) -> list[Finding]:
    """Every file that the configuration was read from, passwords too (R15)."""
    findings = []
    for path in files:
        status, real = path.stat(), path.resolve()
        subject = str(path)
        if real.is_relative_to("/nix/store"):
            cause = "lies in the Nix store, which everybody on this host can read"
            remedy = "keep configuration and passwords outside the store, such as in /etc/ofborg-async, mode 0600"
            findings.append(Finding(Group.CONFIGURATION, "R15", subject, Verdict.FAILURE, cause, remedy))
        elif status.st_mode & 0o022 or status.st_uid not in (0, user_id):
            cause = "others can change it, and with it what this user runs and whom it speaks to"
            remedy = f"chown {user_id} {path}; chmod 600 {path}"
            findings.append(Finding(Group.CONFIGURATION, "R15", subject, Verdict.WARNING, cause, remedy))
    return findings


def examine_directory(path: Path, subject: str, user_id: int) -> Finding:
    """A root or the state directory: is it, or can it be made, this user's alone and on a local disk (R08, R13)."""
    place = next(place for place in (path, *path.parents) if place.exists())
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        cause = f"{place} cannot be written" + ("" if place == path else f", so {path} cannot be made")
        remedy = f"install -d -m 0700 -o THE_USER {path}, on a writable file system"
        return _storage("R13", subject, Verdict.FAILURE, cause, remedy)
    try:
        refuse_network_file_system(place)
    except HostFault as fault:
        return _storage("R08", subject, Verdict.FAILURE, fault.detail, f"{fault.remedy}: locks there keep nobody out")
    if place != path:
        return _storage("R13", subject, Verdict.OK, f"{path} will be made, for this user alone")
    return _own(path, subject, user_id)


def _own(path: Path, subject: str, user_id: int) -> Finding:
    """Whether an existing directory is this user's alone."""
    status = path.stat()
    if status.st_uid != user_id:
        cause = f"{path} belongs to user {status.st_uid}, who can change everything in it"
        return _storage("R13", subject, Verdict.WARNING, cause, f"chown -R {user_id} {path}")
    if status.st_mode & (stat.S_IRWXG | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        cause = f"{path} has the mode {mode:04o}: others than the daemon's user can use it"
        return _storage("R13", subject, Verdict.WARNING, cause, f"chmod 700 {path}")
    return _storage("R13", subject, Verdict.OK, f"{path} is this user's own")


def examine_holders(identity: IdentitySettings) -> list[Finding]:
    """Who works in a root now: a daemon of ours holds all of it, the original builder a tree in it (R08)."""
    subject = f"root of {identity.name}"
    try:
        if (holder := holder_of(identity.root / ROOT_LOCK_NAME)) is not None:
            return [_storage("R08", subject, Verdict.OK, f"it is in use by a daemon of ours: {_who(holder)}")]
        for path in (found for pattern in _PLACES_OF_LOCKS for found in sorted(identity.root.glob(pattern))):
            if (holder := holder_of(path)) is not None:
                cause = f"another builder works in it: {_who(holder)} holds {path}"
                return [_storage("R08", subject, Verdict.FAILURE, cause, _OTHER_BUILDER)]
    except OSError as error:
        cause = f"who uses it cannot be seen: {error.filename}: {error.strerror}"
        return [_storage("R08", subject, Verdict.WARNING, cause, "run doctor as the daemon's own user")]
    return []


def _who(holder: Holder) -> str:
    process = f"process {holder.pid or (holder.note.pid if holder.note else '(unknown)')}"
    return f"{process} ({holder.note})" if holder.note else process


def examine_disks(state_dir: Path, identities: Iterable[IdentitySettings]) -> list[Finding]:
    """Room on each file system that jobs write to, against the highest floor of those who use it."""
    disks: dict[int, _Disk] = {}
    for identity in identities:
        for place in (identity.root, state_dir, *places_of_builds(identity.nix)):
            existing = next(above for above in (place, *place.parents) if above.exists())
            disks.setdefault(existing.stat().st_dev, _Disk(existing)).add(place, identity)
    return [finding for disk in disks.values() for finding in disk.findings()]


class _Disk:
    """One file system and what lies on it."""

    def __init__(self, place: Path) -> None:
        self._disk = os.statvfs(place)
        self._places: dict[Path, None] = {}
        self._floors: list[LimitSettings] = []

    def add(self, place: Path, identity: IdentitySettings) -> None:
        self._places[place] = None
        self._floors.append(identity.limits)

    def findings(self) -> Iterator[Finding]:
        places = ", ".join(map(str, self._places))
        free_bytes, free_inodes = self._disk.f_bavail * self._disk.f_frsize, self._disk.f_favail
        floor_bytes = max(limits.disk_floor_bytes for limits in self._floors)
        # A file system without a fixed number of inodes says 0 of 0.
        floor_inodes = max(limits.disk_floor_inodes for limits in self._floors) if self._disk.f_files else 0
        short = []
        if free_bytes < floor_bytes:
            short.append(f"{_mebibytes(free_bytes)} are free, the floor is {_mebibytes(floor_bytes)}")
        if floor_inodes and free_inodes < floor_inodes:
            short.append(f"{free_inodes} inodes are free, the floor is {floor_inodes}")
        if short:
            cause = f"{'; '.join(short)}, so no job is taken: {places}"
            remedy = "free room (nix-collect-garbage), or lower limits.disk_floor_bytes and limits.disk_floor_inodes"
            yield _storage("", "disk", Verdict.FAILURE, cause, remedy)
        else:
            inodes = f" and {free_inodes} inodes" if self._disk.f_files else ""
            yield _storage("", "disk", Verdict.OK, f"{_mebibytes(free_bytes)}{inodes} are free for {places}")


def _mebibytes(count: int) -> str:
    return f"{count // 2**20} MiB"


def _storage(requirement: str, subject: str, verdict: Verdict, cause: str, remedy: str = "") -> Finding:
    return Finding(Group.STORAGE, requirement, subject, verdict, cause, remedy)
