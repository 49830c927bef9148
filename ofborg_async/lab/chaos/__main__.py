"""``python -m ofborg_async.lab.chaos [--seed N] [--minutes M | --rounds K] [--only FAULT ...] [--against PATH]``."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import anyio
from rich.console import Console

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.chaos.plan import SMALL, FaultKind, Size, draw_round
from ofborg_async.lab.chaos.round import RoundReport, kinds, run_round
from ofborg_async.lab.chaos.verdict import Sort
from ofborg_async.lab.store import remove_tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds; exit status 1 when any invariant was violated."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    directory = Path(tempfile.mkdtemp(prefix="ofborg-async-chaos-"))
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    console.print(f"seed {seed}; rounds have seeds {seed}, {seed + 1}, ...", markup=False)
    reports: list[RoundReport] = []
    try:
        anyio.run(_rounds, options, console, directory, seed, reports)
    except OfborgAsyncError as error:
        console.print(f"chaos: the lab itself failed: {error}", style="bold red", markup=False)
        return 1
    finally:
        show_total(console, reports)
        if options.keep:
            console.print(f"kept: {directory}", markup=False)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if any(report.findings for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ofborg_async.lab.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, metavar="N", help="of the first round; the next ones count up")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--minutes", type=float, default=5.0, metavar="M", help="begin rounds for so long")
    how_long.add_argument("--rounds", type=int, metavar="K", help="this many rounds")
    parser.add_argument("--small", action="store_true", help="rounds of a few seconds")
    parser.add_argument(
        "--only", action="append", type=FaultKind, choices=list(FaultKind), metavar="FAULT", help="no other faults"
    )
    parser.add_argument("--against", type=_program, metavar="PATH", help="another builder's program in place of ours")
    parser.add_argument("--keep", action="store_true", help="keep all files of rounds that found something")
    return parser


def _program(text: str) -> Path:
    path = Path(text).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no program")
    return path


async def _rounds(
    options: argparse.Namespace, console: Console, directory: Path, seed: int, reports: list[RoundReport]
) -> None:
    began = monotonic()
    number = 0
    while number < options.rounds if options.rounds is not None else monotonic() - began < 60 * options.minutes:
        plan = draw_round(seed + number, SMALL if options.small else Size(), options.only or ())
        console.print(
            f"round {plan.seed}: {plan.daemons} daemons of {plan.identities} identities, {len(plan.jobs)} jobs, "
            f"{len(plan.faults)} faults{', short acknowledgement time-out' if plan.acknowledgement_timeout else ''}",
            markup=False,
        )
        place = directory / f"round-{plan.seed}"
        report = await run_round(
            place, plan, options.against, lambda text: console.print(text, style="dim", markup=False)
        )
        reports.append(report)
        for finding in report.findings:
            console.print(f"  {finding.sort}: {finding.text}", style="red", markup=False)
        if not (options.keep and report.findings):
            remove_tree(place)
        number += 1


def show_total(console: Console, reports: Sequence[RoundReport]) -> None:
    """Counts over all rounds, and the seeds that repeat what was found."""
    planned = sum((kinds(report.plan.faults) for report in reports), Counter[FaultKind]())
    done = sum((kinds(report.done) for report in reports), Counter[FaultKind]())
    found: Counter[Sort] = sum((report.count() for report in reports), Counter())
    jobs = sum(len(report.plan.jobs) for report in reports)
    attempts, results = sum(report.attempts for report in reports), sum(report.results for report in reports)
    console.print(
        f"{len(reports)} rounds, {jobs} jobs, {attempts} attempts, {results} jobs with a result", markup=False
    )
    console.print(
        f"faults done: {done.total()} of {planned.total()}: "
        + ", ".join(
            f"{done[kind]}{f' (of {count})' if done[kind] < count else ''} {kind}"
            for kind, count in planned.most_common()
        ),
        markup=False,
    )
    console.print(
        f"two daemons on a queue: {sum(report.plan.daemons > 1 for report in reports)} rounds; "
        f"short acknowledgement time-out: {sum(report.plan.acknowledgement_timeout for report in reports)} rounds, "
        f"{sum(report.timeouts for report in reports)} deliveries timed out; "
        f"jobs with results of two daemons, as lost deliveries explain: {sum(report.shared for report in reports)}",
        markup=False,
    )
    console.print(", ".join(f"{sort}: {found[sort]}" for sort in Sort), markup=False)
    bad = [str(report.plan.seed) for report in reports if report.findings]
    if bad:
        console.print(f"repeat with --rounds 1 --seed {' or '.join(bad)}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
