"""The benchmarks run and write what they found. Sizes are tiny and nothing is timed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import anyio
import pytest

import ofborg_async
from ofborg_async.lab.bench.__main__ import FIGURES, figure_names
from ofborg_async.lab.bench.builders import in_turns
from ofborg_async.lab.bench.model import Goal, Of, Outcome, Panel, Plot, Report, Row
from ofborg_async.lab.bench.plots import draw
from ofborg_async.lab.bench.show import markdown
from ofborg_async.lab.namespace import namespaces_work

HERE = Path(ofborg_async.__file__).parents[1]
SPEND_NOTHING = ("CPU while idle", "idle CPU", "growth")
"""What may be nothing, or even less."""

PICTURES = {
    "idle-builders",
    "what-an-identity-costs",
    "what-a-log-line-costs",
    "what-a-waiter-for-a-lock-costs",
    "what-history-costs",
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
    assert limits == {"small", "pool", "log"}
    pictures = {path.stem for path in (tmp_path / "benchmarks").glob("*.png")}
    assert pictures == PICTURES
    rows = sum(len(figure["rows"]) for figure in document["figures"])
    assert len((tmp_path / "benchmarks" / "table.md").read_text().splitlines()) == rows + 2
    assert "NOT MET" not in done.stdout.decode().split("scale ...")[1]  # it has no goals
    assert "?" in done.stdout.decode()  # goals against a builder that is not there


WRAPPER = """#!/bin/sh
set -e
export OFBORG_ASYNC_ALLOW_ROOT=1 OFBORG_ASYNC_STATE_DIR="$1.state" OFBORG_ASYNC_CONTROL_SOCKET="$1.sock"
cd {here}
umask 077
{python} -m ofborg_async convert --inline-secrets "$1" >"$1.toml"
sed -i 's/^\\[\\[identity\\]\\]$/&\\ncheckout.clone_url_schemes = ["file"]/' "$1.toml"
exec {python} -m ofborg_async run -c "$1.toml"
"""


@pytest.mark.skipif(not namespaces_work(), reason="the other builder gets its nix.conf by a mount namespace")
@pytest.mark.timeout(300)
async def test_another_builder_is_measured_beside_ours(tmp_path: Path) -> None:
    """Any program that takes the original's configuration: here our own, which takes it as well."""
    other = tmp_path / "builder"
    other.write_text(WRAPPER.format(here=shlex.quote(str(HERE)), python=shlex.quote(sys.executable)))
    other.chmod(0o755)
    words = ["--quick", "--only", "small", "--against", str(other), "--output", str(tmp_path)]
    done = await anyio.run_process([sys.executable, "-m", "ofborg_async.lab.bench", *words], check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    (figure,) = json.loads((tmp_path / "benchmarks.json").read_text())["figures"]
    for row in figure["rows"]:
        assert len(row["theirs"]["runs"]) == len(row["ours"]["runs"])
        assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["theirs"]["median"], rel=0.01)
    assert (tmp_path / "benchmarks" / "ratios.png").exists()


def test_figures_are_picked_with_commas_or_spaces() -> None:
    assert figure_names("log,small") == figure_names(" small log ") == {"log", "small"}
    assert figure_names("start") == {"idle"}
    with pytest.raises(argparse.ArgumentTypeError, match="'lgo'; there are idle, small, pool, log"):
        figure_names("log lgo")


def test_every_second_run_goes_the_other_way_round() -> None:
    assert [in_turns("ab", run) for run in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


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


def test_table_for_a_page() -> None:
    rows = (
        Row(
            "log",
            "lines",
            "1/s",
            (10.0, 30.0, 20.0),
            (10.0,),
            (40.0,),
            (Goal(1.15, at_least=True), Goal(0.95, Of.LIMIT)),
        ),
        Row("pool", "pool of 4", "s", (1234.5,)),
    )
    report = Report("log", Outcome(rows), load_before=0.0, load_after=0.0, seconds=1.0)
    assert markdown([report]).splitlines()[2:] == [
        "| log: lines | 1/s | 20.0 | 10.0 | 2.00 | 40.0 | 0.50 | ≥ 1.15 of theirs: met  ≤ 0.95 of limit: met |",
        "| pool of 4 | s | 1,234 |  |  |  |  |  |",
    ]


def test_pictures_of_curves_and_ratios(tmp_path: Path) -> None:
    curves = {"each": ((1.0, (0.0,)), (1_000_000.0, (0.0, 0.0)))}
    plot = Plot("Costs, 1 to 1M", "rows", (Panel("one", "ms", curves), Panel("two", "%", curves)), log_x=True)
    rows = (
        Row("log", "lines", "1/s", (2.0,), (1.0,), goals=(Goal(1.15, at_least=True),)),
        Row("log", "none", "s", (1.0,)),
    )
    report = Report("log", Outcome(rows, (plot,)), load_before=0.0, load_after=0.0, seconds=1.0)
    written = draw(tmp_path, [report])
    assert [path.name for path in written] == ["costs-1-to-1m.png", "ratios.png"]
    assert all(path.stat().st_size > 0 for path in written)
