"""Idle and start: builders that are connected and consume, and the way there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import anyio
from attrs import field, frozen

from ofborg_async.lab.bench.builders import OURS, THEIRS, Running, Side, in_turns, sides
from ofborg_async.lab.bench.model import Goal, Of, Outcome, Panel, Plot, Points, Row, Series
from ofborg_async.lab.bench.plan import Bench
from ofborg_async.lab.bench.usage import exact_cpu_seconds

_GOALS = {
    ("RSS", 4): (Goal(1.0),),
    ("RSS", 16): (Goal(0.3),),
    ("CPU", 16): (Goal(0.5, Of.ITSELF),),
    ("start", 16): (Goal(1.0, Of.ITSELF),),
}
_FURTHER = Goal(0.5, Of.ITSELF)
_QUIET_SECONDS = 1.0
"""What a builder still does after its start is no part of being idle."""


@frozen
class Idle:
    """What was measured of one side with one number of identities, a value for each repetition."""

    rss_mib: list[float] = field(factory=list)
    pss_mib: list[float] = field(factory=list)
    cpu_percent: list[float] = field(factory=list)
    start_seconds: list[float] = field(factory=list)


Measured = Mapping[tuple[str, int], Idle]


async def measure(bench: Bench) -> Outcome:
    """Memory of all builder processes, CPU while idle, seconds from exec until all identities consume."""
    plan = bench.plan
    found: dict[tuple[str, int], Idle] = defaultdict(Idle)
    with bench.place("idle") as place:
        async with sides(bench, place) as (both, _):
            for run in range(plan.idle_runs):
                for count in plan.identities:
                    for side in in_turns(both, run):
                        seconds = plan.idle_seconds if count == max(plan.identities) else 0.0
                        await observe(side, count, seconds, found[side.name, count])
    return Outcome(tuple(_rows(found, plan.identities)), (_plot(found, plan.identities),))


async def observe(side: Side, count: int, idle_seconds: float, into: Idle) -> None:
    """Start builders, look at them, stop them. CPU is watched for ``idle_seconds``, not at all with 0."""
    async with side.running(count) as running:
        into.start_seconds.append(running.started_seconds)
        await anyio.sleep(_QUIET_SECONDS)
        if idle_seconds:
            into.cpu_percent.append(await _idle_percent(running, idle_seconds))
        memory = running.memory()
    into.rss_mib.append(memory.rss_mib)
    if memory.pss_mib is not None:
        into.pss_mib.append(memory.pss_mib)


async def _idle_percent(running: Running, seconds: float) -> float:
    before = exact_cpu_seconds(running.pids)
    await anyio.sleep(seconds)
    return 100 * (exact_cpu_seconds(running.pids) - before) / seconds


def _rows(found: Measured, counts: Sequence[int]) -> list[Row]:
    def row(what: str, count: int, unit: str, values: Mapping[str, Series]) -> Row:
        figure = "start" if what == "start" else "idle"
        return Row(
            figure,
            f"{what}, N = {count}",
            unit,
            values[OURS],
            values[THEIRS],
            goals=_GOALS.get((what.split(maxsplit=1)[0], count), ()),
        )

    def of(attribute: str, count: int) -> dict[str, Series]:
        return {who: tuple(getattr(found.get((who, count), Idle()), attribute)) for who in (OURS, THEIRS)}

    rows = [row("RSS", count, "MiB", of("rss_mib", count)) for count in counts]
    rows += [row("PSS", count, "MiB", of("pss_mib", count)) for count in counts if found[OURS, count].pss_mib]
    rows.append(_further(found, counts))
    rows.append(row("CPU while idle", counts[-1], "%", of("cpu_percent", counts[-1])))
    rows += [row("start", count, "s", of("start_seconds", count)) for count in counts]
    return rows


def _further(found: Measured, counts: Sequence[int]) -> Row:
    """What an identity adds to the resident size, beyond the second number of identities."""
    few, many = counts[len(counts) > 2], counts[-1]

    def added(who: str) -> Series:
        pairs = zip(found[who, few].rss_mib, found[who, many].rss_mib, strict=True)
        return tuple((more - less) / (many - few) for less, more in pairs)

    theirs = added(THEIRS) if (THEIRS, few) in found else ()
    return Row("idle", f"RSS of a further identity ({few} to {many})", "MiB", added(OURS), theirs, goals=(_FURTHER,))


def _plot(found: Measured, counts: Sequence[int]) -> Plot:
    sides_shown = [who for who in (OURS, THEIRS) if (who, counts[0]) in found]

    def panel(title: str, unit: str, attributes: Mapping[str, str]) -> Panel:
        curves: dict[str, Points] = {}
        for who in sides_shown:
            for name, attribute in attributes.items():
                series = {count: tuple(getattr(found[who, count], attribute)) for count in counts}
                if all(series.values()):
                    curves[f"{who}{name}"] = tuple((float(count), runs) for count, runs in series.items())
        return Panel(title, unit, curves)

    memory = panel("memory of all processes", "MiB", {", RSS": "rss_mib", ", PSS": "pss_mib"})
    return Plot(
        "Idle builders", "identities", (memory, panel("from exec until all consume", "s", {"": "start_seconds"}))
    )
