"""Breaking a lock whose holder is dead, by ending what the holder left behind.

A lock file cannot be broken in any other way that is safe: removing it would let two think that they have the lock.
With flock(2) the death of a holder frees it, unless a child has inherited the descriptor. Such a child is ended if a
daemon of ours started it; a stranger is named, and is for the operator to judge.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

from ofborg_async.control.problems import ConflictError, UnknownNameError
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.locks import Holder, holder_of, keepers_of
from ofborg_async.model.status import BrokenLock, LockSnapshot
from ofborg_async.process import end_leftovers, name_of, records_of
from ofborg_async.waiting import in_thread


async def free_lock(key: str, locks: Sequence[LockSnapshot]) -> BrokenLock:
    """Free the lock ``key`` of ``locks``. Raises UnknownNameError, ConflictError (alive, or a stranger), HostFault."""
    lock = next((lock for lock in locks if lock.key == key), None)
    if lock is None:
        raise UnknownNameError("lock", key, [lock.key for lock in locks])
    if lock.holder_pid == os.getpid():
        doing = f" for attempt {lock.job}" if lock.job else ""
        raise ConflictError(
            f"{lock.holder} holds it{doing} and is alive, in this daemon (process {os.getpid()})",
            remedy=f"ofborg-async cancel {lock.job}" if lock.job else "it is given back when the identity is removed",
        )
    path = Path(lock.path)
    held = await _look(path)
    if held is None:
        return BrokenLock(key, lock.path, ())
    leftovers = records_of(held.dead_holders_children())
    await end_leftovers(leftovers)
    still = await _look(path)  # whoever waited for it may have it by now
    if still is not None and not {record.pid for record in leftovers}.isdisjoint(still.keepers):
        raise HostFault(FaultKind.LOCK, f"{path} is still held by {still}", remedy="end it by hand")
    return BrokenLock(key, lock.path, tuple(f"process {record.pid} ({record.argv0})" for record in leftovers))


@frozen
class _Held:
    """Who took a lock file, as far as the system tells, and which processes keep it now."""

    path: Path
    taker: int | None
    keepers: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(f"process {pid} ({name_of(pid)})" for pid in self.keepers)

    def dead_holders_children(self) -> tuple[int, ...]:
        """The processes to be ended. Raises ConflictError unless the holder is gone and all are a daemon's.

        A living holder is itself one of those that keep the lock.
        """
        if self.taker in self.keepers:
            raise ConflictError(
                f"process {self.taker} ({name_of(self.taker or 0)}) holds it and is alive",
                remedy="wait until it is done; if it must not go on, end it",
            )
        if not self.keepers:
            raise ConflictError(
                "somebody holds it, and the system does not tell who", remedy=f"ask as root: lsof {self.path}"
            )
        ours = {record.pid for record in records_of(self.keepers)}
        strangers = [pid for pid in self.keepers if pid not in ours]
        if strangers:
            # In a container the system does not tell the number of one that is gone.
            holder = "its holder" if self.taker is None else f"its holder, process {self.taker},"
            raise ConflictError(
                f"{holder} is gone, but {self} has the lock from it, and no daemon of this program started that",
                remedy=f"if nothing needs it, end it: kill {' '.join(map(str, strangers))}",
            )
        return self.keepers


async def _look(path: Path) -> _Held | None:
    """None when nobody holds it."""
    try:
        holder = await in_thread(partial(holder_of, path))
        keepers = await in_thread(partial(keepers_of, path)) if holder is not None else ()
    except OSError as error:
        raise HostFault(FaultKind.LOCK, f"{path} cannot be looked at: {error.strerror}") from error
    return None if holder is None else _Held(path, _taker(holder), keepers or ())


def _taker(holder: Holder) -> int | None:
    return holder.pid if holder.pid is not None else holder.note.pid if holder.note else None
