"""A broker that dies, freezes, is out of memory or throws us out: what callers see, and that all comes back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from broker_place import LOGS, RESULTS, Place, collecting, dialled, eventually, running, subscription

from ofborg_async.broker import linechannel
from ofborg_async.broker.dial import Dialer
from ofborg_async.broker.kept import KeptConnection, LinkState
from ofborg_async.clock import SystemClock
from ofborg_async.errors import BrokerUnavailableError, DeadlineExceededError, DeliveryLostError
from ofborg_async.model.identity import BrokerSettings, Secret
from ofborg_async.model.status import AmqpState


@asynccontextmanager
async def frozen(place: Place) -> AsyncIterator[None]:
    """The broker stands still: its sockets stay open and nothing answers."""
    place.broker.freeze()
    try:
        await eventually("every thread stands still", lambda: _stands_still(place.broker.pid))
        yield
    finally:
        place.broker.resume()


def _stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped (``T``); on a busy machine that takes a moment after the signal."""
    states = [file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


@asynccontextmanager
async def memory_alarm(place: Place) -> AsyncIterator[None]:
    """The broker reads no more from connections that publish."""
    await place.broker.set_memory_alarm(on=True)
    try:
        yield
    finally:
        await place.broker.set_memory_alarm(on=False)


async def test_a_broker_that_is_killed_and_started_again(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())
        publisher = link.publisher("mac", "x86_64-linux")
        await place.feed(b"job")
        delivery = await intake.next()
        place.broker.kill()
        await delivery.wait_lost()
        with pytest.raises(BrokerUnavailableError):
            await intake.next()
        with pytest.raises(DeliveryLostError):
            await delivery.ack()
        await intake.close()
        await eventually("it is shown", lambda: link.snapshot(["mac"]).state is AmqpState.DOWN)
        assert str(place.broker.port) in link.snapshot(["mac"]).error
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: publisher.publish_result(RESULTS, b"x"),
            lambda: publisher.publish_log(LOGS, [b"x"]),
            publisher.open_log,
            lambda: link.open_intake(subscription()),
        ]
        for call in calls:
            with pytest.raises(BrokerUnavailableError):
                await call()
        await place.broker.start()
        await link.wait_ready()
        await link.wait_ready_to_publish()
        assert link.snapshot(["mac"]).error == ""
        intake = await link.open_intake(subscription())
        async with collecting(place) as collector:
            await publisher.publish_result(RESULTS, b"result")
            await publisher.publish_log(LOGS, [b"line"])
            await collector.has(results=1, lines=1)
        await intake.close()
        await publisher.close()


async def test_calls_to_a_frozen_broker_are_bounded(place: Place) -> None:
    settings = evolve(place.settings, call_timeout_seconds=1, heartbeat_seconds=30)
    async with collecting(place), running(settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())
        publisher = link.publisher("mac", "x86_64-linux")
        await publisher.publish_result(RESULTS, b"x")
        await publisher.publish_log(LOGS, [b"x"])
        await place.feed(b"job")
        delivery = await intake.next()
        async with frozen(place):
            started = time.monotonic()
            with pytest.raises(DeliveryLostError, match="1 s"):
                await delivery.ack()
            with pytest.raises(DeadlineExceededError, match="opening a channel"):
                await link.open_intake(subscription("build-inputs-aarch64-linux"))
            with pytest.raises(DeadlineExceededError, match="publishing a result"):
                await publisher.publish_result(RESULTS, b"x")
            with pytest.raises(DeadlineExceededError, match="confirms of log lines"):
                await publisher.publish_log(LOGS, [b"x"])
            with pytest.raises(DeadlineExceededError):
                await publisher.open_log()
            assert delivery.lost
            await intake.close()
            await publisher.close()
            assert time.monotonic() - started < 60
        intake = await link.open_intake(subscription())
        await place.feed(b"next job")
        again = await intake.next()
        assert again.body == b"next job", "the ack of the first was still on its way, and is processed now"
        await again.ack()
        await publisher.publish_result(RESULTS, b"x")
        await publisher.publish_log(LOGS, [b"x"])
        await intake.close()
        await publisher.close()


