"""Results that no queue gets: kept, shown, sent once there is one again (promise 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asked import command
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.wiretap import RESULTS

SYSTEM = "x86_64-linux"


async def submit(farm: Farm, number: int, **more: Any) -> None:
    head = await farm.upstream.open_pr(number, {"doc/x": f"{number}"})
    await farm.submit(SYSTEM, farm.upstream.job(number, head, ["ok"], **more))


def finished(farm: Farm) -> set[int]:
    """The pull requests whose result was copied to LOG."""
    return {message.payload["pr"]["number"] for message in farm.tap.on("logs") if "tag" in message.payload}


async def expect_waiting(daemon: DaemonProcess, count: int) -> None:
    async def as_many() -> bool:
        return (await daemon.status()).identities[0].results_waiting == count

    await eventually(f"{count} results wait", as_many)


async def test_an_unbound_exchange_holds_the_identity_and_says_so(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        await farm.tap.unbind(RESULTS)
        await submit(farm, 1)

        async def reason() -> str | None:
            text = (await command(daemon, "why", "lab-a"))[1]
            return text if "no queue" in text else None

        assert RESULTS in str(await eventually("the reason", reason))
        await expect_waiting(daemon, 1)
        assert (await command(daemon, "status"))[0] == 1
        assert (await farm.queues())[f"build-inputs-{SYSTEM}"].messages == 1  # not acknowledged
        await farm.tap.connect()
        assert [result["pr"]["number"] for result in await farm.tap.wait_for_results(1)] == [1]
        await farm.until_settled()
        await eventually("all is well", lambda: well(daemon))
        assert await daemon.stop() == 0


async def test_after_a_while_it_goes_on_without_the_result_and_loses_none(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration("lab-a", rabbitmq__unroutable_hold_seconds=0.0)
        async with farm.daemon(file) as daemon:
            await farm.tap.unbind(RESULTS)
            await submit(farm, 1)
            await submit(farm, 2)
            await farm.until_settled()
            await eventually("both copies on LOG", lambda: finished(farm) == {1, 2})
            await expect_waiting(daemon, 2)
            assert (await command(daemon, "status"))[0] == 1
            assert farm.tap.results() == []
            # The next daemon knows of them.
            assert await daemon.stop() == 0
            await daemon.start()
            await expect_waiting(daemon, 2)
            await farm.tap.connect()
            results = await farm.tap.wait_for_results(2)
            assert {result["pr"]["number"] for result in results} == {1, 2}
            await eventually("all is well", lambda: well(daemon))
            assert await daemon.stop() == 0
            assert len(farm.tap.results()) == 2


@pytest.mark.parametrize("pair", [[None, None], ["no-such-exchange", "key"]], ids=["nowhere", "no exchange"])
async def test_a_job_whose_own_pair_leads_nowhere_holds_nobody_up(
    tmp_path: Path, broker: Broker, pair: list[str | None]
) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        await submit(farm, 1, statusreport=pair)
        await submit(farm, 2)
        results = await farm.tap.wait_for_results(1)
        assert results[0]["pr"]["number"] == 2
        await farm.until_settled()
        await eventually("both copies on LOG", lambda: finished(farm) == {1, 2})
        await expect_waiting(daemon, 1)
        assert await daemon.stop() == 0


async def well(daemon: DaemonProcess) -> bool:
    return (await command(daemon, "status"))[0] == 0
