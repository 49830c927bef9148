"""``--against``: a round with another builder's program in our place. Here that program becomes our own daemon."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import anyio
import pytest

import ofborg_async
from ofborg_async.lab.chaos.plan import FaultKind
from ofborg_async.lab.namespace import namespaces_work

POSSIBLE = [FaultKind.DAEMON_KILLED, FaultKind.PATH_CUT, FaultKind.CHILD_KILLED]
IMPOSSIBLE = FaultKind.CLOCK_SET_BACK


def other_builder(directory: Path) -> Path:
    """A program that takes one JSON configuration, as the original does."""
    layer = directory / "layer.toml"
    layer.write_text('[defaults]\ncheckout.clone_url_schemes = ["file"]\n')
    program = directory / "builder"
    program.write_text(
        "#!/bin/sh\n"
        f"export PYTHONPATH='{Path(ofborg_async.__file__).parents[1]}' OFBORG_ASYNC_ALLOW_ROOT=1\n"
        'export OFBORG_ASYNC_STATE_DIR="$1.state" OFBORG_ASYNC_CONTROL_SOCKET="$1.sock"\n'
        f"exec '{sys.executable}' -m ofborg_async run -c '{layer}' -c \"$1\"\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.skipif(not namespaces_work(), reason="mount namespaces: Linux, root")
@pytest.mark.timeout(300)
async def test_a_round_against_another_builder_completes_and_counts(tmp_path: Path) -> None:
    """It may find something, and then says so by its exit status."""
    words = ["--small", "--rounds", "1", "--seed", "1", "--against", str(other_builder(tmp_path))]
    words += [word for kind in (*POSSIBLE, IMPOSSIBLE) for word in ("--only", kind)]
    done = await anyio.run_process([sys.executable, "-m", "ofborg_async.lab.chaos", *words], check=False)
    said = done.stdout.decode()
    assert done.returncode in {0, 1}, done.stderr.decode()
    counts = re.search(r"^1 rounds, 8 jobs, 0 attempts, (\d+) jobs with a result$", said, re.MULTILINE)
    assert counts, said
    assert int(counts[1]) > 0
    assert "faults done: 3 of 4: " in said
    assert f"0 (of 1) {IMPOSSIBLE}" in said
    assert re.search(r"^lost: \d+, doubled: \d+, wrong: \d+, left behind: \d+$", said, re.MULTILINE)
