"""The campaign in small: rounds with fixed seeds that together do every fault, after which all invariants hold."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from attrs import evolve

from ofborg_async.lab.chaos.faults import STRIKES
from ofborg_async.lab.chaos.plan import (
    ACKNOWLEDGEMENT_TIMEOUT_SECONDS,
    SMALL,
    FaultKind,
    RoundPlan,
    draw_round,
    possible_faults,
)
from ofborg_async.lab.chaos.round import run_round

SEEDS = (17, 3, 6, 18, 11, 141)
"""Chosen so that the first, the third and the last have two daemons, and the fourth the short time-out."""
TIMED_OUT = 3


def share(number: int) -> list[FaultKind]:
    """The faults of one of the rounds: a mixture of all sorts."""
    kinds = list(possible_faults())
    random.Random(2).shuffle(kinds)
    return kinds[number :: len(SEEDS)]


def plan_of(number: int) -> RoundPlan:
    kinds = share(number)
    return draw_round(SEEDS[number], evolve(SMALL, faults=len(kinds)), kinds)


@pytest.mark.skipif(sys.platform != "linux", reason="finds children and what is left behind in /proc")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", range(len(SEEDS)))
async def test_a_small_round_violates_nothing(tmp_path: Path, number: int) -> None:
    said: list[str] = []
    report = await run_round(tmp_path / "round", plan_of(number), None, said.append)
    assert report.findings == (), said
    assert not report.missed(), said
    assert report.attempts >= report.results > 0
    assert (report.timeouts > 0) == (number == TIMED_OUT), said


def test_every_fault_can_be_done_and_is_in_one_of_the_rounds() -> None:
    assert set(STRIKES) == set(FaultKind)
    plans = [plan_of(number) for number in range(len(SEEDS))]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(possible_faults())
    assert [plan.daemons for plan in plans].count(2) == len(plans) / 2
    assert [plan.acknowledgement_timeout for plan in plans].index(True) == TIMED_OUT
    assert any(job.seconds > 1.5 * ACKNOWLEDGEMENT_TIMEOUT_SECONDS for job in plans[TIMED_OUT].jobs)


def test_a_seed_gives_one_schedule() -> None:
    assert draw_round(7, SMALL) == draw_round(7, SMALL)
    assert draw_round(7, SMALL) != draw_round(8, SMALL)
