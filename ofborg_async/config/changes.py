"""What differs between two configurations, by the keys of TOML. Pure; what a key says is never told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from ofborg_async.model.identity import BrokerSettings, DaemonSettings, IdentitySettings, LimitSettings, NixSettings

TABLES: dict[type, str] = {NixSettings: "nix", BrokerSettings: "rabbitmq", LimitSettings: "limits"}
RENAMED = {
    "root": "checkout.root",
    "replace_root_in_logs": "checkout.replace_root_in_logs",
    "clone_url_schemes": "checkout.clone_url_schemes",
    "build_all_jobs": "runner.build_all_jobs",
    "weight": "runner.weight",
    "git_name": "git.name",
    "git_email": "git.email",
    "rabbitmq.addresses": "rabbitmq.host",
    "rabbitmq.vhost": "rabbitmq.virtualhost",
}
IN_EFFECT_AT_ONCE = frozenset(
    {"max_builds", "max_evaluations", "shutdown_grace_seconds", "history_keep_days", "log_keep_bytes", "log_level"}
)
"""Keys of [daemon] that a running daemon can change; the others are what it was started with."""


def changed_identity_keys(old: IdentitySettings, new: IdentitySettings) -> tuple[str, ...]:
    """The keys whose values differ, secrets and the content of certificate files included."""
    return tuple(dict.fromkeys(_differences(old, new, "")))  # another file is another path with another content


def changed_daemon_keys(old: DaemonSettings, new: DaemonSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of [daemon] that can change in a running daemon, and keys that need its restart."""
    names = list(_differences(old, new, ""))
    at_once = tuple(f"daemon.{name}" for name in names if name in IN_EFFECT_AT_ONCE)
    return at_once, tuple(f"daemon.{name}" for name in names if name not in IN_EFFECT_AT_ONCE)


def running_daemon_settings(old: DaemonSettings, new: DaemonSettings) -> DaemonSettings:
    """What a daemon that was started with ``old`` does once it has read ``new``."""
    return attrs.evolve(old, **{name: getattr(new, name) for name in IN_EFFECT_AT_ONCE})


def _differences(old: Any, new: Any, prefix: str) -> Iterator[str]:
    for attribute in attrs.fields(type(old)):
        before, after = getattr(old, attribute.name), getattr(new, attribute.name)
        if before == after or attribute.name == "source":
            continue
        if attribute.name == "certificates":
            digests = dict(before)
            yield from (f"{prefix}{name}" for name, digest in after if digests.get(name) != digest)
        elif (table := TABLES.get(type(before))) is not None:
            yield from _differences(before, after, f"{table}.")
        else:
            key = f"{prefix}{attribute.name}"
            yield RENAMED.get(key, key)
