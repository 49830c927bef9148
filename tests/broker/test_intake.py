"""Jobs come in one at a time and leave by ack, requeue or reject; what the broker does to a consumer is seen."""

from __future__ import annotations

import struct

import anyio
import pytest
from aiormq.abc import ChannelFrame, DeliveredMessage
from attrs import evolve
from broker_place import QUEUE, Place, dialled, eventually, running, subscription

from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeliveryLostError
from ofborg_async.model.status import AmqpState
from ofborg_async.pipeline.ports import Delivery


async def test_consumes_one_at_a_time_with_the_exact_tag(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        assert link.snapshot(["mac"]).state is AmqpState.HOLDING
        intake = await link.open_intake(subscription())
        assert intake.warnings == ()
        await place.feed(b"one", b"two")
        delivery: Delivery = await intake.next()
        assert (delivery.queue, delivery.body, delivery.redelivered, delivery.lost) == (QUEUE, b"one", False, False)
        await place.has_ready(1)
        await delivery.ack()
        assert (await intake.next()).body == b"two"
        assert link.snapshot(["mac"]).state is AmqpState.CONSUMING
        (consumer,) = await place.broker.list_consumers(place.vhost)
        assert consumer.tag == "mac-x86_64-linux,aarch64-linux-builder"
        assert (consumer.queue, consumer.prefetch, consumer.manual_ack) == (QUEUE, 1, True)
        await intake.close()
        await place.has_ready(1)
        with pytest.raises(BrokerUnavailableError, match="closed"):
            await intake.next()


async def test_what_is_declared_is_what_the_wire_document_says(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        await (await link.open_intake(subscription())).close()
    peer, channel = await place.peer_channel()
    await channel.exchange_declare("build-jobs", exchange_type="fanout", durable=True)
    await channel.queue_declare(QUEUE, durable=True)  # 406 if it were anything else
    await channel.basic_publish(b"through the exchange", exchange="build-jobs", routing_key="whatever", mandatory=True)
    await peer.close()
    await place.has_ready(1)


async def test_requeue_and_reject(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"job")
        await (await intake.next()).requeue()
        again = await intake.next()
        assert (again.body, again.redelivered) == (b"job", True)
        await again.reject()
        with pytest.raises(RuntimeError, match="settled already"):
            await again.ack()
        await intake.close()
        await place.has_ready(0)


async def test_an_ack_that_returned_was_processed(place: Place) -> None:
    for _ in range(20):
        async with running(place.settings) as link:
            await link.wait_ready()
            intake = await link.open_intake(subscription())
            await place.feed(b"job")
            await (await intake.next()).ack()
            dialled(link._consume).transport.abort()  # as a lost machine, with no frame after the ack
            await place.has_ready(0)


async def test_a_cancelled_next_loses_nothing(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        for number in range(20):
            await place.feed(b"%d" % number)
            delivery = None
            with anyio.move_on_after(0):
                delivery = await intake.next()
            delivery = delivery or await intake.next()
            assert delivery.body == b"%d" % number
            await delivery.ack()
        await intake.close()


async def test_pause_gives_back_what_comes_and_resume_takes_it(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(place.feed, b"job")
                tasks.start_soon(intake.pause)
            assert not intake.consuming
            await place.has_ready(1)
            await intake.resume()
            delivery = await intake.next()
            assert delivery.body == b"job"
            await delivery.ack()
        await intake.close()


async def test_pause_gives_back_what_came_and_was_not_taken(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"job")
        consumer = intake._consumer
        assert consumer is not None
        await eventually("the job is here", lambda: bool(consumer.inbox))
        await intake.pause()
        await place.has_ready(1)
        await intake.resume()
        assert (await intake.next()).redelivered
        await intake.close()


async def test_a_message_that_comes_while_the_channel_closes_is_no_error(place: Place) -> None:
    """It is handed over in a task of the library, which would complain of anything that is raised."""
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        consumer = intake._consumer
        assert consumer is not None
        await place.feed(b"job")
        await eventually("the job is here", lambda: bool(consumer.inbox))
        message = consumer.inbox[0]._message
        await intake.close()
        await place.has_ready(1)
        await consumer._on_message(message)
        await place.has_ready(1)


async def test_a_paused_intake_keeps_the_delivery_that_was_taken(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"one", b"two")
        delivery = await intake.next()
        await intake.pause()
        await delivery.ack()
        await place.has_ready(1)
        await intake.resume()
        await intake.resume()  # as often as one likes
        assert (await intake.next()).body == b"two"
        await intake.close()


async def test_a_parked_delivery_is_acknowledged_while_the_lane_goes_on(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"first", b"second", b"third")
        first = await intake.next()
        await intake.park()
        second = await intake.next()
        assert second.body == b"second"
        await place.has_ready(1)
        assert not first.lost
        await first.ack()
        await second.ack()
        third = await intake.next()
        assert third.body == b"third"
        await intake.park()
        await intake.close()
        assert not third.lost, "closing the intake leaves what was parked to its adopter"
        await third.requeue()
        await place.has_ready(1)
        connection = dialled(link._consume).connection
        await eventually("every channel is closed", lambda: not connection.underlay.channels)


async def test_channel_numbers_are_used_again(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        for number in range(30):
            await place.feed(b"%d" % number)
            delivery = await intake.next()
            await intake.park()
            await delivery.ack()
            assert max(dialled(link._consume).connection.underlay.channels) <= 4
        await intake.close()


async def test_a_channel_that_is_gone_leaves_nothing_on_its_connection(place: Place) -> None:
    """Neither one that was closed here nor one that the broker closed: a link may stand for months."""
    async with running(place.settings) as link:
        await link.wait_ready()
        end = dialled(link._consume).connection.underlay.closing
        before = len(end._callbacks)
        intake = await link.open_intake(subscription())  # the broker closes two: what is not there yet
        assert len(end._callbacks) > before
        await intake.close()
        await eventually("as before", lambda: len(end._callbacks) == before)


async def test_a_deleted_queue_ends_the_intake_and_the_delivery(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"job")
        delivery = await intake.next()
        peer = await place.peer()
        await (await peer.channel()).queue_delete(QUEUE)
        await peer.close()
        assert "deleted" in await delivery.wait_lost()
        with pytest.raises(BrokerUnavailableError, match="deleted"):
            await intake.next()
        assert link.snapshot(["mac"]).state is AmqpState.HOLDING, "nothing consumes any more"
        with pytest.raises(DeliveryLostError):
            await delivery.ack()
        await delivery.requeue()
        await intake.close()
        again = await link.open_intake(subscription())
        await place.feed(b"next job")
        assert (await again.next()).body == b"next job"
        await again.close()


async def test_an_administrator_closes_the_connection(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"job")
        delivery = await intake.next()
        await place.close_connections("consume")
        assert "by the administrator" in await delivery.wait_lost()
        with pytest.raises(BrokerUnavailableError, match="by the administrator"):
            await intake.next()
        with pytest.raises(DeliveryLostError):
            await delivery.reject()
        await intake.close()
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        again = await intake.next()
        assert (again.body, again.redelivered) == (b"job", True)
        await again.ack()
        await intake.close()


async def test_the_acknowledgement_time_out_is_seen_as_a_lost_delivery(place: Place) -> None:
    """promises, "AMQP": 406 after the time-out and redelivery at once, while siblings' channels live on."""
    await place.broker.evaluate(
        "application:set_env(rabbit, consumer_timeout, 2000),"
        "application:set_env(rabbit, channel_tick_interval, 500), ok"
    )
    try:
        async with running(place.settings) as link:
            await link.wait_ready()
            slow = await link.open_intake(subscription())
            other = await link.open_intake(subscription("build-inputs-aarch64-linux"))
            await place.feed(b"job")
            delivery = await slow.next()
            reason = await delivery.wait_lost()
            assert "timed out" in reason
            assert "consumer_timeout" in reason
            with pytest.raises(BrokerUnavailableError, match="timed out"):
                await slow.next()
            with pytest.raises(DeliveryLostError, match="timed out"):
                await delivery.ack()
            await place.feed(b"other job", queue="build-inputs-aarch64-linux")
            await (await other.next()).ack()
            await slow.close()
            slow = await link.open_intake(subscription())
            again = await slow.next()
            assert (again.body, again.redelivered) == (b"job", True)
            await again.ack()
            await slow.close()
            await other.close()
    finally:
        await place.broker.evaluate(
            "application:set_env(rabbit, consumer_timeout, 1800000),"
            "application:set_env(rabbit, channel_tick_interval, 60000), ok"
        )


async def test_a_large_and_an_empty_message(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        large = bytes(range(256)) * (15 * 4096)  # RabbitMQ 4 takes 16 MiB by default
        await place.feed(large, b"")
        for body in (large, b""):
            delivery = await intake.next()
            assert delivery.body == body
            await delivery.ack()
        await intake.close()


def _table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


POISON = {
    "a timestamp beyond the year 9999": struct.pack(">HQ", 1 << 6, 2**63 + 5),
    "such a timestamp in the headers": struct.pack(">H", 1 << 13) + _table(b"\x01aT" + struct.pack(">Q", 2**63 + 7)),
    "a content type that is not UTF-8": struct.pack(">H", 1 << 15) + b"\x02\xff\xfe",
    "a delivery mode that is none": struct.pack(">H", 1 << 12) + b"\x01",
}


@pytest.mark.parametrize("properties", POISON.values(), ids=POISON)
async def test_no_property_of_a_message_ends_the_connection(place: Place, properties: bytes) -> None:
    """pamqp cannot decode them; aiormq would end the connection of all identities, again with each redelivery."""
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await _publish_raw(place, b"", QUEUE.encode(), properties, b"poisoned")
        await place.feed(b"next")
        for body in (b"poisoned", b"next"):
            delivery = await intake.next()
            assert delivery.body == body
            await delivery.ack()
        await intake.close()


async def test_no_routing_key_of_a_message_ends_the_connection(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await _publish_raw(place, b"build-jobs", b"\xff\xfe", b"\0\0", b"job")
        delivery = await intake.next()
        assert delivery.body == b"job"
        await delivery.ack()
        await intake.close()


async def _publish_raw(place: Place, exchange: bytes, key: bytes, properties: bytes, body: bytes) -> None:
    """Publish with bytes that no client library would send, in frames made by hand."""
    peer = await place.peer()
    channel = await peer.channel(publisher_confirms=False)

    def framed(kind: int, payload: bytes) -> bytes:
        return struct.pack(">BHI", kind, channel.number, len(payload)) + payload + b"\xce"

    method = struct.pack(">HHH", 60, 40, 0) + bytes([len(exchange)]) + exchange + bytes([len(key)]) + key + b"\0"
    header = struct.pack(">HHQ", 60, 0, len(body)) + properties
    payload = framed(1, method) + framed(2, header) + framed(3, body)
    await channel.connection.write_queue.put(ChannelFrame(payload, should_close=False))
    await channel.basic_qos(prefetch_count=1)
    await peer.close()


QUEUES_OF_OTHERS = {
    "quorum": {"x-queue-type": "quorum"},
    "quorum with a delivery limit": {"x-queue-type": "quorum", "x-delivery-limit": 3},
    "classic with arguments": {"x-max-priority": 5, "x-message-ttl": 3_600_000},
}


@pytest.mark.parametrize("arguments", QUEUES_OF_OTHERS.values(), ids=QUEUES_OF_OTHERS)
async def test_a_queue_that_others_declared_is_used_as_it_is(place: Place, arguments: dict[str, str | int]) -> None:
    peer = await place.peer()
    await (await peer.channel()).queue_declare(QUEUE, durable=True, arguments=dict(arguments))
    await peer.close()
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        assert intake.warnings == ()
        await place.feed(b"job")
        await (await intake.next()).requeue()
        delivery = await intake.next()
        assert delivery.redelivered
        await delivery.ack()
        await intake.close()


async def test_rights_that_are_missing(place: Place) -> None:
    await place.permit(configure="^$")
    async with running(place.settings) as link:
        await link.wait_ready()
        with pytest.raises(BrokerRefusedError) as caught:  # it is not there and may not be declared
            await link.open_intake(subscription())
        assert caught.value.resource == f"queue {QUEUE!r}"
        assert "NOT_FOUND" in caught.value.said
        assert f"rabbitmqctl set_permissions -p {place.vhost} {place.settings.username} " in caught.value.remedy
    peer, channel = await place.peer_channel()
    await channel.exchange_declare("build-jobs", exchange_type="fanout", durable=True)
    await channel.queue_declare(QUEUE, durable=True)
    await peer.close()
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        assert intake.warnings == (), "what is there needs no right to be declared"
        await intake.close()
    await place.permit(configure="^$", write="^$")
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        (warning,) = intake.warnings
        assert "ACCESS_REFUSED" in warning
        assert "write on the queue" in warning
        await place.feed(b"job")
        await (await intake.next()).ack()
        await intake.close()
    await place.permit(read="^$")
    async with running(place.settings) as link:
        await link.wait_ready()
        with pytest.raises(BrokerRefusedError) as caught:
            await link.open_intake(subscription())
        assert "the permission to read" in caught.value.remedy
        assert (caught.value.who, caught.value.vhost) == (place.settings.username, place.vhost)


async def test_a_queue_that_another_holds(place: Place) -> None:
    peer, channel = await place.peer_channel()
    await channel.queue_declare("theirs", exclusive=True)
    await channel.queue_declare(QUEUE, durable=True)

    async def ignore(_: DeliveredMessage) -> None:
        pass

    await channel.basic_consume(QUEUE, ignore, exclusive=True)
    async with running(place.settings) as link:
        await link.wait_ready()
        for queue, word in (("theirs", "RESOURCE_LOCKED"), (QUEUE, "exclusive use")):
            with pytest.raises(BrokerRefusedError, match=word) as caught:
                await link.open_intake(subscription(queue))
            assert "exclusively" in caught.value.remedy
    await peer.close()


async def test_build_all_jobs_gets_a_copy_of_each(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        everything = await link.open_intake(subscription(build_all_jobs=True))
        ordinary = await link.open_intake(subscription())
        peer, channel = await place.peer_channel()

        async def publish(body: bytes) -> None:
            await channel.basic_publish(body, exchange="build-jobs")

        await publish(b"one")
        delivery = await everything.next()
        assert delivery.body == b"one"
        assert delivery.queue.startswith("amq.gen-")
        await everything.park()
        await publish(b"two")
        second = await everything.next()
        assert second.body == b"two"
        await delivery.ack()
        await second.ack()
        await everything.pause()
        await everything.resume()
        await publish(b"three")
        third = await everything.next()
        assert third.body == b"three"
        await third.ack()
        await everything.close()
        await ordinary.close()
        await peer.close()
        await place.has_ready(3)


@pytest.mark.parametrize("after_seconds", [0, 0.0002, 0.0005, 0.001, 0.002])
async def test_after_a_cancelled_ack_nobody_knows(place: Place, after_seconds: float) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await place.feed(b"job")
        delivery = await intake.next()
        with anyio.move_on_after(after_seconds) as scope:
            await delivery.ack()
        if scope.cancelled_caught:
            assert delivery.lost
            with pytest.raises(DeliveryLostError, match="cut short"):
                await delivery.ack()
        await intake.close()
        await place.has_ready(0)


async def test_open_intake_without_a_connection_says_why(place: Place) -> None:
    async with running(evolve(place.settings, addresses=(("127.0.0.1", 1),))) as link:
        await eventually("a failure", lambda: link.snapshot(["mac"]).state is AmqpState.DOWN)
        with pytest.raises(BrokerUnavailableError, match="connection refused"):
            await link.open_intake(subscription())
