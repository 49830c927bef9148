from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_place import IDENTITY, Place, original

RABBIT = original()["rabbitmq"]
WITH_FILE = {key: value for key, value in RABBIT.items() if key != "password"} | {"password_file": "pw"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_generation_1_password_in_the_file(place: Place) -> None:
    (alpha,) = place.load(place.write("a.json", original())).identities
    assert alpha.name == "alpha"
    assert alpha.root == Path("/var/lib/ofborg-test/checkout")
    assert alpha.nix.systems == ("x86_64-linux",)
    assert (alpha.nix.remote, alpha.nix.build_timeout_seconds) == ("daemon", 1800)
    assert (alpha.broker.vhost, alpha.broker.username, alpha.broker.ssl) == ("ofborg", "user", True)
    assert alpha.broker.password.reveal() == "hunter2"
    assert alpha.consumer_tag == "alpha-x86_64-linux-builder"


def test_generation_2_password_file_and_a_list_of_systems(place: Place) -> None:
    place.write("pw", "secret\n")
    nix = {"system": ["aarch64-darwin", "x86_64-darwin"], "remote": "", "build_timeout_seconds": 90000}
    (alpha,) = place.load(place.write("a.json", original(rabbitmq=WITH_FILE, nix=nix))).identities
    assert alpha.broker.password.reveal() == "secret"
    assert alpha.consumer_tag == "alpha-aarch64-darwin,x86_64-darwin-builder"
    assert alpha.nix.remote == ""
    assert alpha.nix.build_timeout_seconds == 90000


def test_generation_3_builder_section_and_no_feedback(place: Place) -> None:
    place.write("pw", "secret")
    other = {**WITH_FILE, "username": "other", "password_file": "not-there"}
    document = original(
        rabbitmq=None, feedback=None, builder={"rabbitmq": WITH_FILE}, evaluation_filter={"rabbitmq": other}
    )
    settings = place.load(place.write("a.json", document))
    assert settings.identities[0].broker.username == "user"
    assert settings.warnings == ()


def test_values_are_percent_decoded_leniently(place: Place) -> None:
    rabbit = {**RABBIT, "username": "us%40er", "virtualhost": "%2Fv", "password": "50% p%40ss %ff"}
    broker = place.load(place.write("a.json", original(rabbitmq=rabbit))).identities[0].broker
    assert (broker.username, broker.vhost) == ("us@er", "/v")
    assert broker.password.reveal() == "50% p%40ss %ff"  # no UTF-8 when decoded: taken as it is
    rabbit["password"] = "50% p%40ss"
    assert (
        place.load(place.write("a.json", original(rabbitmq=rabbit))).identities[0].broker.password.reveal()
        == "50% p@ss"
    )
    place.write("pw", "p%2Fq\n")
    settings = place.load(place.write("a.json", original(rabbitmq=WITH_FILE)))
    assert settings.identities[0].broker.password.reveal() == "p/q"


@pytest.mark.parametrize(
    ("host", "ssl", "address"),
    [("h", True, ("h", 5671)), ("h", False, ("h", 5672)), ("h:5", True, ("h", 5)), ("[::1]:6", True, ("::1", 6))],
)
def test_a_host_may_carry_a_port(place: Place, host: str, ssl: bool, address: tuple[str, int]) -> None:
    rabbit = {**RABBIT, "host": host, "ssl": ssl}
    broker = place.load(place.write("a.json", original(rabbitmq=rabbit))).identities[0].broker
    assert broker.addresses == (address,)


def test_the_vhost_defaults_to_a_slash_and_null_is_absent(place: Place) -> None:
    rabbit = {**RABBIT, "virtualhost": None}
    document = original(rabbitmq=rabbit, github_app=None, runner={"identity": "alpha", "build_all_jobs": None})
    (alpha,) = place.load(place.write("a.json", document)).identities
    assert alpha.broker.vhost == "/"
    assert not alpha.build_all_jobs


def test_build_all_jobs_and_heap_size(place: Place) -> None:
    document = original(
        runner={"identity": "alpha", "build_all_jobs": True}, nix={"system": "x86_64-linux", "initial_heap_size": "4g"}
    )
    (alpha,) = place.load(place.write("a.json", document)).identities
    assert alpha.build_all_jobs
    assert alpha.nix.initial_heap_size == "4g"


@pytest.mark.parametrize("seconds", [1199, 0, -1, 1800.5, "1800", True, 2**70])
def test_a_build_timeout_that_the_original_refuses(place: Place, seconds: Any) -> None:
    nix = {"system": "x86_64-linux", "build_timeout_seconds": seconds}
    faults = place.faults(place.write("a.json", original(nix=nix)))
    assert list(faults) == ["nix.build_timeout_seconds"]


@pytest.mark.parametrize("feedback", [None, {}, {"full_logs": False}])
def test_without_consent_to_public_logs_it_does_not_start(place: Place, feedback: Any) -> None:
    faults = place.faults(place.write("a.json", original(feedback=feedback)))
    assert list(faults) == ["feedback.full_logs"]


def test_generation_3_says_no_too(place: Place) -> None:
    document = original(rabbitmq=None, feedback={"full_logs": False}, builder={"rabbitmq": RABBIT})
    assert "feedback.full_logs" in place.faults(place.write("a.json", document))


def test_every_fault_at_once_with_the_originals_names(place: Place) -> None:
    document = original(
        runner={"identity": "a/b"},
        nix={"system": [], "remote": 3},
        rabbitmq=None,
        builder={"rabbitmq": {"ssl": "true", "host": "amqps://u:hunter2@h", "virtualhost": ""}},
    )
    faults = place.faults(place.write("a.json", document))
    assert set(faults) == {
        "runner.identity",
        "nix.system",
        "nix.remote",
        "builder.rabbitmq.ssl",
        "builder.rabbitmq.host",
        "builder.rabbitmq.virtualhost",
        "builder.rabbitmq.username",
        "builder.rabbitmq.password",
    }
    assert "hunter2" not in str(faults)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"feedback": {"full_logs": "yes"}}, "feedback.full_logs"),
        ({"feedback": True}, "feedback"),
        ({"rabbitmq": "amqps://"}, "rabbitmq"),
        ({"rabbitmq": None, "builder": {"rabbitmq": []}}, "builder.rabbitmq"),
        ({"rabbitmq": None, "builder": 3}, "builder"),
        ({"nix": 3}, "nix"),
        ({"runner": {"identity": 3}}, "runner.identity"),
    ],
)
def test_what_was_said_wrongly_is_not_called_missing_as_well(place: Place, sections: Any, key: str) -> None:
    assert list(place.faults(place.write("a.json", original(**sections)))) == [key]


