"""A host with identities: workspaces over real git, real processes and real locks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from ofborg_async.checkout import GitWorkspace, MirrorStore
from ofborg_async.clock import SystemClock
from ofborg_async.locks import LockManager
from ofborg_async.model.checkout import CheckoutOutcome, Ready
from ofborg_async.model.identity import BrokerSettings, IdentitySettings, LimitSettings, NixSettings, Secret
from ofborg_async.model.job import BuildJob, PullRequest, Repo
from ofborg_async.model.status import Phase
from ofborg_async.process import Command, Completed, Spawner

SYSTEMS = ("x86_64-linux", "aarch64-linux")
FULL_NAME = "NixOS/nixpkgs"
NIXPKGS_DIGEST = "38dca4e3aa6bca43ea96d2fcc04e8229"


class CountingSpawner(Spawner):
    """Notes every command line that it ran."""

    def __init__(self, clock: SystemClock) -> None:
        super().__init__(clock, None)
        self.commands: list[tuple[str, ...]] = []

    async def capture(self, command: Command, **how: Any) -> Completed:
        self.commands.append(command.argv)
        return await super().capture(command, **how)

    def names(self) -> list[str]:
        """The git commands that ran: ``fetch``, ``merge-tree`` ..."""
        return [next(word for word in argv[1:] if not word.startswith("-")) for argv in self.commands]


class Bench:
    """What a daemon has one of, and the identities on it."""

    def __init__(self, place: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.place = place
        self.environment = environment
        self.phases: list[Phase] = []
        self.start()

    def start(self) -> None:
        """A daemon that was just started: it remembers nothing."""
        clock = SystemClock()
        self.spawner = CountingSpawner(clock)
        self.locks = LockManager(clock)
        self.mirrors = MirrorStore(self.place / "state" / "mirrors", locks=self.locks, clock=clock)
        self.clock = clock

    def root(self, name: str) -> Path:
        return self.place / "roots" / name

    def workspace(
        self, name: str = "a", system: str = SYSTEMS[0], *, limits: LimitSettings | None = None, schemes: str = "file"
    ) -> GitWorkspace:
        settings = IdentitySettings(
            name=name,
            root=self.root(name),
            nix=NixSettings(systems=SYSTEMS),
            broker=BrokerSettings((("localhost", 5672),), "/", "u", Secret("")),
            limits=limits or LimitSettings(fetch_timeout_seconds=60.0, checkout_timeout_seconds=60.0),
            clone_url_schemes=tuple(schemes.split(",")),
            git_name="ofborg",
            git_email="ofborg@example.org",
        )
        return GitWorkspace(
            settings,
            system,
            mirrors=self.mirrors,
            spawner=self.spawner,
            locks=self.locks,
            clock=self.clock,
            environment=self.environment,
        )

    async def prepare(self, workspace: GitWorkspace, job: BuildJob, attempt_id: str = "attempt") -> CheckoutOutcome:
        """One job as the pipeline carries it out, without building."""
        async with workspace.lease(job, attempt_id) as lease:
            return await workspace.prepare(job, attempt_id, lease, self.phases.append)

    async def ready(self, workspace: GitWorkspace, job: BuildJob) -> Path:
        """The work tree of a job that must come out well."""
        outcome = await self.prepare(workspace, job)
        assert isinstance(outcome, Ready), outcome
        return outcome.path

    def tree(self, name: str = "a") -> Path:
        return self.root(name) / "repo" / NIXPKGS_DIGEST / "builder" / name

    def mirror(self, url: str) -> Path:
        return self.mirrors.path_of(url)


def job_of(url: str, number: int, head: str, branch: str | None = "master", full_name: str = FULL_NAME) -> BuildJob:
    owner, _, name = full_name.partition("/")
    return BuildJob(
        repo=Repo(owner, name, full_name, url),
        pr=PullRequest(number, head, branch),
        attrs=("hello",),
        request_id="request",
    )


def with_head(job: BuildJob, head: str) -> BuildJob:
    return evolve(job, pr=evolve(job.pr, head_sha=head))
