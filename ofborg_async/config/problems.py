"""Faults and warnings are collected here while a configuration is read, so that all are told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import Factory, field, frozen

from ofborg_async.config.positions import line_of
from ofborg_async.config.strict import KeyPath
from ofborg_async.errors import ConfigFault


def printable(text: str) -> str:
    """``text`` for a message on one line: control characters, surrogates and the like are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def dotted(path: KeyPath) -> str:
    """A path as people write it: ``identity[0].nix.systems``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{printable(part)}" if text else printable(part)
    return text


@frozen
class Place:
    """Where a fault is: the ``file`` as it was given (or ``environment``), the dotted ``key``, the ``line``."""

    file: str
    key: str = ""
    line: int | None = None


@frozen
class Problems:
    """Collects faults and warnings, each once."""

    faults: list[ConfigFault] = field(init=False, default=Factory(list))
    warnings: list[str] = field(init=False, default=Factory(list))

    def fault(self, place: Place, message: str) -> None:
        """Note something that must be mended before the daemon can run. ``message`` says how."""
        fault = ConfigFault(place.file, place.key, message, place.line)
        if str(fault) not in {str(known) for known in self.faults}:
            self.faults.append(fault)

    def warn(self, place: Place, message: str) -> None:
        """Note something that an operator should know or look at."""
        text = str(ConfigFault(place.file, place.key, message, place.line))
        if text not in self.warnings:
            self.warnings.append(text)

    def sort(self, files: Sequence[str]) -> None:
        """Put the faults in the order of the files and their lines; what has no line stays where it was."""
        order = {name: index for index, name in enumerate(files)}
        self.faults.sort(key=lambda fault: (order.get(fault.file, len(order)), fault.line or 0))


@frozen
class Source:
    """A configuration file that was read. ``lines`` places its keys; ``mode`` are its permission bits."""

    path: Path
    name: str
    mode: int
    lines: dict[KeyPath, int] = field(repr=False)
    label: Callable[[KeyPath], str] = dotted

    def place(self, *path: str | int) -> Place:
        """Where ``path`` is in this file."""
        return Place(self.name, self.label(path), line_of(self.lines, path))

    @property
    def shown_to_others(self) -> bool:
        """Whether the file's group or everybody can read it."""
        return bool(self.mode & 0o077)

    @property
    def hiding(self) -> str:
        """How to keep others from reading the file."""
        return hiding(self.path, self.name)


def hiding(path: Path, name: str) -> str:
    """How to keep others from reading the file at ``path``, which is called ``name``."""
    if path.is_relative_to("/nix/store"):
        return "everybody can read the Nix store: keep it outside"
    return f"chmod 600 {name}"
