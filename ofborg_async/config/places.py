"""This host as the configuration needs to know it, and where state and socket are when nobody says.

In this order: the service manager (systemd's STATE_DIRECTORY and RUNTIME_DIRECTORY), then the system's folders for
root, then the XDG base directories (macOS: Application Support) for everybody else.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

PREFIX = "OFBORG_ASYNC_"
NAME = "ofborg-async"
SOCKET_NAME = "control.sock"
SOCKET_PATH_BYTES_MOST = 103  # sun_path of macOS, the shorter one, without its NUL
SYSTEM_PREFIXES = ("/var", "/private/var", "/srv", "/opt", "/run", "/nix")
FIRST_LOGIN_UID = {"darwin": 500}


@frozen
class Host:
    """Facts about this machine and the user who runs this.

    ``home`` is the user's home directory, from the user database; ``homes`` are folders below which (or which
    themselves) are personal; ``working_directory`` is what relative paths of the original's JSON count from.
    """

    platform: str
    user_id: int
    user_name: str
    host_name: str
    home: Path
    homes: tuple[Path, ...]
    working_directory: Path

    @classmethod
    def here(cls) -> Host:
        """The host this runs on."""
        user_id = os.geteuid()
        try:
            entry = pwd.getpwuid(user_id)
            user_name, home = entry.pw_name, Path(entry.pw_dir)
        except KeyError:  # a user id without an entry, as in a container
            user_name, home = "", Path("/nonexistent")
        return cls(
            platform=sys.platform,
            user_id=user_id,
            user_name=user_name,
            host_name=socket.gethostname(),
            home=home,
            homes=personal_folders(sys.platform, user_id, home),
            working_directory=Path.cwd(),
        )


def personal_folders(platform: str, user_id: int, home: Path) -> tuple[Path, ...]:
    """Folders whose names show a person: where homes are, and this user's own home if it is elsewhere.

    The home of a service account (under /var, /srv and so on) shows nobody.
    """
    folders = [Path("/home"), Path("/Users"), Path("/root"), Path("/var/root")]
    is_login = user_id >= FIRST_LOGIN_UID.get(platform, 1000)
    is_system = any(home.is_relative_to(prefix) for prefix in SYSTEM_PREFIXES)
    if is_login and not is_system and len(home.parts) > 1 and home.name not in {"nonexistent", "homeless-shelter"}:
        folders.append(home)
    return tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))


def default_state_dir(environ: Mapping[str, str], host: Host) -> Path:
    """Where the daemon keeps its state when neither a file nor OFBORG_ASYNC_STATE_DIR says."""
    if given := _first_of_list(environ.get("STATE_DIRECTORY")):
        return given
    system = Path("/var/lib") / NAME
    if host.user_id == 0 or (host.platform == "darwin" and os.access(system, os.W_OK)):
        return system
    if host.platform == "darwin":
        return host.home / "Library" / "Application Support" / NAME
    return (_absolute(environ.get("XDG_STATE_HOME")) or host.home / ".local" / "state") / NAME


def daemon_socket(environ: Mapping[str, str], host: Host) -> Path:
    """Where the daemon listens when neither a file nor OFBORG_ASYNC_CONTROL_SOCKET says."""
    return next(_socket_candidates(environ, host))


def default_control_socket(environ: Mapping[str, str], host: Host | None = None) -> Path:
    """Where the command finds the daemon: OFBORG_ASYNC_CONTROL_SOCKET, else the first place with a socket.

    An operator's shell has not the environment of the service, so the system's places are looked at as well. When no
    place has a socket, it is the one where a daemon of this user would listen.
    """
    if given := environ.get(f"{PREFIX}CONTROL_SOCKET"):
        return Path(given)
    candidates = list(_socket_candidates(environ, host or Host.here()))
    return next((path for path in candidates if _may_be_there(path)), candidates[0])


def _may_be_there(path: Path) -> bool:
    """Whether there is such a path; also when it lies where this user may not look, so that he is told that."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _socket_candidates(environ: Mapping[str, str], host: Host) -> Iterator[Path]:
    run = Path("/var/run" if host.platform == "darwin" else "/run")
    if given := _first_of_list(environ.get("RUNTIME_DIRECTORY")):
        yield given / SOCKET_NAME
    if host.user_id != 0:
        if runtime := _absolute(environ.get("XDG_RUNTIME_DIR")):
            yield runtime / NAME / SOCKET_NAME
        state = _absolute(environ.get(f"{PREFIX}STATE_DIR")) or default_state_dir(environ, host)
        yield state / SOCKET_NAME
    yield run / NAME / SOCKET_NAME
    yield Path("/var/lib") / NAME / SOCKET_NAME


def _absolute(text: str | None) -> Path | None:
    """A path from the environment; XDG says that relative ones are to be ignored."""
    return Path(text) if text and Path(text).is_absolute() else None


def _first_of_list(text: str | None) -> Path | None:
    """The first path of a list with colons, as systemd writes several directories."""
    return _absolute(text.split(":")[0]) if text else None
