"""What a reload of the configuration changed, identity by identity. Names of keys only: never what they say."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen


class Change(enum.StrEnum):
    """What a reload is for one identity."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@frozen
class IdentityChange:
    """One identity: the ``keys`` whose values differ (as TOML names them), and in ``effect`` what comes of it."""

    name: str
    change: Change
    keys: tuple[str, ...] = ()
    effect: str = ""


@frozen
class FaultReport:
    """One fault of a configuration that was refused: ``line`` from 1, None where it is not known."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line is not None else self.file
        return ": ".join(part for part in (where, self.key, self.message) if part)


@frozen
class ReloadReport:
    """The answer to ``reload``. Not ``ok``: the files have ``faults``, and nothing was changed.

    ``daemon_keys`` of [daemon] are in effect now; ``restart_keys`` differ too, but wait for the daemon's restart.
    """

    schema: int
    ok: bool
    fingerprint: str
    faults: tuple[FaultReport, ...] = ()
    warnings: tuple[str, ...] = ()
    identities: tuple[IdentityChange, ...] = ()
    daemon_keys: tuple[str, ...] = ()
    restart_keys: tuple[str, ...] = ()

    def sentences(self) -> Iterator[str]:
        """For people, a line each."""
        yield from (str(fault) for fault in self.faults)
        for identity in self.identities:
            keys = f" ({', '.join(identity.keys)})" if identity.keys else ""
            yield f"{identity.name}: {identity.change}{keys}" + (f": {identity.effect}" if identity.effect else "")
        if self.daemon_keys:
            yield f"in effect now: {', '.join(self.daemon_keys)}"
        if self.restart_keys:
            yield f"in effect only after a restart of the daemon: {', '.join(self.restart_keys)}"
        yield from (f"warning: {warning}" for warning in self.warnings)
        if not self.ok:
            count = len(self.faults)
            yield f"{count} {'fault' if count == 1 else 'faults'}: nothing was changed."
