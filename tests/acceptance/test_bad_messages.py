"""Messages that are no build job are rejected, counted and logged, and the honest job behind them is built."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import damaged

from ofborg_async.errors import UndecodableError
from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.wire.decode import decode_job

SYSTEM = "x86_64-linux"

BODIES = {
    "empty": b"",
    "not JSON": b"hello",
    "wrong types": json.dumps({"repo": 1, "pr": [], "attrs": "x", "request_id": {}}).encode(),
    "nested brackets": b"[" * 100_000 + b"]" * 100_000,
    "invalid UTF-8": b'{"request_id": "\xff\xfe"}',
    "15 MB": b'{"request_id": "' + b"x" * 15_000_000 + b'"}',  # RabbitMQ 4 takes 16 MiB by default
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


async def test_a_pull_request_with_the_largest_number_there_is_has_gone(tmp_path: Path, broker: Broker) -> None:
    """Odd but legal (an unsigned number of 64 bits): it must not end one identity after another."""
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        head = await farm.upstream.open_pr(1, {"doc/x": "x"})
        job = json.loads(json.dumps(farm.upstream.job(1, head, ["ok"])))
        await farm.submit(SYSTEM, {**job, "pr": {**job["pr"], "number": 2**64 - 1}})
        await farm.submit(SYSTEM, job)
        assert [result["status"] for result in await farm.tap.wait_for_results(1)] == ["Success"]
        await farm.until_settled()
        assert [entry.pr for entry in await daemon.client.history()] == [1, 2**64 - 1]
        assert (await daemon.status()).identities[0].restarts == 0


def with_aims(job: dict[str, Any], canary: Path) -> list[dict[str, Any]]:
    """Jobs that want something run: in each field that comes near a command."""
    aims = [
        ("repo", "clone_url", f"--upload-pack=touch {canary}"),
        ("repo", "clone_url", f"ext::sh -c touch% {canary}"),
        ("repo", "full_name", "../../../canary"),
        ("pr", "target_branch", f"--upload-pack=touch {canary}"),
        ("pr", "head_sha", f"--output={canary}"),
    ]
    jobs = [{**job, part: {**job[part], key: value}} for part, key, value in aims]
    words = ["--option", f"--post-build-hook=touch {canary}", f"-E builtins.exec [ touch {canary} ]"]
    return [*jobs, *({**job, "attrs": [word]} for word in words)]


def undecodable(body: bytes) -> bool:
    try:
        decode_job(body, max_bytes=1 << 22)
    except UndecodableError:
        return True
    return False


@pytest.mark.timeout(300)
async def test_the_honest_job_behind_fifty_damaged_ones_is_built_and_nothing_else_runs(
    tmp_path: Path, broker: Broker
) -> None:
    canary = tmp_path / "canary"
    random = Random(20)
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        head = await farm.upstream.open_pr(1, {"doc/x": "x"})
        job = farm.upstream.job(1, head, ["ok"])
        aims = with_aims(job, canary)
        bodies = [json.dumps(aim).encode() for aim in aims]
        bodies += [damaged(random.choice([job, *aims]), random) for _ in range(50 - len(bodies))]
        file = farm.configuration(
            "lab-a",
            checkout__clone_url_schemes=["file", "ssh"],
            limits__host_fault_retries=0,
            limits__max_attempts=1,
            limits__quarantine_after=1000,
        )
        async with farm.daemon(file) as daemon:
            for body in bodies:
                await farm.submit(SYSTEM, body)
            await farm.submit(SYSTEM, {**job, "request_id": "honest"})
            await farm.until_settled(deadline_seconds=240)
            (honest,) = [result for result in farm.tap.results() if result["request_id"] == "honest"]
            assert honest["status"] == "Success"
            (identity,) = (await daemon.status()).identities
            assert identity.jobs_undecodable == sum(map(undecodable, bodies)) > 10
            assert identity.restarts == 0
            # What was decoded is in the history, each with its end: a result, or why there is none.
            entries = await daemon.client.history(limit=100)
            assert len(entries) == len(bodies) + 1 - identity.jobs_undecodable
            assert all(entry.status for entry in entries)
            assert await daemon.stop() == 0
    assert list(tmp_path.rglob("canary*")) == []
