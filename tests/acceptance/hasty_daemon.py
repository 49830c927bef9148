"""``ofborg-async`` with a housekeeping that comes in tenths of a second instead of minutes. Else it is the real one.

A prefix of its command line: what follows is the command as it would be without it.
"""

import sys

from ofborg_async.journal import opening
from ofborg_async.lab.altered import become_daemon
from ofborg_async.supervisor import daemon

if __name__ == "__main__":  # who imports this wants to know where it is
    opening.BUSY_SECONDS = 0.2
    daemon.TICK_SECONDS = 0.1
    daemon.PRUNE_SECONDS = 0.3
    vars(daemon)["SURE_SECONDS"] = 0.2  # it is defined elsewhere
    sys.exit(become_daemon(sys.argv[1:]))
