"""``run``, ``check``, ``convert`` and ``demo``: the commands that speak to no running daemon.

``run`` is the daemon: what is imported here stays in its memory, so no rendering and no SSH.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ofborg_async.cli.status_codes import EX_OK


def run(arguments: Namespace) -> int:
    """The daemon in the foreground, until it is told to stop. Raises ConfigError."""
    from ofborg_async.supervisor.stopsignals import hold_stop_signals

    hold_stop_signals()  # first: what is imported next takes a moment, in which a stop may be asked for already
    from ofborg_async.config import load
    from ofborg_async.supervisor.daemon import run_daemon

    read = partial(load, arguments.config, environ=os.environ, root_conflicts=shared_roots)
    return run_daemon(read(), read)


def check(arguments: Namespace) -> int:
    """Every fault of the configuration at once."""
    from ofborg_async.config import check_report

    report = check_report(arguments.config, environ=os.environ, root_conflicts=shared_roots)
    if arguments.json:
        print(json.dumps(report.document, indent=2))
    else:
        print(report.text, file=sys.stdout if report.exit_status == EX_OK else sys.stderr)
    return report.exit_status


def shared_roots(roots: Sequence[tuple[str, Path]]) -> list[str]:
    """Roots that are equal or nested on disk, whatever their names are."""
    from ofborg_async.locks import find_conflicts

    return [conflict.why for conflict in find_conflicts(roots)]


def convert(arguments: Namespace) -> int:
    """One commented TOML for the original's files. Raises ConfigError."""
    from ofborg_async.config import convert_to_toml

    sys.stdout.write(convert_to_toml(arguments.file, inline_secrets=arguments.inline_secrets))
    return EX_OK


def demo(arguments: Namespace) -> int:
    """What ``make demo`` runs."""
    del arguments
    from ofborg_async.lab.demo import main

    return main()
