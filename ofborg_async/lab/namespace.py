"""The machine's own ``/nix`` and ``/etc`` replaced for some programs: a mount namespace, Linux, root only.

For what cannot be told where its store is: a configuration of the original builder with ``remote: "daemon"`` as it is,
and evaluations that read what a daemon built. Start ``nix-daemon`` and the builder each with the words of
``PrivateNix.prefix`` before its own: they meet in the same ``/nix``.

Nothing is made on the machine, not even a mount point: several of these may be there at once, and a directory that one
of them removed would take the mounts of the others away.
"""

from __future__ import annotations

import os
import shutil
import subprocess  # noqa: TID251 - asked once, before there is an event loop
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from attrs import frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import Server, base_environment
from ofborg_async.lab.store import remove_tree, write_nix_conf

# A root in memory with everything of the machine's bound into it, a copy of /etc, and a /nix of its own. Without the
# directory that nix as root makes where it has no sandbox, and before which it then refuses to build.
_SCRIPT = """
set -e
place=$1 cwd=$PWD
shift
mount -t tmpfs -o mode=755 tmpfs "$place/root"
cd "$place/root"
for each in /*; do
  case $each in
    /nix|/homeless-shelter) ;;
    /etc) cp -a /etc . ;;
    *) if [ -L "$each" ]; then cp -P "$each" .
       elif [ -d "$each" ]; then mkdir ".$each"; mount --rbind "$each" ".$each"; fi ;;
  esac
done
rm -rf etc/nix
mkdir -p nix etc/nix .machine
mount --bind "$place/nix" nix
mount --bind "$place/etc" etc/nix
pivot_root . .machine
umount -l /.machine
rmdir /.machine
cd "$cwd"
exec "$@"
"""
_DAEMON_SECONDS = 30.0
_ASK_SECONDS = 10.0


@frozen
class PrivateNix:
    """A ``/nix`` and an ``/etc/nix`` in ``directory``; ``prefix``: the words before a program that is to see them.

    Such a program may change ``/`` and ``/etc`` as it likes: they are its own, and gone with it.
    """

    directory: Path
    prefix: tuple[str, ...]


@cache
def namespaces_work() -> bool:
    """Whether this user can have a mount namespace here: on Linux, as root, if a container does not forbid it."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("unshare") is None:
        return False
    words = ["unshare", "--mount", "--", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True, timeout=_ASK_SECONDS, check=False).returncode == 0


def empty_nix(directory: Path, **settings: str) -> PrivateNix:
    """Such a place, with an empty ``/nix``; the settings as for ``store.create_store``."""
    for name in ("nix", "etc", "root"):
        (directory / name).mkdir(parents=True)
    write_nix_conf(directory / "etc" / "nix.conf", **settings)
    return PrivateNix(directory, ("unshare", "--mount", "--", "sh", "-c", _SCRIPT, "sh", str(directory)))


@asynccontextmanager
async def private_nix(directory: Path, **settings: str) -> AsyncIterator[PrivateNix]:
    """Such a place and a nix-daemon in it while the block runs; the settings as for ``store.create_store``."""
    place = empty_nix(directory, **settings)
    environment = base_environment(HOME="/homeless-shelter")
    server = Server("nix-daemon", [*place.prefix, "nix-daemon"], env=environment, log=directory / "daemon.log")
    socket = directory / "nix" / "var" / "nix" / "daemon-socket" / "socket"
    try:
        # Else the first connection makes the store, and two at once can trip over each other.
        await run(*place.prefix, "nix-store", "--init", env=environment)
        server.start()
        await server.ready(lambda: _exists(socket), _DAEMON_SECONDS)
        yield place
    finally:
        server.kill()
        remove_tree(directory)


async def _exists(path: Path) -> bool:
    return path.exists()
