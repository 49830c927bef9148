"""No job is taken while a disk that it would need is below its floor: the root's, the state's or the nix store's.

The disks are never quite full here: it is the floor that counts, and everything could still be written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from asked import command
from attrs import frozen
from waits import eventually

import ofborg_async
from ofborg_async.lab.chaos.smalldisk import SmallDisk, small_disks
from ofborg_async.lab.commands import run
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import base_environment
from ofborg_async.model.status import IdentityState

SYSTEM, OTHER = "x86_64-linux", "i686-linux"
QUEUE = f"build-inputs-{SYSTEM}"
FLOOR_BYTES, FLOOR_INODES = 24 << 20, 1500


@frozen
class Shortage:
    """What is scarce: how to make it so and to end it."""

    begin: Callable[[SmallDisk], None]
    end: Callable[[SmallDisk], None]


SHORTAGES = {
    "bytes": Shortage(lambda disk: disk.fill_to(FLOOR_BYTES * 3 // 4), SmallDisk.empty),
    "inodes": Shortage(lambda disk: disk.use_up_inodes(FLOOR_INODES * 3 // 4), SmallDisk.give_back_inodes),
}


def place_of(what: str, directory: Path) -> tuple[Path, Path]:
    """Where a farm has it, and where a disk of its own is mounted."""
    if what == "store":
        return directory / "store/root/nix/store", directory / "store/root"
    return directory / "disk" / what, directory / "disk"


async def findings(farm: Farm, disk: SmallDisk, environment: dict[str, str]) -> list[str]:
    """What ``doctor`` says is wrong with disks, where the daemon sees them."""
    argv = [sys.executable, "-m", "ofborg_async", "doctor", "--json", "-c", str(farm.directory / "builders.toml")]
    env = base_environment(OFBORG_ASYNC_ALLOW_ROOT="1", **environment)
    done = await anyio.run_process([*disk.prefix, *argv], check=False, env=env)
    found = json.loads(done.stdout)["findings"]
    return [each["cause"] for each in found if each["subject"] == "disk" and each["verdict"] == "failure"]


async def is_held_back(daemon: DaemonProcess) -> bool:
    return (await daemon.status()).identities[0].state is IdentityState.BACKOFF


async def history(daemon: DaemonProcess) -> list[str]:
    return [entry.status for entry in await daemon.client.history()]


@pytest.mark.skipif(not namespaces_work(), reason="takes mount namespaces: Linux, root")
@pytest.mark.parametrize("shortage", SHORTAGES.values(), ids=SHORTAGES)
@pytest.mark.parametrize("what", ["root", "state", "store"])
async def test_nothing_is_taken_below_the_floor(tmp_path: Path, broker: Broker, what: str, shortage: Shortage) -> None:
    place, mounted = place_of(what, tmp_path)
    async with open_farm(tmp_path, broker, SYSTEM, OTHER) as farm:
        if what == "store":
            mounted.rename(tmp_path / "store/unused")
        mounted.mkdir()
        async with small_disks(tmp_path / "disk.log", mounted) as (disk,):
            environment = {
                "OFBORG_ASYNC_STATE_DIR": str(place if what == "state" else tmp_path / "state"),
                "PYTHONPATH": str(Path(ofborg_async.__file__).parents[1]),  # whatever the prefix leaves as directory
            }
            root = str(place if what == "root" else tmp_path / "root")
            floors = {"limits__disk_floor_bytes": FLOOR_BYTES, "limits__disk_floor_inodes": FLOOR_INODES}
            file = farm.configuration(
                {"name": "lab-a", "nix.systems": [SYSTEM], "checkout.root": root},
                {"name": "lab-b", "nix.systems": [OTHER]},
                **floors,
            )
            if what == "store":
                env = base_environment(NIX_REMOTE=farm.store.remote, HOME="/nowhere", **farm.store.environment)
                await run(*disk.prefix, "nix-store", "--init", env=env)
            async with farm.daemon(file, environment=environment, prefix=disk.prefix) as daemon:
                head = await farm.upstream.open_pr(1, {"doc/x": "1"})
                await until_consumed(farm, consumed=True)
                shortage.begin(disk)
                await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))
                await eventually("it is held back", lambda: is_held_back(daemon))
                await until_consumed(farm, consumed=False)
                state = (await farm.queues())[QUEUE]
                assert (state.messages, state.ready) == (1, 1)
                snapshot = await daemon.status()
                identity = snapshot.identities[0]
                assert f"the disk of {place} has less free than its floor" in identity.last_error
                assert str(mounted) in (await command(daemon, "why", "lab-a"))[1]
                if shortage is SHORTAGES["bytes"]:
                    assert snapshot.disk_free_bytes < snapshot.disk_floor_bytes == FLOOR_BYTES
                    assert snapshot.disk_place.startswith(str(mounted))
                if what == "root":  # of lab-a alone
                    assert "waits for work" in (await command(daemon, "why", "lab-b"))[1]
                code, text = await command(daemon, "status")
                assert code > 0
                assert str(place) in text
                assert (f"free at {snapshot.disk_place}, floor" in text) is (shortage is SHORTAGES["bytes"])
                (finding,) = await findings(farm, disk, environment)
                assert str(place) in finding
                assert await history(daemon) == []

                shortage.end(disk)
                assert [result["status"] for result in await farm.tap.wait_for_results(1)] == ["Success"]
                assert await history(daemon) == ["Success"]
                assert (await daemon.status()).verdict == "ok"
                assert await daemon.stop() == 0


async def until_consumed(farm: Farm, *, consumed: bool) -> None:
    async def is_so() -> bool:
        return any(at.queue == QUEUE for at in await farm.broker.list_consumers(farm.vhost)) is consumed

    await eventually(f"the queue is {'' if consumed else 'not '}consumed", is_so)
