"""Many jobs at once on several identities and systems: each log is its own pull request's."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import Broker

SYSTEMS = ("x86_64-linux", "i686-linux")
JOBS = 64

PACKAGES = """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
let token = builtins.readFile ./token;
in { hello = derivation {
  name = "hello"; inherit system; builder = "/bin/sh";
  args = [ "-c" "echo token ${token} on ${system}; echo x > $out" ];
}; }
"""


@pytest.mark.timeout(400)
async def test_each_jobs_lines_carry_its_own_pull_requests_token(tmp_path: Path, broker: Broker) -> None:
    contents = {"default.nix": PACKAGES, "token": "master"}
    async with open_farm(tmp_path, broker, *SYSTEMS, contents=contents) as farm:
        identities = ("crowd-a", "crowd-b", "crowd-c")
        async with farm.daemon(farm.configuration(*identities)) as daemon:
            for number in range(1, JOBS + 1):
                head = await farm.upstream.open_pr(number, {"token": f"of-{number}"})
                await farm.submit(SYSTEMS[number % 2], farm.upstream.job(number, head, ["hello"]))
            results = await farm.tap.wait_for_results(JOBS, deadline_seconds=300)
            await farm.until_settled()
            assert Counter(result["status"] for result in results) == {"Success": JOBS}
            assert sorted(result["pr"]["number"] for result in results) == list(range(1, JOBS + 1))
            assert len({result["attempt_id"] for result in results}) == JOBS

            said = defaultdict(list)
            places = {}
            for message in farm.tap.on("logs"):
                if "line_number" in message.payload:
                    said[message.payload["attempt_id"]].append(message.payload["output"])
                elif "tag" not in message.payload:
                    places[message.payload["attempt_id"]] = (message.payload["identity"], message.payload["system"])
            for result in results:
                number, attempt = result["pr"]["number"], result["attempt_id"]
                system = SYSTEMS[number % 2]
                tokens = [line for line in said[attempt] if line.startswith("token ")]
                assert tokens == [f"token of-{number} on {system}"]
                assert places[attempt][1] == result["system"] == system
            assert {identity for identity, _ in places.values()} == set(identities)
            assert await daemon.stop() == 0
