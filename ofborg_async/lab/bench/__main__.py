"""``python -m ofborg_async.lab.bench [--against PATH] [--only FIGURES] [--quick] [--output DIRECTORY]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter

import anyio
from rich.console import Console

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.bench import attrs, idle, jobs, logs, plots, scale, show, trees
from ofborg_async.lab.bench.model import Outcome, Report, document
from ofborg_async.lab.bench.plan import FULL, QUICK, Bench
from ofborg_async.lab.rabbitmq import private_broker

FIGURES: dict[str, Callable[[Bench], Awaitable[Outcome]]] = {
    "idle": idle.measure,
    "small": jobs.measure_small,
    "pool": jobs.measure_pool,
    "log": logs.measure,
    "attrs": attrs.measure,
    "big": trees.measure_big,
    "history": trees.measure_history,
    "scale": scale.measure,
}


ALIASES = {"start": "idle"}

_FILE_CHARACTERS = 140
"""The width of tables that go to a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 0 when everything could be measured, whether goals are met or not."""
    options = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_CHARACTERS
    directory = Path(tempfile.mkdtemp(prefix="ofborg-async-bench-"))
    try:
        anyio.run(_measure_all, options, console, directory)
    except OfborgAsyncError as error:
        console.print(f"bench: {error}", style="bold red", markup=False)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ofborg_async.lab.bench", description=__doc__)
    parser.add_argument("--against", type=_program, metavar="PATH", help="another builder's program, to compare with")
    parser.add_argument(
        "--only",
        type=figure_names,
        default=frozenset(FIGURES),
        metavar="FIGURES",
        help=f"some of {', '.join(FIGURES)}, with commas or spaces between them",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers say nothing")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIRECTORY", help="where results are written")
    return parser


def figure_names(text: str) -> frozenset[str]:
    """Figures named in ``text``. Raises argparse.ArgumentTypeError for one that is not there."""
    named = [ALIASES.get(word, word) for word in text.replace(",", " ").split()]
    for name in named:
        if name not in FIGURES:
            raise argparse.ArgumentTypeError(
                f"no figure is called {name!r}; there are {', '.join([*FIGURES, *ALIASES])}"
            )
    return frozenset(named or FIGURES)


def _program(text: str) -> Path:
    path = Path(text).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no program")
    return path


async def _measure_all(options: argparse.Namespace, console: Console, directory: Path) -> None:
    # As a broker is by default: free to use every core.
    async with private_broker(directory / "rabbitmq", schedulers=os.cpu_count() or 1) as broker:
        bench = Bench(directory, broker, QUICK if options.quick else FULL, options.against)
        reports = []
        for name, measure in FIGURES.items():
            if name not in options.only:
                continue
            console.print(f"{name} ...", style="dim")
            load_before, began = _load(), perf_counter()
            outcome = await measure(bench)
            reports.append(Report(name, outcome, load_before, _load(), perf_counter() - began))
            show.show(console, reports[-1])
            _write(options, reports)  # after each, so that a fault of the last loses none
    pictures = plots.draw(options.output / "benchmarks", reports)
    (options.output / "benchmarks" / "table.md").write_text(show.markdown(reports))
    show.show_verdict(console, reports)
    console.print(f"written: {options.output / 'benchmarks.json'}; in benchmarks/ table.md and {len(pictures)} plots")


def _write(options: argparse.Namespace, reports: Sequence[Report]) -> None:
    machine = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "against": options.against.name if options.against else None,
        "quick": options.quick,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(reports, machine), indent=1, ensure_ascii=False)
    (options.output / "benchmarks.json").write_text(text + "\n")


def _load() -> float:
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    sys.exit(main())
