"""The soak: its rule sees what grows, and a short one of a real daemon finds nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ofborg_async.lab.soak.looks import MEASURES
from ofborg_async.lab.soak.run import run_soak
from ofborg_async.lab.soak.trend import Kind, Measure, Sample, trend_of


def series(*values: float) -> list[Sample]:
    return [Sample(float(second), 10 * second, {"x": value}) for second, value in enumerate(values)]


LEAK = [100.0 + second for second in range(100)]
JUMPY = [100.0 + 10 * (second % 7 == 0) for second in range(100)]
START_UP = [50.0 + min(second, 15) for second in range(100)]
SAWTOOTH = [100.0 + second % 40 for second in range(100)]


@pytest.mark.parametrize(
    ("values", "measure", "grows"),
    [
        (LEAK, Measure("x", ""), True),
        (LEAK, Measure("x", "", least=30), False),
        (JUMPY, Measure("x", ""), False),
        (START_UP, Measure("x", ""), False),
        (list(reversed(LEAK)), Measure("x", ""), False),
        (SAWTOOTH, Measure("x", "", Kind.BOUNDED, bound=140), False),
        (SAWTOOTH, Measure("x", "", Kind.BOUNDED, bound=138), True),
        (LEAK, Measure("x", "", Kind.HISTORY), False),
    ],
)
def test_the_rule(values: list[float], measure: Measure, grows: bool) -> None:
    assert trend_of(measure, series(*values)).grows is grows


def test_the_slope_is_for_a_thousand_jobs() -> None:
    assert trend_of(Measure("x", ""), series(*LEAK)).per_1000_jobs == pytest.approx(100)


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        trend_of(Measure("x", ""), series(1, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the daemon in /proc")
async def test_a_short_soak(tmp_path: Path) -> None:
    """Every measure gets a figure, all results are as expected; so short a time proves nothing about growth."""
    report = await run_soak(tmp_path / "soak", 6, 0.5, lambda _: None)
    assert report.wrong == ()
    assert report.exit_status == 0
    assert [trend.measure for trend in report.trends] == list(MEASURES)
    last = report.samples[-1]
    assert last.jobs > 0
    for name in ("RSS", "tasks", "threads", "journal", "build logs", "mirror, loose objects", "roots, other files"):
        assert last.values[name] > 0, name
