"""Where RabbitMQ and Erlang/OTP have their parts on this machine, and how Erlang writes values."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ofborg_async.lab.servers import LabError, base_environment

_DEBIAN_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # what is on PATH insists on the user rabbitmq
_CORE = ["rabbit", "rabbit_common", "ra", "rabbitmq_prelaunch", "ranch", "osiris", "syslog"]
_OTP = ["kernel", "stdlib", "ssl", "compiler", "mnesia", "sasl", "inets", "xmerl", "public_key"]


def server_program() -> str:
    """What starts a node as any user."""
    return _DEBIAN_SERVER if os.access(_DEBIAN_SERVER, os.X_OK) else "rabbitmq-server"


def core_plugins() -> list[Path] | None:
    """The directories of what every node needs, RabbitMQ's and OTP's; None where they are not found in one place."""
    server, erl = (shutil.which(name, path=base_environment()["PATH"]) for name in (server_program(), "erl"))
    if server is None or erl is None:
        return None
    plugins = Path(server).resolve().parent.parent / "plugins"
    otp = Path(erl).resolve().parent.parent / "lib"
    found = [sorted(place.glob(f"{name}-[0-9]*")) for place, names in ((plugins, _CORE), (otp, _OTP)) for name in names]
    return [matches[-1] for matches in found] if all(found) else None


def erl_call() -> str:
    """OTP's own client for one call to a node; beside ``erl`` where it is not on PATH."""
    path = base_environment()["PATH"]
    found = shutil.which("erl_call", path=path)
    if found is None and (erl := shutil.which("erl", path=path)) is not None:
        found = shutil.which("erl_call", path=str(Path(erl).resolve().parent))
    if found is None:
        raise LabError("erl_call, a part of Erlang/OTP, is missing: `make install` installs it")
    return found


def binary(value: str) -> str:
    """An Erlang binary with the value's UTF-8 bytes."""
    return f"<<{','.join(map(str, value.encode()))}>>"


def string(value: str) -> str:
    """An Erlang string."""
    return json.dumps(value)
