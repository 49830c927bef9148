from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_place import IDENTITY, Place, original

from ofborg_async.config import files_changed_since


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def with_source(source: str) -> str:
    return IDENTITY.replace('password = "hunter2"', source)


def password_of(place: Place, source: str, **options: Any) -> str:
    return place.toml(with_source(source), **options).identities[0].broker.password.reveal()


@pytest.mark.parametrize(
    ("content", "password"),
    [("hunter2", "hunter2"), ("hunter2\n", "hunter2"), ("hunter2\n\n", "hunter2\n"), (" p%40 ", " p%40 ")],
)
def test_a_password_file_loses_one_newline_and_nothing_else(place: Place, content: str, password: str) -> None:
    place.write("pw", content)
    assert password_of(place, 'password_file = "pw"') == password


def test_a_percent_encoded_password(place: Place) -> None:
    place.write("pw", "p%40ss\n")
    assert password_of(place, 'password_file = "pw", password_percent_encoded = true') == "p@ss"


def test_credentials_of_the_service_manager(place: Place) -> None:
    credentials = place.folder / "credentials"
    credentials.mkdir()
    (credentials / "broker").write_text("from-credentials\n")
    source = 'password_credential = "broker"'
    assert password_of(place, source, credentials_directory=credentials) == "from-credentials"
    assert password_of(place, source, environ={"CREDENTIALS_DIRECTORY": str(credentials)}) == "from-credentials"
    assert "LoadCredential=broker" in str(place.toml_faults(with_source(source)))
    # A file that cannot be read here is replaced by the credential of the same name; one that can is not.
    unreadable = f'password_file = "{place.folder}/nowhere/broker"'
    assert password_of(place, unreadable, credentials_directory=credentials) == "from-credentials"
    place.write("broker", "from-file")
    assert password_of(place, 'password_file = "broker"', credentials_directory=credentials) == "from-file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff", "UTF-8"),
        (b"a\0b", "NUL"),
        (b"x" * 70_000, "larger"),
        (None, "no such"),
    ],
)
def test_what_is_no_password(place: Place, content: bytes | None, said: str) -> None:
    if content is not None:
        place.write("pw", content)
    faults = place.toml_faults(with_source('password_file = "pw"'))
    assert said in faults["identity[alpha].rabbitmq.password_file"]


def test_a_missing_password_says_how_to_give_one(place: Place) -> None:
    faults = place.toml_faults(with_source("ssl = true"))
    assert "password_file" in faults["identity[alpha].rabbitmq.password"]


def test_two_ways_at_once_are_one_too_many(place: Place) -> None:
    place.write("pw", "x")
    faults = place.toml_faults(with_source('password = "hunter2", password_file = "pw"'))
    assert "keep one" in faults["identity[alpha].rabbitmq.password_file"]


def test_the_ways_replace_each_other_between_layers(place: Place) -> None:
    place.write("pw", "from-file")
    environ = {"OFBORG_ASYNC_RABBITMQ_PASSWORD": "from-environment"}
    assert password_of(place, 'password_file = "pw"', environ=environ) == "from-file"
    defaults = '[defaults.rabbitmq]\npassword_file = "pw"\npassword_percent_encoded = true\n'
    assert place.toml(with_source("ssl = true") + defaults).identities[0].broker.password.reveal() == "from-file"
    settings = place.toml(with_source("ssl = true") + defaults, environ={"OFBORG_ASYNC_RABBITMQ_PASSWORD": "%40"})
    assert settings.identities[0].broker.password.reveal() == "%40"


def test_inline_in_a_file_that_others_can_read_is_refused(place: Place) -> None:
    path = place.write("a.toml", IDENTITY, mode=0o640)
    assert "chmod 600" in place.faults(path)["identity[alpha].rabbitmq.password"]
    path = place.write("a.toml", IDENTITY + '[defaults]\nrabbitmq.password = "other"\n', mode=0o604)
    assert set(place.faults(path)) == {"identity[alpha].rabbitmq.password", "defaults.rabbitmq.password"}


def test_a_password_file_that_everybody_can_read_is_a_warning(place: Place) -> None:
    place.write("pw", "x", mode=0o644)
    assert "chmod 600" in place.toml(with_source('password_file = "pw"')).warnings[0]
    place.write("pw", "x", mode=0o640)
    assert place.toml(with_source('password_file = "pw"')).warnings == ()


def test_no_secret_shows_in_settings_or_faults(place: Place) -> None:
    settings = place.toml(IDENTITY)
    assert "hunter2" not in repr(settings) + str(settings) + settings.fingerprint
    for source in (
        "password = ['hunter2']",
        "password = { a = 'hunter2' }",
        "password = 'hunter2', password_file = ''",
    ):
        assert "hunter2" not in str(place.toml_faults(with_source(source)))
    document = original(rabbitmq="amqps://user:hunter2@host")
    assert "hunter2" not in str(place.faults(place.write("a.json", document)))


def test_the_fingerprint_leaves_passwords_out_and_changes_are_seen(place: Place) -> None:
    password = place.write("pw", "one")
    path = place.write("a.toml", with_source('password_file = "pw"'))
    before = place.load(path)
    assert files_changed_since(before) == ()
    password.write_text("two")
    assert files_changed_since(before) == (password,)
    after = place.load(path)
    assert after.fingerprint == before.fingerprint
    assert after.identities != before.identities
    path.write_text(path.read_text() + "runner.weight = 2\n")
    assert files_changed_since(after) == (path,)
    assert place.load(path).fingerprint != before.fingerprint
    path.unlink()
    assert files_changed_since(after) == (path,)
