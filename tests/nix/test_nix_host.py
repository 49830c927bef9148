"""Which of the kernel's counts of kills is asked, and what is read from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from nix_lab import NixLab

from ofborg_async.nix.host import HostEvidence, counter_of_kills

WHOLE_HOST = Path("/proc/vmstat")
FIRST = "9:name=systemd:/other\n4:memory:/a/service\n3:cpu,cpuacct:/\n0::/\n"
SECOND = "0::/system.slice/a.service\n"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """The control groups of both versions, each with a counter."""
    for name in ("memory/a/service/memory.oom_control", "system.slice/a.service/memory.events"):
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True)
        file.write_text("under_oom 0\noom_kill_disable 0\noom_kill 3\n")
    return tmp_path / "groups"


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (FIRST, "memory/a/service/memory.oom_control"),
        (SECOND, "system.slice/a.service/memory.events"),
        ("0::/\n", None),
        ("4:memory:/not/mounted/here\n", None),
        ("", None),
    ],
    ids=["version 1", "version 2", "the root of version 2", "another view", "none"],
)
def test_builds_of_our_own_are_in_our_control_group(
    lab: NixLab, tmp_path: Path, groups: Path, own: str, name: str | None
) -> None:
    file = tmp_path / "own"
    file.write_text(own)
    counter = counter_of_kills(lab.settings(), own=file, groups=groups)
    assert counter == (WHOLE_HOST if name is None else groups / name)
    if name is not None:
        assert HostEvidence((), 0, 0, counter).oom_kills() == 3


@pytest.mark.parametrize("remote", ["daemon", "", "unix:///run/nix"])
def test_builds_of_a_nix_daemon_may_be_anywhere(lab: NixLab, tmp_path: Path, groups: Path, remote: str) -> None:
    (tmp_path / "own").write_text(FIRST)
    settings = lab.settings(remote=remote)
    assert counter_of_kills(settings, own=tmp_path / "own", groups=groups) == WHOLE_HOST


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert HostEvidence((), 0, 0, tmp_path / "nothing").oom_kills() == 0
