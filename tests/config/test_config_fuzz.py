"""Whatever a file says: settings, or a ConfigError that shows no secret."""

from __future__ import annotations

import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from config_place import IDENTITY, Place, original
from hypothesis import given, settings
from hypothesis import strategies as st

from ofborg_async.config.convert import toml_value
from ofborg_async.errors import ConfigError, ConfigFault

SECRET = "s3cr3t-hunter2"
MANY = settings(max_examples=150, deadline=None)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "x86_64-linux", "/home/x", "a\0b", "\ud800", "[::1]", 10**30, -1, 1200])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
KEYS = [
    "name",
    "nix",
    "rabbitmq",
    "host",
    "system",
    "systems",
    "checkout",
    "root",
    "builder",
    "feedback",
    "limits",
    "x",
]


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*here, key), *paths_of(inner, (*here, key))]]


def mutated(data: st.DataObject, document: Any) -> Any:
    """``document`` with a few values replaced, taken out, added or moved to another key."""
    document = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 4))):
        paths = paths_of(document)
        if not paths:
            break
        *parents, last = data.draw(st.sampled_from(paths))
        holder = document
        for part in parents:
            holder = holder[part]
        action = data.draw(st.sampled_from(["replace", "remove", "add", "wrap"]))
        if action == "replace":
            holder[last] = data.draw(VALUES)
        elif action == "remove":
            del holder[last]
        elif action == "wrap":
            holder[last] = data.draw(st.sampled_from([[holder[last]], {"x": holder[last]}, [[], holder[last]]]))
        elif isinstance(holder, dict):
            holder[data.draw(st.sampled_from(KEYS))] = data.draw(VALUES)
    return document


def settings_or_config_error(content: str | bytes, suffix: str, environ: dict[str, str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        path = place.write(f"a{suffix}", content)
        faults: tuple[ConfigFault, ...] = ()
        try:
            shown = repr(place.load(path, environ=environ))
        except ConfigError as error:
            faults = error.faults
            shown = str(error) + repr(faults)
        assert shown
        assert all(fault.message and fault.file for fault in faults)
        assert SECRET not in shown
        shown.encode()


@MANY
@given(st.data())
def test_mutated_json(data: st.DataObject) -> None:
    rabbit = {**original()["rabbitmq"], "password": SECRET}
    document = data.draw(
        st.sampled_from([original(rabbitmq=rabbit), original(rabbitmq=None, builder={"rabbitmq": rabbit})])
    )
    settings_or_config_error(json.dumps(mutated(data, document)), ".json")


def toml_text(document: Any) -> str | None:
    """``document`` as TOML; None where TOML has no such value."""
    if not isinstance(document, dict):
        return None
    try:
        lines = [f"{toml_value(key)} = {toml_value(value)}" for key, value in document.items()]
        text = "\n".join(lines)
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


@MANY
@given(st.data())
def test_mutated_toml(data: st.DataObject) -> None:
    document = tomllib.loads(
        IDENTITY.replace("hunter2", SECRET)
        + "[defaults]\nlimits.log_bytes = 5000\nnix.environment = { A = 'b' }\n[daemon]\nmax_builds = 2\n"
    )
    text = toml_text(mutated(data, document))
    if text is not None:
        settings_or_config_error(text, ".toml")


@MANY
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(content: bytes) -> None:
    settings_or_config_error(content, ".toml")
    settings_or_config_error(content, ".json")
    settings_or_config_error(content, "")


@MANY
@given(st.data())
def test_damaged_text(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([IDENTITY, json.dumps(original())]))
    start = data.draw(st.integers(0, len(text)))
    damaged = text[:start] + data.draw(st.text(max_size=3)) + text[start + data.draw(st.integers(0, 5)) :]
    settings_or_config_error(damaged.encode("utf-8", "replace"), ".json" if text.startswith("{") else ".toml")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["MAX_BUILDS", "NIX_REMOTE", "RABBITMQ_HOST", "CHECKOUT_ROOT", "STATE_DIR", "NIX", "GIT_NAME"]),
        st.text(max_size=10),
    )
)
def test_any_environment(variables: dict[str, str]) -> None:
    environ = {f"OFBORG_ASYNC_{name}": text for name, text in variables.items()}
    settings_or_config_error(
        IDENTITY.replace("hunter2", SECRET), ".toml", {**environ, "OFBORG_ASYNC_RABBITMQ_PASSWORD": SECRET}
    )
