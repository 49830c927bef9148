"""A private nix store with real ``/nix/store`` names, below a directory of its own (nix.conf(5), "Local Store").

It builds in nix's sandbox: the file system that a build sees is made of the private store, so the machine needs no
``/nix``, and nothing is written to one. For any user but root that takes user namespaces, as most systems give them.
"""

from __future__ import annotations

import grp
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from attrs import frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LabError, Server, base_environment

_DAEMON_SECONDS = 30.0
_SHELL = "/bin/sh"


@frozen
class Store:
    """What a builder is told to use the store: ``remote`` is ``nix.remote``, ``environment`` is ``nix.environment``."""

    directory: Path
    remote: str
    environment: Mapping[str, str]

    async def nix(self, *argv: str, cwd: Path | None = None, deadline_seconds: float = 120.0) -> str:
        """Run a nix command on the store; its output. Raises LabError when it fails."""
        env = base_environment(HOME="/homeless-shelter", NIX_REMOTE=self.remote, **self.environment)
        return (await run(*argv, env=env, cwd=cwd, deadline_seconds=deadline_seconds)).decode()

    def remove(self) -> None:
        """Remove all of it; the paths in a store are read-only."""
        remove_tree(self.directory)


async def create_store(directory: Path, **settings: str) -> Store:
    """A new store in ``directory``. ``settings`` are further lines of its nix.conf, with ``_`` for ``-``.

    ``create_store(path, max_silent_time="8")`` is the store of the recordings. Raises LabError without a static shell
    to put into the sandbox.
    """
    configuration = directory / "etc"
    configuration.mkdir(parents=True)
    write_nix_conf(configuration / "nix.conf", **settings)
    store = Store(
        directory,
        f"local?root={directory / 'root'}",
        # Else nix looks for settings, channels and caches of the user who runs the tests.
        {"NIX_CONF_DIR": str(configuration), "NIX_USER_CONF_FILES": "", "XDG_CACHE_HOME": str(directory / "cache")},
    )
    await store.nix("nix-store", "--init")  # two first commands at once can trip over each other
    return store


def write_nix_conf(file: Path, **settings: str) -> None:
    """Write a nix.conf without substituters; ``settings`` as for ``create_store``."""
    lines = {"sandbox": "true", "sandbox-paths": f"{_SHELL}={static_shell()}", "substituters": ""}
    with suppress(KeyError):
        grp.getgrnam("nixbld")
        lines["build-users-group"] = "nixbld"
    lines.setdefault("build-users-group", "")
    lines |= {key.replace("_", "-"): value for key, value in settings.items()}
    file.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))


def static_shell() -> str:
    """A shell that needs no libraries, hence works in a sandbox that has none. Raises LabError when there is none."""
    for program in ("busybox", "busybox-static", "bash-static"):
        if found := shutil.which(program, path=base_environment()["PATH"]):
            return str(Path(found).resolve())
    raise LabError("no static shell for nix's sandbox: `make install` installs busybox-static")


@asynccontextmanager
async def private_store(directory: Path, **settings: str) -> AsyncIterator[Store]:
    """``create_store`` for the time of the block."""
    try:
        yield await create_store(directory, **settings)
    finally:
        remove_tree(directory)


@asynccontextmanager
async def private_nix_daemon(store: Store) -> AsyncIterator[Store]:
    """A nix-daemon with the settings of ``store`` and a store of its own while the block runs, and the way to it.

    ``remote`` is "daemon". The store's paths do not begin with /nix: clients read what they name, so it is there for
    all to see. Where they must, see ``namespace``.
    """
    async with nix_daemon_of(store) as (_, reached):
        yield reached


@asynccontextmanager
async def nix_daemon_of(store: Store) -> AsyncIterator[tuple[Server, Store]]:
    """The same with its Server, which may be killed and started while the block runs."""
    socket = store.directory / "daemon-socket"
    place = store.directory / "daemon"
    environment = {
        **store.environment,
        "NIX_DAEMON_SOCKET_PATH": str(socket),
        "NIX_STORE_DIR": str(place / "store"),
        "NIX_STATE_DIR": str(place / "state"),
        "NIX_LOG_DIR": str(place / "log"),
    }
    server = Server(
        "nix-daemon",
        ["nix-daemon"],
        env=base_environment(HOME="/homeless-shelter", NIX_REMOTE="local", **environment),
        log=store.directory / "daemon.log",
    )
    try:
        await start_nix_daemon(server)
        yield server, Store(store.directory, "daemon", environment)
    finally:
        server.kill()


async def start_nix_daemon(server: Server) -> None:
    """Start the Server of ``nix_daemon_of``, for the first time or again, and wait until it has its socket."""
    socket = Path(server.env["NIX_DAEMON_SOCKET_PATH"])
    socket.unlink(missing_ok=True)  # a killed one leaves it
    server.start()
    await server.ready(lambda: _exists(socket), _DAEMON_SECONDS)


def remove_tree(directory: Path) -> None:
    """Remove a tree though its directories are read-only, as those in a store are. None there is fine."""
    if not directory.exists():
        return
    for place in (directory, *directory.rglob("*")):
        if place.is_dir() and not place.is_symlink():
            place.chmod(0o700)
    shutil.rmtree(directory)


async def _exists(path: Path) -> bool:
    return path.exists()
