from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from config_place import IDENTITY, Place

from ofborg_async.config.loading import overlapping_roots
from ofborg_async.errors import FaultKind, HostFault


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def identity(name: str, more: str = "") -> str:
    return IDENTITY.replace("alpha", name) + more


def test_the_smallest_configuration_gets_the_defaults_of_the_model(place: Place) -> None:
    settings = place.toml(IDENTITY)
    (alpha,) = settings.identities
    assert alpha.root == (place.folder / "state" / "alpha").resolve()
    assert alpha.broker.addresses == (("broker.example.org", 5671),)
    assert alpha.broker.vhost == "/"
    assert alpha.broker.password.reveal() == "hunter2"
    assert alpha.consumer_tag == "alpha-x86_64-linux-builder"
    assert settings.daemon.control_socket == place.folder / "run" / "control.sock"
    assert settings.files == (place.folder / "a.toml",)
    assert settings.warnings == ()


def test_the_example_of_the_interface_document(place: Place) -> None:
    place.write("pw", "secret\n")
    settings = place.toml(
        """
        [daemon]
        state_dir = "state-of-my-own"
        [[identity]]
        name = "mac1-a"
        checkout.root = "/private/var/lib/ofborg/mac1-a"
        nix = { systems = ["aarch64-darwin", "x86_64-darwin"], remote = "daemon", build_timeout_seconds = 3600 }
        rabbitmq = { host = "h", ssl = true, virtualhost = "ofborg", username = "u", password_file = "pw" }
        feedback.full_logs = true
        """
    )
    (mac,) = settings.identities
    assert mac.consumer_tag == "mac1-a-aarch64-darwin,x86_64-darwin-builder"
    assert mac.nix.remote == "daemon"
    assert mac.broker.password.reveal() == "secret"
    assert settings.daemon.state_dir == (place.folder / "state-of-my-own").resolve()


def test_defaults_are_laid_under_each_identity_key_by_key(place: Place) -> None:
    settings = place.toml(
        """
        [daemon]
        max_builds = 3
        shutdown_grace_seconds = 30
        [defaults]
        nix = { remote = "daemon", systems = ["x86_64-linux"], environment = { A = "1", B = "2" } }
        rabbitmq = { host = ["one", "[::1]:5673"], ssl = false, username = "user", password = "p" }
        limits.line_bytes = 4096
        feedback.full_logs = true
        git.name = "somebody"
        runner.weight = 3
        [[identity]]
        name = "alpha"
        [[identity]]
        name = "beta"
        nix = { systems = ["i686-linux"], environment = { B = "3" }, remote = "" }
        rabbitmq.host = "two:1234"
        rabbitmq.ssl = true
        """
    )
    alpha, beta = settings.identities
    assert settings.daemon.max_builds == 3
    assert settings.daemon.shutdown_grace_seconds == 30.0
    assert alpha.broker.addresses == (("one", 5672), ("::1", 5673))
    assert beta.broker.addresses == (("two", 1234),)
    assert dict(beta.nix.environment) == {"A": "1", "B": "3"}
    assert (alpha.nix.remote, beta.nix.remote) == ("daemon", "")
    assert (beta.nix.systems, beta.git_name, beta.weight) == (("i686-linux",), "somebody", 3)
    assert alpha.limits.line_bytes == beta.limits.line_bytes == 4096


