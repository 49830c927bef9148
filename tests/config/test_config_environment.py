from __future__ import annotations

from pathlib import Path

import pytest
from config_place import IDENTITY, Place, original

from ofborg_async.config.environment import variables


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_environment_wins_over_daemon_and_defaults_and_an_identity_over_it(place: Place) -> None:
    text = IDENTITY + "nix.eval_timeout_seconds = 3\n[daemon]\nmax_builds = 1\n[defaults]\nnix.remote = 'file'\n"
    environ = {
        "OFBORG_ASYNC_MAX_BUILDS": "2",
        "OFBORG_ASYNC_NIX_REMOTE": "",
        "OFBORG_ASYNC_NIX_EVAL_TIMEOUT_SECONDS": "9",
        "OFBORG_ASYNC_RABBITMQ_HOST": "not-used",
    }
    settings = place.toml(text, environ=environ)
    (alpha,) = settings.identities
    assert settings.daemon.max_builds == 2
    assert alpha.nix.remote == ""
    assert alpha.nix.eval_timeout_seconds == 3
    assert alpha.broker.addresses == (("broker.example.org", 5671),)


def test_an_original_runs_with_daemon_settings_from_the_environment(place: Place) -> None:
    document = original(rabbitmq={"host": "h", "username": "u"})
    environ = {
        "OFBORG_ASYNC_STATE_DIR": "elsewhere",
        "OFBORG_ASYNC_CONTROL_SOCKET": str(place.folder / "c.sock"),
        "OFBORG_ASYNC_ALLOW_ROOT": "1",
        "OFBORG_ASYNC_RABBITMQ_PASSWORD": "p%40ss",
        "OFBORG_ASYNC_RABBITMQ_HOST": "fallback:1",
    }
    settings = place.load(place.write("a.json", document), environ=environ)
    assert settings.daemon.allow_root
    assert settings.daemon.state_dir == (place.folder / "elsewhere").resolve()
    assert settings.daemon.control_socket == place.folder / "c.sock"
    assert settings.identities[0].broker.password.reveal() == "p%40ss"  # literal: it does not come from the JSON


def test_wrong_values_are_faults_named_by_the_variable(place: Place) -> None:
    environ = {
        "OFBORG_ASYNC_ALLOW_ROOT": "maybe",
        "OFBORG_ASYNC_MAX_BUILDS": "1.5",
        "OFBORG_ASYNC_NIX_BUILD_TIMEOUT_SECONDS": "0",
        "OFBORG_ASYNC_NIX_EVAL_TIMEOUT_SECONDS": "nan",
        "OFBORG_ASYNC_LOG_LEVEL": "verbose",
        "OFBORG_ASYNC_RABBITMQ_HOST": "amqps://u:hunter3@h",
        "OFBORG_ASYNC_STATE_DIR": "",
        "OFBORG_ASYNC_CONTROL_GROUP": "no-such-group-here",
    }
    faults = place.toml_faults(IDENTITY, environ=environ)
    assert set(faults) == set(environ)
    assert "hunter3" not in str(faults)


def test_a_variable_that_was_said_wrongly_is_not_called_missing_as_well(place: Place) -> None:
    text = IDENTITY.replace('host = "broker.example.org", ', "")
    faults = place.toml_faults(text, environ={"OFBORG_ASYNC_RABBITMQ_HOST": "a b"})
    assert list(faults) == ["OFBORG_ASYNC_RABBITMQ_HOST"]


def test_unknown_variables_are_warnings_with_the_nearest_known_one(place: Place) -> None:
    settings = place.toml(IDENTITY, environ={"OFBORG_ASYNC_ALOW_ROOT": "1", "OFBORG_ASYNC_NIX_SYSTEMS": "x"})
    first, second = settings.warnings
    assert "did you mean OFBORG_ASYNC_ALLOW_ROOT?" in first
    assert second.startswith("environment: OFBORG_ASYNC_NIX_SYSTEMS: unknown variable")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("ON", True), ("0", False), ("no", False)])
def test_booleans(place: Place, text: str, value: bool) -> None:
    assert place.toml(IDENTITY, environ={"OFBORG_ASYNC_ALLOW_ROOT": text}).daemon.allow_root is value


def test_the_names_of_the_interface_document() -> None:
    names = [variable.name for variable in variables()]
    assert len(set(names)) == len(names)
    assert {
        "OFBORG_ASYNC_STATE_DIR",
        "OFBORG_ASYNC_CONTROL_SOCKET",
        "OFBORG_ASYNC_ALLOW_ROOT",
        "OFBORG_ASYNC_NIX_EVAL_TIMEOUT_SECONDS",
        "OFBORG_ASYNC_RABBITMQ_CA_FILE",
    } <= set(names)
