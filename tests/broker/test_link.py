"""How a link connects, what it says when it cannot, and that it goes on trying."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import pytest
from attrs import evolve
from broker_place import PASSWORD, Place, dialled, eventually, running, subscription

from ofborg_async.broker.kept import LinkState
from ofborg_async.broker.noise import quiet_library_logs
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError
from ofborg_async.lab.servers import free_port
from ofborg_async.model.identity import BrokerSettings, Secret
from ofborg_async.model.status import AmqpState


async def refusal(settings: BrokerSettings) -> BrokerRefusedError:
    """What a link with these settings is refused."""
    async with running(settings) as link:
        await eventually("a refusal", lambda: link._consume.state is LinkState.REFUSED)
        with pytest.raises(BrokerRefusedError) as caught:
            await link.open_intake(subscription())
        shown = link.snapshot(["mac"])
        assert shown.state is AmqpState.REFUSED
        assert caught.value.remedy in shown.error
        assert PASSWORD not in shown.error
        assert shown.retry_in_seconds is not None
    return caught.value


async def failure(settings: BrokerSettings) -> str:
    """Why a link with these settings does not connect."""
    async with running(settings) as link:
        await eventually("a failure", lambda: link._consume.state is LinkState.DOWN)
        with pytest.raises(BrokerUnavailableError) as caught:
            await link.open_intake(subscription())
    return str(caught.value)


async def test_wrong_password_and_repair(place: Place) -> None:
    error = await refusal(evolve(place.settings, password=Secret("wrong")))
    assert (error.who, error.vhost, error.resource) == (place.settings.username, place.vhost, "")
    assert "ACCESS_REFUSED" in error.said
    assert f"rabbitmqctl change_password {place.settings.username} NEW_PASSWORD" in error.remedy
    await refusal(evolve(place.settings, password=Secret("")))
    asked: list[int] = []

    def backoff(failures: int) -> float:
        asked.append(failures)
        return 0.05

    async with running(evolve(place.settings, password=Secret("new one")), backoff=backoff) as link:
        await eventually("three attempts", lambda: len(asked) > 5)
        assert min(asked) >= 30, "a refusal is tried again with the longest backoff"
        await place.broker.change_password(place.settings.username, "new one")
        await link.wait_ready()


async def test_a_virtual_host_that_is_missing_or_closed_to_us(place: Place) -> None:
    error = await refusal(evolve(place.settings, vhost="no such/vhost"))
    assert "vhost no such/vhost not found" in error.said
    assert "rabbitmqctl add_vhost 'no such/vhost'" in error.remedy
    await place.broker.add_vhost("closed")
    error = await refusal(evolve(place.settings, vhost="closed"))
    assert "access to vhost 'closed' refused" in error.said
    assert f"rabbitmqctl set_permissions -p closed {place.settings.username} '^(build-jobs|" in error.remedy


async def test_limits_of_the_broker(place: Place) -> None:
    await place.broker.evaluate(
        f'rabbit_vhost_limit:parse_set(<<"{place.vhost}">>, <<"{{\\"max-connections\\": 0}}">>, <<"t">>), ok'
    )
    error = await refusal(place.settings)
    assert "connection limit" in error.said
    assert f"rabbitmqctl set_vhost_limits -p {place.vhost} " in error.remedy


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "%", "ü ö", "a+b?c#d", "/", "..", "a/../b"])
async def test_names_are_literal(place: Place, name: str) -> None:
    """No escaping of ours or of the library's changes a name."""
    code = str(list(name.encode()))
    if name != "/":
        await place.broker.evaluate(f'rabbit_vhost:add(list_to_binary({code}), <<"t">>), ok')
    user, password = f"u{place.vhost}{name}", f"p{name}"
    await place.broker.evaluate(
        f"U = list_to_binary({list(user.encode())}), P = list_to_binary({list(password.encode())}),"
        f'rabbit_auth_backend_internal:add_user(U, P, <<"t">>),'
        f"rabbit_auth_backend_internal:set_permissions(U, list_to_binary({code}),"
        '<<".*">>, <<".*">>, <<".*">>, <<"t">>), ok'
    )
    async with running(evolve(place.settings, vhost=name, username=user, password=Secret(password))) as link:
        with anyio.fail_after(20):
            await link.wait_ready()
        await (await link.open_intake(subscription())).close()


