"""The roots that this daemon has taken for its life, one for each identity."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ofborg_async.clock import Clock
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.locks import FileLock
from ofborg_async.model.identity import IdentitySettings
from ofborg_async.supervisor import startup


class HeldRoots:
    """Locks by the identity's name. One on a root that was removed or replaced excludes nobody: hence ``fault``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._locks: dict[str, FileLock] = {}

    @property
    def locks(self) -> Mapping[str, FileLock]:
        """What is held, by the identity's name."""
        return MappingProxyType(self._locks)

    async def take(self, settings: IdentitySettings) -> None:
        """Make and take the root of an identity, unless it is held already.

        Raises LockHeldError when another daemon has it, HostFault (PERMISSION, LOCK, DISK).
        """
        if self.fault(settings) is not None:
            self.leave(settings.name)
            self._locks[settings.name] = await startup.lock_root(settings, self._clock)

    def fault(self, settings: IdentitySettings) -> HostFault | None:
        """Why the root of an identity is not the one that was taken, if it is not. Sync."""
        lock = self._locks.get(settings.name)
        try:
            if lock is not None and lock.is_current():
                return None
        except OSError as error:
            why = error.strerror or str(error)
        else:
            why = "it was removed or replaced"
        detail = f"the root {settings.root} is not the one that was taken: {why}"
        return HostFault(FaultKind.LOCK, detail, remedy="none is needed: it is made and taken anew")

    def leave(self, name: str) -> None:
        """Give back the root of an identity, if it has one. Sync."""
        lock = self._locks.pop(name, None)
        if lock is not None:
            lock.close()

    def close(self) -> None:
        """Give back all of them. Sync."""
        for name in [*self._locks]:
            self.leave(name)
