"""``service``: the definition for a configuration, printed, installed or removed."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from ofborg_async.cli.daemon import shared_roots
from ofborg_async.cli.status_codes import EX_OK
from ofborg_async.config import load
from ofborg_async.control.visible import visible
from ofborg_async.service import Kind, define, install, needs_of, uninstall

_PROGRAMS = ("ofborg-async", "git", "nix-build")


def print_definition(arguments: Namespace) -> int:
    """Print it. Raises ConfigError."""
    sys.stdout.write(_definition(arguments))
    return EX_OK


def install_definition(arguments: Namespace) -> int:
    """Write it where the service manager looks. Raises ConfigError, HostFault."""
    print(visible(install(arguments.kind, _definition(arguments), arguments.prefix)))
    return EX_OK


def uninstall_definition(arguments: Namespace) -> int:
    """Remove it. Raises HostFault."""
    print(visible(uninstall(arguments.kind, arguments.prefix)))
    return EX_OK


def _definition(arguments: Namespace) -> str:
    kind: Kind = arguments.kind
    # As the service will read it: with none of this shell's variables, but those that its manager sets.
    environ = {"STATE_DIRECTORY": str(kind.state_dir), "RUNTIME_DIRECTORY": str(kind.runtime_dir)}
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        environ["CREDENTIALS_DIRECTORY"] = credentials
    settings = load(arguments.config, environ=environ, root_conflicts=shared_roots)
    user = arguments.user or kind.user
    return define(needs_of(settings, kind, user=user, programs=_directories()))


def _directories() -> list[Path]:
    """Where this shell finds the programs that the service runs; this command itself first."""
    own = Path(sys.argv[0]).absolute() if sys.argv[0].endswith("ofborg-async") else None
    found = [own if own is not None else shutil.which(_PROGRAMS[0]), *map(shutil.which, _PROGRAMS[1:])]
    return list(dict.fromkeys(Path(path).parent for path in found if path is not None))
