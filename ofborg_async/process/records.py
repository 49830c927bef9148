"""What is written down of a running process, so that a later daemon finds what outlived this one."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen


@frozen
class ProcessRecord:
    """A process that was started and whose end is not recorded.

    ``pid`` is also its process group and session. ``start_time`` is opaque text that tells it from a later process with
    the same number (``table.start_text``); ``attempt_id`` is "" for a process that belongs to no attempt.
    """

    attempt_id: str
    pid: int
    start_time: str
    argv0: str


class ProcessRegistry(Protocol):
    """Keeps records of running processes where they survive the daemon. The journal is one.

    Both methods are sync and cheap: they are called on the event loop, between a spawn and its first line.
    """

    def started(self, attempt_id: str, pid: int, start_time: str, argv0: str) -> None:
        """A process runs from now on; the arguments make a ProcessRecord."""
        ...

    def ended(self, pid: int) -> None:
        """The process and all it started are gone."""
        ...
