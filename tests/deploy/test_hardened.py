"""Acceptance tests pass with daemons that systemd starts under deploy/'s unit. All of them: `make test-hardened`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest
from service_place import PROJECT

from ofborg_async.lab.systemd import systemd_works

ACCEPTANCE = PROJECT / "tests" / "acceptance"

# Each kind of build there is, and what ends one; then what an operator orders where nix-daemon builds.
UNDER_THE_UNIT = ("test_recordings.py", "test_stopping.py::test_sigterm_in_the_middle_of_a_build")
UNDER_THE_DROP_IN = (
    "test_orders.py::test_a_cancelled_build_is_ended_and_reported",
    "test_redelivery.py::test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing_and_builds_again",
    "test_reload.py::test_two_identities_swap_their_roots_by_a_sighup",
)


@pytest.mark.skipif(not systemd_works(), reason="takes systemd's package and namespaces: root on Linux")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("options", "tests"),
    [((), UNDER_THE_UNIT), (("--nix-daemon",), UNDER_THE_DROP_IN)],
    ids=["unit", "with the drop-in"],
)
async def test_acceptance_tests_pass_under_it(options: tuple[str, ...], tests: tuple[str, ...], tmp_path: Path) -> None:
    words = [sys.executable, "tests/hardened.py", *options, "-q", *(str(ACCEPTANCE / test) for test in tests)]
    done = await anyio.run_process(words, check=False, cwd=PROJECT, env={**os.environ, "TMPDIR": str(tmp_path)})
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert f"{len(tests)} passed" in said  # and none was skipped