async def test_why_an_address_does_not_answer(place: Place) -> None:
    at = place.settings

    def to(host: str, port: int = 1) -> BrokerSettings:
        return evolve(at, addresses=((host, port),), connect_timeout_seconds=1)

    assert "127.0.0.1:1: nothing listens there" in await failure(to("127.0.0.1"))
    assert "no.such.host.invalid:1: the name does not resolve" in await failure(to("no.such.host.invalid"))
    assert "cannot contain" in await failure(to("a b"))
    async with server(b"") as port:
        assert f"connecting to 127.0.0.1:{port} took longer than 1 s" in await failure(to("127.0.0.1", port))
        assert f"connecting to 127.0.0.1:{port} took longer than 1 s" in await failure(
            evolve(to("127.0.0.1", port), ssl=True)
        )
    async with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await refusal(to("127.0.0.1", port))
        assert "no AMQP 0-9-1: b'HTTP/1.1" in error.said
        assert f"at 127.0.0.1:{port}" in str(error)
    async with server(b"AMQP\x00\x01\x00\x00") as port:
        assert "no AMQP 0-9-1" in (await refusal(to("127.0.0.1", port))).said


@asynccontextmanager
async def server(greeting: bytes) -> AsyncIterator[int]:
    """Something that listens, says ``greeting`` and nothing more; its port."""
    writers: list[asyncio.StreamWriter] = []

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(greeting)

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.close()


async def test_addresses_are_tried_in_turn(place: Place) -> None:
    good = (place.broker.host, place.broker.port)
    async with server(b"") as port:
        dead = (("127.0.0.1", 1), ("127.0.0.1", port), good)
        async with running(evolve(place.settings, addresses=dead, connect_timeout_seconds=1)) as link:
            await link.wait_ready()
            await link.wait_ready_to_publish()
            assert link.snapshot(["mac"]).address == f"{good[0]}:{good[1]}"
            gone = dialled(link._consume)
            await place.close_connections("consume")
            await eventually("another connection", lambda: link._consume._dialled not in (None, gone), seconds=0.9)
        text = await failure(evolve(place.settings, addresses=dead[:2], connect_timeout_seconds=1))
        assert "127.0.0.1:1: nothing listens" in text
        assert f"127.0.0.1:{port} took longer" in text


