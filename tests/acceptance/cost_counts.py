"""What a running daemon does, counted: commands started, modules loaded, bytes and calls of its own threads."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections import Counter
from pathlib import Path

from attrs import frozen
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess

# Python imports a module of this name at its start (site(1)), so the daemon needs no way in of its own.
_SITE = """
import json, os, pathlib, signal, sys

at_start = set(sys.modules)

def tell(*_):
    place = pathlib.Path(os.environ["MODULES_FILE"])
    place.with_suffix(".new").write_text(json.dumps(sorted(set(sys.modules) - at_start)))
    place.with_suffix(".new").rename(place)

signal.signal(signal.SIGUSR1, tell)
"""


@frozen
class Modules:
    """Tells what a daemon has loaded that was started with ``environment``."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        site = self.directory / "site"
        site.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(_SITE)
        return {"PYTHONPATH": str(site), "MODULES_FILE": str(self.directory / "modules.json")}

    async def loaded(self, daemon: DaemonProcess) -> set[str]:
        """The names of all modules that Python and the installation had not loaded before the program began."""
        file = self.directory / "modules.json"
        file.unlink(missing_ok=True)
        daemon.signal(signal.SIGUSR1)
        await eventually("the list of modules", file.exists)
        return set(json.loads(file.read_text())) - {"sitecustomize"}


@frozen
class Commands:
    """Programs in a directory for PATH; each writes down its words and becomes the real one of its name."""

    directory: Path
    names: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            real = shutil.which(name)
            assert real, name
            script = self.directory / name
            script.write_text(
                f'#!/bin/sh\nprintf \'%s\\0\' "{name} $*" >> {shlex.quote(str(self._file))}\nexec {real} "$@"\n'
            )
            script.chmod(0o755)
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}

    def clear(self) -> None:
        """Forget what was started so far."""
        self._file.write_text("")

    def started(self) -> list[str]:
        """Each start since then: the program and its words, which may have several lines."""
        return self._file.read_text().split("\0")[:-1]

    @property
    def _file(self) -> Path:
        return self.directory / "started"


@frozen
class Io:
    """read(2), write(2) and their like by a process's own threads (proc(5), ``io``); not what goes to sockets."""

    reads: int
    writes: int
    written_bytes: int

    @classmethod
    def of(cls, pid: int) -> Io:
        """Since its threads began; of those that are there now."""
        total: Counter[str] = Counter()
        for file in Path(f"/proc/{pid}/task").glob("*/io"):
            for line in file.read_text().splitlines():
                name, _, value = line.partition(": ")
                total[name] += int(value)
        return cls(total["syscr"], total["syscw"], total["wchar"])

    def __sub__(self, earlier: Io) -> Io:
        return Io(self.reads - earlier.reads, self.writes - earlier.writes, self.written_bytes - earlier.written_bytes)
