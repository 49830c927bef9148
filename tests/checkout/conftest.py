"""A host and an upstream repository for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkout_bench import Bench
from git_upstream import Upstream


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "host")


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    """With a branch ``master`` that has some files, so that pull requests can be made."""
    found = Upstream(tmp_path / "upstream")
    found.commit("refs/heads/master", {"default.nix": b"{}\n", "pkgs/a.nix": b"1\n", "pkgs/b.nix": b"2\n"})
    return found
