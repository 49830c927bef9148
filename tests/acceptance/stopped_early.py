"""``ofborg-async`` that is asked to stop (SIGTERM) at a moment of its start, which the first word names.

A prefix of its command line: what follows is the command as it would be without it.
"""

import os
import signal
import sys
from collections.abc import Sequence

from ofborg_async.cli import main


class StopAtImport:
    """A finder that finds nothing: it stops the process when a module is looked for."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == self._module:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    module, python, minus_m, package, *words = sys.argv[1:]
    sys.meta_path.insert(0, StopAtImport(module))
    status = main(words)
    print("it ended by itself", flush=True)
    sys.exit(status)
