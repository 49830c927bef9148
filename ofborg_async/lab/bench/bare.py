"""The limits: the same work done by the bare tools by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from ofborg_async.clock import SystemClock
from ofborg_async.lab.bench.builders import Job
from ofborg_async.lab.bench.plan import SYSTEM
from ofborg_async.lab.commands import run
from ofborg_async.lab.farm import Farm
from ofborg_async.lab.servers import LabError, base_environment
from ofborg_async.lab.store import Store
from ofborg_async.lab.upstream import Upstream
from ofborg_async.process import Command, Completed, Spawner

_SECONDS = 600.0

# One fetch, one merge, one checkout of the difference, one evaluation, one build. $1: the pull request; $2: the attr.
_SMALL_JOB = """
set -e
git fetch -q --no-write-fetch-head origin +refs/heads/master:refs/bench/base "+refs/pull/$1/head:refs/bench/head"
tree=$(git merge-tree --write-tree refs/bench/base refs/bench/head)
commit=$(git commit-tree -m merge -p refs/bench/base -p refs/bench/head "$tree")
git checkout -q --force --detach "$commit"
NIX_PATH=ofborg-nixpkgs-pr=$PWD
export NIX_PATH
nix-store --realise "$(nix-instantiate --show-trace --option restrict-eval true --argstr system "$3" \\
  --arg supportedSystems "[\\"$3\\"]" ./default.nix -A "$2")"
"""


@frozen
class BareTools:
    """git and nix, and a clone for them in ``tree``. ``environment`` is all they get."""

    tree: Path
    environment: dict[str, str]

    @classmethod
    async def prepare(cls, tree: Path, upstream: Upstream, store: Store) -> BareTools:
        """Clone; the store is shared with a builder, so what that has built is there."""
        author = {"GIT_AUTHOR_NAME": "bench", "GIT_COMMITTER_NAME": "bench", "EMAIL": "bench@localhost"}
        own = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
        environment = nix_environment(store) | own | author
        await run("git", "clone", "--quiet", upstream.url, str(tree), env=environment, deadline_seconds=_SECONDS)
        return cls(tree, environment)

    async def run_job(self, job: Job) -> Completed:
        """A small job. Raises LabError when it fails."""
        words = ("sh", "-c", _SMALL_JOB, "job", str(job["pr"]["number"]), job["attrs"][0], SYSTEM)
        return await run_bare(words, self.environment, self.tree)


def nix_environment(store: Store) -> dict[str, str]:
    """What nix needs to use a store."""
    return base_environment(HOME="/homeless-shelter", NIX_REMOTE=store.remote, **store.environment)


@frozen
class BulkLog:
    """A log published by the bare tools: seconds from the start of nix-build, own CPU seconds, lines."""

    seconds: float
    cpu_seconds: float
    lines: int


async def publish_log(farm: Farm, exchange: str, tree: Path, attr: str, *, confirms: bool) -> BulkLog:
    """Build ``attr`` of ``tree`` and publish its lines with nothing in between. Raises LabError."""
    environment = nix_environment(farm.store)
    module = f"{__package__}.bulk"
    build = ("nix-build", "--no-out-link", str(tree / "default.nix"), "-A", attr)
    words = (sys.executable, "-m", module, farm.broker.url(vhost=farm.vhost), exchange, str(int(confirms)), *build)
    done = await run_bare(words, environment, Path.cwd())  # as this program was started, so that ours is what it finds
    return BulkLog(**json.loads(done.stdout))


async def run_bare(words: tuple[str, ...], environment: Mapping[str, str], cwd: Path) -> Completed:
    """Run a command: how long it took, and what CPU. Raises LabError when it fails."""
    spawner = Spawner(SystemClock(), None)
    done = await spawner.capture(Command(words, environment, cwd), deadline_seconds=_SECONDS, what="bare tools")
    if done.returncode != 0:
        raise LabError(f"the bare tools failed: {done.stderr.decode(errors='replace')}")
    return done
