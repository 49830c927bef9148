"""Programs by name: looked up on the PATH of the child's environment, which need not be the daemon's."""

from __future__ import annotations

import os
import shutil

from ofborg_async.errors import ExecutableMissingError


class ProgramLookup:
    """Finds programs, and remembers where for each PATH as long as they are there."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], str] = {}

    def find(self, program: str, path: str) -> str:
        """The file of ``program``: itself if it has a slash, else the first executable file on ``path``.

        Raises ExecutableMissingError.
        """
        if "/" in program:
            return program
        known = self._found.get((program, path))
        if known is not None and os.access(known, os.X_OK):
            return known
        # An empty entry would mean the working directory, which is the pull request's.
        found = shutil.which(program, path=os.pathsep.join(filter(None, path.split(os.pathsep))))
        if found is not None:
            self._found[program, path] = found
            return found
        raise ExecutableMissingError(program)
