"""What an operator asks of a running daemon, by the command that people type, on a real build."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import anyio
import asked
import pytest
from gated import SYSTEM, gated
from taken import taken
from waits import eventually

from ofborg_async.control.problems import NoDaemonError
from ofborg_async.lab.farm import DaemonProcess, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.status import IdentityState


async def command(daemon: DaemonProcess, *words: str, status: int = 0) -> str:
    """Run ``ofborg-async`` against a daemon and return what it printed; its exit status must be ``status``."""
    code, text = await asked.command(daemon, *words)
    assert code == status, text
    return text


async def state(daemon: DaemonProcess) -> IdentityState:
    return (await daemon.status()).identities[0].state


@pytest.mark.timeout(240)
async def test_looking_at_a_running_build_and_draining_it(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        await stage.start_job()
        document = json.loads(await command(daemon, "status", "--json"))
        job = document["identities"][0]["systems"][0]["job"]
        assert (job["repo"], job["pr"], job["attrs"], job["phase"]) == ("lab/packages", 1, ["slow"], "build")
        assert "lab/packages#1" in await command(daemon, "status")
        assert "builds" in await command(daemon, "why", "lab-a")
        assert "the build begins" in await command(daemon, "logs", "lab-a")
        assert job["attempt_id"][:8] in await command(daemon, "locks")

        heard: list[str] = []
        async with anyio.create_task_group() as group:

            async def follow() -> None:
                heard.append(await command(daemon, "logs", job["attempt_id"][:8], "-f"))

            async def drain() -> None:
                heard.append(await command(daemon, "drain", "lab-a", "--wait"))

            group.start_soon(follow)
            group.start_soon(drain)
            await eventually("the state DRAINING", lambda: is_in(daemon, IdentityState.DRAINING))
            assert heard == []  # both wait for the build
            stage.open()
        assert any("through" in text for text in heard)
        await stage.assert_one_result()
        assert await state(daemon) is IdentityState.STOPPED
        history = json.loads(await command(daemon, "history", "--json"))
        entry = history["entries"][0]
        assert (entry["status"], entry["attempt_id"]) == ("Success", job["attempt_id"])
        assert set(entry["durations_seconds"]) >= {"fetch", "checkout", "evaluate", "build"}
        await command(daemon, "resume", "lab-a")
        await eventually("the state IDLE", lambda: is_in(daemon, IdentityState.IDLE))
        await command(daemon, "stop")
        assert await daemon.wait() == 0


@pytest.mark.timeout(240)
async def test_a_stop_that_waits_returns_after_the_last_build(tmp_path: Path, broker: Broker) -> None:
    environment = {"OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": "120"}
    async with gated(tmp_path, broker) as stage:
        file = stage.farm.configuration("lab-a")
        async with stage.farm.daemon(file, environment=environment) as daemon:
            await stage.start_job()
            heard: list[str] = []
            async with anyio.create_task_group() as group:

                async def stop() -> None:
                    heard.append(await command(daemon, "stop", "--wait"))

                group.start_soon(stop)
                await eventually("the state STOPPED", lambda: is_in(daemon, IdentityState.STOPPED))
                assert heard == []
                stage.open()
            assert heard == ["the daemon has stopped\n"]
            assert await daemon.wait() == 0
            await stage.assert_one_result()


@pytest.mark.timeout(240)
async def test_a_cancelled_build_is_ended_and_reported(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        await stage.start_job()
        job = (await daemon.status()).identities[0].systems[0].job
        assert job is not None
        await command(daemon, "cancel", job.attempt_id[:8])
        (result,) = await stage.farm.tap.wait_for_results(1)
        assert result["status"] == {"UnexpectedError": {"err": "cancelled by the operator"}}
        assert (result["attempted_attrs"], result["skipped_attrs"]) == (["slow"], [])
        await stage.farm.until_settled()
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_pause_survives_a_restart(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        await command(daemon, "pause", "lab-a", "--reason", "the disk is replaced")
        assert await daemon.stop() == 0
        daemon.launch()
        await eventually("the state PAUSED", lambda: is_in(daemon, IdentityState.PAUSED))
        assert "the disk is replaced" in await command(daemon, "why", "lab-a")
        stage.open()
        head = await stage.farm.upstream.open_pr(1, {"doc/x": "x"})
        await stage.farm.submit("x86_64-linux", stage.farm.upstream.job(1, head, ["ok"]))
        assert stage.farm.tap.results() == []
        await command(daemon, "resume")
        await stage.farm.tap.wait_for_results(1)
        await stage.farm.until_settled()
        assert await daemon.stop() == 0


async def is_in(daemon: DaemonProcess, wanted: IdentityState) -> bool:
    """Whether the daemon answers and its identity is in a state."""
    try:
        return await state(daemon) is wanted
    except NoDaemonError:  # it is starting
        return False


@pytest.mark.timeout(240)
async def test_a_lock_that_a_dead_holder_left_is_broken_and_the_job_goes_on(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(stage.farm.configuration("lab-a")) as daemon:
        folder = tmp_path / "roots" / "lab-a" / "repo" / hashlib.md5(b"lab/packages").hexdigest()
        (folder / "builder").mkdir(parents=True)
        with taken(folder / "builder" / "lab-a.lock", marker="attempt-1/x") as processes:
            head = await stage.farm.upstream.open_pr(1, {"doc/x": "x"})
            await stage.farm.submit("x86_64-linux", stage.farm.upstream.job(1, head, ["ok"]))

            async def is_waited_for() -> str:
                locks = await daemon.client.locks()
                return next((lock.key for lock in locks if lock.holder == "another process"), "")

            key = await eventually("the job to wait for the lock", is_waited_for)
            assert "is alive" in await command(daemon, "locks", "--break", key, status=1)
            processes.kill_holder()
            said = await command(daemon, "locks", "--break", key)
            assert f"process {processes.child} (sleep)" in " ".join(said.split())
            (result,) = await stage.farm.tap.wait_for_results(1)
            assert result["status"] == "Success"
            await stage.farm.until_settled()
            assert await daemon.stop() == 0


async def test_identities_that_are_restarted_leave_no_channel_behind(tmp_path: Path, broker: Broker) -> None:
    """A connection has room for 2,047 of them."""
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:

        async def channels() -> int:
            return int(await broker.evaluate("length(rabbit_channel:list())"))

        async def build(number: int) -> int:
            head = await farm.upstream.open_pr(number, {"doc/x": "x"})
            await farm.submit(SYSTEM, farm.upstream.job(number, head, ["ok"]))
            await farm.tap.wait_for_results(number)
            await farm.until_settled()
            return await channels()

        first = await build(1)
        for number in (2, 3, 4):
            await daemon.client.restart("lab-a")
            assert await build(number) == first
        assert await daemon.stop() == 0
