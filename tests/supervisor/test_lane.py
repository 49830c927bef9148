"""A lane and its identity where a message comes in the moment in which no more may be taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from waits import eventually

from ofborg_async.clock import SystemClock
from ofborg_async.model.identity import BrokerSettings, DaemonSettings, IdentitySettings, NixSettings, Secret
from ofborg_async.model.status import IdentityState
from ofborg_async.supervisor.backoff import Backoff
from ofborg_async.supervisor.claims import Claims
from ofborg_async.supervisor.identity import Identity
from ofborg_async.supervisor.lane import Lane
from ofborg_async.supervisor.lifecycle import Event

DAEMON = DaemonSettings(Path("/state"), Path("/socket"), backoff_first_seconds=0.0, backoff_max_seconds=0.0)
JOB = {
    "repo": {"owner": "o", "name": "n", "full_name": "o/n", "clone_url": "/n"},
    "pr": {"number": 1, "head_sha": "0" * 40},
    "attrs": ["ok"],
    "request_id": "r",
}


def drain(identity: Identity) -> None:
    identity.on(Event.DRAIN)
    identity.on(Event.JOBS_DONE)


STOPS: dict[str, Callable[[Identity], None]] = {
    "the daemon stops": lambda identity: identity.on(Event.STOP),
    "it is drained": drain,
    "it is paused": lambda identity: identity.on(Event.PAUSE),
}


class FakeIntake:
    """Gives one message, once it has come; closing gives back what nobody took."""

    warnings = ()

    def __init__(self) -> None:
        self.delivery = SimpleNamespace(
            body=json.dumps(JOB).encode(), redelivered=False, queue="q", returns=0, lost=False
        )
        self.waits = False
        self.closed = False
        self.came = anyio.Event()

    async def next(self) -> Any:
        self.waits = True
        await self.came.wait()
        return self.delivery

    async def close(self) -> None:
        self.closed = True


class FakeLink:
    """Is up, and has one intake."""

    def __init__(self) -> None:
        self.intake = FakeIntake()

    def publisher(self, identity: str, system: str) -> Any:
        async def close() -> None: ...

        return SimpleNamespace(close=close)

    async def wait_ready(self) -> None: ...

    async def open_intake(self, subscription: object) -> FakeIntake:
        return self.intake


@pytest.mark.parametrize("why", STOPS)
async def test_a_message_in_the_moment_of_a_stop_goes_back(tmp_path: Path, why: str) -> None:
    """Taken, it would be a move that the table does not list: the crash would leave a claim that nobody ends."""
    link = FakeLink()
    journal: Any = SimpleNamespace(phase=lambda *_: None)
    services: Any = SimpleNamespace(
        clock=SystemClock(), state_dir=tmp_path, claims=Claims(), journal=journal, new_backoff=lambda: Backoff(0, 0)
    )

    async def prepare(identity: Identity) -> Sequence[Lane]:
        return [Lane("x86_64-linux", identity, cast("Any", link), services, cast("Any", None), cast("Any", None))]

    settings = IdentitySettings(
        name="one",
        root=tmp_path,
        nix=NixSettings(systems=("x86_64-linux",)),
        broker=BrokerSettings(addresses=(("localhost", 1),), vhost="/", username="u", password=Secret("p")),
    )
    identity = Identity(settings, DAEMON, services, prepare)
    async with anyio.create_task_group() as group:
        group.start_soon(identity.run)
        await eventually("it listens", lambda: link.intake.waits)
        link.intake.came.set()
        STOPS[why](identity)
        await eventually("the message goes back", lambda: link.intake.closed)
        assert not identity.busy
        assert identity.restarts == 0
        assert identity.state in {IdentityState.STOPPED, IdentityState.PAUSED}
        assert services.claims._claims == {}
        group.cancel_scope.cancel()
