"""Every recorded case of the original that reaches nix gives the same lines and the same status."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from nix_lab import Lines, NixLab, write_files

from ofborg_async.model.evaluation import Evaluation
from ofborg_async.model.job import Subset
from ofborg_async.model.result import BuildStatus, Status

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
ORIGINAL_TREE = "<root>/repo/c5be70d813762125db9520499ccd4372/builder/lab-a"
OMITTED = "Non-UTF8 data omitted from the log."


def recording() -> dict[str, Any]:
    """The recording made with the nix of this machine."""
    version = subprocess.run(["nix-build", "--version"], capture_output=True, text=True, check=True).stdout
    name = {"2.8": "debian12.json", "2.26": "debian13.json"}.get(".".join(version.split()[-1].split(".")[:2]))
    if name is None:
        pytest.skip(f"no recording was made with {version.strip()}")
    loaded: dict[str, Any] = json.loads((RECORDINGS / name).read_text())
    return loaded


def published(case: dict[str, Any]) -> tuple[list[str], Any]:
    """The lines and the result of a case."""
    bodies = [message["body"] for message in case["published"]]
    lines = [body["output"] for body in bodies if "line_number" in body]
    return lines, next((body for body in bodies if body.get("tag") == "V1"), None)


def error_lines(evaluation: Evaluation) -> list[bytes]:
    lines = []
    for skipped in evaluation.skipped:
        lines += [b"Cannot nix-instantiate `%s` because:" % skipped.attr.encode(), *skipped.lines, b""]
    return lines


def readable(lines: list[bytes], tree: Path) -> list[str]:
    decoded = []
    for line in lines:
        try:
            decoded.append(line.decode().replace(str(tree), ORIGINAL_TREE))
        except UnicodeDecodeError:
            decoded.append(OMITTED)  # what the original publishes; ours keeps it for the wire room to decode
    return decoded


@pytest.mark.parametrize("ahead", [False, True])
async def test_every_recorded_case_gives_the_same_lines_and_status(tmp_path: Path, *, ahead: bool) -> None:
    lab = NixLab(tmp_path / "lab", "max-silent-time = 8\n")
    engine = lab.engine()
    base = {
        # The recorded repository's file began with an empty line, as the line numbers in its traces tell.
        "default.nix": "\n" + (RECORDINGS / "default.nix").read_text(),
        "nixos/release.nix": (RECORDINGS / "release.nix").read_text(),
    }
    compared = 0
    for name, case in recording().items():
        expected_lines, expected = published(case)
        if expected is None or not (expected["skipped_attrs"] or expected["attempted_attrs"]):
            continue  # ended before nix was asked
        tree = lab.tree(base)
        write_files(tree, case["pr_changes"])
        job = case["job"]
        subset = Subset(job["subset"]) if job.get("subset") else None
        request = lab.request(tree, *job["attrs"], subset=subset)
        sink = Lines()
        status: Status = BuildStatus.SKIPPED
        async with anyio.create_task_group() as building:
            evaluation = await engine.evaluate(request, building if ahead else None)
            sink.write(error_lines(evaluation))
            if evaluation.attempted:
                status = await engine.build(request, evaluation, sink)
            building.cancel_scope.cancel()
        await engine.forget(request.attempt_id)
        assert readable(sink.lines, tree) == expected_lines, name
        assert status == expected["status"], name
        assert list(evaluation.attempted) == (expected["attempted_attrs"] or []), name
        assert [skipped.attr for skipped in evaluation.skipped] == expected["skipped_attrs"], name
        compared += 1
    assert compared == 20
    assert not lab.registry.running