def test_unknown_keys_are_warnings_with_the_nearest_known_one(place: Place) -> None:
    document = original(
        chekout={"root": "/x"},
        github={"token": "t"},
        stats={"listen": "x"},
        runner={"identity": "alpha", "repos": [], "trusted_users": [], "disable_trusted_users": True, "instanse": 2},
        nix={"system": "x86_64-linux", "list_cores": 4, "sandbox": True},
    )
    warnings = place.load(place.write("a.json", document)).warnings
    assert {warning.split(": ", 1)[1] for warning in warnings} == {
        "chekout: unknown key, ignored; did you mean checkout?",
        "runner.instanse: unknown key, ignored; did you mean instance?",
        "nix.sandbox: unknown key, ignored",
    }


def test_a_file_without_identity_is_a_layer_for_all_and_later_wins(place: Place) -> None:
    public = place.write("public.json", original(runner={"repos": []}, rabbitmq={"ssl": True, "host": "from-public"}))
    nix = {"system": ["i686-linux", "x86_64-linux"]}
    one = place.write("one.json", {"runner": {"identity": "one"}, "rabbitmq": RABBIT, "nix": nix})
    checkout = {"root": "/var/lib/ofborg-test/two"}
    two = place.write("two.json", {"runner": {"identity": "two"}, "rabbitmq": RABBIT, "checkout": checkout})
    late = place.write("late.json", {"nix": {"remote": "late"}, "rabbitmq": {"username": "late"}})
    first, second = place.load(public, one, two, late).identities
    assert first.nix.systems == ("i686-linux", "x86_64-linux")
    assert second.nix.systems == ("x86_64-linux",)
    assert first.nix.build_timeout_seconds == second.nix.build_timeout_seconds == 1800
    assert first.root == Path("/var/lib/ofborg-test/checkout")
    assert second.root == Path("/var/lib/ofborg-test/two")
    for identity in (first, second):
        assert identity.nix.remote == "late"
        assert identity.broker.username == "late"
        assert identity.broker.addresses == (("broker.example.org", 5671),)
        assert identity.broker.password.reveal() == "hunter2"


