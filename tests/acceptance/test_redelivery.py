"""Broker trouble in the middle of a build neither ends nor doubles it; a killed daemon loses no result."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from gated import SYSTEM, building, gated
from waits import eventually

from ofborg_async.lab.chaos.processfaults import descendants
from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.proxy import proxy
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.wiretap import job_queue
from ofborg_async.model.status import AmqpState
from ofborg_async.process.table import ProcessInfo, read_proc, read_process

CONSUMER_TIMEOUT = "[{rabbit,[{consumer_timeout,5000},{channel_tick_interval,1000}]}]."


@pytest.mark.timeout(240)
async def test_an_acknowledgement_timeout_neither_ends_nor_doubles_a_build(tmp_path: Path) -> None:
    async with (
        private_broker(tmp_path / "node", advanced_config=CONSUMER_TIMEOUT) as broker,
        gated(tmp_path, broker) as stage,
        stage.farm.daemon(stage.farm.configuration("lab-a", "lab-b")) as daemon,
    ):
        await stage.start_job()
        with anyio.fail_after(60):
            while "came back while it runs" not in daemon.log.read_text():
                await anyio.sleep(0.1)
        stage.open()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["restart", "kill", "connections closed"])
async def test_a_broker_that_goes_away_and_comes_back(tmp_path: Path, how: str) -> None:
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        if how == "restart":
            await broker.restart()
        elif how == "kill":
            broker.kill()
            await broker.start()
        else:
            await broker.close_all_connections()
        await stage.farm.tap.connect()
        stage.open()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_path_that_is_frozen_under_a_build(tmp_path: Path) -> None:
    """Nobody says that the connections are gone: heartbeats tell the daemon, and the broker, which redelivers."""
    async with (
        private_broker(tmp_path / "node") as broker,
        proxy(broker.host, broker.port) as path,
        gated(tmp_path, broker) as stage,
    ):
        file = stage.farm.configuration(
            "lab-a",
            rabbitmq__host=f"127.0.0.1:{path.port}",
            rabbitmq__heartbeat_seconds=1,
            rabbitmq__connect_timeout_seconds=1,
            rabbitmq__call_timeout_seconds=2,
        )
        async with stage.farm.daemon(file) as daemon:
            await stage.start_job()
            path.freeze()

            async def given_up() -> bool:
                system = (await daemon.status()).identities[0].systems[0]
                queue = (await stage.farm.queues())[job_queue(SYSTEM)]
                return system.amqp is AmqpState.DOWN and queue.ready == 1

            await eventually("both sides to give the connections up", given_up)
            path.cut()
            path.heal()
            stage.open()
            await stage.assert_one_result()
            assert stage.builds_begun() == 1
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_consumer_that_the_broker_cancels_under_a_build(tmp_path: Path, broker: Broker) -> None:
    """The queue is deleted with what was delivered from it: the job is the daemon's alone now."""
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        await stage.start_job()
        assert [at.queue for at in await broker.list_consumers(stage.farm.vhost)].count(job_queue(SYSTEM)) == 1
        await broker.delete_queue(job_queue(SYSTEM), stage.farm.vhost)
        await stage.farm.tap.declare_jobs(SYSTEM)
        stage.open()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        head = await stage.farm.upstream.open_pr(2, {"doc/x": "2"})
        await stage.farm.submit(SYSTEM, stage.farm.upstream.job(2, head, ["ok"]))
        results = await stage.farm.tap.wait_for_results(2)
        assert [result["status"] for result in results] == ["Success"] * 2
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_broker_that_is_away_at_the_end_of_the_build_gets_the_result_later(tmp_path: Path) -> None:
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        broker.kill()
        stage.open()
        await until_reporting(daemon)
        await broker.start()
        await stage.farm.tap.connect()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_daemon_killed_with_a_computed_result_sends_it_and_does_not_build_again(tmp_path: Path) -> None:
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        broker.kill()  # so that the result cannot leave
        stage.open()
        await until_reporting(daemon)
        daemon.kill()
        assert await daemon.wait() == -signal.SIGKILL
        await broker.start()
        await stage.farm.tap.connect()
        await daemon.start()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.timeout(240)
