"""Many attrs in one job: each with a costly evaluation of its own, and all with the same one."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from ofborg_async.lab.bench.bare import nix_environment, run_bare
from ofborg_async.lab.bench.builders import OURS, THEIRS, in_turns, sides
from ofborg_async.lab.bench.jobs import all_running
from ofborg_async.lab.bench.model import Goal, Outcome, Row
from ofborg_async.lab.bench.plan import Bench
from ofborg_async.lab.store import Store, private_store

_KINDS = {"alone": ("sharing nothing", Goal(0.27)), "shared": ("sharing nearly all", Goal(0.10))}
_TRIAL_ROUNDS = 2_000
_TRIALS = 3

# The derivations are the same whatever the evaluation costs, so what a cheap evaluation built is there for a dear one.
_FILE = """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
let
  rounds = builtins.fromJSON (builtins.readFile ./rounds);
  some = builtins.genList (n: n) 1000;
  round = total: builtins.foldl' (sum: n: sum + n) total some;
  work = seed: builtins.foldl' (total: _: round total) seed (builtins.genList (n: n) rounds);
  once = work 0;
  package = name: cost: derivation {
    inherit name system; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; cost = builtins.seq cost "";
  };
in {
"""


@frozen
class Evaluated:
    """Seconds and CPU seconds, a value for each repetition."""

    wall_seconds: list[float] = field(factory=list)
    cpu_seconds: list[float] = field(factory=list)


async def measure(bench: Bench) -> Outcome:
    """Publish to result of a job of many attrs, all of them built before."""
    plan = bench.plan
    found = {(kind, who): Evaluated() for kind in _KINDS for who in (OURS, THEIRS)}
    with bench.place("attrs") as place:
        async with private_store(place / "store") as store:
            rounds = await _rounds(place / "trial", store, plan.attr_seconds)
        async with sides(bench, place, _contents(plan.attrs, 0)) as (both, upstream), all_running(both, 1) as ready:
            for kind in _KINDS:
                cheap = await upstream.open_pr(1, {f"cheap-{kind}": ""})
                for running in ready.values():
                    await running.work([upstream.job(1, cheap, _attrs(kind, plan.attrs))])
            number = 1
            for run in range(plan.attrs_runs):
                for kind in _KINDS:
                    number += 1
                    dear = await upstream.open_pr(number, {"rounds": f"{rounds}"})
                    job = upstream.job(number, dear, _attrs(kind, plan.attrs))
                    for who, running in in_turns(ready.items(), run):
                        before = running.cpu()
                        found[kind, who].wall_seconds.append(await running.work([job]))
                        await running.settle()
                        found[kind, who].cpu_seconds.append((running.cpu() - before).seconds)
    rows = []
    for kind, (words, goal) in _KINDS.items():
        ours, theirs = found[kind, OURS], found[kind, THEIRS]
        name = f"{plan.attrs} attrs of {plan.attr_seconds:g} s {words}"
        rows += [
            Row("attrs", name, "s", tuple(ours.wall_seconds), tuple(theirs.wall_seconds), goals=(goal,)),
            Row("attrs", f"{name}: CPU", "CPU s", tuple(ours.cpu_seconds), tuple(theirs.cpu_seconds)),
        ]
    return Outcome(tuple(rows))


def _attrs(kind: str, count: int) -> list[str]:
    return [f"{kind}{number}" for number in range(count)]


def _contents(count: int, rounds: int) -> dict[str, str]:
    lines = [
        line
        for number in range(count)
        for line in (
            f'  alone{number} = package "alone{number}" (work {number});',
            f'  shared{number} = package "shared{number}" once;',
        )
    ]
    return {"default.nix": _FILE + "\n".join(lines) + "\n}\n", "rounds": f"{rounds}"}


async def _rounds(place: Path, store: Store, seconds: float) -> int:
    """How many rounds of work cost so much CPU time on this machine, which may be busy otherwise."""
    place.mkdir()

    async def took(rounds: int) -> float:
        for name, text in _contents(1, rounds).items():
            (place / name).write_text(text)
        words = ("nix-instantiate", "./default.nix", "-A", "alone0")
        return (await run_bare(words, nix_environment(store), place)).cpu_seconds

    idle = min([await took(0) for _ in range(3)])
    rounds = _TRIAL_ROUNDS
    for _ in range(_TRIALS):  # a short trial says too much: the heap grows only once
        rounds = max(1, round(rounds * seconds / max(await took(rounds) - idle, 0.001)))
    return rounds
