"""From settings to the text of a service definition. The templates are in ``data/``, with ``@WORDS@`` to fill in."""

from __future__ import annotations

import enum
import math
import plistlib
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from attrs import frozen

from ofborg_async.errors import ConfigError, ConfigFault
from ofborg_async.model.identity import Settings

STOP_SECONDS = 180
"""What a stop is given beyond the grace: a minute to end builds, then their messages and results go out."""

_DROP_IN = "nix-daemon.conf"
# What PrivateTmp= hides.
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - nothing is written there
# What ProtectSystem=full and ProtectHome=read-only take away (systemd.exec(5)).
_READ_ONLY = tuple(map(Path, ("/usr", "/boot", "/efi", "/etc", "/home", "/root", "/run/user")))
_PATHS = {
    "systemd": "/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/local/bin:/usr/bin:/bin",
    "launchd": "/usr/local/bin:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:/usr/bin:/bin"
    ":/usr/sbin:/sbin",
}


class Kind(enum.StrEnum):
    """Who runs the service."""

    SYSTEMD = "systemd"
    LAUNCHD = "launchd"
    NIXOS = "nixos"
    NIX_DARWIN = "nix-darwin"

    @property
    def is_darwin(self) -> bool:
        """Whether it is for macOS."""
        return self in (Kind.LAUNCHD, Kind.NIX_DARWIN)

    @property
    def user(self) -> str:
        """The user that it runs as unless told otherwise."""
        return "_ofborg" if self.is_darwin else "ofborg"

    @property
    def runtime_dir(self) -> Path:
        """Where its control socket is unless the configuration says so."""
        return self.state_dir if self.is_darwin else Path("/run/ofborg-async")

    @property
    def state_dir(self) -> Path:
        """Where its state is unless the configuration says so; on macOS by its real path (R17)."""
        return Path("/private/var/lib/ofborg-async" if self.is_darwin else "/var/lib/ofborg-async")


@frozen
class Needs:
    """What a definition is made from.

    ``programs`` are directories that PATH must have besides the usual ones; ``writable`` what the daemon writes to.
    ``builds`` is whether builds are the daemon's children; false where all of them are nix-daemon's.
    """

    kind: Kind
    user: str
    configuration: tuple[Path, ...]
    state_dir: Path
    control_socket: Path
    writable: tuple[Path, ...] = ()
    programs: tuple[Path, ...] = ()
    grace_seconds: float = 0.0
    builds: bool = True

    @property
    def stop_seconds(self) -> int:
        """From the request to stop to the kill."""
        return math.ceil(self.grace_seconds) + STOP_SECONDS


def needs_of(settings: Settings, kind: Kind, *, user: str, programs: Sequence[Path] = ()) -> Needs:
    """What ``settings`` need, which were loaded with the directories of ``kind`` as the service manager's."""
    roots = [identity.root for identity in settings.identities]
    state_dir, socket = settings.daemon.state_dir, settings.daemon.control_socket
    if kind.is_darwin and socket == kind.state_dir / socket.name:  # macOS has no other directory for it
        socket = state_dir / socket.name
    return Needs(
        kind=kind,
        user=user,
        configuration=settings.files,
        state_dir=state_dir,
        control_socket=socket,
        writable=tuple(dict.fromkeys((state_dir, *roots))),
        programs=tuple(programs),
        grace_seconds=settings.daemon.shutdown_grace_seconds,
        builds=any(identity.nix.remote != "daemon" for identity in settings.identities),
    )


def define(needs: Needs) -> str:
    """The definition. Raises ConfigError for a path or user that cannot be written into one."""
    _check(needs)
    match needs.kind:
        case Kind.SYSTEMD:
            return _unit(needs)
        case Kind.LAUNCHD:
            return _property_list(needs)
        case Kind.NIXOS:
            return _nixos(needs)
        case Kind.NIX_DARWIN:
            return _nix_darwin(needs)


def _check(needs: Needs) -> None:
    """A percent sign, a quote or a line break means something to service managers; such paths are refused."""
    words = (needs.user, *map(str, (*needs.configuration, *needs.writable, *needs.programs, needs.control_socket)))
    bad = [word for word in words if not word.isprintable() or set(word) & set("%$\"'\\")]
    if bad:
        message = "has a character that service definitions give a meaning to; use another path"
        raise ConfigError([ConfigFault("service", repr(word), message) for word in bad])


def _unit(needs: Needs) -> str:
    strict = _is_strict(needs)
    return _fill(
        "ofborg-async.service",
        {
            "USER": needs.user,
            "PATH": _path(needs, "systemd"),
            "FILES": _files(needs),
            "SOCKET": shlex.quote(str(needs.control_socket)),
            "STOP_SECONDS": str(needs.stop_seconds),
            "WRITABLE": "".join(f'ReadWritePaths="-{path}"\n' for path in _closed(needs, strict=strict)),
            "STRICT": _strict_lines() if strict else "",
        },
    )


