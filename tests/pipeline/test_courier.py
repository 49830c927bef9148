"""What goes out, in which order, how often: by playbook against a publisher that fails on command."""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import pytest
from attrs import define, field
from fakes import FakeClock, FakePublisher, FakeRecords, FakeTail
from waits import eventually

from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError, UnroutableError
from ofborg_async.model.job import Address
from ofborg_async.pipeline.courier import Courier, Parcel

LOGS, RES = Address("logs", "o/n.7"), Address("build-results", "")
PARCEL = Parcel(b"result", RES, on_log=True)
GONE = BrokerUnavailableError("connection lost")
REFUSED = BrokerRefusedError(who="u", vhost="/", resource="exchange 'logs'", said="no exchange", remedy="declare it")
LOGIN = BrokerRefusedError(who="u", vhost="/", resource="", said="ACCESS_REFUSED", remedy="check the password")


def failing(what: str, *errors: Exception) -> Callable[[str], None]:
    left = list(errors)

    def plan(asked: str) -> None:
        if asked == what and left:
            raise left.pop(0)

    return plan


@define
class Stage:
    publisher: FakePublisher = field(factory=FakePublisher)
    records: FakeRecords = field(factory=FakeRecords)
    clock: FakeClock = field(factory=FakeClock)
    hold_seconds: float = 5.0

    def courier(self) -> Courier:
        return Courier(
            system="s",
            identity="i",
            attempt_id="a1",
            logs=LOGS,
            publisher=self.publisher,
            records=self.records,
            clock=self.clock,
            hold_seconds=self.hold_seconds,
        )

    def sent(self) -> list[tuple[str, str]]:
        return [(what, body.decode()) for what, _, bodies in self.publisher.sent for body in bodies]


async def test_start_lines_result_copy_in_this_order() -> None:
    stage = Stage()
    courier = stage.courier()
    await courier.open_log(b"start")
    await courier.send_lines(FakeTail([b"one", b"two", b"three"]))
    assert await courier.deliver(PARCEL)
    kinds = [what for what, _ in stage.sent()]
    assert kinds == ["log"] * 4 + ["result", "log"]
    lines = [json.loads(body) for _, body in stage.sent()[1:4]]
    assert [(line["line_number"], line["output"]) for line in lines] == [(1, "one"), (2, "two"), (3, "three")]
    assert stage.records.confirmed == 3
    assert stage.records.told == ["confirmed", "done"]


@pytest.mark.parametrize("step", ["log", "confirm"])
@pytest.mark.parametrize("error", [GONE, LOGIN, DeadlineExceededError("publish", 1.0)])
async def test_lines_are_sent_again_from_the_first_unconfirmed_one(error: Exception, step: str) -> None:
    stage = Stage(FakePublisher(plan=failing(step, error, error)))
    await stage.courier().send_lines(FakeTail([b"one", b"two", b"three"]))
    assert [json.loads(body)["line_number"] for _, body in stage.sent()] == [1, 2, 3]
    assert stage.clock.slept == [0.25, 0.5]


async def test_what_may_have_arrived_once_on_log_is_not_sent_twice() -> None:
    stage = Stage(FakePublisher(plan=failing("log", GONE, LOGIN)))
    courier = stage.courier()
    await courier.open_log(b"start")
    await courier.open_log(b"start")
    assert await courier.deliver(PARCEL)
    assert stage.sent() == [("result", "result")]
    assert not courier.log_refused


async def test_a_channel_that_cannot_be_opened_costs_no_log_start() -> None:
    stage = Stage(FakePublisher(plan=failing("open", GONE, GONE)))
    await stage.courier().open_log(b"start")
    assert stage.sent() == [("log", "start")]


async def test_a_result_is_published_until_it_is_confirmed() -> None:
    stage = Stage(FakePublisher(plan=failing("result", GONE, DeadlineExceededError("x", 1), REFUSED)))
    assert await stage.courier().deliver(PARCEL)
    assert stage.sent() == [("result", "result"), ("log", "result")]


async def test_no_log_exchange_costs_lines_and_no_result() -> None:
    stage = Stage(FakePublisher(plan=failing("log", REFUSED)))
    courier = stage.courier()
    await courier.send_lines(FakeTail([b"one"]))
    assert await courier.deliver(PARCEL)
    assert stage.sent() == [("result", "result")]


async def test_a_merge_conflict_goes_to_res_alone() -> None:
    stage = Stage(records=FakeRecords(on_log=False))
    assert await stage.courier().deliver(Parcel(b"result", RES, on_log=False))
    assert stage.sent() == [("result", "result")]


async def test_unroutable_for_a_while_is_held_then_its_copy_goes_out() -> None:
    returned = [UnroutableError("build-results", "", said="NO_ROUTE", permanent=False)] * 100
    stage = Stage(FakePublisher(plan=failing("result", *returned)))
    courier = stage.courier()
    assert not await courier.deliver(PARCEL)
    assert 5.0 <= stage.clock.at < 15.0
    assert stage.records.told == ["unroutable", "done"]
    assert stage.sent() == [("log", "result")]
    assert "NO_ROUTE" in courier.trouble


async def test_unroutable_for_ever_is_held_at_once_and_goes_out_once_routed() -> None:
    for_ever = UnroutableError("", "", said="NO_ROUTE", permanent=True)
    stage = Stage(FakePublisher(plan=failing("result", for_ever, for_ever, for_ever)))
    courier = stage.courier()
    assert not await courier.deliver(PARCEL)
    assert stage.clock.slept == []
    await courier.redeliver(PARCEL)
    assert stage.sent() == [("log", "result"), ("result", "result")]
    assert stage.records.told == ["unroutable for ever", "done", "confirmed"]


async def test_unroutable_for_a_moment_is_not_held() -> None:
    returned = UnroutableError("build-results", "", said="NO_ROUTE", permanent=False)
    stage = Stage(FakePublisher(plan=failing("result", returned, returned)))
    assert await stage.courier().deliver(PARCEL)
    assert stage.records.told == ["confirmed", "done"]


@pytest.mark.parametrize("held", [False, True], ids=["waiting", "held"])
async def test_a_pause_ends_when_the_connection_is_back(held: bool) -> None:
    stage = Stage(FakePublisher(plan=failing("result", GONE)), clock=FakeClock(stands_still=True))
    courier = stage.courier()
    async with anyio.create_task_group() as group:
        group.start_soon(courier.redeliver if held else courier.deliver, PARCEL)
        await eventually("the pause", lambda: stage.clock.slept)
        await anyio.wait_all_tasks_blocked()
        assert stage.sent() == []
        stage.publisher.back.set()
    assert ("result", "result") in stage.sent()
    assert stage.clock.slept == [0.25]


async def test_after_a_new_connection_pauses_are_short_again() -> None:
    stage = Stage(FakePublisher(plan=failing("log", GONE, GONE, GONE, GONE)))
    stage.clock = Comeback(publisher=stage.publisher, at_sleep=3)
    await stage.courier().send_lines(FakeTail([b"one"]))
    assert stage.clock.slept == [0.25, 0.5, 1.0, 0.25]


@define
class Comeback(FakeClock):
    """The connection comes back in the course of one sleep, which nothing else would end."""

    publisher: FakePublisher = field(kw_only=True)
    at_sleep: int = field(kw_only=True)

    async def sleep(self, seconds: float) -> None:
        await FakeClock.sleep(self, seconds)
        if len(self.slept) == self.at_sleep:
            self.publisher.back.set()
            await anyio.sleep_forever()
        self.publisher.back = anyio.Event()
