"""The command line: renders snapshots and starts the daemon. What a command does not need, it does not import."""

from ofborg_async.cli.main import main

__all__ = ["main"]
