"""How much of each figure is measured, and what every figure is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from ofborg_async.lab.rabbitmq import Broker

SYSTEM = "x86_64-linux"


@frozen
class Plan:
    """Sizes and repetitions. ``..._runs`` are repetitions of the whole; a run of the other builder costs as much."""

    identities: tuple[int, ...] = (1, 4, 8, 16)
    idle_runs: int = 3
    idle_seconds: float = 5.0
    small_blocks: int = 6
    small_jobs: int = 6
    pool_identities: tuple[int, ...] = (4, 8)
    pool_runs: int = 3
    pool_jobs: int = 64
    log_runs: int = 4
    log_lines: int = 200_000
    attrs_runs: int = 3
    attrs: int = 20
    attr_seconds: float = 0.8
    big_runs: int = 3
    big_folders: int = 20_000
    big_identities: int = 4
    big_jobs: int = 12
    history_runs: int = 3
    history_mib: int = 300
    history_identities: int = 4
    scale_runs: int = 3
    scale_identities: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    scale_lines: tuple[int, ...] = (12_500, 50_000, 200_000)
    scale_waiters: tuple[int, ...] = (10, 100, 1_000, 10_000)
    scale_rows: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)


FULL = Plan()

QUICK = Plan(
    identities=(1, 3),
    idle_runs=1,
    idle_seconds=0.5,
    small_blocks=2,
    small_jobs=2,
    pool_identities=(2,),
    pool_runs=1,
    pool_jobs=6,
    log_runs=1,
    log_lines=5_000,
    attrs_runs=1,
    attrs=8,
    attr_seconds=0.1,
    big_runs=2,
    big_folders=200,
    big_identities=2,
    big_jobs=3,
    history_runs=2,
    history_mib=4,
    history_identities=2,
    scale_runs=1,
    scale_identities=(1, 3),
    scale_lines=(12_500, 25_000),  # fewer take less CPU than a tick of its clock
    scale_waiters=(10, 100),
    scale_rows=(100, 1_000),
)
"""Shows that every figure can be measured; its numbers say nothing."""


@frozen
class Bench:
    """What a figure is measured with. ``against`` is the other builder's program, if there is one."""

    directory: Path
    broker: Broker
    plan: Plan
    against: Path | None

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A directory for the time of the block."""
        place = self.directory / name
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
