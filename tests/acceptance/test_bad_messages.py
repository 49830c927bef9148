"""Messages that are no build job are rejected, counted and logged, and the honest job behind them is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import Broker

SYSTEM = "x86_64-linux"

BODIES = {
    "empty": b"",
    "not JSON": b"hello",
    "wrong types": json.dumps({"repo": 1, "pr": [], "attrs": "x", "request_id": {}}).encode(),
    "nested brackets": b"[" * 100_000 + b"]" * 100_000,
    "invalid UTF-8": b'{"request_id": "\xff\xfe"}',
    "20 MB": b'{"request_id": "' + b"x" * 20_000_000 + b'"}',
}


@pytest.mark.timeout(180)
async def test_undecodable_messages_are_rejected_and_the_next_job_is_built(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        for body in BODIES.values():
            await farm.submit(SYSTEM, body)
        head = await farm.upstream.open_pr(1, {"doc/x": "x"})
        await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
        results = await farm.tap.wait_for_results(1, deadline_seconds=120)
        await farm.until_settled()
        assert [result["status"] for result in results] == ["Success"]
        status = await daemon.status()
        assert status.identities[0].jobs_undecodable == len(BODIES)
        assert status.identities[0].restarts == 0
        log = daemon.log.read_text()
        assert log.count("is no build job and is rejected") == len(BODIES)
        assert "x" * 1000 not in log
        assert await daemon.stop() == 0
