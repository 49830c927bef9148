"""How cost grows with what is beyond this machine: identities, queued lines, waiters for a lock, rows of history.

Ours only. Each curve is the cost of one; where it is flat the cost of all grows in proportion, no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from ofborg_async.lab.bench import units
from ofborg_async.lab.bench.builders import sides
from ofborg_async.lab.bench.idle import Idle, observe
from ofborg_async.lab.bench.logs import Talk, Talks, contents, talk
from ofborg_async.lab.bench.model import Outcome, Panel, Plot, Row, Series
from ofborg_async.lab.bench.plan import Bench

_IDLE_SECONDS = 2.0
_MICROS = 1e6


@frozen
class Curve:
    """A cost in ``unit`` for each amount of what it depends on. Those of the same unit are drawn over one another."""

    name: str
    unit: str
    values: Mapping[int, Series]


async def measure(bench: Bench) -> Outcome:
    """Identities, lines, waiters for a lock, rows of history."""
    parts = [
        _outcome("identities", "What an identity costs", await _identities(bench)),
        _outcome("lines", "What a log line costs", await _lines(bench)),
        _outcome("waiters for a lock", "What a waiter for a lock costs", await _waiters(bench)),
        _outcome("rows of history", "What history costs", await _history(bench)),
    ]
    return Outcome(tuple(row for rows, _ in parts for row in rows), tuple(plot for _, plot in parts))


async def _identities(bench: Bench) -> list[Curve]:
    one, *others = counts = bench.plan.scale_identities
    found: dict[int, Idle] = defaultdict(Idle)
    with bench.place("scale-identities") as place:
        async with sides(bench, place) as (both, _):
            for _run in range(bench.plan.scale_runs):
                for count in counts:
                    await observe(both[0], count, _IDLE_SECONDS, found[count])

    def added(less: Sequence[float], more: Sequence[float], count: float) -> Series:
        return tuple((b - a) / count for a, b in zip(less, more, strict=True))

    alone = found[one]
    return [
        Curve(f"RSS, each beyond {one}", "MiB", {n: added(alone.rss_mib, found[n].rss_mib, n - one) for n in others}),
        Curve("start of all", "s", {n: tuple(found[n].start_seconds) for n in counts}),
        Curve("idle CPU, each", "%", {n: tuple(value / n for value in found[n].cpu_percent) for n in counts}),
    ]


async def _lines(bench: Bench) -> list[Curve]:
    """Lines come quicker than the broker takes them: most of them wait at the end of the build."""
    counts = bench.plan.scale_lines
    found: dict[int, Talk] = defaultdict(Talk)
    with bench.place("scale-lines") as place:
        async with sides(bench, place, contents()) as (both, upstream):
            side = both[0]
            await side.peer.open_logs()
            source = Talks(upstream)
            async with side.running(1) as running:
                await talk(running, await source.job(counts[0]), counts[0], Talk())
                for _run in range(bench.plan.scale_runs):
                    for count in counts:
                        await talk(running, await source.job(count), count, found[count])
    wall = {n: tuple(_MICROS / rate for rate in found[n].lines_per_second) for n in counts}
    return [
        Curve("until the result, each", "µs", wall),
        Curve("own CPU, each", "CPU µs", {n: tuple(found[n].cpu_micros) for n in counts}),
        Curve("growth of RSS, in all", "MiB", {n: tuple(found[n].growth_mib) for n in counts}),
    ]


async def _waiters(bench: Bench) -> list[Curve]:
    runs = range(bench.plan.scale_runs)
    values = {
        count: tuple([_MICROS * await units.lock_cpu_seconds(count) / count for _run in runs])
        for count in bench.plan.scale_waiters
    }
    return [Curve("wait, hold and release, each", "CPU µs", values)]


async def _history(bench: Bench) -> list[Curve]:
    counts = bench.plan.scale_rows
    with bench.place("scale-rows") as place:
        costs = {n: await units.journal_costs(place / f"{n}", n, bench.plan.scale_runs) for n in counts}
    return [
        Curve("opening the journal", "ms", {n: costs[n].open_ms for n in counts}),
        Curve("a page of 100", "ms", {n: costs[n].page_ms for n in counts}),
        Curve("the five transactions of an attempt", "ms", {n: costs[n].attempt_ms for n in counts}),
        Curve("disk, each", "bytes", {n: (costs[n].row_bytes,) for n in counts}),
    ]


def _outcome(what: str, title: str, curves: Sequence[Curve]) -> tuple[list[Row], Plot]:
    rows = [
        Row("scale", f"{count:,} {what}: {curve.name}", curve.unit, series)
        for curve in curves
        for count, series in curve.values.items()
    ]
    return rows, Plot(title, what, tuple(_panels(curves)), log_x=True)


def _panels(curves: Sequence[Curve]) -> Iterator[Panel]:
    """One for each unit."""
    for unit in dict.fromkeys(curve.unit for curve in curves):
        alike = [curve for curve in curves if curve.unit == unit]
        drawn = {curve.name: tuple((float(n), series) for n, series in curve.values.items()) for curve in alike}
        yield Panel(alike[0].name if len(alike) == 1 else "", unit, drawn)
