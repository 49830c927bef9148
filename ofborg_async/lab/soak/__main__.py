"""``python -m ofborg_async.lab.soak [--minutes M] [--every SECONDS]``; exit status 1 when something grows."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio
from rich.console import Console

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.soak.run import SoakReport, run_soak, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit status 1 when something grows, a result was not the expected one, or the lab failed."""
    parser = argparse.ArgumentParser(prog="python -m ofborg_async.lab.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0, metavar="M", help="how long jobs are asked for")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two samples")
    parser.add_argument("--keep", action="store_true", help="keep all files")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    directory = Path(tempfile.mkdtemp(prefix="ofborg-async-soak-"))

    async def soak() -> SoakReport:
        return await run_soak(
            directory,
            60 * options.minutes,
            options.every,
            lambda text: console.print(text, style="dim", markup=False),
        )

    try:
        report = anyio.run(soak)
    except (OfborgAsyncError, ValueError) as error:
        console.print(f"soak: {error}", style="bold red", markup=False)
        return 1
    finally:
        if options.keep:
            console.print(f"kept: {directory}", markup=False)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    show(console, report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
