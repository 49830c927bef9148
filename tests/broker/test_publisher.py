"""What is published is on the wire as the wire document says, confirmed, in order; what cannot be routed is said so."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from attrs import evolve
from broker_place import LOGS, RESULTS, Place, collecting, eventually, running
from pamqp import commands
from pamqp.common import Arguments

from ofborg_async.broker import linechannel
from ofborg_async.broker.link import Link
from ofborg_async.broker.publisher import LanePublisher
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError, UnroutableError
from ofborg_async.model.job import Address
from ofborg_async.pipeline.ports import Publisher


@asynccontextmanager
async def publishing(place: Place) -> AsyncIterator[tuple[Link, LanePublisher]]:
    """A link that can publish, and the publisher of one lane."""
    async with running(place.settings) as link:
        await link.wait_ready_to_publish()
        publisher = link.publisher("mac", "x86_64-linux")
        yield link, publisher
        await publisher.close()


def properties(message: DeliveredMessage) -> dict[str, object]:
    """The properties that were on the wire; pamqp decodes those that were not as None or empty."""
    return {name: value for name, value in message.header.properties if value not in (None, "", {})}


async def test_properties_on_the_wire(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (_, lane):
        publisher: Publisher = lane
        await publisher.publish_result(RESULTS, b'{"tag":"V1"}')
        await publisher.publish_result(RESULTS, b'{"tag":"V1"}')
        await publisher.publish_log(LOGS, [b"one", b""])
        await collector.has(results=2, lines=2)
        ids = set()
        for result in collector.results:
            assert result.body == b'{"tag":"V1"}'
            found = properties(result)
            ids.add(found.pop("message_id"))
            assert found == {"content_type": "application/json", "delivery_mode": 2}
        assert len(ids) == 2
        assert collector.lines == [b"one", b""]
        for line in collector.logs:
            assert properties(line) == {"content_type": "application/json", "delivery_mode": 2}
            assert line.routing_key == LOGS.routing_key


async def test_a_result_that_no_queue_gets(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (_, publisher):

        async def unroutable(to: Address) -> UnroutableError:
            with pytest.raises(UnroutableError) as caught:
                await publisher.publish_result(to, b"x")
            return caught.value

        await collector.channel.queue_unbind("results", "build-results", "")
        error = await unroutable(RESULTS)
        assert not error.permanent
        assert "NO_ROUTE" in error.said
        await collector.channel.queue_bind("results", "build-results", "")
        await publisher.publish_result(RESULTS, b"routed again")
        assert (await unroutable(Address("", ""))).permanent
        assert not (await unroutable(Address("", "no-such-queue"))).permanent
        missing = await unroutable(Address("no-such-exchange", "key"))
        assert missing.permanent
        assert "no exchange 'no-such-exchange'" in missing.said
        for impossible in (Address("ü", ""), Address("x" * 200, ""), Address("x", "k" * 300), Address("x", "ü" * 200)):
            assert (await unroutable(impossible)).permanent
        await publisher.publish_result(Address("", "results"), b"by queue name")
        await collector.has(results=2)


async def test_many_at_once_are_each_told_their_own_fate(place: Place) -> None:
    async with collecting(place), publishing(place) as (_, publisher):
        outcomes: dict[str, str] = {}

        async def publish(name: str, to: Address) -> None:
            try:
                await publisher.publish_result(to, name.encode())
            except UnroutableError:
                outcomes[name] = "unroutable"
            else:
                outcomes[name] = "routed"

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(publish, f"good{number}", RESULTS)
                tasks.start_soon(publish, f"bad{number}", Address("", "nowhere"))
        assert len(outcomes) == 40
        assert all((name[:3] == "bad") == (outcome == "unroutable") for name, outcome in outcomes.items())


async def test_no_right_to_publish(place: Place) -> None:
    await place.permit(write="^$")
    async with collecting(place), publishing(place) as (_, publisher):
        with pytest.raises(BrokerRefusedError) as caught:
            await publisher.publish_result(RESULTS, b"x")
        assert "exchange 'build-results'" in caught.value.said
        assert "the permission to write" in caught.value.remedy
        with pytest.raises(BrokerRefusedError, match="exchange 'logs'"):
            await publisher.publish_log(LOGS, [b"x"])


async def test_a_queue_that_is_full(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (_, publisher):
        full: Arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        await collector.channel.queue_declare("full", durable=True, arguments=full)
        await collector.channel.basic_publish(b"fills it", routing_key="full")
        with pytest.raises(BrokerUnavailableError, match="nack"):
            await publisher.publish_result(Address("", "full"), b"x")
        with pytest.raises(BrokerUnavailableError, match="full"):
            await publisher.publish_log(Address("", "full"), [b"x"] * 10)
        await publisher.publish_result(RESULTS, b"x")
        await publisher.publish_log(LOGS, [b"x"])
        await collector.has(results=1, lines=1)


async def test_lines_arrive_in_order_through_many_batches(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (_, publisher):
        sizes = (0, 1, 100, 131_064, 131_063, 131_065, 400_000)  # around the largest body of one frame
        await publisher.publish_log(LOGS, [b"x" * size for size in sizes])
        lines = [b"%d" % number for number in range(20_000)]
        under_way = [await publisher.send_log(LOGS, lines[start : start + 250]) for start in range(0, len(lines), 250)]
        for confirmation in under_way:
            await confirmation.wait()
        await publisher.publish_log(LOGS, [])
        await collector.has(lines=len(sizes) + len(lines))
        assert [len(body) for body in collector.lines[: len(sizes)]] == list(sizes)
        assert collector.lines[len(sizes) :] == lines


async def test_never_more_than_a_window_is_unconfirmed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linechannel, "WINDOW_MESSAGES", 100)
    monkeypatch.setattr(linechannel, "WINDOW_BYTES", 5_000)
    async with collecting(place) as collector, publishing(place) as (_, publisher):
        most = 0
        for _ in range(100):
            await publisher.send_log(LOGS, [b"x" * 40] * 30)
            lines = publisher._lines
            assert lines is not None
            most = max(most, lines._window.published - lines._window.confirmed)
            assert lines._unconfirmed_bytes <= 5_000
        assert 30 < most <= 100
        for _ in range(100):
            await publisher.send_log(LOGS, [b"x" * 200] * 7)
            lines = publisher._lines
            assert lines is not None
            assert lines._unconfirmed_bytes <= 5_000
        await publisher.publish_log(LOGS, [b"x" * 20_000, b"y"])  # larger than the window: alone
        await collector.has(lines=3_702)


async def test_a_log_exchange_that_is_missing(place: Place) -> None:
    missing = Address("no-such-exchange", "a.b")
    async with collecting(place) as collector, publishing(place) as (_, publisher):
        with pytest.raises(BrokerRefusedError) as caught:
            await publisher.publish_log(missing, [b"x"])
        assert caught.value.resource == "exchange 'no-such-exchange'"
        await publisher.publish_log(LOGS, [b"good"])
        refused = await publisher.send_log(missing, [b"x"])
        behind = await publisher.send_log(LOGS, [b"behind"])
        with pytest.raises(BrokerRefusedError):
            await refused.wait()
        with pytest.raises(BrokerUnavailableError, match="another address"):
            await behind.wait()
        await publisher.publish_log(LOGS, [b"behind"])
        for impossible in (Address("ü", "a.b"), Address("x", "k" * 300)):
            with pytest.raises(BrokerRefusedError, match="no valid AMQP name"):
                await publisher.publish_log(impossible, [b"x"])
        await publisher.publish_log(LOGS, [b"after"])
        await collector.has(lines=3)
        assert collector.lines == [b"good", b"behind", b"after"]


async def test_a_lost_batch_takes_those_behind_it_with_it(place: Place) -> None:
    """So that sending again from the first one that was not confirmed gives every line, in order."""
    lines = [b"%d" % number for number in range(30_000)]
    async with collecting(place) as collector, publishing(place) as (link, publisher):
        losses = 0
        confirmed = 0
        while confirmed < len(lines):
            try:
                await link.wait_ready_to_publish()
                batches = [lines[start : start + 500] for start in range(confirmed, len(lines), 500)][:6]
                under_way = [(batch, await publisher.send_log(LOGS, batch)) for batch in batches]
                if confirmed >= 9_000 and losses < 3:
                    await place.close_connections("publish")
                for batch, confirmation in under_way:
                    await confirmation.wait()
                    confirmed += len(batch)
            except BrokerUnavailableError:
                losses += 1
        assert losses >= 3
        await eventually("the last line", lambda: collector.lines[-1:] == lines[-1:])
        seen: set[bytes] = set()
        first_times = []
        for line in collector.lines:
            if line not in seen:
                seen.add(line)
                first_times.append(line)
        assert first_times == lines


async def test_what_a_sender_hears_of_a_loss(place: Place) -> None:
    """Once, by the next call on the lane, unless nothing was lost or the log is opened anew."""
    async with collecting(place) as collector, publishing(place) as (link, publisher):

        async def reconnected() -> None:
            gone = link._publish._dialled
            await place.close_connections("publish")
            await eventually("another connection", lambda: link._publish._dialled not in (None, gone))

        def has_unconfirmed(count: int) -> bool:
            return collector.lines.count(b"unconfirmed") == count

        await publisher.publish_log(LOGS, [b"1"])
        await publisher.publish_result(RESULTS, b"1")
        await reconnected()
        await publisher.publish_log(LOGS, [b"2"])
        await publisher.publish_result(RESULTS, b"2")
        for sent, hears in enumerate((True, False), 1):
            lines = publisher._lines
            assert lines is not None
            # the confirm is lost with the connection
            lines._on_confirm = lambda _: None  # type: ignore[method-assign, assignment]
            await publisher.send_log(LOGS, [b"unconfirmed"])
            await eventually("the line", partial(has_unconfirmed, sent))
            await reconnected()
            if hears:
                with pytest.raises(BrokerUnavailableError, match="by the administrator"):
                    await publisher.publish_log(LOGS, [b"not sent"])
            else:
                await publisher.open_log()
            await publisher.publish_log(LOGS, [b"3"])
        await collector.has(results=2, lines=6)
        assert b"not sent" not in collector.lines


async def test_confirms_that_come_slowly_are_no_failure(place: Place) -> None:
    """The time-out counts from the last confirm: a broker may be slower than a whole window in one time-out."""
    async with collecting(place), running(evolve(place.settings, call_timeout_seconds=1)) as link:
        await link.wait_ready_to_publish()
        publisher = link.publisher("mac", "x86_64-linux")
        await publisher.open_log()
        lines = publisher._lines
        assert lines is not None
        confirm = lines._on_confirm
        lines._on_confirm = lambda _: None  # type: ignore[method-assign, assignment]

        async def confirm_slowly() -> None:
            for tag in range(1, 5):
                await anyio.sleep(0.5)
                confirm(commands.Basic.Ack(delivery_tag=tag))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(confirm_slowly)
            await publisher.publish_log(LOGS, [b"x"] * 4)
        with pytest.raises(DeadlineExceededError, match="confirms of log lines"):
            await publisher.publish_log(LOGS, [b"x"])
        await publisher.publish_log(LOGS, [b"x"])
        await publisher.close()


async def test_two_lanes_do_not_touch_each_other(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (link, good):
        bad = link.publisher("mac2", "x86_64-linux")

        async def fail() -> None:
            for _ in range(20):
                with pytest.raises(BrokerRefusedError):
                    await bad.publish_log(Address("missing", "a.b"), [b"x"])
                with pytest.raises(UnroutableError):
                    await bad.publish_result(Address("missing", "a.b"), b"x")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            for number in range(50):
                await good.publish_log(LOGS, [b"%d" % number])
        await collector.has(lines=50)
        assert collector.lines == [b"%d" % number for number in range(50)]
        await bad.close()


async def test_cancelled_calls_leave_a_lane_that_works(place: Place) -> None:
    async with collecting(place) as collector, publishing(place) as (_, publisher):
        for number in range(30):
            with anyio.move_on_after(0.0002 * number):
                await publisher.publish_log(LOGS, [b"x"] * 50)
            with anyio.move_on_after(0.0002 * number):
                await publisher.publish_result(RESULTS, b"x")
        await publisher.open_log()
        await publisher.publish_log(LOGS, [b"last"])
        await publisher.publish_result(RESULTS, b"last")
        await eventually("the last line", lambda: collector.lines[-1:] == [b"last"])
        await eventually("the last result", lambda: [result.body for result in collector.results][-1:] == [b"last"])


async def test_the_one_hook_into_the_library(place: Place) -> None:
    """linechannel replaces ``_on_confirm_frame`` of one channel object: fails when aiormq no longer calls it."""
    assert list(inspect.signature(Channel._on_confirm_frame).parameters) == ["self", "frame"]
    assert inspect.iscoroutinefunction(Channel._on_confirm_frame)
    assert "self._on_confirm_frame(frame)" in inspect.getsource(Channel._reader)
    async with collecting(place), publishing(place) as (_, publisher):
        with anyio.fail_after(5):
            await publisher.publish_log(LOGS, [b"x"])


async def test_a_line_costs_little(place: Place) -> None:
    """performance.md, "log": at most 6 us of our own CPU for each line; it was 0.7 when this was written."""
    peer, channel = await place.peer_channel()
    await channel.exchange_declare("logs", exchange_type="topic", durable=True)
    await channel.queue_declare("kept", durable=True)
    await channel.queue_bind("kept", "logs", "*.*")
    await peer.close()
    async with publishing(place) as (_, publisher):
        batch = [b"%0250d" % number for number in range(1_000)]
        await publisher.publish_log(LOGS, batch)
        before = time.process_time()
        under_way = [await publisher.send_log(LOGS, batch) for _ in range(10)]
        await under_way[-1].wait()
        assert (time.process_time() - before) / 10_000 < 6e-6


async def test_a_new_connection_is_told(place: Place) -> None:
    told: list[str] = []
    async with publishing(place) as (_, publisher), anyio.create_task_group() as group:

        async def wait() -> None:
            await publisher.wait_back()
            told.append("back")

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert told == []
        await place.close_connections("publish")
        await eventually("the connection is back", lambda: told == ["back"])
