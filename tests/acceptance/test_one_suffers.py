"""What befalls one identity leaves its sibling at work, is shown within a minute, and heals (promises 4 and 12)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from asked import command
from attrs import frozen
from gated import gated
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.model.status import AmqpState, IdentityState

UNWELL_SECONDS = 60.0
GOOD, POOR = "x86_64-linux", "i686-linux"


@frozen
class Pair:
    """``good`` builds for one system and ``poor`` for another, so that each has a queue of its own."""

    farm: Farm
    daemon: DaemonProcess

    @property
    def root(self) -> Path:
        """That of ``poor``."""
        return self.farm.directory / "roots" / "poor"

    async def submit(self, number: int, system: str) -> None:
        """Ask for a build that succeeds wherever it can be tried."""
        head = await self.farm.upstream.open_pr(number, {"doc/x": f"{number}"})
        await self.farm.submit(system, self.farm.upstream.job(number, head, ["ok"]))

    async def expect(self, *numbers: int) -> None:
        """These pull requests, and no others, have a result."""
        results = await self.farm.tap.wait_for_results(len(numbers))
        assert sorted(result["pr"]["number"] for result in results) == sorted(numbers)
        assert {result["status"] for result in results} == {"Success"}

    async def state(self) -> IdentityState:
        """That of ``poor``."""
        return (await self.daemon.status()).identities[1].state


@contextlib.asynccontextmanager
async def pair(tmp_path: Path, broker: Broker) -> AsyncIterator[Pair]:
    async with open_farm(tmp_path, broker, GOOD, POOR) as farm:
        file = farm.configuration(
            {"name": "good", "nix.systems": [GOOD]},
            {"name": "poor", "nix.systems": [POOR]},
            limits__host_fault_retries=0,
            limits__quarantine_after=2,
        )
        async with farm.daemon(file) as daemon:
            yield Pair(farm, daemon)
            assert await daemon.stop() == 0


async def test_a_deleted_queue(tmp_path: Path, broker: Broker) -> None:
    async with pair(tmp_path, broker) as both:
        await broker.delete_queue(f"build-inputs-{POOR}", both.farm.vhost)
        await both.submit(1, GOOD)
        await both.expect(1)

        async def consumed() -> bool:
            return any(at.queue == f"build-inputs-{POOR}" for at in await broker.list_consumers(both.farm.vhost))

        await eventually("the queue is there again, and consumed", consumed)
        await both.submit(2, POOR)
        await both.expect(1, 2)


async def test_a_root_that_cannot_be_used(tmp_path: Path, broker: Broker) -> None:
    async with pair(tmp_path, broker) as both:
        (both.root / "repo").write_text("somebody put a file where folders were")
        await both.submit(1, POOR)
        await both.submit(2, GOOD)
        await both.expect(2)

        async def quarantined() -> bool:
            return await both.state() is IdentityState.QUARANTINED

        await eventually("quarantine", quarantined, UNWELL_SECONDS)
        _, text = await command(both.daemon, "why", "poor", "--json")
        assert str(both.root) in text
        assert (await command(both.daemon, "status"))[0] > 0
        assert (await both.farm.queues())[f"build-inputs-{POOR}"].messages == 1
        (both.root / "repo").unlink()
        assert (await command(both.daemon, "resume", "poor"))[0] == 0
        await both.expect(1, 2)


@pytest.mark.timeout(180)
async def test_a_blocked_broker_shows_and_the_build_goes_on(tmp_path: Path) -> None:
    async with (
        private_broker(tmp_path / "node") as broker,
        gated(tmp_path, broker) as stage,
        stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon,
    ):
        await stage.start_job()
        await broker.set_memory_alarm(on=True)
        stage.open()

        async def blocked() -> bool:
            return (await daemon.status()).identities[0].systems[0].amqp is AmqpState.BLOCKED

        await eventually("blocked is shown", blocked, UNWELL_SECONDS)
        code, text = await command(daemon, "status")
        assert code > 0
        assert "blocked" in text
        await broker.set_memory_alarm(on=False)
        await stage.assert_one_result()
        assert await daemon.stop() == 0
