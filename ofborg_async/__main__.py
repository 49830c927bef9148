"""``python -m ofborg_async`` is the command ``ofborg-async``."""

import sys

from ofborg_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
