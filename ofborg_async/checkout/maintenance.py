"""Packs the objects of mirrors before there are too many files of them. Nothing is ever pruned.

Every root borrows from a mirror what no ref of it need name any more: a head that was force-pushed away, the commit
that a tree still stands on. So the only command is ``git repack --geometric -d``. It rolls small packs and all loose
objects, reachable or not, into one pack, and deletes what it has just copied, no more (git-repack(1)). A git that reads
through a root meanwhile looks again for packs when an object is not where it was. The large pack of the first fetch is
left alone, so that the work grows with what came since. Refs need no packing: there are two for each tree and one for
each branch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
from attrs import frozen

from ofborg_async.checkout.git import BoundGit, Git
from ofborg_async.checkout.mirror import MirrorStore
from ofborg_async.clock import Clock
from ofborg_async.errors import HostFault, LockHeldError
from ofborg_async.locks import LockManager
from ofborg_async.process import Spawner
from ofborg_async.waiting import in_thread

_log = logging.getLogger(__name__)

LOOSE_OBJECTS = 1000
PACKS = 20
BUSY_FACTOR = 2
"""A host that is never quiet packs once there are so many times as many."""
_DEADLINE_SECONDS = 1800.0
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0
"""So long may an attempt wait for what a busy host must pack: else jobs without a pause would leave no time for it."""
_AFTER_FAULT_SECONDS = 3600.0
_HOLDER = "maintenance"


@frozen
class Heap:
    """What a mirror consists of: loose objects and packs."""

    loose: int
    packs: int

    def is_over(self, factor: int) -> bool:
        """Whether there is more than ``factor`` times what is worth packing."""
        return self.loose > factor * LOOSE_OBJECTS or self.packs > factor * PACKS


class MirrorMaintenance:
    """Looks after the mirrors of a daemon. ``environment`` is the daemon's own."""

    def __init__(
        self,
        mirrors: MirrorStore,
        *,
        spawner: Spawner,
        locks: LockManager,
        clock: Clock,
        environment: Mapping[str, str],
    ) -> None:
        self._mirrors = mirrors
        self._locks = locks
        self._clock = clock
        self._git = Git(spawner, environment, author_name=_HOLDER, author_email="", schemes=())
        self._not_before: dict[Path, float] = {}

    async def look(self, *, quiet: bool) -> None:
        """Pack each mirror that was fetched into and needs it; when the host is not ``quiet``, only what needs it much.

        An attempt that comes for the mirror ends the packing, at once where it can wait for a quiet time; it is tried
        again at the next look. Raises nothing: what goes wrong is logged, and tried again an hour later.
        """
        for path in self._mirrors.take_grown():
            try:
                heap = await in_thread(partial(heap_of, path), abandon_on_cancel=True)
                done = not heap.is_over(1) or (
                    (quiet or heap.is_over(BUSY_FACTOR)) and self._is_due(path) and await self._pack(path, heap)
                )
            except (HostFault, OSError) as fault:
                _log.warning("the mirror %s was not packed: %s", path, fault)
                self._not_before[path] = self._clock.monotonic() + _AFTER_FAULT_SECONDS
                done = False
            if not done:
                self._mirrors.note_grown(path)

    def _is_due(self, path: Path) -> bool:
        return self._clock.monotonic() >= self._not_before.get(path, 0.0)

    async def _pack(self, path: Path, heap: Heap) -> bool:
        """Do it, alone in the mirror; False when somebody else needs it. Raises HostFault."""
        lock_path = self._mirrors.lock_of(path)
        if any(lock.path == str(lock_path) for lock in self._locks.statistics()):
            return False
        try:
            async with self._locks.hold_file(lock_path, holder=_HOLDER, job=None, deadline_seconds=0.0) as lock:
                git = self._git.within(_DEADLINE_SECONDS, attempt_id="", descriptors=(lock.fileno(),))
                # Until it has come to its end there may be something to clear away, which the next fetch then does.
                self._mirrors.doubt(path)
                return await self._pack_until_asked_for(git, path, heap)
        except LockHeldError:
            return False

    async def _pack_until_asked_for(self, git: BoundGit, path: Path, heap: Heap) -> bool:
        began = self._clock.monotonic()
        fault: HostFault | None = None
        done = False
        async with anyio.create_task_group() as group:
            patience_seconds = _PATIENCE_SECONDS if heap.is_over(BUSY_FACTOR) else 0.0
            group.start_soon(self._watch, self._mirrors.lock_of(path), patience_seconds, group.cancel_scope)
            try:
                await git.run(path, "repack", "--geometric=2", "-d", "-q", "-n", "-l", "--threads=1", what="packing")
                done = True
            except HostFault as error:
                fault = error
            group.cancel_scope.cancel()
        if fault is not None:
            raise fault
        if done:
            took = self._clock.monotonic() - began
            _log.info("packed %d loose objects and %d packs of %s in %.1f s", heap.loose, heap.packs, path.name, took)
        return done

    async def _watch(self, lock_path: Path, patience_seconds: float, scope: anyio.CancelScope) -> None:
        """End the packing when an attempt waits for the mirror, or has waited for so long."""
        while not any(lock.path == str(lock_path) and lock.waiters for lock in self._locks.statistics()):
            await self._clock.sleep(_LOOK_SECONDS)
        await self._clock.sleep(patience_seconds)
        _log.info("an attempt needs %s: packing it is left for later", lock_path)
        scope.cancel()


def heap_of(mirror: Path) -> Heap:
    """Count, without reading more than folders. None is a heap of nothing. Raises OSError."""
    objects = mirror / "objects"
    if not objects.is_dir():
        return Heap(0, 0)
    loose = sum(1 for folder in objects.iterdir() if len(folder.name) == 2 for _ in folder.iterdir())
    packs = objects / "pack"
    return Heap(loose, sum(1 for path in packs.iterdir() if path.suffix == ".pack") if packs.is_dir() else 0)
