"""The identity's transition table, the backoff and the restart intensity: pure, by playbook."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.model.status import IdentityState as S
from ofborg_async.supervisor.backoff import Backoff, RestartIntensity
from ofborg_async.supervisor.lifecycle import MAY_CONSUME, TRANSITIONS, Event, LifecycleError, advance

PLAYBOOKS = {
    "a day's work": (
        [Event.CONSUMING, Event.JOB_STARTED, Event.JOBS_DONE, Event.STOP],
        [S.IDLE, S.BUSY, S.IDLE, S.STOPPED],
    ),
    "broker away while idle": ([Event.CONSUMING, Event.UNABLE, Event.CONSUMING], [S.IDLE, S.BACKOFF, S.IDLE]),
    "broker away while building": (
        [Event.CONSUMING, Event.JOB_STARTED, Event.UNABLE, Event.JOBS_DONE, Event.CONSUMING],
        [S.IDLE, S.BUSY, S.BUSY, S.IDLE, S.IDLE],
    ),
    "paused while building": (
        [Event.JOB_STARTED, Event.PAUSE, Event.JOBS_DONE, Event.RESUME, Event.CONSUMING],
        [S.BUSY, S.PAUSED, S.PAUSED, S.STARTING, S.IDLE],
    ),
    "drained": ([Event.JOB_STARTED, Event.DRAIN, Event.JOBS_DONE], [S.BUSY, S.DRAINING, S.STOPPED]),
    "quarantine": (
        [Event.CONSUMING, Event.QUARANTINE, Event.PROBATION, Event.CONSUMING],
        [S.IDLE, S.QUARANTINED, S.STARTING, S.IDLE],
    ),
    "crash loop": (
        [Event.CRASHED, Event.CONSUMING, Event.CRASHED, Event.GAVE_UP, Event.RESTART],
        [S.BACKOFF, S.IDLE, S.BACKOFF, S.FAILED, S.STARTING],
    ),
}


@pytest.mark.parametrize(("events", "states"), PLAYBOOKS.values(), ids=PLAYBOOKS)
def test_playbook(events: list[Event], states: list[S]) -> None:
    state = S.STARTING
    seen = []
    for event in events:
        state = advance(state, event)
        seen.append(state)
    assert seen == states


def test_every_state_is_in_the_table_and_leads_to_states() -> None:
    assert set(TRANSITIONS) == set(S)
    assert {target for moves in TRANSITIONS.values() for target in moves.values()} <= set(S)


@pytest.mark.parametrize("state", S)
def test_every_state_can_stop(state: S) -> None:
    assert advance(state, Event.STOP) is S.STOPPED


def test_an_unlisted_move_is_an_error_that_names_it() -> None:
    with pytest.raises(LifecycleError, match="stopped cannot take the event JOB_STARTED"):
        advance(S.STOPPED, Event.JOB_STARTED)


def test_a_held_identity_takes_no_work() -> None:
    assert not MAY_CONSUME & {S.PAUSED, S.DRAINING, S.QUARANTINED, S.FAILED, S.STOPPED}


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_backoff_stays_within_its_bounds_and_grows(seed: int, failures: int) -> None:
    backoff = Backoff(1.0, 60.0, Random(seed))
    pauses = [backoff.next_seconds() for _ in range(failures)]
    assert all(0.5 <= pause <= 60.0 for pause in pauses)
    assert all(pause >= 30.0 for pause in pauses[6:])
    backoff.reset()
    assert backoff.next_seconds() <= 1.0


def test_restart_intensity_counts_within_a_period() -> None:
    intensity = RestartIntensity(3, 60.0)
    assert [intensity.restarted(at) for at in (0.0, 1.0, 2.0)] == [True, True, True]
    assert not intensity.restarted(3.0)
    assert intensity.restarted(70.0)
    assert intensity.total == 5
