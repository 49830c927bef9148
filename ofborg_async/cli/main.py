"""``main``: parse, import the one command that was asked for, run it, turn errors into one sentence and a status."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ofborg_async.cli.parser import build_parser
from ofborg_async.cli.status_codes import EX_BROKEN_PIPE, EX_INTERRUPTED, status_of
from ofborg_async.control.visible import visible
from ofborg_async.errors import OfborgAsyncError

if TYPE_CHECKING:
    from argparse import Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Exits by itself for ``--help`` and wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        status = _command(arguments.command)(arguments)
        sys.stdout.flush()
    except OfborgAsyncError as error:
        complain(error)
        return status_of(error)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough; without this Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_BROKEN_PIPE
    return status


def complain(error: OfborgAsyncError) -> None:
    """Say what went wrong on standard error, a line for each fault."""
    for line in str(error).splitlines():
        print(f"ofborg-async: {visible(line)}", file=sys.stderr)


def _command(name: str) -> Callable[[Namespace], int]:
    module, _, function = name.partition(":")
    return cast("Callable[[Namespace], int]", getattr(importlib.import_module(module), function))