async def test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing_and_builds_again(
    tmp_path: Path, broker: Broker
) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        await stage.start_job()
        left = descendants((daemon.pid,))
        assert any(is_build(info.pid) for info in left)
        daemon.kill()
        assert await daemon.wait() == -signal.SIGKILL
        await daemon.start()
        # The gate is shut, so that no build ends by itself.
        await eventually("nobody is left", lambda: not any(runs(info) for info in left))
        stage.open()
        await stage.farm.tap.wait_for_results(1, deadline_seconds=120)
        await stage.farm.until_settled()
        assert [result["status"] for result in stage.farm.tap.results()] == ["Success"]
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_an_identity_restarted_while_it_reports_still_sends_its_result(tmp_path: Path) -> None:
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        broker.kill()
        stage.open()
        await until_reporting(daemon)
        await daemon.client.restart("lab-a")
        await broker.start()
        await stage.farm.tap.connect()
        await stage.assert_one_result()
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_sibling_that_got_the_copy_is_free_for_other_work(tmp_path: Path) -> None:
    async with building(tmp_path, "lab-a", "lab-b") as (broker, stage, daemon):
        await broker.close_all_connections()
        await stage.farm.tap.connect()
        await eventually("adoption", lambda: "came back while it runs" in daemon.log.read_text())
        head = await stage.farm.upstream.open_pr(2, {"doc/x": "2"})
        await stage.farm.submit(SYSTEM, stage.farm.upstream.job(2, head, ["ok"]))
        assert [result["pr"]["number"] for result in await stage.farm.tap.wait_for_results(1)] == [2]
        stage.open()
        results = await stage.farm.tap.wait_for_results(2, deadline_seconds=120)
        await stage.farm.until_settled()
        assert [(result["pr"]["number"], result["status"]) for result in results] == [(2, "Success"), (1, "Success")]
        assert stage.builds_begun() == 1
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_message_that_returns_after_its_result_is_acknowledged_and_not_built_again(tmp_path: Path) -> None:
    """A pause keeps it in its queue, as an acknowledgement that was lost on the way would."""
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        await daemon.client.pause(["lab-a"], reason="test")
        await broker.close_all_connections()
        await stage.farm.tap.connect()
        stage.open()
        await stage.farm.tap.wait_for_results(1, deadline_seconds=120)
        await eventually("no delivery is left", lambda: "no delivery is left" in daemon.log.read_text())
        assert (await stage.farm.queues())[job_queue(SYSTEM)].ready == 1
        await daemon.client.resume(["lab-a"])
        await stage.assert_one_result()
        assert "came back after its result: acknowledged" in daemon.log.read_text()
        assert stage.builds_begun() == 1
        assert [entry.status for entry in await daemon.client.history()] == ["Success"]
        # The same message published anew is another job.
        head = await stage.farm.upstream.sha("refs/pull/1/head")
        await stage.farm.submit(SYSTEM, stage.farm.upstream.job(1, head, ["slow"]))
        results = await stage.farm.tap.wait_for_results(2, deadline_seconds=120)
        assert len({result["attempt_id"] for result in results}) == 2
        await stage.farm.until_settled()
        assert await daemon.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.timeout(240)
async def test_a_copy_that_came_back_returns_to_its_queue_when_the_host_fails(tmp_path: Path) -> None:
    async with private_broker(tmp_path / "node") as broker, gated(tmp_path, broker) as stage:
        file = stage.farm.configuration("lab-a", "lab-b", limits__host_fault_retries=0)
        async with stage.farm.daemon(file) as daemon:
            await stage.start_job()
            await broker.close_all_connections()
            await stage.farm.tap.connect()
            await eventually("adoption", lambda: "came back while it runs" in daemon.log.read_text())
            (build,) = [info.pid for info in read_proc().values() if info.ppid == daemon.pid and is_build(info.pid)]
            os.kill(build, signal.SIGKILL)
            stage.open()
            await stage.farm.tap.wait_for_results(1, deadline_seconds=60)
            await stage.farm.until_settled()
            assert [result["status"] for result in stage.farm.tap.results()] == ["Success"]
            assert [identity.restarts for identity in (await daemon.status()).identities] == [0, 0]
            assert await daemon.stop() == 0


def is_build(pid: int) -> bool:
    return b"nix-build" in Path(f"/proc/{pid}/cmdline").read_bytes()


def runs(info: ProcessInfo) -> bool:
    """Whether that process is still there, and not another one of its number."""
    now = read_process(info.pid)
    return now is not None and now.alive and now.start == info.start


async def until_reporting(daemon: DaemonProcess) -> None:
    """The build is over and its result is in the outbox, which is when the attempt stands in the history."""

    async def waits() -> bool:
        job = (await daemon.status()).identities[0].systems[0].job
        ended = [entry.attempt_id for entry in await daemon.client.history()]
        return job is not None and job.phase == "report" and job.attempt_id in ended

    await eventually("a result that waits", waits)
