"""One identity's trouble stays its own, and the operator is told what is wrong and what to ask for."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
from asked import command

from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.model.status import AmqpState, IdentityState

SYSTEM = "x86_64-linux"


async def test_one_wrong_password_of_three(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration(
            "good-a", {"name": "bad", "rabbitmq.username": ADMIN, "rabbitmq.password": "not-the-password"}, "good-b"
        )
        async with farm.daemon(file) as daemon:
            jobs = 6
            for number in range(1, jobs + 1):
                head = await farm.upstream.open_pr(number, {"doc/x": f"{number}"})
                await farm.submit(SYSTEM, farm.upstream.job(number, head, ["ok"]))
                if number == 1:  # of two that build the same at once, nix lets one look again after 5 s only
                    await farm.tap.wait_for_results(1)
            results = await farm.tap.wait_for_results(jobs)
            assert {result["status"] for result in results} == {"Success"}

            with anyio.fail_after(60):
                while (status := await daemon.status()).identities[1].systems[0].amqp is not AmqpState.REFUSED:
                    await anyio.sleep(0.05)
            good_a, bad, good_b = status.identities
            assert bad.state is IdentityState.BACKOFF
            assert {good_a.state, good_b.state} <= {IdentityState.IDLE, IdentityState.BUSY}
            code, text = await command(daemon, "status")
            assert code == 2
            flat = " ".join(text.split())
            assert "bad" in flat
            assert "password" in flat
            assert "change_password" in flat
            assert "not-the-password" not in text
            assert "not-the-password" not in daemon.log.read_text()
            code, text = await command(daemon, "status", "--json")
            assert code == 2
            document = json.loads(text)
            assert document["identities"][1]["last_error"]
            code, text = await command(daemon, "why", "bad")
            assert "password" in text
            assert await daemon.stop() == 0
