"""What must be true before the daemon starts, in this order: the user, the state directory, no leftovers, the roots."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path

from ofborg_async.clock import Clock
from ofborg_async.errors import ConfigError, ConfigFault, FaultKind, HostFault
from ofborg_async.journal import Journal
from ofborg_async.locks import FileLock, HolderNote, acquire_file_lock, acquire_root_lock
from ofborg_async.model.identity import IdentitySettings, Settings
from ofborg_async.process import ProcessRecord, become_subreaper, end_leftovers
from ofborg_async.waiting import in_thread

log = logging.getLogger(__name__)

LOCK_NAME = "daemon.lock"
OTHER_DAEMON_SECONDS = 1.0
"""How long a root or the state may still be held by a daemon that is just ending."""


def refuse_root(settings: Settings, euid: int) -> None:
    """Raise ConfigError when the daemon would run as root without being told that it may (interface document)."""
    if euid == 0 and not settings.daemon.allow_root:
        raise ConfigError(
            [
                ConfigFault(
                    "daemon",
                    "allow_root",
                    "ofborg-async refuses to run as root: pull requests are built with its rights. Run it as a user of "
                    "its own, or say daemon.allow_root = true (OFBORG_ASYNC_ALLOW_ROOT=1)",
                )
            ]
        )


async def lock_state(state_dir: Path, clock: Clock) -> FileLock:
    """Make the state directory and take it. Raises LockHeldError (another daemon), HostFault (PERMISSION)."""
    _make_directory(state_dir, "state directory")
    note = HolderNote.of_this_process("", clock)
    return await acquire_file_lock(state_dir / LOCK_NAME, deadline_seconds=OTHER_DAEMON_SECONDS, note=note)


async def sweep(journal: Journal, gcroots: Path) -> None:
    """End processes that a daemon before this one left behind, then drop the collector roots of its attempts.

    From here on, what escapes its parent becomes a child of ours, so that it is found when its attempt ends.
    """
    become_subreaper()
    leftovers = journal.leftovers()
    records = [ProcessRecord(left.attempt_id, left.pid, left.start_time, left.argv0) for left in leftovers]
    found = await end_leftovers(records, attempt_ids=await journal.live_attempts())
    stubborn = await end_leftovers(found) if found else []
    for record in stubborn:
        log.error("%s (process %d) cannot be ended; it keeps its work tree busy", record.argv0, record.pid)
    kept = {record.pid for record in stubborn}
    for record in records:
        if record.pid not in kept:
            journal.ended(record.pid)
    await in_thread(partial(shutil.rmtree, gcroots, ignore_errors=True))


async def lock_root(identity: IdentitySettings, clock: Clock) -> FileLock:
    """Make a root and take it for the life of the daemon. Raises LockHeldError, HostFault (PERMISSION, LOCK, DISK)."""
    _make_directory(identity.root, f"root of {identity.name}")
    return await acquire_root_lock(
        identity.root, identity=identity.name, clock=clock, deadline_seconds=OTHER_DAEMON_SECONDS
    )


def _make_directory(path: Path, what: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(path, os.R_OK | os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(path, what, error.strerror or str(error)) from error
    if not usable:
        raise _unusable(path, what, "it cannot be read and written")


def _unusable(path: Path, what: str, why: str) -> HostFault:
    return HostFault(
        FaultKind.PERMISSION,
        f"the {what}, {path}, cannot be used: {why}",
        remedy=f"give {path} to the user that runs the daemon (chown), on a writable file system",
    )
