from __future__ import annotations

import ssl
from pathlib import Path

import aio_pika
import aio_pika.exceptions
import aiormq.exceptions
import anyio
import pytest
from aio_pika.abc import AbstractConnection
from waits import eventually

from ofborg_async.lab.rabbitmq import Broker, ConsumerState, QueueState, private_broker
from ofborg_async.lab.servers import LabError
from ofborg_async.lab.tls import make_tls_files
from ofborg_async.lab.wiretap import Wiretap, job_queue, wiretap

QUEUE = job_queue("x86_64-linux")
ODD = 'grün "p@ss/w\\ord%'


async def published(tap: Wiretap, bodies: list[bytes]) -> list[bytes]:
    """What the tap saw after ``bodies`` were published through both exchanges in turn."""
    connection = await aio_pika.connect(tap._url)
    channel = await connection.channel()
    for number, body in enumerate(bodies):
        exchange = await channel.get_exchange(("logs", "build-results")[number % 2], ensure=False)
        await exchange.publish(aio_pika.Message(body, delivery_mode=2), "owner.name" if number % 2 == 0 else "")
    await connection.close()
    return [message.body for message in await tap.wait_for(lambda seen: len(seen) >= len(bodies))]


async def connected(broker: Broker, user: str, password: str, vhost: str) -> AbstractConnection:
    with anyio.fail_after(30):
        return await aio_pika.connect(broker.url(user, password, vhost))


async def test_users_passwords_and_permissions(broker: Broker, vhost: str) -> None:
    user = f"user-{vhost}"
    await broker.add_user(user, ODD)
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await connected(broker, user, ODD, vhost)
    await broker.set_permissions(user, vhost, configure="", write="", read="only")
    connection = await connected(broker, user, ODD, vhost)
    channel = await connection.channel()
    with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
        await channel.declare_queue("mine")
    await connection.close()
    await broker.change_password(user, "other")
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await connected(broker, user, ODD, vhost)
    await (await connected(broker, user, "other", vhost)).close()
    await broker.delete_user(user)


async def test_the_wiretap_sees_both_exchanges_in_order(broker: Broker, vhost: str) -> None:
    async with wiretap(broker.url(vhost=vhost), "x86_64-linux", "i686-linux") as tap:
        bodies = [b'{"number": %d}' % number for number in range(40)]
        assert await published(tap, bodies) == bodies
        assert [message.payload["number"] for message in tap.on("logs", "owner.name")] == list(range(0, 40, 2))
        assert len(await tap.wait_for_results(20)) == 20
        assert tap.messages[0].delivery_mode == 2


async def test_jobs_go_to_one_queue_or_to_all(broker: Broker, vhost: str) -> None:
    async with wiretap(broker.url(vhost=vhost), "x86_64-linux", "i686-linux") as tap:
        await tap.publish_job(QUEUE, {"attrs": ["ok"]})
        await tap.publish_to_all(b"no job")
        queues = await broker.list_queues(vhost)
        assert queues[QUEUE] == QueueState(QUEUE, messages=2, ready=2, unacked=0, consumers=0)
        assert queues[job_queue("i686-linux")].ready == 1
        (consumer,) = await broker.list_consumers(vhost)
        assert consumer == ConsumerState(consumer.queue, consumer.tag, prefetch=1000, manual_ack=True)
        await broker.delete_queue(QUEUE, vhost)
        assert QUEUE not in await broker.list_queues(vhost)
    assert len(await broker.list_queues(vhost)) == 1, "the wiretap removes its own queue"


async def test_what_the_node_refuses_is_an_error(broker: Broker) -> None:
    with pytest.raises(LabError, match="badarith"):
        await broker.evaluate("1 / 0")


async def test_a_node_of_its_own_through_its_whole_life(tmp_path: Path) -> None:
    tls = make_tls_files(tmp_path / "tls")
    advanced = "[{rabbit, [{consumer_timeout, 5000}]}]."
    async with private_broker(
        tmp_path / "node", tls=tls, advanced_config=advanced, conf_lines=["heartbeat = 7"]
    ) as broker:
        assert await broker.evaluate("element(2, application:get_env(rabbit, consumer_timeout))") == 5000
        assert await broker.evaluate("element(2, application:get_env(rabbit, heartbeat))") == 7
        assert broker.tls_port is not None
        context = ssl.create_default_context(cafile=str(tls.authority))
        async with await anyio.connect_tcp(
            "localhost", broker.tls_port, ssl_context=context, tls_standard_compatible=False
        ):
            pass
        async with wiretap(broker.url(), "x86_64-linux") as tap:
            await tap.publish_job(QUEUE, {})
            await dies_and_returns(broker, tap)
            await stops_and_returns(broker, tap)
    assert not (tmp_path / "node").exists()


async def dies_and_returns(broker: Broker, tap: Wiretap) -> None:
    ports = broker.port, broker.tls_port
    broker.kill()
    await broker.start()
    assert (broker.port, broker.tls_port) == ports
    await tap.connect()
    assert (await broker.list_queues())[QUEUE].messages == 1


async def stops_and_returns(broker: Broker, tap: Wiretap) -> None:
    await broker.restart()
    await tap.connect()
    assert (await broker.list_queues())[QUEUE].messages == 1
    assert await broker.count_connections() == 1
    await broker.close_all_connections()
    await eventually("no connection", lambda: none_connected(broker))
    await tap.connect()
    broker.freeze()
    with pytest.raises(LabError), anyio.fail_after(20):
        await broker.evaluate("ok", seconds=1)
    broker.resume()
    await blocks_publishers(broker)


async def none_connected(broker: Broker) -> bool:
    return await broker.count_connections() == 0


async def blocks_publishers(broker: Broker) -> None:
    connection = await aio_pika.connect(broker.url())
    channel = await connection.channel()
    await broker.set_memory_alarm(on=True)
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def publish() -> None:
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), QUEUE)
            done.set()

        tasks.start_soon(publish)
        with anyio.move_on_after(1) as waiting:
            await done.wait()
        assert waiting.cancelled_caught, "the broker confirmed a publication though its memory alarm is on"
        await broker.set_memory_alarm(on=False)
        with anyio.fail_after(30):
            await done.wait()
    await connection.close()
