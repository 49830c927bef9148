"""Records of running processes, in a file that survives SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from journal_helpers import opened

from ofborg_async.journal.processlog import ProcessLog
from ofborg_async.journal.records import LeftProcess
from ofborg_async.process.records import ProcessRecord

if TYPE_CHECKING:
    from ofborg_async.process.records import ProcessRegistry


async def test_the_journal_is_a_process_registry(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        registry: ProcessRegistry = journal
        registry.started("a", 10, "start", "nix-build")
        registry.started("a", 11, "start", "git")
        registry.ended(11)
        assert journal.leftovers() == ()  # these are our own
    async with opened(tmp_path) as journal:
        (left,) = journal.leftovers()
        # The rooms share no class, but the fields and their order.
        assert ProcessRecord(left.attempt_id, left.pid, left.start_time, left.argv0) == ProcessRecord(
            attempt_id="a", pid=10, start_time="start", argv0="nix-build"
        )
        journal.ended(left.pid)
        assert journal.leftovers() == ()
    async with opened(tmp_path) as journal:
        assert journal.leftovers() == ()


def test_a_record_survives_sigkill_at_once(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from ofborg_async.journal.processlog import ProcessLog\n"
        "log = ProcessLog(Path(sys.argv[1])); log.started('a', 1, 's 1', 'git'); log.started('b', 2, 's 2', 'nix')\n"
        "log.ended(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "processes.log"
    died = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    log = ProcessLog(path)
    assert log.leftovers() == (LeftProcess("b", 2, "s 2", "nix"),)
    log.close()


def test_a_cut_line_hides_none_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "processes.log"
    path.write_bytes(b'["+", "a", 1, "s", "git"]\n["?"]\n\xff\n["+", "b", 2, "s", "nix"]\n["+", "c", 3, "s')
    log = ProcessLog(path)
    log.started("d", 4, "s", "git")
    log.close()
    log = ProcessLog(path)
    assert [left.pid for left in log.leftovers()] == [1, 2, 4]
    log.close()


def test_a_line_cut_by_a_disk_that_was_full_for_a_moment_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ProcessLog(tmp_path / "processes.log")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
        log.started("a", 1, "s", "git")
    log.started("b", 2, "s", "nix")
    log.close()
    log = ProcessLog(tmp_path / "processes.log")
    assert [left.pid for left in log.leftovers()] == [1, 2]
    log.close()


def test_a_number_used_again_is_the_new_process(tmp_path: Path) -> None:
    path = tmp_path / "processes.log"
    log = ProcessLog(path)
    log.started("a", 1, "s1", "git")
    log.close()
    log = ProcessLog(path)
    assert len(log.leftovers()) == 1
    log.started("b", 1, "s2", "nix")
    assert log.leftovers() == ()
    log.close()


def test_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "processes.log"
    log = ProcessLog(path)
    log.started("lives", 99_999_999, "s", "nix-build")
    for pid in range(20_000):
        log.started("a" * 36, pid, "1234567890", "nix-instantiate")
        log.ended(pid)
    assert path.stat().st_size < 300_000
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()
    log = ProcessLog(path)
    assert [left.pid for left in log.leftovers()] == [99_999_999]
    log.close()
