"""A build that takes more memory than there is: the kernel kills its builder, for real, in a group with a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import needs_own_builds
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, open_farm
from ofborg_async.lab.memory import memory_group, memory_groups_work
from ofborg_async.lab.rabbitmq import Broker

SYSTEM = "x86_64-linux"
LIMIT_BYTES = 192 << 20
"""The daemon and a nix-build have 90 MiB; the builder wants a string of 128 MiB and what it takes to make it."""
HUNGRY = """
{ system ? builtins.currentSystem, ... }:
let
  mk = name: script: derivation { inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; };
in {
  hungry = mk "hungry" "s=x; i=0; while [ $i -lt 27 ]; do s=$s$s; i=$((i+1)); done; echo is fed; echo x > $out";
  modest = mk "modest" "echo x > $out";
}
"""


async def requeued(daemon: DaemonProcess) -> list[str]:
    return [entry.reason for entry in await daemon.client.history() if entry.status == "Requeued"]


# One attr is evaluated and built by one process (tests/nix/test_nix_ahead.py); two are evaluated first.
@pytest.mark.skipif(not memory_groups_work(), reason="takes a control group of its own: Linux, root")
@needs_own_builds
@pytest.mark.parametrize("attrs", [["hungry"], ["modest", "hungry"]], ids=["one attr", "two attrs"])
async def test_a_build_that_the_kernel_kills_is_done_once_there_is_memory(
    tmp_path: Path, broker: Broker, attrs: list[str]
) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, memory_group() as group:
        file = farm.configuration("lab-a", limits__host_fault_retries=0, limits__quarantine_after=1000)
        environment = {"OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "0.3"}
        async with farm.daemon(file, environment=environment, prefix=group.prefix) as daemon:
            group.limit(LIMIT_BYTES)
            head = await farm.upstream.open_pr(1, {"default.nix": HUNGRY})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, attrs))

            async def given_back() -> list[str]:
                return await requeued(daemon)

            await eventually("the job to be given back", given_back, 120)
            assert group.count_kills() >= 2  # each attempt of a build is one of two goes
            reason = (await given_back())[0]
            assert "memory" in reason, reason
            assert farm.tap.results() == []

            group.lift()
            (result,) = await farm.tap.wait_for_results(1)
            assert (result["status"], result["attempted_attrs"]) == ("Success", attrs)
            await farm.until_settled()
            assert await daemon.stop() == 0
