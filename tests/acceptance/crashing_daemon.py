"""``ofborg-async`` in which the lanes of one identity crash as they start, as long as a file is there.

A prefix of its command line: its own words are the identity's name and the file; the command follows as it would be.
"""

import sys
from pathlib import Path

from ofborg_async.lab.altered import become_daemon
from ofborg_async.supervisor.lane import Lane

if __name__ == "__main__":  # who imports this wants to know where it is
    name, cause, *words = sys.argv[1:]
    run = Lane.run

    async def crash(lane: Lane) -> None:
        if lane._owner.settings.name == name and Path(cause).exists():
            raise ZeroDivisionError("a mistake of the lab")
        await run(lane)

    setattr(Lane, "run", crash)  # noqa: B010 - a method is altered
    sys.exit(become_daemon(words))