async def test_what_a_failed_call_could_not_write_is_never_sent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is cut, though no heartbeat is missed yet: bytes in a buffer would go out behind the error."""
    monkeypatch.setattr(linechannel, "WINDOW_BYTES", 100_000_000)
    settings = evolve(place.settings, call_timeout_seconds=1, heartbeat_seconds=60)
    async with collecting(place), running(settings) as link:
        await link.wait_ready_to_publish()
        publisher = link.publisher("mac", "x86_64-linux")
        await publisher.open_log()
        connection = dialled(link._publish)
        async with frozen(place):
            with pytest.raises((DeadlineExceededError, BrokerUnavailableError)):
                await publisher.publish_log(LOGS, [b"x" * 20_000] * 2_000)
            await eventually("the connection is cut", lambda: link._publish._dialled is not connection)
            assert connection.transport.get_write_buffer_size() == 0
        await link.wait_ready_to_publish()
        await publisher.publish_log(LOGS, [b"x"])
        await publisher.close()


async def test_a_frozen_broker_is_noticed_by_its_heartbeat(place: Place) -> None:
    """Whoever waits for the broker then gets an error of ours, never a cancellation that nobody asked for."""
    settings = evolve(place.settings, call_timeout_seconds=100, heartbeat_seconds=1)
    outcomes: dict[str, BaseException | None] = {}

    async def note(name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except BaseException as error:  # noqa: BLE001 - this is what the test is about
            outcomes[name] = error
        else:
            outcomes[name] = None

    async with collecting(place), running(settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())
        idle_intake = await link.open_intake(subscription("build-inputs-aarch64-linux"))
        publisher = link.publisher("mac", "x86_64-linux")
        other = link.publisher("mac2", "x86_64-linux")
        await publisher.publish_result(RESULTS, b"x")
        await publisher.publish_log(LOGS, [b"x"])
        await place.feed(b"job")
        delivery = await intake.next()
        async with frozen(place):
            started = time.monotonic()
            with anyio.fail_after(20):  # 3 x (1 + 1) s and what it takes to look
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(note, "next", idle_intake.next)
                    tasks.start_soon(note, "ack", delivery.ack)
                    tasks.start_soon(note, "lost", delivery.wait_lost)
                    tasks.start_soon(note, "result", lambda: publisher.publish_result(RESULTS, b"x"))
                    tasks.start_soon(note, "lines", lambda: publisher.publish_log(LOGS, [b"x"]))
                    tasks.start_soon(note, "open log", other.open_log)
                    tasks.start_soon(note, "open result", lambda: other.publish_result(RESULTS, b"x"))
                    tasks.start_soon(note, "intake", lambda: link.open_intake(subscription("build-inputs-x")))
            assert time.monotonic() - started > 4, "it was noticed by the heartbeat"
            assert isinstance(outcomes.pop("ack"), DeliveryLostError)
            assert outcomes.pop("lost") is None
            assert {type(error) for error in outcomes.values()} == {BrokerUnavailableError}, outcomes
            assert len(outcomes) == 6
            assert link._consume.state is not LinkState.UP
            assert link._publish.state is not LinkState.UP
            await intake.close()
            await idle_intake.close()
        await link.wait_ready_to_publish()
        await publisher.publish_result(RESULTS, b"x")
        await publisher.publish_log(LOGS, [b"x"])
        await publisher.close()
        await other.close()


async def test_the_end_of_a_link_to_a_frozen_broker_is_bounded(place: Place) -> None:
    async with collecting(place):
        with anyio.fail_after(40):
            async with running(place.settings) as link:
                await link.wait_ready()
                await link.wait_ready_to_publish()
                intake = await link.open_intake(subscription())
                place.broker.freeze()
            with pytest.raises(BrokerUnavailableError):
                await intake.next()
        place.broker.resume()


async def test_an_alarm_lets_jobs_in_and_keeps_results_waiting(place: Place) -> None:
    """Longer than any call may take, and without a second copy of anything afterwards."""
    settings = evolve(place.settings, call_timeout_seconds=1, heartbeat_seconds=1)
    async with collecting(place) as collector, running(settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())
        first, second = link.publisher("mac", "x86_64-linux"), link.publisher("mac2", "x86_64-linux")
        await place.feed(b"one", b"two", b"three")
        lines = [b"%020000d" % number for number in range(200)]  # more than the buffers of a socket hold
        done: list[str] = []

        async def publish(name: str, call: Callable[[], Awaitable[object]]) -> None:
            await call()
            done.append(name)

        async with anyio.create_task_group() as tasks:
            async with memory_alarm(place):
                tasks.start_soon(publish, "result", lambda: first.publish_result(RESULTS, b"result"))
                await eventually("it is shown", lambda: link.blocked)
                assert link.snapshot(["mac"]).state is AmqpState.BLOCKED
                tasks.start_soon(publish, "lines", lambda: first.publish_log(LOGS, lines))
                tasks.start_soon(publish, "other result", lambda: second.publish_result(RESULTS, b"other result"))
                tasks.start_soon(publish, "other log", second.open_log)
                for body in (b"one", b"two", b"three"):
                    delivery = await intake.next()
                    assert delivery.body == body
                    await delivery.ack()
                    await anyio.sleep(1)  # the call's time-out, three times over
                assert done == []
                assert link.blocked
                with anyio.move_on_after(0.1) as scope:
                    await second.publish_log(LOGS, [b"cancelled"])
                assert scope.cancelled_caught
            await eventually("it is over", lambda: not link.blocked)
        await collector.has(results=2, lines=len(lines))
        assert collector.lines == lines
        assert link.snapshot(["mac"]).state is AmqpState.CONSUMING
        await intake.close()
        await first.close()
        await second.close()


@pytest.mark.parametrize("what", ["lines", "a result"])
async def test_an_alarm_with_full_buffers_costs_no_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The writer must not wait for the broker to read, or heartbeats would pile up behind it and end the connection."""
    settings = evolve(place.settings, call_timeout_seconds=5, heartbeat_seconds=1)
    monkeypatch.setattr(linechannel, "WINDOW_BYTES", 100_000_000)  # the buffers of loopback sockets hold several MB
    lines = [b"%020000d" % number for number in range(2_000)]
    async with collecting(place) as collector, running(settings) as link:
        await link.wait_ready_to_publish()
        publisher = link.publisher("mac", "x86_64-linux")
        connection = dialled(link._publish)
        async with anyio.create_task_group() as tasks, memory_alarm(place):
            if what == "lines":
                tasks.start_soon(publisher.publish_log, LOGS, lines)
            else:
                tasks.start_soon(publisher.publish_result, RESULTS, b"x" * 15_000_000)  # RabbitMQ 4 takes 16 MiB
            await eventually("blocked with bytes to write", lambda: _is_stuck(link._publish))
            for _ in range(8):  # 3 x (1 + 1) s and more
                await anyio.sleep(1)
                assert connection.connection.underlay.write_queue.qsize() <= 1
            assert dialled(link._publish) is connection
        await (collector.has(lines=len(lines)) if what == "lines" else collector.has(results=1))
        assert dialled(link._publish) is connection
        await publisher.close()


