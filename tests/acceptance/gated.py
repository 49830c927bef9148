"""A farm with a build that waits for a file: what a test does meanwhile is in the middle of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker, private_broker
from ofborg_async.lab.upstream import package_set

SYSTEM = "x86_64-linux"

GATED = (
    package_set()["default.nix"]
    .replace(
        'slow = mk "slow" "', 'slow = mk "slow" "echo the build begins; while [ ! -e /gate/open ]; do sleep 0.1; done; '
    )
    .replace("sleep 30", "echo through")
)


class Gated:
    """A farm whose attribute ``slow`` builds until ``open`` is called."""

    def __init__(self, farm: Farm, gate: Path) -> None:
        self.farm = farm
        self._gate = gate

    async def start_job(self) -> None:
        head = await self.farm.upstream.open_pr(1, {"default.nix": GATED})
        await self.farm.submit(SYSTEM, self.farm.upstream.job(1, head, ["slow"]))
        await self.farm.tap.wait_for(lambda _: self.builds_begun() == 1, what="the build's first line")

    def open(self) -> None:
        (self._gate / "open").touch()

    def lines(self) -> dict[tuple[str, int], str]:
        """What was heard on LOG: a line may come again, under the same number and with the same text."""
        heard: dict[tuple[str, int], str] = {}
        for message in self.farm.tap.on("logs"):
            line = message.payload
            if "line_number" in line:
                key = line["attempt_id"], line["line_number"]
                assert heard.setdefault(key, line["output"]) == line["output"]
        return heard

    def builds_begun(self) -> int:
        return sum("begins" in text for text in self.lines().values())

    async def assert_one_result(self) -> None:
        tap = self.farm.tap
        await tap.wait_for_results(1, deadline_seconds=120)
        # It follows the confirmation; and a quorum queue's number of messages may be old, and say that all is settled.
        await tap.wait_for(lambda _: any("tag" in m.payload for m in tap.on("logs")), what="the result's copy on LOG")
        await self.farm.until_settled(deadline_seconds=120)
        results = self.farm.tap.results()
        assert {(r["status"], r["attempt_id"]) for r in results} == {("Success", results[0]["attempt_id"])}
        others = [m for m in self.farm.tap.on("logs") if "line_number" not in m.payload]
        # The tap loses its connections too: what it had not acknowledged then comes again, as redelivered.
        published = [m for n, m in enumerate(others) if not (m.redelivered and m.body in [o.body for o in others[:n]])]
        kinds = ["BuildResult" if "tag" in m.payload else "LogStart" for m in published]
        assert kinds == ["LogStart", "BuildResult"], [(m.redelivered, m.body) for m in others]
        lines = self.lines()
        assert sorted(lines) == [(results[0]["attempt_id"], n) for n in range(1, len(lines) + 1)]
        assert results[0]["output"] == [lines[key] for key in sorted(lines)][-10:]


@asynccontextmanager
async def gated(tmp_path: Path, broker: Broker) -> AsyncIterator[Gated]:
    gate = tmp_path / "gate"
    gate.mkdir()
    shell = "/bin/sh=/usr/bin/busybox"
    async with open_farm(tmp_path, broker, SYSTEM, sandbox_paths=f"{shell} /gate={gate}") as farm:
        yield Gated(farm, gate)


@asynccontextmanager
async def building(tmp_path: Path, *identities: str) -> AsyncIterator[tuple[Broker, Gated, DaemonProcess]]:
    """A broker of the test's own, a farm on it, and a daemon with ``identities`` in the middle of a build."""
    async with (
        private_broker(tmp_path / "node") as broker,
        gated(tmp_path, broker) as stage,
        stage.farm.daemon(stage.farm.configuration(*identities)) as daemon,
    ):
        await stage.start_job()
        yield broker, stage, daemon