async def test_a_name_whose_first_ip_address_leads_nowhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    port = place.broker.port
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "broker.example"
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, ("127.0.0.3", port)), (*stream, ("127.0.0.2", port)), (*stream, ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    settings = evolve(place.settings, addresses=(("broker.example", port),), connect_timeout_seconds=3)
    with socket.create_server(("127.0.0.2", port), backlog=0) as full, ExitStack() as clients:
        for _ in range(4):  # those beyond the backlog are never answered
            client = clients.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(full.getsockname())
        async with running(settings) as link:
            with anyio.fail_after(10):
                await link.wait_ready()
            assert link.snapshot(["mac"]).address == f"broker.example:{port}"


async def test_ipv6(place: Place) -> None:
    port = free_port()
    await place.broker.evaluate(f'rabbit_networking:start_tcp_listener({{"::1", {port}}}, 1), ok')
    async with running(evolve(place.settings, addresses=(("::1", port),))) as link:
        await link.wait_ready()
        assert link.snapshot(["mac"]).address == f"[::1]:{port}"
        await (await link.open_intake(subscription())).close()


async def test_what_the_administrator_sees(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        found = await place.broker.evaluate(
            '[[V || {K, _, V} <- P, K =:= <<"ofborg_version">> orelse K =:= <<"connection_name">>] || '
            "[{vhost, H}, {client_properties, P}] <- "
            f'rabbit_networking:connection_info_all([vhost, client_properties]), H =:= <<"{place.vhost}">>]'
        )
        assert sorted(sorted(names) for names in found) == [
            ["ofborg-async consume", "test"],
            ["ofborg-async publish", "test"],
        ]


async def test_the_end_is_clean_for_the_broker(place: Place) -> None:
    """It would log "client unexpectedly closed TCP connection" for each builder that stops."""
    log = place.broker.directory / "log"
    async with running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intake = await link.open_intake(subscription())

    def closed() -> list[str]:
        text = "".join(file.read_text() for file in log.glob("*.log"))
        return [
            line
            for line in text.splitlines()
            if "closing AMQP connection" in line and f"vhost: '{place.vhost}'" in line
        ]

    await eventually("the broker logs two ends", lambda: len(closed()) == 2)
    assert all("[info]" in line for line in closed()), closed()
    with pytest.raises(BrokerUnavailableError):
        await intake.next()


async def test_a_failure_is_said_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def backoff(failures: int) -> float:
        tried.append(failures)
        return 0.01

    logging.getLogger("aiormq").propagate = True  # a link that runs turns it off
    with caplog.at_level(logging.WARNING, "ofborg_async.broker"):
        async with running(evolve(place.settings, addresses=(("127.0.0.1", 1),)), backoff=backoff):
            await eventually("ten attempts", lambda: len(tried) > 10)
    assert not logging.getLogger("aiormq").propagate
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ofborg_async")]
    assert len(said) == 2, said
    assert tried[:2] == [1, 1]
    assert max(tried) >= 5, "failures in a row are counted"


def test_what_the_library_logs_is_lowered(caplog: pytest.LogCaptureFixture) -> None:
    quiet_library_logs()
    quiet_library_logs()
    library = logging.getLogger("aiormq.channel")
    assert not library.isEnabledFor(logging.INFO), "it would format each frame"
    assert not logging.getLogger("aiormq").propagate
    with caplog.at_level(logging.DEBUG, "ofborg_async.broker"):
        library.error("Channel %d closed", 3)
    lowered = [record for record in caplog.records if record.name == "ofborg_async.broker.amqp"]
    assert [(record.levelno, record.getMessage()) for record in lowered] == [
        (logging.DEBUG, "aiormq.channel said: Channel 3 closed")
    ]


async def test_many_lanes_on_one_link(place: Place) -> None:
    """16 identities with 2 systems each: 2 connections, and each lane gets its jobs."""
    systems = ("x86_64-linux", "aarch64-linux")
    async with running(place.settings) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
        intakes = [
            await link.open_intake(
                subscription(f"build-inputs-{system}", identity=f"mac{number}", consumer_tag=f"mac{number}-builder")
            )
            for number in range(16)
            for system in systems
        ]
        for system in systems:
            await place.feed(*[b"job"] * 16, queue=f"build-inputs-{system}")
        deliveries = [await intake.next() for intake in intakes]
        assert len(deliveries) == 32
        for delivery in deliveries:
            await delivery.ack()
        states = await place.broker.list_queues(place.vhost)
        assert all(states[f"build-inputs-{system}"].consumers == 16 for system in systems)
        assert link.snapshot(["mac"]).state is AmqpState.CONSUMING
        for intake in intakes:
            await intake.close()


async def test_channels_run_out(place: Place) -> None:
    async with running(place.settings) as link:
        await link.wait_ready()
        dialled(link._consume).connection.underlay.connection_tune.channel_max = 2
        first, second = await link.open_intake(subscription()), await link.open_intake(subscription())
        with pytest.raises(BrokerRefusedError, match="channel_max"):
            await link.open_intake(subscription())
        await first.close()
        await second.close()