async def test_time_in_an_alarm_is_free() -> None:
    settings = BrokerSettings(addresses=(("127.0.0.1", 1),), vhost="/", username="u", password=Secret("p"))
    kept = KeptConnection(
        Dialer(settings, {}), consuming=False, call_timeout_seconds=1, clock=SystemClock(), backoff=lambda _: 1
    )
    kept._set_blocked(blocked=True)
    with kept.patience(0.01, "a call"):
        await anyio.sleep(0.1)
        kept._set_blocked(blocked=False)
        kept._set_blocked(blocked=True)
        await anyio.sleep(0.1)
    kept._set_blocked(blocked=False)
    with pytest.raises(DeadlineExceededError, match="a call took longer"), kept.patience(0.01, "a call"):
        await anyio.sleep(10)


def _is_stuck(kept: KeptConnection) -> bool:
    return kept.blocked and dialled(kept).transport.get_write_buffer_size() > 0


async def test_the_end_of_a_link_that_is_blocked_is_bounded(place: Place) -> None:
    async with collecting(place), memory_alarm(place):
        with anyio.fail_after(30):
            async with running(place.settings) as link:
                await link.wait_ready_to_publish()
                publisher = link.publisher("mac", "x86_64-linux")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(publisher.publish_log, LOGS, [b"x" * 100_000] * 100)
                    await eventually("blocked", lambda: link.blocked)
                    tasks.cancel_scope.cancel()
                await publisher.close()


async def test_each_connection_is_lost_by_itself(place: Place) -> None:
    async with collecting(place) as collector, running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())
        publisher = link.publisher("mac", "x86_64-linux")
        consuming = dialled(link._consume)
        await place.feed(b"job")
        delivery = await intake.next()
        gone = dialled(link._publish)
        await place.close_connections("publish")
        await eventually("another connection", lambda: link._publish._dialled not in (None, gone))
        await publisher.publish_result(RESULTS, b"result")
        await delivery.ack()
        assert dialled(link._consume) is consuming
        publishing = dialled(link._publish)
        await place.close_connections("consume")
        await eventually("another connection", lambda: link._consume._dialled not in (None, consuming))
        await publisher.publish_result(RESULTS, b"result")
        assert dialled(link._publish) is publishing
        await collector.has(results=2)
        await intake.close()
        await publisher.close()
