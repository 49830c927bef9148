from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nix_lab import NixDaemon, NixLab


@pytest.fixture
def lab(tmp_path: Path) -> NixLab:
    return NixLab(tmp_path / "lab")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[NixDaemon]:
    """A nix-daemon of our own for a store of our own."""
    daemon = NixDaemon(tmp_path / "lab", "max-silent-time = 3\n")
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of 24 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="nix-disk-"))
    if os.system(f"mount -t tmpfs -o size=24m tmpfs {folder} 2>/dev/null") != 0:
        folder.rmdir()
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        os.system(f"umount -l {folder}")
        folder.rmdir()
