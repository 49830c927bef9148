"""Definitions on disk: written where their service manager looks, and never over what somebody else wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.service.definition import Kind

PLACES = {
    Kind.SYSTEMD: Path("/etc/systemd/system/ofborg-async.service"),
    Kind.LAUNCHD: Path("/Library/LaunchDaemons/org.nixos.ofborg-async.plist"),
    Kind.NIXOS: Path("/etc/nixos/ofborg-async.nix"),
    Kind.NIX_DARWIN: Path("/etc/nix-darwin/ofborg-async.nix"),
}
NEXT = {
    Kind.SYSTEMD: "systemctl daemon-reload && systemctl enable --now ofborg-async",
    Kind.LAUNCHD: "sudo launchctl bootstrap system /Library/LaunchDaemons/org.nixos.ofborg-async.plist",
    Kind.NIXOS: "add ./ofborg-async.nix to imports in /etc/nixos/configuration.nix, then: nixos-rebuild switch",
    Kind.NIX_DARWIN: "add ./ofborg-async.nix to imports in your configuration, then: darwin-rebuild switch",
}
FIRST = {
    Kind.SYSTEMD: "systemctl disable --now ofborg-async",
    Kind.LAUNCHD: "sudo launchctl bootout system/org.nixos.ofborg-async",
    Kind.NIXOS: "take ./ofborg-async.nix out of imports, then: nixos-rebuild switch",
    Kind.NIX_DARWIN: "take ./ofborg-async.nix out of imports, then: darwin-rebuild switch",
}
_SEAL = "written by ofborg-async service install, SHA-256 "


def place_of(kind: Kind, prefix: Path) -> Path:
    """The file of a definition; ``prefix`` stands before its usual place."""
    return prefix / PLACES[kind].relative_to("/")


def install(kind: Kind, text: str, prefix: Path) -> str:
    """Write a definition, or leave it if it is there already; says what was done and what comes next.

    Raises HostFault (PERMISSION, OTHER), also for a file that is not ours or was changed since.
    """
    path = place_of(kind, prefix)
    sealed = text + _seal(kind, text)
    found = _read(path)
    if found == sealed:
        return f"{path} is as it should be already; to start it: {NEXT[kind]}"
    if found is not None:
        _refuse_foreign(kind, path, found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(sealed, "utf-8")
        new.chmod(0o644)
        new.replace(path)
    except OSError as error:
        raise _fault(path, error) from error
    return f"{path} is {'replaced' if found is not None else 'written'}; now: {NEXT[kind]}"


def uninstall(kind: Kind, prefix: Path) -> str:
    """Remove a definition that we wrote; says what was done. Raises as ``install``."""
    path = place_of(kind, prefix)
    found = _read(path)
    if found is None:
        return f"{path} does not exist; nothing is to be done"
    _refuse_foreign(kind, path, found)
    try:
        path.unlink()
    except OSError as error:
        raise _fault(path, error) from error
    return f"{path} is removed; unless done before: {FIRST[kind]}"


def _seal(kind: Kind, text: str) -> str:
    words = f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}"
    return f"<!-- {words} -->\n" if kind is Kind.LAUNCHD else f"# {words}\n"


def _refuse_foreign(kind: Kind, path: Path, found: str) -> None:
    """Raise unless the file is as we wrote it, by the seal at its end."""
    text = "".join(found.splitlines(keepends=True)[:-1])
    if found == text + _seal(kind, text):
        return
    who = "was changed by hand since it was written" if _SEAL in found else "was not written by ofborg-async"
    remedy = "keep what you need of it elsewhere (systemd: a drop-in, systemctl edit), remove it, then try again"
    raise HostFault(FaultKind.OTHER, f"{path} {who}, so it is left as it is", remedy=remedy)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _fault(path, error) from error


def _fault(path: Path, error: OSError) -> HostFault:
    remedy = "run it as root, or with --prefix DIR"
    return HostFault(FaultKind.PERMISSION, f"{path}: {error.strerror}", remedy=remedy)