def test_every_key_of_the_schema_reaches_the_settings(place: Place) -> None:
    place.write("pem", "certificate")
    settings = place.toml(
        """
        [daemon]
        state_dir = "/var/lib/s"
        control_socket = "/run/s.sock"
        control_group = "root"
        log_level = "debug"
        log_format = "json"
        metrics_listen = "[::1]:9100"
        max_builds = 2
        max_evaluations = 3
        shutdown_grace_seconds = 1.5
        allow_root = true
        restart_intensity = 7
        restart_period_seconds = 8
        backoff_first_seconds = 2
        backoff_max_seconds = 9
        history_keep_days = 10
        log_keep_bytes = 11
        [[identity]]
        name = "alpha"
        runner = { weight = 2, build_all_jobs = true }
        checkout = { root = "/var/lib/r", replace_root_in_logs = true, clone_url_schemes = ["file"] }
        git = { name = "n", email = "e@x" }
        feedback.full_logs = true
        [identity.nix]
        systems = ["x86_64-linux"]
        remote = "local?root=/x"
        build_timeout_seconds = 60
        eval_timeout_seconds = 61
        attempt_timeout_seconds = 62
        initial_heap_size = "4g"
        environment = { NIX_CONF_DIR = "/etc/x" }
        [identity.rabbitmq]
        host = "h"
        ssl = false
        virtualhost = "v"
        username = "u"
        password = "p"
        ca_file = "pem"
        client_certificate_file = "pem"
        client_key_file = "pem"
        server_name = "s"
        heartbeat_seconds = 21
        connect_timeout_seconds = 22
        call_timeout_seconds = 23
        unroutable_hold_seconds = 24
        [identity.limits]
        message_bytes = 2000
        line_bytes = 2001
        log_bytes = 5000
        log_tail_lines = 2003
        fetch_timeout_seconds = 2004
        checkout_timeout_seconds = 2005
        host_fault_retries = 2006
        host_fault_backoff_seconds = 2007
        max_attempts = 2008
        delivery_limit = 2013
        disk_floor_bytes = 2009
        disk_floor_inodes = 2010
        quarantine_after = 2011
        quarantine_seconds = 2012
        """
    )
    (alpha,) = settings.identities
    for value in (settings.daemon, alpha, alpha.nix, alpha.broker, alpha.limits):
        for field in attrs.fields(type(value)):
            assert getattr(value, field.name) != field.default, f"{type(value).__name__}.{field.name} kept its default"


def test_every_fault_is_told_at_once_with_its_line_and_path(place: Place) -> None:
    path = place.write(
        "a.toml",
        """
[daemon]
max_builds = 3.7
log_levl = "info"
metrics_listen = "0.0.0.0:9100"
[defaults]
limits.line_bytes = "16"
[[identity]]
name = "a/b"
nix = { systems = ["x86_64-linux"], build_timeout_seconds = 0 }
[[identity]]
name = "beta"
root = "/x"
rabbitmq = { host = "h", password = "hunter2" }
""",
    )
    faults = {(fault.line, fault.key): fault.message for fault in place.raw_faults(path)}
    assert "fraction" in faults[3, "daemon.max_builds"]
    assert faults[4, "daemon.log_levl"] == "unknown key; did you mean log_level?"
    assert "loopback" in faults[5, "daemon.metrics_listen"]
    assert "without quotes" in faults[7, "defaults.limits.line_bytes"]
    assert "'/'" in faults[9, "identity[a/b].name"]
    assert "at least 1" in faults[10, "identity[a/b].nix.build_timeout_seconds"]
    assert "missing" in faults[8, "identity[a/b].rabbitmq.host"]
    assert faults[13, "identity[beta].root"] == "unknown key; did you mean checkout.root?"
    assert "missing" in faults[11, "identity[beta].nix.systems"]
    assert "missing" in faults[14, "identity[beta].rabbitmq.username"]


