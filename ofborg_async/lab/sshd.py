"""A private OpenSSH server on the loopback, with keys of its own, as root or as any user (sshd_config(5))."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LOOPBACK, LabError, Server, base_environment, free_port, listens

_START_SECONDS = 30.0
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # Debian's; made at boot where sshd runs as a service


@frozen
class Sshd:
    """Where it listens, who may log in, and the files of a client."""

    host: str
    port: int
    user: str
    client_key: Path
    known_hosts: Path
    log: Path


@asynccontextmanager
async def private_sshd(directory: Path, *options: str) -> AsyncIterator[Sshd]:
    """An OpenSSH server while the block runs. ``options`` are further lines of its sshd_config.

    Only the user who starts it can log in, with the client key.
    """
    program = shutil.which("sshd", path=base_environment()["PATH"])
    if program is None:
        raise LabError("sshd is missing: `make install` installs openssh-server")
    directory.mkdir(parents=True)
    host_key, client_key = directory / "host_key", directory / "client_key"
    for key in (host_key, client_key):
        await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key), env=base_environment())
    port = free_port()
    words = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(f"[{LOOPBACK}]:{port} {words}\n")
    config = directory / "sshd_config"
    config.write_text("\n".join([*_configuration(port, host_key, client_key), *options, ""]))
    log = directory / "sshd.log"
    server = Server("sshd", [program, "-D", "-e", "-f", str(config)], env=base_environment(), log=log)
    made = _make_privilege_separation()
    try:
        server.start()
        await server.ready(lambda: listens(port), _START_SECONDS)
        yield Sshd(LOOPBACK, port, getpass.getuser(), client_key, known_hosts, log)
    finally:
        server.kill()
        if made:
            with suppress(OSError):
                _PRIVILEGE_SEPARATION.rmdir()


def _configuration(port: int, host_key: Path, client_key: Path) -> list[str]:
    return [
        f"ListenAddress {LOOPBACK}:{port}",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {client_key.with_suffix('.pub')}",
        "PidFile none",
        "UsePAM no",
        "StrictModes no",  # the directory may be below one that others can write to
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
    ]


def _make_privilege_separation() -> bool:
    """As root sshd insists on an empty directory; True when it was made here."""
    if os.getuid() != 0 or _PRIVILEGE_SEPARATION.exists():
        return False
    _PRIVILEGE_SEPARATION.mkdir(mode=0o755, parents=True)
    return True
