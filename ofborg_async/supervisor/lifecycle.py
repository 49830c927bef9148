"""The life of an identity as one transition table. Pure: events in, states out; an unlisted move is an error."""

from __future__ import annotations

import enum

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.model.status import IdentityState as S


class Event(enum.Enum):
    """What can happen to an identity."""

    CONSUMING = "its consumers are registered"
    JOB_STARTED = "the first of its systems took a job"
    JOBS_DONE = "the last of its systems finished its job"
    UNABLE = "it cannot take work: its broker or its disk"
    CRASHED = "it failed and will be started again"
    GAVE_UP = "it failed too often"
    PAUSE = "the operator paused it"
    RESUME = "the operator resumed it"
    DRAIN = "the operator asked for no new job"
    QUARANTINE = "its jobs fail for reasons of the host"
    PROBATION = "its quarantine is over"
    RESTART = "the operator restarted it"
    STOP = "the daemon stops"


class LifecycleError(OfborgAsyncError):
    """An event that the table does not list for a state: a mistake of this program."""

    def __init__(self, state: S, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"an identity that is {state} cannot take the event {event.name}")


_ANYWHERE = {Event.STOP: S.STOPPED, Event.GAVE_UP: S.FAILED}
_RUNNING = _ANYWHERE | {
    Event.UNABLE: S.BACKOFF,
    Event.CRASHED: S.BACKOFF,
    Event.PAUSE: S.PAUSED,
    Event.DRAIN: S.DRAINING,
    Event.QUARANTINE: S.QUARANTINED,
    Event.RESTART: S.STARTING,
}
# While held back (paused, draining, quarantined) what happens to jobs and to the broker does not change the state: the
# columns of status show them.
_HELD = _ANYWHERE | {
    Event.PAUSE: S.PAUSED,
    Event.RESUME: S.STARTING,
    Event.RESTART: S.STARTING,
    Event.DRAIN: S.DRAINING,
}

TRANSITIONS: dict[S, dict[Event, S]] = {
    S.STARTING: _RUNNING | {Event.CONSUMING: S.IDLE, Event.JOB_STARTED: S.BUSY, Event.JOBS_DONE: S.STARTING},
    S.IDLE: _RUNNING | {Event.CONSUMING: S.IDLE, Event.JOB_STARTED: S.BUSY},
    S.BUSY: _RUNNING | {Event.CONSUMING: S.BUSY, Event.UNABLE: S.BUSY, Event.JOBS_DONE: S.IDLE},
    S.BACKOFF: _RUNNING | {Event.CONSUMING: S.IDLE, Event.JOB_STARTED: S.BUSY, Event.JOBS_DONE: S.BACKOFF},
    S.PAUSED: _HELD
    | dict.fromkeys((Event.CONSUMING, Event.JOB_STARTED, Event.JOBS_DONE, Event.UNABLE), S.PAUSED)
    | {Event.CRASHED: S.PAUSED, Event.QUARANTINE: S.PAUSED, Event.PROBATION: S.PAUSED},
    S.DRAINING: _HELD
    | dict.fromkeys((Event.CONSUMING, Event.JOB_STARTED, Event.UNABLE, Event.QUARANTINE), S.DRAINING)
    | {Event.JOBS_DONE: S.STOPPED, Event.CRASHED: S.STOPPED, Event.PROBATION: S.DRAINING},
    S.QUARANTINED: _HELD
    | dict.fromkeys((Event.CONSUMING, Event.JOB_STARTED, Event.JOBS_DONE, Event.UNABLE), S.QUARANTINED)
    | {Event.CRASHED: S.QUARANTINED, Event.QUARANTINE: S.QUARANTINED, Event.PROBATION: S.STARTING},
    S.FAILED: {Event.STOP: S.STOPPED, Event.RESTART: S.STARTING, Event.RESUME: S.STARTING, Event.PAUSE: S.PAUSED}
    | dict.fromkeys((Event.JOBS_DONE, Event.UNABLE, Event.QUARANTINE, Event.DRAIN, Event.PROBATION), S.FAILED),
    S.STOPPED: {Event.RESUME: S.STARTING, Event.RESTART: S.STARTING, Event.STOP: S.STOPPED, Event.PAUSE: S.PAUSED}
    | dict.fromkeys((Event.CONSUMING, Event.JOBS_DONE, Event.UNABLE, Event.QUARANTINE, Event.DRAIN), S.STOPPED)
    | {Event.CRASHED: S.STOPPED, Event.PROBATION: S.STOPPED, Event.GAVE_UP: S.STOPPED},
}
"""State -> event -> next state. What is not listed is refused."""

MAY_CONSUME = frozenset({S.STARTING, S.IDLE, S.BUSY, S.BACKOFF})
"""States in which a lane may take work."""


def advance(state: S, event: Event) -> S:
    """The state after ``event``. Raises LifecycleError when the table does not list the move."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise LifecycleError(state, event) from None