def test_a_key_that_was_said_wrongly_is_not_called_missing_as_well(place: Place) -> None:
    faults = place.toml_faults(IDENTITY.replace('["x86_64-linux"]', '"x86_64-linux"'))
    assert list(faults) == ["identity[alpha].nix.systems"]
    faults = place.toml_faults('[defaults]\nrabbitmq = 3\n[[identity]]\nname = "a"\nnix.systems = ["x86_64-linux"]')
    assert list(faults) == ["defaults.rabbitmq"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runner.weight", "1.0"),
        ("runner.weight", "true"),
        ("runner.weight", '"1"'),
        ("runner.weight", "0"),
        ("runner.weight", "99999999999999999999"),
        ("runner.build_all_jobs", '"false"'),
        ("runner.build_all_jobs", "0"),
        ("nix.remote", "1"),
        ("nix.remote", '"a\\u0000b"'),
        ("nix.remote", "2020-01-01"),
        ("nix.eval_timeout_seconds", "inf"),
        ("nix.eval_timeout_seconds", "nan"),
        ("nix.eval_timeout_seconds", "-1"),
        ("nix.eval_timeout_seconds", '"60"'),
        ("nix.initial_heap_size", '"many"'),
        ("nix.environment", '{ "a b" = "x" }'),
        ("nix.environment", '{ NIX_REMOTE = "x" }'),
        ("checkout.root", "[]"),
        ("checkout.root", '""'),
        ("checkout.root", '"~/x"'),
        ("checkout.root", '"/var/lib/a:b"'),
        ("checkout.root", '"/"'),
        ("checkout.clone_url_schemes", '["htps"]'),
        ("checkout.clone_url_schemes", "[]"),
        ("git.name", '"a\\nb"'),
        ("git.email", '"a <b>"'),
        ("limits.log_bytes", "-1"),
        ("limits", "[]"),
    ],
)
def test_values_are_taken_only_as_they_are_meant(place: Place, key: str, value: str) -> None:
    faults = place.toml_faults(f"{IDENTITY}{key} = {value}\n")
    assert [name.removeprefix("identity[alpha].")[: len(key)] for name in faults] == [key]


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ('"h"', [("h", 5671)]),
        ('"h:1"', [("h", 1)]),
        ('"[::1]"', [("::1", 5671)]),
        ('"[::1]:7"', [("::1", 7)]),
        ('"::1"', [("::1", 5671)]),
        ('["a", "b:2"]', [("a", 5671), ("b", 2)]),
    ],
)
def test_broker_addresses(place: Place, value: str, addresses: list[tuple[str, int]]) -> None:
    settings = place.toml(IDENTITY.replace('"broker.example.org"', value))
    assert list(settings.identities[0].broker.addresses) == addresses


@pytest.mark.parametrize(
    "value", ['""', "[]", '"h:"', '"h:0"', '"h:65536"', '"[::1"', '"a b"', '"amqps://u:pw@h"', '"u@h"', '["h", 3]', "3"]
)
def test_what_is_no_broker_address(place: Place, value: str) -> None:
    faults = place.toml_faults(IDENTITY.replace('"broker.example.org"', value))
    assert list(faults) == ["identity[alpha].rabbitmq.host"]
    assert "pw" not in str(faults)


def test_a_system_is_checked_and_an_unheard_of_one_is_a_warning(place: Place) -> None:
    settings = place.toml(IDENTITY.replace("x86_64-linux", "x86-64-linux"))
    assert "did you mean x86_64-linux?" in settings.warnings[0]
    assert "twice" in str(place.toml_faults(IDENTITY.replace('["x86_64-linux"]', '["i686-linux", "i686-linux"]')))
    assert "no nix system" in str(place.toml_faults(IDENTITY.replace("x86_64-linux", 'x\\"]')))


def test_several_files_add_up_and_a_name_may_be_used_once(place: Place) -> None:
    one = place.write("one.toml", identity("alpha"))
    two = place.write("two.toml", identity("beta") + "[daemon]\nmax_builds = 5\n")
    settings = place.load(one, two)
    assert [known.name for known in settings.identities] == ["alpha", "beta"]
    assert settings.daemon.max_builds == 5
    three = place.write("three.toml", identity("alpha"))
    fault = next(fault for fault in place.raw_faults(one, three) if fault.key.endswith("name"))
    assert "three.toml" in fault.file
    assert "one.toml" in fault.message


def test_defaults_of_one_file_serve_the_others(place: Place) -> None:
    common = place.write("common.toml", '[defaults]\nrabbitmq.host = "from-common"\nnix.remote = "daemon"\n')
    own = place.write("own.toml", identity("alpha"))
    alpha = place.load(own, common).identities[0]
    assert alpha.nix.remote == "daemon"
    assert alpha.broker.addresses[0][0] == "broker.example.org"


