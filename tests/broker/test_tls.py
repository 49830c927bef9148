"""TLS to a real broker: whom it trusts, and what an operator reads when it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from attrs import evolve
from broker_authority import Authority, Pair
from broker_place import Place, eventually, running, subscription

from ofborg_async.broker.kept import LinkState
from ofborg_async.broker.link import Link
from ofborg_async.errors import BrokerRefusedError
from ofborg_async.lab.servers import free_port
from ofborg_async.model.identity import BrokerSettings


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "tests")


Listen = Callable[..., Awaitable[BrokerSettings]]


@pytest.fixture
def listen(place: Place, authority: Authority) -> Listen:
    """Open a TLS port on the broker; the settings that reach it."""

    async def open_port(server: Pair, *, client_certificates: bool = False) -> BrokerSettings:
        port = free_port()
        verify = "verify_peer}, {fail_if_no_peer_cert, true" if client_certificates else "verify_none"
        await place.broker.evaluate(
            "rabbit_networking:ensure_ssl(),"
            f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{{cacertfile, "{authority.file}"}},'
            f'{{certfile, "{server.certificate}"}}, {{keyfile, "{server.key}"}}, {{verify, {verify}}}], 1), ok'
        )
        return evolve(
            place.settings,
            addresses=(("127.0.0.1", port),),
            ssl=True,
            ca_file=authority.file,
            server_name="broker.example",
        )

    return open_port


async def refusal(link: Link) -> BrokerRefusedError:
    """What the link is refused; it comes to everybody who wants to consume."""
    await eventually("a refusal", lambda: link._consume.state is LinkState.REFUSED)
    with pytest.raises(BrokerRefusedError) as caught:
        await link.open_intake(subscription())
    assert "p@ss" not in str(caught.value)
    return caught.value


async def test_connects_and_checks_the_name(listen: Listen, authority: Authority) -> None:
    settings = await listen(authority.sign("broker.example"))
    async with running(settings) as link:
        await link.wait_ready()
        intake = await link.open_intake(subscription())
        await intake.close()
    async with running(evolve(settings, server_name=None)) as link:
        error = await refusal(link)
        assert "mismatch" in error.said
        assert "server_name" in error.remedy
        assert "127.0.0.1" in error.resource


async def test_an_authority_that_did_not_sign_it(listen: Listen, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "others")
    async with running(evolve(await listen(authority.sign("broker.example")), ca_file=other.file)) as link:
        error = await refusal(link)
        assert "certificate was not accepted" in error.said
        assert str(other.file) in error.remedy
    async with running(evolve(await listen(authority.sign("broker.example")), ca_file=None)) as link:
        assert "the system's authorities" in (await refusal(link)).remedy


async def test_an_expired_certificate(listen: Listen, authority: Authority) -> None:
    async with running(await listen(authority.sign("broker.example", days=-1))) as link:
        error = await refusal(link)
        assert "expired" in error.said
        assert "clock" in error.remedy


async def test_client_certificates(listen: Listen, authority: Authority, tmp_path: Path) -> None:
    settings = await listen(authority.sign("broker.example"), client_certificates=True)
    mine = authority.sign("builder")
    with_mine = evolve(settings, client_certificate_file=mine.certificate, client_key_file=mine.key)
    async with running(with_mine) as link:
        await link.wait_ready()
        await link.wait_ready_to_publish()
    async with running(settings) as link:
        error = await refusal(link)
        assert "client certificate" in error.said
        assert "client_certificate_file" in error.remedy
    foreign = Authority(tmp_path, "others").sign("builder")
    with_foreign = evolve(settings, client_certificate_file=foreign.certificate, client_key_file=foreign.key)
    async with running(with_foreign) as link:
        assert "client certificate" in (await refusal(link)).said


async def test_ports_that_speak_something_else(place: Place, listen: Listen, authority: Authority) -> None:
    tls = await listen(authority.sign("broker.example"))
    async with running(evolve(tls, addresses=place.settings.addresses)) as link:
        error = await refusal(link)
        assert "does not speak TLS" in error.said
        assert "5671" in error.remedy
    async with running(evolve(place.settings, addresses=tls.addresses)) as link:
        error = await refusal(link)
        assert "speaks TLS" in error.said
        assert "ssl = true" in error.remedy


async def test_files_that_cannot_be_used_and_files_that_are_renewed(
    listen: Listen, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    async with running(evolve(await listen(authority.sign("broker.example")), ca_file=file)) as link:
        error = await refusal(link)
        assert str(file) in error.said
        assert "ca_file" in error.remedy
        file.write_bytes(authority.file.read_bytes())
        await link.wait_ready()
        await link.wait_ready_to_publish()
        file.unlink()
        assert link.snapshot(["mac"]).error == "", "a connection that stands needs no file"
