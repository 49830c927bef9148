"""What a reload calls changed: the keys of TOML whose values differ, and never a value."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from config_place import IDENTITY as LOADABLE
from config_place import Place

from ofborg_async.config import changed_daemon_keys, changed_identity_keys, running_daemon_settings
from ofborg_async.config.changes import IN_EFFECT_AT_ONCE
from ofborg_async.config.schema import DaemonTable, IdentityTable
from ofborg_async.model.identity import (
    BrokerSettings,
    DaemonSettings,
    IdentitySettings,
    LimitSettings,
    NixSettings,
    Secret,
)

IDENTITY = IdentitySettings(
    name="a",
    root=Path("/r"),
    nix=NixSettings(systems=("x86_64-linux",)),
    broker=BrokerSettings(addresses=(("h", 1),), vhost="/", username="u", password=Secret("p")),
    source="one.toml",
)
DAEMON = DaemonSettings(state_dir=Path("/s"), control_socket=Path("/c"))
SECTIONS: tuple[Any, ...] = attrs.fields(IdentityTable)[1:]
KEYS = {f"{section.name}.{key.name}" for section in SECTIONS for key in attrs.fields(type(section.default))}


def other(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case Secret():
            return Secret("q")
        case tuple():
            return (*value, *value[:1]) if value else (("ca_file", "1"),)
        case MappingProxyType():
            return {"A": "b"}
    return Path("/elsewhere") if isinstance(value, Path) else f"{value}x"


FIELDS = [
    *((None, field.name) for field in attrs.fields(IdentitySettings) if field.name not in {"nix", "broker", "limits"}),
    *(("nix", field.name) for field in attrs.fields(NixSettings)),
    *(("broker", field.name) for field in attrs.fields(BrokerSettings) if field.name != "certificates"),
    *(("limits", field.name) for field in attrs.fields(LimitSettings)),
]


@pytest.mark.parametrize(("part", "name"), [pair for pair in FIELDS if pair[1] not in {"name", "source"}])
def test_each_field_that_differs_is_told_by_its_key(part: str | None, name: str) -> None:
    holder: Any = IDENTITY if part is None else getattr(IDENTITY, part)
    changed = attrs.evolve(holder, **{name: other(getattr(holder, name))})
    changed = changed if part is None else attrs.evolve(IDENTITY, **{part: changed})
    (key,) = changed_identity_keys(IDENTITY, changed)
    assert key in KEYS


def test_where_it_stands_is_no_change() -> None:
    assert changed_identity_keys(IDENTITY, attrs.evolve(IDENTITY, source="two.toml")) == ()


@pytest.mark.parametrize("field", attrs.fields(DaemonTable), ids=lambda field: str(field.name))
def test_keys_of_the_daemon_are_in_effect_at_once_or_at_its_restart(field: attrs.Attribute[Any]) -> None:
    changed = attrs.evolve(DAEMON, **{field.name: other(getattr(DAEMON, field.name))})
    at_once, at_restart = changed_daemon_keys(DAEMON, changed)
    assert (*at_once, *at_restart) == (f"daemon.{field.name}",)
    running = running_daemon_settings(DAEMON, changed)
    assert running == (changed if field.name in IN_EFFECT_AT_ONCE else DAEMON)


def test_another_certificate_in_the_same_file_is_a_change(tmp_path: Path) -> None:
    place = Place(tmp_path)
    text = LOADABLE.replace('password = "hunter2"', 'password_file = "pw", ca_file = "ca.pem"')
    place.write("pw", "p")
    place.write("ca.pem", "one")
    before = place.toml(text)
    place.write("ca.pem", "two")
    after = place.toml(text)
    place.write("other.pem", "three")
    elsewhere = place.toml(text.replace("ca.pem", "other.pem"))
    assert changed_identity_keys(before.identities[0], after.identities[0]) == ("rabbitmq.ca_file",)
    assert changed_identity_keys(before.identities[0], place.toml(text).identities[0]) == ("rabbitmq.ca_file",)
    assert changed_identity_keys(after.identities[0], place.toml(text).identities[0]) == ()
    assert changed_identity_keys(after.identities[0], elsewhere.identities[0]) == ("rabbitmq.ca_file",)
    assert before.fingerprint == after.fingerprint, "what files contain is not in it, as with passwords"
