"""Big trees and long histories: what several identities cost that work on the same repository."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from attrs import field, frozen

from ofborg_async.lab.bench.builders import OURS, THEIRS, Job, Running, Side, in_turns, sides
from ofborg_async.lab.bench.jobs import all_running, pack
from ofborg_async.lab.bench.model import Goal, Outcome, Row
from ofborg_async.lab.bench.plan import SYSTEM, Bench
from ofborg_async.lab.servers import LabError
from ofborg_async.lab.upstream import Upstream, package_set

_FOLDERS_OF_A_FOLDER = 200
_CHANGED_FILES = 20
_BLOBS_OF_A_COMMIT = 10
_BLOB_BYTES = 1 << 20


@frozen
class Costs:
    """What one side took: in all, for each cold start, and for each warm job."""

    cold_seconds: list[float] = field(factory=list)
    disk_mib: list[float] = field(factory=list)
    warm_seconds: list[float] = field(factory=list)
    warm_cpu_seconds: list[float] = field(factory=list)


class Moving:
    """A repository whose master moves before each pull request is opened, on what was master until then."""

    def __init__(self, upstream: Upstream, paths: Sequence[str]) -> None:
        self._upstream = upstream
        self._paths = paths
        self._number = 0

    async def jobs(self, count: int) -> list[Job]:
        """Jobs, all of which merge into the same, newest master."""
        heads = []
        base = await self._upstream.sha()
        for _ in range(count):
            self._number += 1
            head = await self._upstream.open_pr(self._number, {f"doc/{self._number}": "new"}, base=base)
            heads.append((self._number, head))
        if self._paths:
            start = self._number * _CHANGED_FILES
            changed = {self._paths[(start + n) % len(self._paths)]: f"{start}" for n in range(_CHANGED_FILES)}
            await self._upstream.advance_master(changed)
        return [self._upstream.job(number, head, ["ok"]) for number, head in heads]


async def measure_big(bench: Bench) -> Outcome:
    """First jobs of several identities on a big tree, then jobs one after the other, on warm trees."""
    plan = bench.plan
    files = big_tree(plan.big_folders)
    costs = {OURS: Costs(), THEIRS: Costs()}
    with bench.place("big") as place:
        async with sides(bench, place, package_set() | files) as (both, upstream):
            await pack(upstream)
            await _build_before(both, place / "package-set")
            moving = Moving(upstream, list(files))
            for run in range(plan.big_runs):
                async with _fresh(both, plan.big_identities, run) as ready:
                    await _cold(ready, await moving.jobs(plan.big_identities), costs, run)
                    if run == plan.big_runs - 1:
                        await _warm(bench, ready, moving, costs)
    cases = [("cold_seconds", "first job on all", "s", 0.6), ("disk_mib", "disk", "MiB", 0.96)]
    cases += [("warm_seconds", "a warm job", "s", 0.35), ("warm_cpu_seconds", "a warm job: CPU", "CPU s", 0.35)]
    return _outcome("big", f"{2 * plan.big_folders} files, {plan.big_identities} identities", cases, costs)


async def measure_history(bench: Bench) -> Outcome:
    """First jobs of several identities on a repository with a long history."""
    plan = bench.plan
    costs = {OURS: Costs(), THEIRS: Costs()}
    with bench.place("history") as place:
        async with sides(bench, place) as (both, upstream):
            await _grow(upstream, plan.history_mib)
            await _build_before(both, place / "package-set")
            moving = Moving(upstream, ())
            for run in range(plan.history_runs):
                async with _fresh(both, plan.history_identities, run) as ready:
                    await _cold(ready, await moving.jobs(plan.history_identities), costs, run)
    cases = [("disk_mib", "disk", "MiB", 0.3), ("cold_seconds", "until each has built once", "s", 0.3)]
    return _outcome("history", f"{plan.history_mib} MiB, {plan.history_identities} identities", cases, costs)


def big_tree(folders: int) -> dict[str, str]:
    """Two files in each of many folders, laid out as a package collection is: not too many in one folder."""
    paths = (f"pkgs/{n // _FOLDERS_OF_A_FOLDER:03}/package-{n:05}" for n in range(folders))
    return {f"{path}/{name}": f"{path} {name}\n" * 8 for path in paths for name in ("default.nix", "source.nix")}


async def _grow(upstream: Upstream, size_mib: int) -> None:
    """A history of this size in files that no later commit has any more.

    It is left unpacked, so that a clone has its price, as one over a network has.
    """
    noise = random.Random(1)
    path = "noise/{}".format
    for start in range(0, size_mib, _BLOBS_OF_A_COMMIT):
        numbers = range(start, min(start + _BLOBS_OF_A_COMMIT, size_mib))
        await upstream.advance_master({path(number): noise.randbytes(_BLOB_BYTES) for number in numbers})
        await upstream.advance_master({path(number): None for number in numbers})


async def _build_before(both: Sequence[Side], folder: Path) -> None:
    """Build what the jobs build: of two that would build the same at once, nix lets one look again after 5 s only."""
    for name, text in package_set().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for side in both:
        words = ("nix-build", "--no-out-link", "./default.nix", "--argstr", "system", SYSTEM, "-A", "ok")
        await side.farm.store.nix(*words, cwd=folder)


@asynccontextmanager
async def _fresh(both: Sequence[Side], identities: int, run: int) -> AsyncIterator[dict[str, Running]]:
    """Builders that have nothing yet; what they make is removed at the end."""
    async with all_running(both, identities, f"run-{run}") as ready:
        yield ready
    for running in ready.values():
        await anyio.to_thread.run_sync(shutil.rmtree, running.farm.directory)


async def _cold(ready: Mapping[str, Running], jobs: Sequence[Job], costs: Mapping[str, Costs], run: int) -> None:
    """A job for each identity at once, one side after the other."""
    for who, running in in_turns(ready.items(), run):
        await anyio.to_thread.run_sync(os.sync)  # what was written before is not this side's load
        costs[who].cold_seconds.append(await running.work(jobs))
        if len(running.busy_identities()) != len(jobs):
            raise LabError(f"not every identity got a job: {running.busy_identities()}")
        await running.settle()
        costs[who].disk_mib.append(running.disk_mib())


async def _warm(bench: Bench, ready: Mapping[str, Running], moving: Moving, costs: Mapping[str, Costs]) -> None:
    """Jobs one after the other; the first ones, which may look at all of a tree that is there already, do not count."""
    unseen = bench.plan.big_identities
    for number in range(unseen + bench.plan.big_jobs):
        jobs = await moving.jobs(1)
        for who, running in in_turns(ready.items(), number):
            before = running.cpu()
            seconds = await running.work(jobs)
            await running.settle()
            if number >= unseen:
                costs[who].warm_seconds.append(seconds)
                costs[who].warm_cpu_seconds.append((running.cpu() - before).seconds)


def _outcome(
    figure: str, circumstances: str, cases: Iterable[tuple[str, str, str, float]], costs: Mapping[str, Costs]
) -> Outcome:
    return Outcome(
        tuple(
            Row(
                figure,
                f"{circumstances}: {name}",
                unit,
                tuple(getattr(costs[OURS], attribute)),
                tuple(getattr(costs[THEIRS], attribute)),
                goals=(Goal(bound),),
            )
            for attribute, name, unit, bound in cases
        )
    )
