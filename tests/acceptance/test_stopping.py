"""Stopping and starting: what runs goes back to its queue, nothing is reported, nothing is left; who may not start."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import anyio
import pytest
import stopped_early
from running import needs_own_builds, processes_with
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set
from ofborg_async.lab.wiretap import job_queue
from ofborg_async.model.status import JobSnapshot

SYSTEM = "x86_64-linux"
SLOW = package_set()["default.nix"].replace("sleep 30", "sleep 300")


async def start_slow_job(farm: Farm) -> None:
    """A build that runs for minutes, and is known to run: its first line was heard."""
    head = await farm.upstream.open_pr(1, {"default.nix": SLOW})
    await farm.submit(SYSTEM, farm.upstream.job(1, head, ["slow"]))
    await farm.tap.wait_for(
        lambda messages: any(message.payload.get("output") == "sleeping" for message in messages), what="the build"
    )


@needs_own_builds
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
async def test_sigterm_in_the_middle_of_a_build(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        await start_slow_job(farm)
        assert processes_with(f"NIX_CONF_DIR={farm.store.directory}")
        assert await daemon.stop() == 0
        queue = (await farm.queues())[job_queue(SYSTEM)]
        assert (queue.messages, queue.ready) == (1, 1)
        assert farm.tap.results() == []
        assert not any("tag" in message.payload for message in farm.tap.on("logs"))
        assert processes_with(f"NIX_CONF_DIR={farm.store.directory}") == []

        # The message that went back is built by the next daemon, as a new attempt.
        await daemon.start()

        async def job() -> JobSnapshot | None:
            found = (await daemon.status()).identities[0].systems[0].job
            return found if found is not None and found.lines > 0 else None

        again = await eventually("its build", job)
        (before,) = await daemon.client.history()
        assert again is not None
        assert (again.pr, before.pr, before.status) == (1, 1, "Requeued")
        assert again.attempt_id != before.attempt_id
        assert await daemon.stop() == 0


async def test_a_grace_lets_the_build_finish(tmp_path: Path, broker: Broker) -> None:
    patient = package_set()["default.nix"].replace("sleep 30", "read line < /build/never || sleep 2")
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        environment = {"OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": "60"}
        async with farm.daemon(farm.configuration("lab-a"), environment=environment) as daemon:
            head = await farm.upstream.open_pr(1, {"default.nix": patient})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["slow"]))
            await farm.tap.wait_for(lambda ms: any(m.payload.get("output") == "sleeping" for m in ms))
            assert await daemon.stop() == 0
            results = await farm.tap.wait_for_results(1)
            assert [result["status"] for result in results] == ["Success"]
            assert (await farm.queues())[job_queue(SYSTEM)].messages == 0


async def test_a_second_signal_hurries(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        environment = {"OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": "3600"}
        async with farm.daemon(farm.configuration("lab-a"), environment=environment) as daemon:
            await start_slow_job(farm)
            daemon.signal(signal.SIGTERM)
            with anyio.fail_after(30):
                while not (await daemon.status()).stopping:
                    await anyio.sleep(0.05)
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0
            assert (await farm.queues())[job_queue(SYSTEM)].ready == 1
            assert farm.tap.results() == []


@pytest.mark.parametrize("module", ["ofborg_async.config", "ofborg_async.supervisor.daemon"])
async def test_a_stop_in_the_first_moments_is_one_on_request(tmp_path: Path, broker: Broker, module: str) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        daemon = DaemonProcess(
            tmp_path / "daemon",
            [farm.configuration("lab-a")],
            environment={"PYTHONPATH": ":".join(filter(None, sys.path))},
            prefix=[sys.executable, stopped_early.__file__, module],
        )
        try:
            daemon.launch()
            assert await daemon.wait() == 0
            assert "stopping on SIGTERM" in daemon.log.read_text()
            assert "it ended by itself" in daemon.log.read_text()
            assert "runs 1 identities" not in daemon.log.read_text()
        finally:
            daemon.close()


async def test_two_identities_on_one_root_through_a_symlink_are_refused(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        file = farm.configuration(
            {"name": "first", "checkout.root": str(tmp_path / "real")},
            {"name": "second", "checkout.root": str(tmp_path / "link")},
        )
        daemon = DaemonProcess(tmp_path / "daemon", [file])
        try:
            daemon.launch()
            assert await daemon.wait() == 78
            said = daemon.log.read_text()
            assert "first" in said
            assert "second" in said
            assert "checkout.root" in said
        finally:
            daemon.close()


async def test_a_second_daemon_on_a_root_is_told_who_holds_it(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration("lab-a")
        async with farm.daemon(file) as first:
            second = DaemonProcess(tmp_path / "second", [file])
            try:
                second.launch()
                assert await second.wait() == 75
                assert str(first.pid) in second.log.read_text()
            finally:
                second.close()
            # Another root, but the same state.
            elsewhere = farm.configuration({"name": "lab-a", "checkout.root": str(tmp_path / "elsewhere")})
            state = {"OFBORG_ASYNC_STATE_DIR": str(first.state_dir)}
            third = DaemonProcess(tmp_path / "third", [elsewhere], environment=state)
            try:
                third.launch()
                assert await third.wait() == 75
                assert str(first.pid) in third.log.read_text()
            finally:
                third.close()
            assert (await first.status()).verdict == "ok"