def test_no_identity_at_all(place: Place) -> None:
    assert "[[identity]]" in str(place.toml_faults("[daemon]\n"))
    assert "-c FILE" in str(place.faults())
    assert "two brackets" in str(place.toml_faults('[identity]\nname = "x"\n'))


def test_a_name_in_defaults_is_refused(place: Place) -> None:
    assert list(place.toml_faults('[defaults]\nname = "x"\n' + IDENTITY)) == ["defaults.name"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\\nb", " a", "a\\u0000", "x" * 300])
def test_names_that_are_no_folder_or_no_consumer_tag(place: Place, name: str) -> None:
    faults = place.toml_faults(IDENTITY.replace('"alpha"', f'"{name}"'))
    assert len(faults) == 1
    assert next(iter(faults)).endswith("name")


def test_a_consumer_tag_has_at_most_255_bytes(place: Place) -> None:
    many = ", ".join(f'"x86_64-system{number:02}"' for number in range(20))
    faults = place.toml_faults(IDENTITY.replace('"x86_64-linux"', many))
    assert "consumer tag" in faults["identity[alpha].name"]


@pytest.mark.parametrize("name", ["jdoe", "jdoe-mac", "builder-of-JDOE", "ws42", "ws42-linux"])
def test_a_name_that_shows_user_or_host_is_a_warning(place: Place, name: str) -> None:
    (warning,) = place.toml(identity(name)).warnings
    assert "shows the" in warning


def test_a_root_under_a_home_directory_needs_consent(place: Place) -> None:
    under_home = IDENTITY + 'checkout.root = "/home/jdoe/x"\n'
    assert "allow_home" in place.toml_faults(under_home)["identity[alpha].checkout.root"]
    assert place.toml(under_home + "checkout.allow_home = true\n").identities[0].root == Path("/home/jdoe/x")


def test_a_root_is_resolved(place: Place) -> None:
    (place.folder / "real").mkdir()
    (place.folder / "link").symlink_to("real")
    alpha = place.toml(IDENTITY + 'checkout.root = "link/deeper"\n').identities[0]
    assert alpha.root == place.folder.resolve() / "real" / "deeper"


def test_a_root_that_cannot_be_one(place: Place) -> None:
    (place.folder / "file").write_text("")
    assert "not a directory" in str(place.toml_faults(IDENTITY + 'checkout.root = "file"\n'))
    assert "daemon's state" in str(place.toml_faults(IDENTITY + 'checkout.root = "state"\n'))
    assert "daemon's state" in str(place.toml_faults(IDENTITY + 'checkout.root = "."\n'))
    assert "daemon's state" in str(place.toml_faults(identity("mirrors")))
    assert "daemon's state" in str(place.toml_faults(identity("daemon.lock")))


def test_a_root_that_others_can_look_into_is_a_warning(place: Place) -> None:
    (place.folder / "open").mkdir(mode=0o755)
    assert "chmod 700" in place.toml(IDENTITY + 'checkout.root = "open"\n').warnings[0]


def test_shared_and_nested_roots_are_refused(place: Place) -> None:
    def with_roots(one: str, two: str) -> str:
        return identity("alpha", f'checkout.root = "{one}"\n') + identity("beta", f'checkout.root = "{two}"\n')

    assert "alpha and beta have the same root" in str(place.toml_faults(with_roots("r", "r")))
    assert "inside" in str(place.toml_faults(with_roots("r", "r/deeper")))
    assert "inside" in str(place.toml_faults(with_roots("r/deeper", "r")))
    assert len(place.toml(with_roots("r1", "r")).identities) == 2


def test_the_comparison_of_roots_can_be_replaced(place: Place) -> None:
    seen: list[object] = []

    def conflicts(roots: object) -> list[str]:
        seen.append(roots)
        return ["these two are one on disk"]

    faults = place.toml_faults(IDENTITY, root_conflicts=conflicts)
    assert "these two are one on disk" in faults["checkout.root"]
    assert seen == [[("alpha", (place.folder / "state" / "alpha").resolve())]]

    def fails(_roots: object) -> list[str]:
        raise HostFault(FaultKind.PERMISSION, "cannot be looked at")

    assert "cannot be looked at" in str(place.toml_faults(IDENTITY, root_conflicts=fails))


def test_roots_are_compared_by_their_paths() -> None:
    assert overlapping_roots([("a", Path("/x")), ("b", Path("/xy")), ("c", Path("/x/y"))]) == [
        "a and c have a root inside the other's: /x, /x/y"
    ]


def test_full_logs(place: Place) -> None:
    assert "feedback.full_logs" in str(place.toml_faults(IDENTITY.replace("full_logs = true", "full_logs = false")))
    assert "full_logs" in place.toml(IDENTITY.replace("feedback.full_logs = true", "")).warnings[0]


def test_limits_of_time_fit_together(place: Place) -> None:
    long = place.toml(IDENTITY + "nix.build_timeout_seconds = 90000\n").identities[0].nix
    assert long.attempt_timeout_seconds == 90000 + 600 + 1800 + 600
    settings = place.toml(IDENTITY + "nix.attempt_timeout_seconds = 60\n")
    assert settings.identities[0].nix.attempt_timeout_seconds == 60
    assert "never reached" in settings.warnings[0]
    assert "backoff_first_seconds" in str(place.toml_faults(IDENTITY + "[daemon]\nbackoff_max_seconds = 0.5\n"))


def test_no_ssl_to_another_host_is_a_warning(place: Place) -> None:
    plain = IDENTITY.replace("username", "ssl = false, username")
    assert "clear text" in place.toml(plain).warnings[0]
    assert place.toml(plain.replace("broker.example.org", "127.0.0.1")).warnings == ()


def test_certificates(place: Place) -> None:
    def with_keys(keys: str) -> str:
        return IDENTITY.replace("username", f"{keys}, username")

    assert "no such file" in str(place.toml_faults(with_keys('ca_file = "nowhere"')))
    place.write("pem", "x")
    assert "needs client_key_file" in str(place.toml_faults(with_keys('client_certificate_file = "pem"')))
    place.write("open.pem", "x", mode=0o644)
    both = with_keys('client_certificate_file = "pem", client_key_file = "open.pem"')
    assert "chmod 600" in place.toml(both).warnings[0]


def test_the_daemon_section(place: Place) -> None:
    faults = place.toml_faults(
        f"""
        [daemon]
        control_socket = "/{"x" * 110}"
        control_group = "no-such-group-here"
        {IDENTITY}
        """
    )
    assert "at most 103 bytes" in faults["daemon.control_socket"]
    assert "no such group" in faults["daemon.control_group"]


def test_what_is_no_toml(place: Place) -> None:
    (fault,) = place.raw_faults(place.write("a.toml", "a = 1\nb = \n"))
    assert "line 2" in fault.message
    assert "byte order mark" in str(place.toml_faults("\ufeffa = 1"))
    assert "not UTF-8" in str(place.raw_faults(place.write("a.toml", b"a = '\xff'")))
    assert "no such file" in str(place.raw_faults(place.folder / "nowhere.toml"))
    assert "Is a directory" in str(place.raw_faults(place.folder))
    assert "larger than" in str(place.raw_faults(place.write("a.toml", "#" * 9_000_000)))
    assert "levels deep" in str(place.toml_faults("a = " + "[" * 60 + "]" * 60))
    assert "null byte" in str(place.raw_faults(place.folder / "a\0b"))


def test_a_file_without_a_suffix_is_judged_by_its_first_character(place: Place) -> None:
    assert place.load(place.write("config", IDENTITY)).identities[0].name == "alpha"
    assert "JSON" in str(place.raw_faults(place.write("config", "  {")))
