"""One soak: a daemon under load, looked at again and again, then judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
from attrs import frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ofborg_async.lab.demo import IDENTITIES, SYSTEM
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import private_broker
from ofborg_async.lab.soak import shortday
from ofborg_async.lab.soak.load import Load
from ofborg_async.lab.soak.looks import KEPT_LOG_BYTES, MEASURES, look
from ofborg_async.lab.soak.trend import Sample, Trend, after_warm_up, trend_of

Tell = Callable[[str], None]
_TELL_EVERY = 12
_ENVIRONMENT = {"OFBORG_ASYNC_LOG_KEEP_BYTES": str(KEPT_LOG_BYTES), "OFBORG_ASYNC_HISTORY_KEEP_DAYS": "1"}


@frozen
class SoakReport:
    """``wrong``: results that were not the expected ones. ``exit_status`` of the daemon's stop at the end."""

    samples: tuple[Sample, ...]
    trends: tuple[Trend, ...]
    wrong: tuple[str, ...]
    exit_status: int

    @property
    def passed(self) -> bool:
        """Whether nothing grows and everything came as expected."""
        return not self.wrong and self.exit_status == 0 and not any(trend.grows for trend in self.trends)


async def run_soak(directory: Path, seconds: float, every_seconds: float, tell: Tell) -> SoakReport:
    """Do it in ``directory``. Raises LabError, DeadlineExceededError; ValueError when there are too few samples."""
    async with (
        private_broker(directory / "rabbitmq") as broker,
        open_farm(directory, broker, SYSTEM, max_silent_time="3") as farm,
        farm.daemon(farm.configuration(*IDENTITIES), environment=_ENVIRONMENT, prefix=shortday.prefix()) as daemon,
    ):
        load = Load(farm)
        samples = await _under_load(farm, daemon, load, seconds, every_seconds, tell)
        await load.finish()
        status = await daemon.stop()
    trends = tuple(trend_of(measure, samples) for measure in MEASURES)
    return SoakReport(tuple(samples), trends, tuple(load.wrong), status)


async def _under_load(
    farm: Farm, daemon: DaemonProcess, load: Load, seconds: float, every_seconds: float, tell: Tell
) -> list[Sample]:
    samples: list[Sample] = []
    roots = [farm.directory / "roots" / name for name in IDENTITIES]
    began = anyio.current_time()

    async def sample() -> None:
        while True:
            await anyio.sleep_until(began + (len(samples) + 1) * every_seconds)
            values = await look(daemon, roots)
            samples.append(Sample(anyio.current_time() - began, load.done, values))
            if len(samples) % _TELL_EVERY == 0:
                tell(f"{samples[-1].seconds:6.0f} s  {load.done} jobs, RSS {values['RSS']:.1f} MiB")

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        while anyio.current_time() - began < seconds:
            await load.run_round()
        group.cancel_scope.cancel()
    return samples


def show(console: Console, report: SoakReport) -> None:
    """The table, then what went wrong."""
    settled, last = after_warm_up(report.samples), report.samples[-1]
    console.print(
        f"{last.jobs} jobs in {last.seconds:.0f} s; {len(settled)} of {len(report.samples)} samples count, "
        f"from {settled[0].seconds:.0f} s on",
        markup=False,
    )
    table = Table("what", *("start", "middle", "end", "highest", "per 1000 jobs"), "verdict", box=None, pad_edge=False)
    for trend in report.trends:
        figures = [f"{value:.1f}" for value in (trend.start, trend.middle, trend.end, trend.highest)]
        verdict = Text(trend.verdict, style="bold red" if trend.grows else "")
        table.add_row(_name(trend), *figures, f"{trend.per_1000_jobs:+.1f}", verdict)
    console.print(table)
    for trend in report.trends:
        if trend.measure.reason:
            console.print(f"{trend.measure.name}: {trend.measure.reason}", style="dim", markup=False)
    for text in report.wrong:
        console.print(text, style="red", markup=False)
    console.print(
        f"{sum(trend.grows for trend in report.trends)} of {len(report.trends)} figures grow, "
        f"{len(report.wrong)} results were not the expected ones, the daemon exited with {report.exit_status}",
        markup=False,
    )


def _name(trend: Trend) -> str:
    measure = trend.measure
    return f"{measure.name} ({measure.unit})" if measure.unit else measure.name
