"""The environment and the places of nix (wire document, "On disk and in processes"). Pure."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs

from ofborg_async.model.identity import NixSettings


def nix_environment(settings: NixSettings, tree: Path, path: str) -> dict[str, str]:
    """The original's environment of nix processes, plus the configured ``nix.environment``.

    All that a session's processes have besides is a place for caches (``Session.environment``).
    ``tree`` is the resolved work tree, ``path`` the value of PATH. NIX_REMOTE is set even when it is empty.
    """
    environment = {
        "HOME": "/homeless-shelter",
        "NIX_PATH": f"ofborg-nixpkgs-pr={tree}",
        "NIX_REMOTE": settings.remote,
        "PATH": path,
    }
    if settings.initial_heap_size is not None:
        environment["GC_INITIAL_HEAP_SIZE"] = settings.initial_heap_size
    return environment | dict(settings.environment)


def places_of_builds(settings: NixSettings) -> tuple[Path, ...]:
    """Directories of this host that builds write to: the store, nix's state, and where builders work.

    The store is found from a remote such as ``local?root=DIR`` or a path; one on another host has no place here.
    """
    remote, _, query = settings.remote.partition("?")
    root = parse_qs(query).get("root", [""])[0] or (remote if remote.startswith("/") else "")
    store = settings.environment.get("NIX_STORE_DIR", "/nix/store")
    state = settings.environment.get("NIX_STATE_DIR", "/nix/var/nix")
    return Path(root + store), Path(root + state), Path(settings.environment.get("TMPDIR", "/tmp"))  # noqa: S108 - nix's own default
