"""Whoever reads our messages cannot tell us from the original: the jobs it was recorded with, field for field.

The jobs run in the order of the recording, on an empty store, against a real broker. What differs is listed here:

- ``INTENDED``: differences that the wire document wants, by case.
- Normalised, as in the recording: the attempt's id, the checkout root, the upstream's place; commits have other SHAs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import needs_own_builds

from ofborg_async.lab.farm import Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings"
SYSTEM = "x86_64-linux"

INTENDED = {
    "unicode": {"Non-UTF8 data omitted from the log.": "bad \ufffd\ufffd bytes"},  # keeps what can be kept
}


async def recorded_by(farm: Farm) -> dict[str, Any]:
    """The recording whose nix is the one that is installed."""
    version = (await farm.store.nix("nix-build", "--version")).split()[-1]
    name = "debian12.json" if tuple(map(int, version.split(".")[:2])) < (2, 18) else "debian13.json"
    cases: dict[str, Any] = json.loads((RECORDINGS / name).read_text())
    return cases


async def heard(farm: Farm, count: int, name: str) -> None:
    """Wait for the messages of a case; the queue's end shows that no more come."""
    await farm.tap.wait_for(lambda messages: len(messages) >= count, what=f"the messages of {name}")


async def prepare(farm: Farm, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The recorded job, with its pull request made in our upstream repository."""
    job: dict[str, Any] = json.loads(json.dumps(case["job"]))
    number = job["pr"]["number"]
    if case["pr_changes"]:
        job["pr"]["head_sha"] = await farm.upstream.open_pr(number, case["pr_changes"])
    if name == "merge-conflict":
        await farm.upstream.advance_master({"doc/readme": "from master\n"})
    job["repo"]["clone_url"] = farm.upstream.url
    return job


def normalised(body: Any, root: str, upstream: str, sha: str) -> Any:
    text = json.dumps(body).replace(root, "<root>").replace(upstream, "<upstream>").replace(sha, "<head>")
    document: Any = json.loads(text)
    if document.get("attempt_id"):
        document["attempt_id"] = "attempt-1"
    return document


def intended(name: str, body: Any) -> Any:
    text = json.dumps(body)
    for theirs, ours in INTENDED.get(name, {}).items():
        text = text.replace(json.dumps(theirs)[1:-1], json.dumps(ours)[1:-1])
    wanted: Any = json.loads(text)
    return wanted


@needs_own_builds
@pytest.mark.timeout(300)
async def test_every_recorded_job_is_answered_as_the_original_did(tmp_path: Path, broker: Broker) -> None:
    # The recorded repository's file began with an empty line, which shows in line numbers of traces.
    contents = package_set() | {"default.nix": "\n" + package_set()["default.nix"]}
    async with open_farm(tmp_path, broker, SYSTEM, contents=contents, max_silent_time="8") as farm:
        cases = await recorded_by(farm)
        assert len(cases) == 23
        root = tmp_path / "roots" / "lab-a"
        async with farm.daemon(farm.configuration("lab-a")) as daemon:
            for name, case in cases.items():
                before = len(farm.tap.messages)
                job = await prepare(farm, name, case)
                await farm.submit(SYSTEM, job)
                await heard(farm, before + len(case["published"]), name)
                await farm.until_settled()
                published = farm.tap.messages[before:]
                for exchange in ("logs", "build-results"):
                    expected = [message for message in case["published"] if message["exchange"] == exchange]
                    got = [message for message in published if message.exchange == exchange]
                    assert [message.routing_key for message in got] == [m["routing_key"] for m in expected], name
                    assert {(m.content_type, m.delivery_mode) for m in got} <= {("application/json", 2)}, name
                    sha, their_sha = job["pr"]["head_sha"], case["job"]["pr"]["head_sha"]
                    assert [normalised(m.payload, str(root), farm.upstream.url, sha) for m in got] == [
                        normalised(intended(name, m["body"]), "<root>", "<upstream>", their_sha) for m in expected
                    ], name
                    # The fields' order too: readers that stream depend on it.
                    assert [list(m.payload) for m in got] == [list(m["body"]) for m in expected], name
            assert await daemon.stop() == 0
