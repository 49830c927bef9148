"""What a configuration amounts to, as one number, and whether its files changed since it was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ofborg_async.config.documents import FILE_BYTES_MOST, digest, read_bytes
from ofborg_async.model.identity import Secret, Settings

UNSAID = frozenset({"source", "certificates"})
"""Where settings came from, and what files contain that they name."""


def fingerprint(settings: Settings) -> str:
    """SHA-256 (hex) over what the daemon will do: the same for TOML and JSON that mean the same, without secrets."""
    meaning = {"daemon": plain(settings.daemon), "identities": [plain(identity) for identity in settings.identities]}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A settings value as JSON's types, without secrets and what is UNSAID."""
    if attrs.has(type(value)):
        return {
            field.name: plain(getattr(value, field.name))
            for field in attrs.fields(type(value))
            if field.name not in UNSAID and not isinstance(getattr(value, field.name), Secret)
        }
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def files_changed_since(settings: Settings) -> tuple[Path, ...]:
    """The files (passwords and certificates too) whose content is another now, or that cannot be read.

    Reads them: call it in a thread.
    """
    changed = []
    for path, known in settings.digests.items():
        try:
            now = digest(read_bytes(path, 2 * FILE_BYTES_MOST)[0])
        except (OSError, ValueError):
            now = ""
        if now != known:
            changed.append(path)
    return tuple(changed)
