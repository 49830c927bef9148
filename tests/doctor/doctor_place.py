"""A farm whose host a doctor has nothing to say against, and the command run on it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from attrs import field, frozen

from ofborg_async.lab.farm import Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.servers import base_environment

SYSTEM = "x86_64-linux"
SHORT = {
    "nix.attempt_timeout_seconds": 1000,
    "nix.build_timeout_seconds": 600,
    "limits.fetch_timeout_seconds": 300,
    "limits.checkout_timeout_seconds": 200,
}
"""Limits below the broker's patience."""
HOMELESS = Path("/homeless-shelter")


@frozen
class Told:
    """What ``doctor --json`` said. ``notable``: number and verdict of what is not well, but for this machine's own."""

    status: int
    findings: list[dict[str, str]]

    @property
    def notable(self) -> set[tuple[str, str]]:
        found = {(each["requirement"], each["verdict"]) for each in self.findings if each["verdict"] != "ok"}
        return found - machines_own()

    def of(self, requirement: str) -> list[dict[str, str]]:
        return [each for each in self.findings if each["requirement"] == requirement and each["verdict"] != "ok"]


@frozen
class Ground:
    """A farm; ``environment`` is what the command runs with beside PATH."""

    farm: Farm
    environment: dict[str, str] = field(factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.farm.directory / "state"

    def configuration(self, *identities: str | Mapping[str, object], **changes: object) -> Path:
        shorter = {key.replace(".", "__"): value for key, value in SHORT.items()}
        return self.farm.configuration(*(identities or ("good-a", "good-b")), **(shorter | changes))

    async def run(self, file: Path, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit status and output of ``doctor``."""
        env = base_environment(
            OFBORG_ASYNC_STATE_DIR=str(self.state_dir),
            OFBORG_ASYNC_ALLOW_ROOT="1",
            PYTHONPATH=os.pathsep.join(sys.path),
        )
        argv = [*prefix, sys.executable, "-m", "ofborg_async", "doctor", "-c", str(file), *words]
        done = await anyio.run_process(argv, check=False, env=env | self.environment)
        return done.returncode, (done.stdout + done.stderr).decode()

    async def examine(self, file: Path, *words: str, prefix: tuple[str, ...] = ()) -> Told:
        """What ``doctor --json`` says."""
        status, text = await self.run(file, "--json", *words, prefix=prefix)
        try:
            return Told(status, json.loads(text)["findings"])
        except ValueError:
            raise AssertionError(text) from None


@asynccontextmanager
async def open_ground(directory: Path, broker: Broker, **nix_settings: str) -> AsyncIterator[Ground]:
    async with open_farm(directory, broker, SYSTEM, contents=None, **nix_settings) as farm:
        yield Ground(farm)


def machines_own() -> set[tuple[str, str]]:
    """What a doctor says of the machine that the tests run on: no kvm, and a directory that nix as root left behind."""
    found = {("D23", verdict) for verdict in ("warning", "failure") if HOMELESS.exists()}
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError:
        found.add(("R07", "warning"))
    return found


def status_of(*verdicts: str) -> int:
    """The exit status for these verdicts on this machine, whose nix is sandboxed."""
    machine = ("warning",) if machines_own() else ()
    return max(({"ok": 0, "warning": 1, "failure": 2}[verdict] for verdict in (*verdicts, *machine)), default=0)
