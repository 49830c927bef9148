"""The benchmarks run and write what they found. Sizes are tiny and nothing is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest

from ofborg_async.lab.bench.__main__ import FIGURES
from ofborg_async.lab.bench.model import Goal, Of, Row

SPEND_NOTHING = ("CPU while idle", "idle CPU", "growth")
"""What may be nothing, or even less."""

PICTURES = {
    "memory-of-idle-builders",
    "cost-of-an-identity-mib",
    "cost-of-an-identity-ms",
    "cost-of-an-identity-percent",
    "cost-of-a-log-line-us",
    "cost-of-a-log-line-bytes",
    "cost-of-a-waiter-for-a-lock-us",
    "journal-and-its-history-ms",
    "journal-and-its-history-bytes",
}


@pytest.mark.timeout(600)
async def test_every_figure_is_measured_and_written(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ofborg_async.lab.bench", "--quick", "--output", str(tmp_path)]
    done = await anyio.run_process(words, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()

    document = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [figure["figure"] for figure in document["figures"]] == list(FIGURES)
    for figure in document["figures"]:
        assert figure["rows"], figure["figure"]
        assert figure["load_before"] >= 0
        for row in figure["rows"]:
            measured = [row["ours"]] + [row["limit"] for _ in range("limit" in row)]
            assert all(series["runs"] for series in measured), row
            if not any(words in row["name"] for words in SPEND_NOTHING) and "beyond" not in row["name"]:
                assert all(series["median"] > 0 for series in measured), row
            assert "theirs" not in row
            assert row["ratio"] is None
    limits = {figure["figure"] for figure in document["figures"] for row in figure["rows"] if "limit" in row}
    assert limits == {"small", "log"}
    pictures = {path.stem for path in (tmp_path / "benchmarks").iterdir()}
    assert pictures == PICTURES
    assert "NOT MET" not in done.stdout.decode().split("scale ...")[1]  # it has no goals
    assert "?" in done.stdout.decode()  # goals against a builder that is not there


def test_goals() -> None:
    row = Row("log", "lines", "1/s", ours=(10.0, 30.0, 20.0), theirs=(10.0,), limit=(40.0,))
    assert row.part(Of.THEIRS) == 2.0
    assert row.part(Of.LIMIT) == 0.5
    assert row.part(Of.ITSELF) == 20.0
    assert row.met(Goal(2.0)) is True
    assert row.met(Goal(1.9)) is False
    assert row.met(Goal(2.1, at_least=True)) is False
    assert row.met(Goal(0.5, Of.LIMIT, at_least=True)) is True
    assert row.met(Goal(19.0, Of.ITSELF)) is False
    alone = Row("log", "lines", "1/s", ours=(10.0,))
    assert alone.met(Goal(2.0)) is None
    assert str(Goal(0.95, Of.LIMIT, at_least=True)) == "≥ 0.95 of limit"
