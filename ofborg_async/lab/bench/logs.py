"""The log: one build that prints very many lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from ofborg_async.lab.bench.bare import publish_log
from ofborg_async.lab.bench.builders import OURS, THEIRS, Job, Running, Side, in_turns, sides
from ofborg_async.lab.bench.model import Goal, Of, Outcome, Row, Series
from ofborg_async.lab.bench.peer import LOGS
from ofborg_async.lab.bench.plan import SYSTEM, Bench
from ofborg_async.lab.bench.usage import watching
from ofborg_async.lab.servers import LabError
from ofborg_async.lab.upstream import Upstream

LINE_CHARACTERS = 80
_LIMIT, _CONFIRMED = "limit", "limit with confirms"
_OF_LIMIT = Goal(0.95, Of.LIMIT, at_least=True)
_LEAST_LINES = 0.999

# `nonce` makes each a build of its own; the shell's own `yes` and `head` are as quick as nix can read.
_FILE = """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
{ log = derivation {
    name = "log"; inherit system; builder = "/bin/sh"; nonce = builtins.readFile ./nonce;
    args = [ "-c" "yes %s | head -n ${builtins.readFile ./count}; echo x > $out" ];
}; }
"""


def contents() -> dict[str, str]:
    """The package set with the talkative build."""
    text = "".join(chr(ord("a") + number % 26) for number in range(LINE_CHARACTERS))
    return {"default.nix": _FILE % text, "nonce": "", "count": "1"}


@frozen
class Talk:
    """What logs took, a value for each repetition. CPU is the builder's own, per line; growth of its resident size."""

    lines_per_second: list[float] = field(factory=list)
    cpu_micros: list[float] = field(factory=list)
    growth_mib: list[float] = field(factory=list)


class Talks:
    """Jobs that print a number of lines, each a build that never was."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._number = 0

    async def job(self, lines: int) -> Job:
        """A job; its log goes where no consumer is."""
        self._number += 1
        head = await self._upstream.open_pr(self._number, {"nonce": f"{self._number}", "count": f"{lines}"})
        return self._upstream.job(self._number, head, ["log"], logs=[LOGS, "bench.1"])

    def write_tree(self, place: Path, lines: int) -> Path:
        """The same as a folder, for the bare tools."""
        self._number += 1
        place.mkdir(exist_ok=True)
        for name, text in (contents() | {"nonce": f"bare-{self._number}", "count": f"{lines}"}).items():
            (place / name).write_text(text)
        return place


async def measure(bench: Bench) -> Outcome:
    """Lines a second from publish to result, own CPU of the builder, growth; and the same by the bare tools.

    There are two limits, and the goal is told of both: with the broker's confirms, as ours must have them, since a line
    that the broker may not have is not forgotten; and without, as the original and the goal's first measurement.
    """
    plan = bench.plan
    talks = {OURS: Talk(), THEIRS: Talk(), _LIMIT: Talk(), _CONFIRMED: Talk()}
    with bench.place("log") as place:
        async with sides(bench, place, contents()) as (both, upstream):
            for side in both:
                await side.peer.open_logs()
            source = Talks(upstream)
            for run in range(plan.log_runs):
                for side in in_turns(both, run):
                    async with side.running(1, f"run-{run}") as running:
                        await talk(running, await source.job(1), 1, Talk())
                        await talk(running, await source.job(plan.log_lines), plan.log_lines, talks[side.name])
                for limit in (_LIMIT, _CONFIRMED):
                    tree = source.write_tree(place / "bare", plan.log_lines)
                    await _bare_talk(both[0], tree, plan.log_lines, talks[limit], confirms=limit == _CONFIRMED)
    return Outcome(_rows(talks))


async def talk(running: Running, job: Job, lines: int, into: Talk) -> None:
    """One such job. Raises LabError when lines are missing on the broker."""
    memory = running.memory()
    before = running.cpu()
    async with watching(running.pids) as peak:
        seconds = await running.work([job])
    await running.settle()
    own = (running.cpu() - before).own_seconds
    into.lines_per_second.append(lines / seconds)
    into.cpu_micros.append(1e6 * own / lines)
    into.growth_mib.append(peak.rss_mib - memory.rss_mib)
    await _check(await running.peer.take_logs(), lines)


async def _bare_talk(side: Side, tree: Path, lines: int, into: Talk, *, confirms: bool) -> None:
    done = await publish_log(side.farm, LOGS, tree, "log", confirms=confirms)
    into.lines_per_second.append(done.lines / done.seconds)
    into.cpu_micros.append(1e6 * done.cpu_seconds / done.lines)
    await _check(await side.peer.take_logs(), lines)


async def _check(came: int, lines: int) -> None:
    if came < lines * _LEAST_LINES:
        raise LabError(f"only {came} of {lines} log messages came to the broker ({SYSTEM})")


def _rows(talks: Mapping[str, Talk]) -> tuple[Row, ...]:
    def of(who: str, attribute: str) -> Series:
        return tuple(getattr(talks[who], attribute))

    def row(name: str, unit: str, attribute: str, limit: str, *goals: Goal) -> Row:
        ours, theirs, bare = (of(who, attribute) for who in (OURS, THEIRS, limit))
        return Row("log", name, unit, ours, theirs, bare, goals)

    rate = "lines a second until the result"
    more = Goal(1.15, at_least=True)
    unconfirmed = f"{rate}; limit without confirms"
    return (
        row(f"{rate}; limit with confirms", "1/s", "lines_per_second", _CONFIRMED, more, _OF_LIMIT),
        Row("log", unconfirmed, "1/s", of(OURS, "lines_per_second"), (), of(_LIMIT, "lines_per_second"), (_OF_LIMIT,)),
        row("own CPU per line", "µs", "cpu_micros", _LIMIT, Goal(0.2)),
        row("growth of the resident size", "MiB", "growth_mib", _LIMIT, Goal(16.0, Of.ITSELF)),
    )
