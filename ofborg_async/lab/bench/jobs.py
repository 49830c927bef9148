"""The small job and the pool: nothing to build, one attr, a root that is warm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter

import anyio
from attrs import field, frozen

from ofborg_async.lab.bench.bare import BareTools
from ofborg_async.lab.bench.builders import OURS, THEIRS, Job, Running, Side, in_turns, sides
from ofborg_async.lab.bench.model import Goal, Outcome, Row
from ofborg_async.lab.bench.plan import Bench
from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import base_environment
from ofborg_async.lab.upstream import Upstream

_HALF = (Goal(0.5),)
_PACK_SECONDS = 600.0
_PAUSE_SECONDS = 0.05
"""Between small jobs, so that one's acknowledgement is not in the next one's time."""


@frozen
class Cost:
    """Seconds from publish to result, and CPU seconds with those of children, in each repetition."""

    wall_seconds: list[float] = field(factory=list)
    cpu_seconds: list[float] = field(factory=list)


class PullRequests:
    """An endless row of pull requests, each with a change of its own, all opened on what master was before its last.

    So each is really merged, but master stands still meanwhile. Made by ``of``.
    """

    def __init__(self, upstream: Upstream, base: str) -> None:
        self._upstream = upstream
        self._base = base
        self._number = 0

    @classmethod
    async def of(cls, upstream: Upstream) -> PullRequests:
        """Pull requests of a repository, whose master moves once."""
        base = await upstream.sha()
        await upstream.advance_master({"doc/master": "moved"})
        return cls(upstream, base)

    async def jobs(self, count: int) -> list[Job]:
        """Jobs for the next ones. The repository is packed, as a server keeps it."""
        jobs = [await self._job() for _ in range(count)]
        await pack(self._upstream)
        return jobs

    async def _job(self) -> Job:
        self._number += 1
        head = await self._upstream.open_pr(self._number, {f"doc/{self._number}": "new"}, base=self._base)
        return self._upstream.job(self._number, head, ["ok"])


async def pack(upstream: Upstream) -> None:
    """Put all objects of a repository into one pack, all refs into one file."""
    for words in (("-c", "pack.window=0", "repack", "-a", "-d", "-q"), ("pack-refs", "--all")):
        await run("git", *words, env=base_environment(), cwd=upstream.path, deadline_seconds=_PACK_SECONDS)


@asynccontextmanager
async def all_running(both: Sequence[Side], identities: int, place: str = "run") -> AsyncIterator[dict[str, Running]]:
    """Every side with so many identities, by name."""
    async with AsyncExitStack() as stack:
        yield {side.name: await stack.enter_async_context(side.running(identities, place)) for side in both}


async def measure_small(bench: Bench) -> Outcome:
    """One identity, one job after the other; blocks of ours and theirs in turns, and of the bare tools."""
    plan = bench.plan
    costs = {OURS: Cost(), THEIRS: Cost()}
    limit = Cost()
    with bench.place("small") as place:
        async with sides(bench, place) as (both, upstream), all_running(both, 1) as ready:
            requests = await PullRequests.of(upstream)
            tools = await BareTools.prepare(place / "bare", upstream, both[0].farm.store)
            await _warm(ready, await requests.jobs(2))
            for run in range(plan.small_blocks):
                jobs = await requests.jobs(plan.small_jobs)
                for name, running in in_turns(ready.items(), run):
                    await _block(running, jobs, costs[name])
                for job in jobs:
                    done = await tools.run_job(job)
                    limit.wall_seconds.append(done.duration_seconds)
                    limit.cpu_seconds.append(done.cpu_seconds)
    return Outcome(_rows("small job", "publish to result", costs, limit))


async def _block(running: Running, jobs: Sequence[Job], cost: Cost) -> None:
    """Some small jobs; CPU time is told in hundredths of a second, hence for all of them together."""
    before = running.cpu()
    for job in jobs:
        cost.wall_seconds.append(await running.work([job]))
        await anyio.sleep(_PAUSE_SECONDS)
    await running.settle()
    cost.cpu_seconds.append((running.cpu() - before).seconds / len(jobs))


async def measure_pool(bench: Bench) -> Outcome:
    """Many small jobs at once on several identities, all warm; the bare tools on as many trees, each with its share."""
    plan = bench.plan
    rows: list[Row] = []
    with bench.place("pool") as place:
        async with sides(bench, place) as (both, upstream):
            requests = await PullRequests.of(upstream)
            trees = [place / f"bare-{number}" for number in range(max(plan.pool_identities))]
            tools = [await BareTools.prepare(tree, upstream, both[0].farm.store) for tree in trees]
            for count in plan.pool_identities:
                costs = {OURS: Cost(), THEIRS: Cost()}
                limit = Cost()
                async with all_running(both, count, f"run-{count}") as ready:
                    await _warm(ready, await requests.jobs(2 * count))
                    for run in range(plan.pool_runs):
                        jobs = await requests.jobs(plan.pool_jobs)
                        for name, running in in_turns(ready.items(), run):
                            before = running.cpu()
                            costs[name].wall_seconds.append(await running.work(jobs))
                            await running.settle()
                            costs[name].cpu_seconds.append((running.cpu() - before).seconds)
                        await _share(tools[:count], jobs, limit)
                rows += _rows("pool", f"{plan.pool_jobs} jobs on N = {count}", costs, limit)
    return Outcome(tuple(rows))


async def _share(tools: Sequence[BareTools], jobs: Sequence[Job], cost: Cost) -> None:
    """All jobs by the bare tools, each tree its share, at once."""
    cpu_seconds = []

    async def work(tree: BareTools, share: Sequence[Job]) -> None:
        cpu_seconds.extend([(await tree.run_job(job)).cpu_seconds for job in share])

    began = perf_counter()
    async with anyio.create_task_group() as group:
        for number, tree in enumerate(tools):
            group.start_soon(work, tree, jobs[number :: len(tools)])
    cost.wall_seconds.append(perf_counter() - began)
    cost.cpu_seconds.append(sum(cpu_seconds))


async def _warm(ready: Mapping[str, Running], jobs: Sequence[Job]) -> None:
    for running in ready.values():
        await running.work(jobs)
        await running.settle()


def _rows(figure: str, name: str, costs: Mapping[str, Cost], limit: Cost) -> tuple[Row, ...]:
    return (
        Row(
            figure,
            name,
            "s",
            tuple(costs[OURS].wall_seconds),
            tuple(costs[THEIRS].wall_seconds),
            tuple(limit.wall_seconds),
            _HALF,
        ),
        Row(
            figure,
            f"{name}: CPU with children",
            "CPU s",
            tuple(costs[OURS].cpu_seconds),
            tuple(costs[THEIRS].cpu_seconds),
            tuple(limit.cpu_seconds),
            _HALF,
        ),
    )
