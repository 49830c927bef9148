"""A job that this host can never carry out is tried ``limits.max_attempts`` times, then answered and acknowledged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import base_environment

SYSTEM = "x86_64-linux"
MAX_ATTEMPTS = 3


# One attr is evaluated and built by one process (tests/nix/test_nix_ahead.py); two are evaluated first.
@pytest.mark.parametrize("attrs", [["ok"], ["ok", "fail"]], ids=["while it evaluates", "while it builds"])
async def test_one_whose_nix_build_is_killed_each_time_gets_an_error_and_is_acknowledged(
    tmp_path: Path, broker: Broker, attrs: list[str]
) -> None:
    programs, begun = tmp_path / "programs", tmp_path / "begun"
    programs.mkdir()
    nix_build = programs / "nix-build"
    nix_build.write_text(f"#!/bin/sh\necho x >> {begun}\nkill -KILL $$\n")
    nix_build.chmod(0o755)
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration(
            "lab-a",
            limits__max_attempts=MAX_ATTEMPTS,
            limits__host_fault_retries=0,
            limits__quarantine_after=1000,
        )
        environment = {
            "PATH": f"{programs}:{base_environment()['PATH']}",
            "OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.1",
            "OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "0.3",
        }
        async with farm.daemon(file, environment=environment) as daemon:
            head = await farm.upstream.open_pr(1, {"doc/x": "1"})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, attrs))
            (result,) = await farm.tap.wait_for_results(1)
            said = result["status"]["UnexpectedError"]["err"]
            assert said.startswith("this builder could not carry the job out: nix-build was killed (SIGKILL)"), said
            assert (result["attempted_attrs"], result["skipped_attrs"]) == (attrs, [])
            await farm.until_settled()
            ends = [entry.status for entry in await daemon.client.history()]
            assert ends == ["UnexpectedError"] + ["Requeued"] * (MAX_ATTEMPTS - 1)
            assert len(begun.read_text().split()) == MAX_ATTEMPTS

            # It has cost the next job nothing.
            nix_build.unlink()
            nix_build.symlink_to(str(shutil.which("nix-build", path=base_environment()["PATH"])))
            head = await farm.upstream.open_pr(2, {"doc/x": "2"})
            await farm.submit(SYSTEM, farm.upstream.job(2, head, ["ok"]))
            statuses = [result["status"] for result in await farm.tap.wait_for_results(2)]
            assert statuses[1:] == ["Success"]
            assert await daemon.stop() == 0
