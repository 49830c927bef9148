"""A root that is removed under a daemon: nothing built there counts, and the new one is as much the daemon's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from gated import SYSTEM, gated

from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.rabbitmq import Broker


async def test_while_it_waits_for_work(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage:
        farm = stage.farm
        file = farm.configuration("lab-a")
        async with farm.daemon(file) as daemon:
            root = tmp_path / "roots/lab-a"
            shutil.rmtree(root)
            head = await farm.upstream.open_pr(1, {"doc/x": "1"})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
            (result,) = await farm.tap.wait_for_results(1)
            assert result["status"] == "Success"
            await farm.until_settled()

            second = DaemonProcess(tmp_path / "second", [file])
            try:
                second.launch()
                assert await second.wait() == 75
                assert str(daemon.pid) in second.log.read_text()
            finally:
                second.close()
            assert (await daemon.status()).verdict == "ok"
            assert "Traceback" not in daemon.log.read_text()
            assert await daemon.stop() == 0


async def test_while_it_builds(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage:
        farm = stage.farm
        async with farm.daemon(farm.configuration("lab-a")) as daemon:
            await stage.start_job()
            shutil.rmtree(tmp_path / "roots/lab-a")
            stage.open()
            await farm.until_settled()
            (result,) = farm.tap.results()
            assert result["status"] == "Success"
            last, first = await daemon.client.history()
            assert (last.status, last.attempt_id, first.status) == ("Success", result["attempt_id"], "Requeued")
            reason = first.reason
            assert "is not the one that was taken" in reason, reason
            assert await daemon.stop() == 0
