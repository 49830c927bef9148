"""Pull requests that want to run, read or write something outside, and an honest one behind each, on a real daemon."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from git_upstream import Changes, Upstream, git
from hostile_repositories import CONTENTS, NAMES, commit_of_names

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set

SYSTEM = "x86_64-linux"
SECRET = "the-canary-sings"

PACKAGE = """
{{ system ? builtins.currentSystem, ... }}:
{{ ok = derivation {{ name = "hostile"; inherit system; builder = "/bin/sh"; args = [ "-c" {script} ]; }}; }}
"""

EXPRESSIONS: dict[str, Callable[[Path, Path], str]] = {
    "evaluation reads": lambda secret, _: f"(builtins.readFile {secret})",
    "evaluation copies": lambda secret, _: f'"cat ${{{secret}}}; exit 1"',
    "evaluation imports": lambda secret, _: f"(import {secret})",
    "evaluation executes": lambda _, canary: f'(builtins.exec [ "touch" "{canary}" ])',
    "evaluation fetches": lambda secret, _: f'(builtins.readFile (builtins.fetchurl "file://{secret}"))',
    "build reads": lambda secret, _: f'"while read -r line; do echo $line; done < {secret}; exit 1"',
    "build lists": lambda secret, _: f'"echo {secret.parent}/*; cd {secret.parent} && exit 0; exit 1"',
    "build writes": lambda _, canary: f'"echo x > {canary}; exit 1"',
    "build writes beside its output": lambda _, canary: f'"echo x > $out.{canary.name}; exit 1"',
    "build says that it is a result": lambda *_: '"echo {\\"status\\": \\"Success\\"}; exit 1"',
    "build kills": lambda *_: '"kill -9 -1; kill -9 1; exit 1"',
}
"""What stands in place of a builder's script, from the place of a secret and of what must not come to be."""


@define
class Stage:
    """A daemon whose jobs are about ``upstream``."""

    farm: Farm
    daemon: DaemonProcess
    upstream: Upstream
    numbers: int = field(default=0)

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    async def submit(self, number: int, head: str) -> None:
        job: dict[str, Any] = json.loads(json.dumps(self.farm.upstream.job(number, head, ["ok"])))
        job["repo"]["clone_url"] = self.upstream.url
        await self.farm.submit(SYSTEM, job)

    async def hostile(self, changes: Changes) -> None:
        number = self.next_number()
        await self.submit(number, self.upstream.pull_request(number, changes))

    async def honest_job_is_built(self) -> None:
        number = self.next_number()
        await self.submit(number, self.upstream.pull_request(number, {"doc/x": b"%d" % number}))
        await self.farm.tap.wait_for(
            lambda _: any(result["pr"]["number"] == number for result in self.farm.tap.results()),
            what="the honest job's result",
        )
        await self.farm.until_settled()
        status = {result["pr"]["number"]: result["status"] for result in self.farm.tap.results()}
        assert status[number] == "Success"


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory that all users may read and write: it is not for want of rights that nothing happens there."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o777)
        yield place


@pytest.mark.timeout(300)
async def test_none_does_what_it_wants_and_the_next_job_is_built(tmp_path: Path, broker: Broker, outside: Path) -> None:
    secret, canary = outside / "secret", outside / "canary"
    secret.write_text(f'"{SECRET}"\n')
    secret.chmod(0o644)
    upstream = Upstream(tmp_path / "hostile.git")
    upstream.commit("refs/heads/master", {name: text.encode() for name, text in package_set().items()})
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        stage = Stage(farm, daemon, upstream)
        await stage.honest_job_is_built()
        for contents in CONTENTS.values():
            await stage.hostile(contents(canary))
            await stage.honest_job_is_built()
        for names in NAMES:
            number = stage.next_number()
            await stage.submit(number, commit_of_names(upstream, number, names, canary))
            await stage.honest_job_is_built()
        first = stage.numbers + 1
        for script in EXPRESSIONS.values():
            text = PACKAGE.format(script=script(secret, canary))
            await stage.hostile({"default.nix": text.encode()})
            await stage.honest_job_is_built()

        status = {result["pr"]["number"]: result["status"] for result in farm.tap.results()}
        hostile = [status.get(number) for number in range(first, stage.numbers, 2)]
        assert hostile == [*["Skipped"] * 5, *["Failure"] * 6], dict(zip(EXPRESSIONS, hostile, strict=True))
        assert SECRET.encode() not in b"".join(message.body for message in farm.tap.messages)
        assert list(outside.iterdir()) == [secret]
        assert not list(tmp_path.rglob("*canary*"))
        refs = git("for-each-ref", "--format=%(refname)", cwd=upstream.path).splitlines()
        assert sorted(refs) == sorted(
            ["refs/heads/master", *(f"refs/pull/{number}/head" for number in range(1, stage.numbers + 1))]
        )
        seen = await daemon.status()
        assert (seen.verdict, seen.identities[0].restarts) == ("ok", 0)
        assert await daemon.stop() == 0