def _is_strict(needs: Needs) -> bool:
    """Whether the unit may take away what builds need; not if it would hide one of the daemon's own paths."""
    paths = (*needs.configuration, *needs.writable, *needs.programs, needs.control_socket)
    return not needs.builds and not any(path.is_relative_to(place) for path in paths for place in _TEMPORARY)


def _closed(needs: Needs, *, strict: bool) -> list[Path]:
    """Where the daemon writes and the unit would not let it. systemd itself opens StateDirectory, RuntimeDirectory."""
    if not strict:
        return [path for path in needs.writable if any(path.is_relative_to(place) for place in _READ_ONLY)]
    own = (needs.kind.state_dir, needs.kind.runtime_dir)
    paths = dict.fromkeys((*needs.writable, needs.control_socket.parent))
    return [path for path in paths if not any(path.is_relative_to(place) for place in own)]


def _strict_lines() -> str:
    """What the drop-in says, to follow what the unit says: the last word counts, an empty one takes back a list."""
    _, _, lines = _text(_DROP_IN).partition("[Service]\n")
    return f"\n# Builds are nix-daemon's here, so what they need, the daemon does not.\n{lines}"


def _property_list(needs: Needs) -> str:
    values = {
        "USER": needs.user,
        "PATH": _path(needs, "launchd"),
        "FILES": _files(needs),
        "STOP_SECONDS": str(needs.stop_seconds),
        "STATE": str(needs.state_dir),
        "SOCKET": str(needs.control_socket),
    }
    return _fill("org.nixos.ofborg-async.plist", {name: escape(value) for name, value in values.items()})


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = _text(template)
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _text(name: str) -> str:
    return (files("ofborg_async.service") / "data" / name).read_text("utf-8")


def _files(needs: Needs) -> str:
    return " ".join(f"-c {shlex.quote(str(path))}" for path in needs.configuration)


def _path(needs: Needs, manager: str) -> str:
    usual = _PATHS[manager].split(":")
    return ":".join([*(str(path) for path in needs.programs if str(path) not in usual), *usual])


def _nixos(needs: Needs) -> str:
    """The unit's own settings, as NixOS takes them."""
    unit = unit_sections(_unit(needs))
    service = unit["Service"]
    (path,) = service.pop("Environment")
    values = {key: found[0] if len(found) == 1 else found for key, found in map(_last_word, service.items()) if found}
    module = {
        "users": {
            "users": {needs.user: {"isSystemUser": True, "group": needs.user, "home": str(needs.state_dir)}},
            "groups": {needs.user: {}},
        },
        "systemd": {
            "services": {
                "ofborg-async": {
                    "description": unit["Unit"]["Description"][0],
                    "wants": ["network-online.target"],
                    "after": ["network-online.target", "nix-daemon.socket"],
                    "wantedBy": ["multi-user.target"],
                    "environment": {"PATH": Forced(path.removeprefix("PATH="))},
                    "serviceConfig": values,
                }
            }
        },
    }
    return _module("NixOS", "/etc/nixos/configuration.nix", "nixos-rebuild switch", module)


def unit_sections(text: str) -> dict[str, dict[str, list[str]]]:
    """A unit's sections: every key with its values in order."""
    sections: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def _last_word(setting: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """A setting without what a later line of the unit takes back (systemd.syntax(7))."""
    key, found = setting
    if "" in found[1:]:
        return key, found[len(found) - found[::-1].index("") :]
    return key, found[-1:] if key.startswith("Protect") else found


def _nix_darwin(needs: Needs) -> str:
    """The property list's own settings, as nix-darwin takes them."""
    values = plistlib.loads(_property_list(needs).encode())
    label = values.pop("Label")
    module = {"launchd": {"daemons": {"ofborg-async": {"serviceConfig": {"Label": label, **values}}}}}
    return _module("nix-darwin", "darwin-configuration.nix", "darwin-rebuild switch", module)


def _module(system: str, file: str, command: str, module: Mapping[str, Any]) -> str:
    return (
        f"# {system} module for ofborg-async: one daemon for all builder identities of this host.\n"
        f"# Import it in {file}, then: {command}\n"
        f"{{ lib, ... }}:\n{_nix(module)}\n"
    )


@frozen
class Forced:
    """A value that NixOS sets itself, and that ours replaces."""

    value: str


def _nix(value: object, indent: str = "") -> str:
    """A value as nix writes it. ``${`` cannot occur: ``_check`` refuses dollars in what is filled in."""
    match value:
        case Forced():
            return f"lib.mkForce {_nix(value.value)}"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case Mapping():
            inner = indent + "  "
            lines = (f'{inner}"{key}" = {_nix(item, inner)};\n' for key, item in value.items())
            return f"{{\n{''.join(lines)}{indent}}}" if value else "{ }"
        case list():
            return f"[ {' '.join(_nix(item) for item in value)} ]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
