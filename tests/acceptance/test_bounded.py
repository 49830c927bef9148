"""Memory and disk stay bounded whatever a build prints, and a broker that takes nothing costs no build (promise 11)."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hasty_daemon
import pytest
from test_redelivery import until_reporting
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.proxy import proxy
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.servers import base_environment

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc"),
    pytest.mark.timeout(240),
]

SYSTEM = "x86_64-linux"
MIB = 1 << 20

GROWTH_BYTES = 24 * MIB
"""How much a daemon may grow by one build, at its peak, whatever that build prints."""

LONG_LINE_BYTES = 100_000_000
LINE = b"x" * 79
MANY_LINES = 1_500_000
LOG_BYTES, TAIL_LINES = 1 * MIB, 500
BUILD_LIMIT_SECONDS = 6

PACKAGES = """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
let mk = name: script: derivation {
  inherit name system; builder = "/bin/sh"; token = builtins.readFile ./token;
  args = [ "-c" "${script}; echo the end; echo x > $out" ];
};
in {
  small = mk "small" "echo hello";
  long = mk "long" "head -c LONG /dev/zero | tr '\\\\0' x; echo";
  many = mk "many" "yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | head -n 50000";
}
""".replace("LONG", str(LONG_LINE_BYTES))


class Peak:
    """How far a process's resident memory rises above what it was when this was made (proc(5), clear_refs)."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def growth_bytes(self) -> int:
        return self._read("VmHWM") - self._before

    def _read(self, key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1]) * 1024


@asynccontextmanager
async def farm_of(tmp_path: Path, broker: Broker) -> AsyncIterator[Farm]:
    async with open_farm(tmp_path, broker, SYSTEM, contents={"default.nix": PACKAGES, "token": ""}) as farm:
        yield farm


async def submit(farm: Farm, number: int, attr: str) -> None:
    head = await farm.upstream.open_pr(number, {"token": str(number)})
    await farm.submit(SYSTEM, farm.upstream.job(number, head, [attr]))


async def build(farm: Farm, number: int, attr: str) -> dict[str, Any]:
    """A job to its end; its result."""
    await submit(farm, number, attr)
    await farm.tap.wait_for_results(number, deadline_seconds=120)
    await farm.until_settled()
    return farm.tap.results()[-1]


def lines_of(farm: Farm, attempt: str) -> list[str]:
    """What LOG got of an attempt, in the order of the numbers."""
    heard = {
        message.payload["line_number"]: str(message.payload["output"])
        for message in farm.tap.on("logs")
        if message.payload["attempt_id"] == attempt and "line_number" in message.payload
    }
    assert sorted(heard) == list(range(1, len(heard) + 1))
    return [heard[number] for number in sorted(heard)]


def stored(daemon: DaemonProcess, attempt: str) -> list[str]:
    return (daemon.state_dir / "logs" / f"{attempt}.log").read_text().splitlines()


async def test_a_line_of_100_megabytes_is_cut_and_marked(tmp_path: Path, broker: Broker) -> None:
    async with farm_of(tmp_path, broker) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        await build(farm, 1, "small")  # what the first job loads is no growth
        peak = Peak(daemon.pid)
        result = await build(farm, 2, "long")
        assert peak.growth_bytes() < GROWTH_BYTES
        assert result["status"] == "Success"
        lines = lines_of(farm, result["attempt_id"])
        (cut,) = [line for line in lines if "line cut" in line]
        assert re.fullmatch(rb"x+ \[\.\.\. line cut, \d+ bytes more\]", cut.encode())
        assert len(cut) <= 16 * 1024
        assert cut.count("x") + int(cut.split()[-3]) == LONG_LINE_BYTES
        assert "the end" in lines
        assert lines == stored(daemon, result["attempt_id"])
        assert await daemon.stop() == 0


