from __future__ import annotations

from pathlib import Path

import pytest

from ofborg_async.errors import ConfigError
from ofborg_async.remote.hosts import HostSpec, parse_host, read_fleet


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mac1", HostSpec("mac1")),
        ("root@mac1.example.org", HostSpec("mac1.example.org", "root")),
        ("root@mac1:2222", HostSpec("mac1", "root", 2222)),
        ("root@[fe80::1%eth0]:22", HostSpec("fe80::1%eth0", "root", 22)),
        ("[::1]", HostSpec("::1")),
    ],
)
def test_hosts_are_read_and_written(text: str, spec: HostSpec) -> None:
    assert parse_host(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "a@",
        "-oProxyCommand=x",
        "a@-b",
        "-a@b",
        "a b",
        "a;b",
        "$(id)@x",
        "x:0",
        "x:65536",
        "x:y",
        "::1",
        "a@b@c",
        "h\n",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_host(text)


def test_a_fleet_file_is_read(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    fleet.write_text("# our builders\n\nroot@mac1 # the old one\nmac2:2222\nroot@mac1\n")
    assert read_fleet(fleet) == (HostSpec("mac1", "root"), HostSpec("mac2", None, 2222))


def test_every_fault_of_a_fleet_file_is_named(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    fleet.write_text("root@mac1\n-x\nok\na b\n")
    with pytest.raises(ConfigError, match="line 2: ") as caught:
        read_fleet(fleet)
    assert [fault.key for fault in caught.value.faults] == ["line 2", "line 4"]
    fleet.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_fleet(fleet)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_fleet(tmp_path / "missing")
