from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from config_place import IDENTITY, Place, original
from hypothesis import given, settings
from hypothesis import strategies as st

from ofborg_async.config import convert_to_toml
from ofborg_async.config.convert import toml_value
from ofborg_async.errors import ConfigError
from ofborg_async.model.identity import Settings


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def meaning(loaded: Settings) -> tuple[Any, ...]:
    """Everything but which file said it; passwords are compared as well."""
    return (loaded.daemon, tuple(attrs.evolve(identity, source="") for identity in loaded.identities))


def test_one_file_becomes_one_identity_that_means_the_same(place: Place) -> None:
    path = place.write("a.json", original(nix={"system": ["x86_64-linux", "i686-linux"], "remote": ""}))
    text = convert_to_toml([path], inline_secrets=True, host=place.host)
    assert meaning(place.load(place.write("b.toml", text))) == meaning(place.load(path))
    assert "# nix systems to build for" in text


def test_several_files_say_common_things_once(place: Place) -> None:
    rabbit = {"ssl": False, "host": "[::1]:7", "username": "u%20v", "password_file": "pw"}
    place.write("pw", "p%40\n")
    paths = [place.write("public.json", original(runner={}, rabbitmq=rabbit))]
    for name, system in (("one", "x86_64-linux"), ("two", "i686-linux")):
        layer = {"runner": {"identity": name}, "checkout": {"root": f"roots/{name}"}, "nix": {"system": system}}
        paths.append(place.write(f"{name}.json", layer))
    text = convert_to_toml(paths, host=place.host)
    document = tomllib.loads(text)
    assert document["defaults"]["rabbitmq"]["username"] == "u v"
    assert set(document["identity"][0]) == {"name", "checkout", "nix"}
    before, after = place.load(*paths), place.load(place.write("b.toml", text))
    assert meaning(after) == meaning(before)
    assert after.fingerprint == before.fingerprint
    assert after.identities[0].broker.password.reveal() == "p@"


def test_a_password_is_not_copied_unless_asked(place: Place) -> None:
    rabbit = {**original()["rabbitmq"], "password": "hunter%232"}
    path = place.write("a.json", original(rabbitmq=rabbit))
    secrets = place.folder / "secrets"
    text = convert_to_toml([path], secrets_directory=secrets, host=place.host)
    assert "hunter" not in text
    assert "# DO THIS: write rabbitmq.password of" in text
    secrets.mkdir(mode=0o700)
    place.write("secrets/alpha.password", "hunter%232\n")
    assert meaning(place.load(place.write("b.toml", text))) == meaning(place.load(path))
    inline = convert_to_toml([path], inline_secrets=True, host=place.host)
    assert 'rabbitmq.password = "hunter#2"' in inline
    assert "0600" in inline


def test_a_root_under_a_home_directory_is_carried_over_with_a_word(place: Place) -> None:
    path = place.write("a.json", original(checkout={"root": "/home/jdoe/x"}))
    text = convert_to_toml([path], inline_secrets=True, host=place.host)
    assert "checkout.allow_home = true" in text
    assert meaning(place.load(place.write("b.toml", text))) == meaning(place.load(path))


def test_a_shared_root_and_warnings_are_pointed_out(place: Place) -> None:
    paths = [place.write("a.json", original()), place.write("b.json", original(runner={"identity": "b", "repo": 1}))]
    text = convert_to_toml(paths, host=place.host)
    assert "DO THIS: give each identity a root of its own" in text
    assert "# Seen on the way:" in text
    assert "rabbitmq.password" in tomllib.loads(text)["defaults"]["rabbitmq"]["password_file"]


def test_what_cannot_be_converted(place: Place) -> None:
    paths = [place.write("a.toml", IDENTITY), place.write("b.json", original(nix={"system": 3}))]
    with pytest.raises(ConfigError) as caught:
        convert_to_toml(paths, host=place.host)
    assert "is TOML already" in str(caught.value)
    assert "nix.system" in str(caught.value)
    with pytest.raises(ConfigError, match=r"runner\.identity"):
        convert_to_toml([place.write("c.json", original(runner={}))], host=place.host)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"a = {toml_value(text)}")["a"] == text


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
BROKER_TEXTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x2FF, exclude_categories=["Cc"]), min_size=1)
NAMES = st.text("abcdefgh-_.éß #'\"\\", min_size=1, max_size=12).filter(
    lambda name: name not in {".", ".."} and name == name.strip()
)


def documents() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Originals that the original would take: some identities and layers in any order."""
    rabbits = st.fixed_dictionaries(
        {"host": st.sampled_from(["h", "h:1", "[::1]:2"]), "username": BROKER_TEXTS, "password": TEXTS},
        optional={"ssl": st.booleans(), "virtualhost": BROKER_TEXTS},
    )
    systems = st.sampled_from(["x86_64-linux", "aarch64-darwin", "i686-linux"])
    nix = st.fixed_dictionaries(
        {"system": systems | st.lists(systems, min_size=1, unique=True)},
        optional={
            "remote": TEXTS | st.just(""),
            "build_timeout_seconds": st.integers(1200, 2**31 - 1),
            "initial_heap_size": st.sampled_from(["4g", "100"]),
        },
    )
    optional: dict[str, st.SearchStrategy[Any]] = {"github": st.just({"token": "x"})}
    feedback = st.just({"full_logs": True})
    one = st.fixed_dictionaries(
        {"nix": nix, "rabbitmq": rabbits, "feedback": feedback}, optional=optional
    ) | st.fixed_dictionaries({"nix": nix, "builder": st.fixed_dictionaries({"rabbitmq": rabbits})}, optional=optional)
    layer = st.fixed_dictionaries({}, optional={"nix": nix, "feedback": feedback})
    return st.lists(st.tuples(one, NAMES) | st.tuples(layer, st.none()), min_size=1, max_size=4).map(
        lambda parts: [
            part | ({} if name is None else {"runner": {"identity": f"{index}{name}"}})
            for index, (part, name) in enumerate(parts)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(documents())
def test_what_is_converted_means_the_same(parts: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        paths = [place.write(f"{index}.json", part) for index, part in enumerate(parts)]
        try:
            before = place.load(*paths)
        except ConfigError:  # layers alone, or a text that decodes to something else
            return
        text = convert_to_toml(paths, inline_secrets=True, host=place.host)
        after = place.load(place.write("converted.toml", text))
        assert meaning(after) == meaning(before)
        assert after.fingerprint == before.fingerprint
