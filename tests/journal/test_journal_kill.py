"""SIGKILL at every statement, and between every commit and its acknowledgement (promise 1)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import journal_kill_script
from journal_helpers import copy_as_killed, opened


async def expected_snapshots(directory: Path) -> list[object]:
    """What the journal says after each number of steps, each seen through a kill."""
    snapshots: list[object] = []
    directory.mkdir()
    async with opened(directory / "state") as journal:
        for number in range(len(journal_kill_script.STEPS) + 1):
            copy = copy_as_killed(directory / "state", directory / str(number))
            async with opened(copy) as reopened:
                snapshots.append(await journal_kill_script.snapshot(reopened))
            if number < len(journal_kill_script.STEPS):
                await journal_kill_script.STEPS[number](journal)
    return snapshots


async def test_a_kill_at_any_point_leaves_all_that_was_acknowledged_and_whole_steps(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, journal_kill_script.__file__, str(tmp_path)],
        check=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    snapshots = await expected_snapshots(tmp_path / "expected")
    places = [path for path in tmp_path.iterdir() if path.name.startswith(("statement-", "commit-"))]
    assert len(places) > 100
    in_flight_kept = 0
    for place in places:
        acknowledged = (place / "acknowledged").stat().st_size
        async with opened(place / "state") as journal:
            found = await journal_kill_script.snapshot(journal)
        # The step under way happened wholly or not at all; notes without a commit of their own join the next step.
        allowed = [snapshots[acknowledged]]
        if acknowledged < len(journal_kill_script.STEPS):
            allowed.append(snapshots[acknowledged + 1])
        assert found in allowed, place.name
        in_flight_kept += found != allowed[0]
    assert in_flight_kept > 10  # the deaths between a commit and its acknowledgement