def test_several_files_are_several_identities_that_share_no_root(place: Place) -> None:
    one = place.write("one.json", original())
    two = place.write("two.json", original(runner={"identity": "beta"}))
    assert "same root" in place.faults(one, two)["checkout.root"]
    twice = place.raw_faults(one, place.write("again.json", original(checkout={"root": "/var/lib/other"})))
    assert any(fault.key == "runner.identity" and "one.json" in fault.message for fault in twice)


def test_layers_alone_are_no_builder(place: Place) -> None:
    faults = place.faults(place.write("a.json", original(runner={})))
    assert "runner" in faults["runner.identity"]


def test_toml_and_json_add_up_and_share_the_defaults(place: Place) -> None:
    place.write("pw", "x")
    old = place.write("old.json", original(rabbitmq={**WITH_FILE, "host": "json-host"}))
    new = place.write("new.toml", IDENTITY.replace("alpha", "beta") + "[defaults]\nlimits.log_bytes = 5000\n")
    settings = place.load(old, new, environ={"OFBORG_ASYNC_NIX_EVAL_TIMEOUT_SECONDS": "12.5"})
    by_name = {identity.name: identity for identity in settings.identities}
    assert set(by_name) == {"alpha", "beta"}
    assert {identity.limits.log_bytes for identity in settings.identities} == {5000}
    assert {identity.nix.eval_timeout_seconds for identity in settings.identities} == {12.5}
    assert by_name["alpha"].broker.addresses == (("json-host", 5671),)


def test_what_is_a_fault_in_toml_is_a_warning(place: Place) -> None:
    path = place.write("a.json", original(checkout={"root": "/home/jdoe/.nix-test-rs"}), mode=0o644)
    settings = place.load(path)
    assert settings.identities[0].root == Path("/home/jdoe/.nix-test-rs")
    text = "\n".join(settings.warnings)
    assert "home directory" in text
    assert "chmod 600" in text


def test_relative_paths_count_from_the_working_directory(place: Place) -> None:
    (place.folder / "configs").mkdir()
    path = place.write("configs/a.json", original(checkout={"root": "nix-test"}))
    assert place.load(path).identities[0].root == (place.folder / "nix-test").resolve()


def test_both_generations_in_one_file(place: Place) -> None:
    place.write("pw", "from-file")
    document = original(rabbitmq={**RABBIT, "username": "old"}, builder={"rabbitmq": {**RABBIT, "password_file": "pw"}})
    settings = place.load(place.write("a.json", document))
    assert settings.identities[0].broker.username == "user"
    assert settings.identities[0].broker.password.reveal() == "from-file"
    assert [warning for warning in settings.warnings if "newer" in warning] == list(settings.warnings)
    assert len(settings.warnings) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n// a comment\n"a": 1}', "no comments"),
        ("", "empty"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('\ufeff{"a": 1}', "byte order mark"),
        ("[]", "expected an object"),
        ("3", "expected an object"),
        ('{"a": 1,}', "line 1, column"),
        ("[" * 100_000, "levels deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "levels deep"),
        ('{"nix": {"remote": "\\ud800"}}', "surrogate"),
        ('{"nix": {"build_timeout_seconds": ' + "9" * 5000 + "}}", "no valid JSON"),
        ('{"nix": {"build_timeout_seconds": 1e999}}', "fraction"),
    ],
)
def test_what_is_no_json(place: Place, text: str, said: str) -> None:
    (fault, *_) = place.raw_faults(place.write("a.json", text))
    assert said in fault.message


def test_a_key_that_cannot_be_printed_does_no_harm(place: Place) -> None:
    text = '{"runner": {"identity": "alpha", "\\ud800\\u001b[31m": 1}}'
    faults = place.raw_faults(place.write("a.json", text))
    "\n".join(map(str, faults)).encode()
    settings = place.load(place.write("b.json", original(**{"\ud800\x1b": 1})))
    assert "\\ud800\\x1b: unknown key" in settings.warnings[0]