async def test_lines_as_fast_as_a_child_can_are_capped_with_head_and_tail(tmp_path: Path, broker: Broker) -> None:
    """In nix-build's place stands a child that prints millions of lines, many times faster than nix does."""
    programs = tmp_path / "programs"
    programs.mkdir()
    fast = programs / "nix-build"
    count = tmp_path / "count"
    fast.write_text(f"#!/bin/sh\necho the beginning\nyes {LINE.decode()} | head -n $(cat {count})\necho the end\n")
    fast.chmod(0o755)
    count.write_text("1")
    environment = {
        "PATH": f"{programs}:{base_environment()['PATH']}",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "OFBORG_ASYNC_LOG_KEEP_BYTES": str(2 * LOG_BYTES),
    }
    async with farm_of(tmp_path, broker) as farm:
        file = farm.configuration("lab-a", limits__log_bytes=LOG_BYTES, limits__log_tail_lines=TAIL_LINES)
        prefix = [sys.executable, hasty_daemon.__file__]
        async with farm.daemon(file, environment=environment, prefix=prefix) as daemon:
            await build(farm, 1, "small")
            peak = Peak(daemon.pid)
            count.write_text(str(MANY_LINES))
            result = await build(farm, 2, "small")
            assert peak.growth_bytes() < GROWTH_BYTES
            assert result["status"] == "Success"
            lines = stored(daemon, result["attempt_id"])
            (place,) = [number for number, line in enumerate(lines) if "left out" in line]
            left_out = int(lines[place].split()[1])
            assert (
                lines[place] == f"[... {left_out} lines left out: the log is over its limit of {LOG_BYTES} bytes ...]"
            )
            assert left_out + len(lines) - 1 == MANY_LINES + 2
            assert lines[0] == "the beginning"
            assert sum(len(line) + 1 for line in lines[:place]) <= LOG_BYTES
            assert set(lines[1:place]) == set(lines[place + 1 : -1]) == {LINE.decode()}
            assert len(lines[place + 1 :]) == TAIL_LINES
            assert lines[-1] == "the end"
            assert result["output"] == lines[-10:]
            assert lines_of(farm, result["attempt_id"]) == lines

            # Each log is within its cap, and housekeeping keeps the sum of them within another.
            count.write_text(str(2 * LOG_BYTES // len(LINE)))
            await build(farm, 3, "small")
            await eventually("old logs are removed", lambda: size_of(daemon.state_dir / "logs") <= 2 * LOG_BYTES)
            assert (daemon.state_dir / "logs" / f"{farm.tap.results()[-1]['attempt_id']}.log").exists()
            assert await daemon.stop() == 0


def size_of(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.iterdir())


@pytest.mark.parametrize("how", ["frozen", "alarm"])
async def test_a_broker_that_takes_nothing_for_longer_than_the_build_may_last(tmp_path: Path, how: str) -> None:
    """nix is read all the same: its pipe would be full otherwise, and it would count as timed out."""
    async with (
        private_broker(tmp_path / "node") as broker,
        farm_of(tmp_path, broker) as farm,
        proxy(broker.host, broker.port) as path,
    ):
        file = farm.configuration(
            "lab-a",
            rabbitmq__host=f"{broker.host}:{path.port}",
            nix__build_timeout_seconds=BUILD_LIMIT_SECONDS,
            nix__attempt_timeout_seconds=4 * BUILD_LIMIT_SECONDS,
            limits__log_bytes=LOG_BYTES,
        )
        async with farm.daemon(file) as daemon:
            await build(farm, 1, "small")
            await submit(farm, 2, "many")
            await eventually("the job is taken", lambda: elapsed_seconds(daemon))
            peak = Peak(daemon.pid)
            if how == "frozen":
                path.freeze()
            else:
                await broker.set_memory_alarm(on=True)
            await until_reporting(daemon)
            heard = len(farm.tap.results())
            await eventually("more than the limit", lambda: is_over_limit(daemon))
            assert len(farm.tap.results()) == heard == 1
            if how == "frozen":
                path.heal()
            else:
                await broker.set_memory_alarm(on=False)
            await farm.tap.wait_for_results(2, deadline_seconds=60)
            await farm.until_settled()
            assert peak.growth_bytes() < GROWTH_BYTES
            (result,) = {r["attempt_id"]: r for r in farm.tap.results()[1:]}.values()
            assert (result["status"], result["pr"]["number"]) == ("Success", 2)
            lines = stored(daemon, result["attempt_id"])
            assert lines_of(farm, result["attempt_id"]) == lines
            assert sum(" lines left out: the log is over its limit" in line for line in lines) == 1
            assert lines[-2] == "the end"  # before the store path
            assert await daemon.stop() == 0


async def elapsed_seconds(daemon: DaemonProcess) -> float:
    job = (await daemon.status()).identities[0].systems[0].job
    return 0.0 if job is None else job.elapsed_seconds


async def is_over_limit(daemon: DaemonProcess) -> bool:
    return await elapsed_seconds(daemon) > BUILD_LIMIT_SECONDS
