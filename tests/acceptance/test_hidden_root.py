"""Where the root is on this host shows in what nix says of an error, unless its identity hides it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofborg_async.lab.farm import open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set

SYSTEM = "x86_64-linux"
PACKAGES = package_set()["default.nix"].replace("slow = mk", "unread = import ./broken.nix; slow = mk")


@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden"])
async def test_the_root_is_in_no_message_if_it_is_to_be_hidden(tmp_path: Path, broker: Broker, hidden: bool) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration("lab-a", checkout__replace_root_in_logs=hidden)
        async with farm.daemon(file) as daemon:
            head = await farm.upstream.open_pr(1, {"default.nix": PACKAGES, "broken.nix": "{ x = "})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["unread", "ok"]))
            (result,) = await farm.tap.wait_for_results(1)
            assert (result["status"], result["skipped_attrs"]) == ("Success", ["unread"])
            await farm.until_settled()
            said = json.dumps([message.payload for message in farm.tap.messages])
            assert "broken.nix" in said
            assert (str(tmp_path / "roots" / "lab-a") in said) is not hidden
            assert ("<checkout>/repo" in said) is hidden
            assert await daemon.stop() == 0
