"""The demonstration: the main job done for real on the screen, and checked. ``make demo`` runs it.

A private RabbitMQ node, a real repository with pull requests, a private nix store, one daemon with three identities in
roots of their own, and a consumer that sees what the feeder, the log viewer and the result poster would see.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from attrs import frozen
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ofborg_async.cli.render_status import render_status
from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.upstream import package_set
from ofborg_async.waiting import within

SYSTEM = "x86_64-linux"
IDENTITIES = ("demo-a", "demo-b", "demo-c")
FRAME_SECONDS = 0.25
DEADLINE_SECONDS = 120.0
SETTLE_SECONDS = 20.0


@frozen
class Act:
    """One pull request, its job, and the status that must come of it (None: acknowledged, nothing is sent)."""

    title: str
    attrs: tuple[str, ...]
    expected: str | None
    changes: dict[str, str]
    subset: str | None = None
    exists: bool = True


def acts() -> list[Act]:
    """The jobs of the demonstration, one of each kind."""
    fresh = 'fresh = mk "fresh" "echo new here; echo x > $out"; empty = { };'
    with_fresh = package_set()["default.nix"].replace("empty = { };", fresh)
    plan = [
        ("a package that builds", ("ok",), "Success"),
        ("two packages", ("two", "quiet"), "Success"),
        ("a builder that fails", ("fail",), "Failure"),
        ("a wrong hash", ("hash",), "HashMismatch"),
        ("a silent builder", ("slow",), "TimedOut"),
        ("nothing evaluates", ("missing", "throws"), "Skipped"),
        ("some evaluate", ("ok", "missing"), "Success"),
        ("sixty lines", ("long",), "Success"),
    ]
    result = [Act(title, attrs, status, {f"doc/{n}": title}) for n, (title, attrs, status) in enumerate(plan)]
    return [
        *result,
        Act("a new package", ("fresh",), "Success", {"default.nix": with_fresh}),
        Act("a NixOS test", ("tests.simple",), "Success", {"doc/nixos": "x"}, subset="NixOS"),
        Act("does not merge", ("ok",), "Failure", {"doc/readme": "from the pull request"}),
        Act("no such pull request", ("ok",), None, {}, exists=False),
    ]


def main() -> int:
    """Run the demonstration; exit status 0 only if every result was the expected one."""
    console = Console()
    directory = Path(tempfile.mkdtemp(prefix="ofborg-async-demo-"))
    try:
        return anyio.run(_demo, console, directory)
    except OfborgAsyncError as error:
        console.print(Text(f"demo: {error}", style="bold red"))
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _demo(console: Console, directory: Path) -> int:
    _say(console, f"A private RabbitMQ node, repository and nix store in {directory}")
    broker = Broker(directory / "rabbitmq")
    try:
        await broker.start()
        async with open_farm(directory, broker, SYSTEM, max_silent_time="3") as farm:
            return await _perform(console, farm)
    finally:
        broker.close()


async def _perform(console: Console, farm: Farm) -> int:
    plan = acts()
    count = len(IDENTITIES)
    _say(console, f"One daemon with {count} identities in roots of their own; {len(plan)} jobs on their queue")
    async with farm.daemon(farm.configuration(*IDENTITIES)) as daemon:
        await _publish(farm, plan)
        await _watch(console, farm, daemon, plan)
        _show_log(console, farm)
        wrong = _show_results(console, farm, plan)
        _say(console, "A clean stop")
        status = await daemon.stop()
    console.print(f"the daemon exited with status {status}")
    if wrong or status != 0:
        console.print(Text(f"{wrong} results were not the expected ones", style="bold red"))
        return 1
    console.print(Text("every result was the expected one; nothing is left running", style="bold green"))
    return 0


async def _publish(farm: Farm, plan: Sequence[Act]) -> None:
    heads = [
        await farm.upstream.open_pr(number, act.changes) if act.exists else "0" * 40
        for number, act in enumerate(plan, 1)
    ]
    await farm.upstream.advance_master({"doc/readme": "from master"})
    for number, (act, head) in enumerate(zip(plan, heads, strict=True), 1):
        await farm.submit(SYSTEM, farm.upstream.job(number, head, act.attrs, subset=act.subset))


async def _watch(console: Console, farm: Farm, daemon: DaemonProcess, plan: Sequence[Act]) -> None:
    """Show ``status`` as it changes, until every job has its result and no message is left."""
    expected = sum(act.expected is not None for act in plan)

    async def picture() -> Any:
        return render_status(await daemon.status(), console.width)

    with (
        within(DEADLINE_SECONDS, "the demonstration"),
        Live(await picture(), console=console, auto_refresh=False) as live,
    ):
        while len(farm.tap.results()) < expected:
            await anyio.sleep(FRAME_SECONDS)
            live.update(await picture(), refresh=True)
        await farm.until_settled(deadline_seconds=SETTLE_SECONDS)
        live.update(await picture(), refresh=True)


def _show_log(console: Console, farm: Farm) -> None:
    """One log as a log viewer receives it."""
    _say(console, "The log of pull request 2, as a consumer of the exchange `logs` sees it")
    for message in farm.tap.on("logs", "lab/packages.2"):
        payload = message.payload
        if "line_number" in payload:
            console.print(Text(f"{payload['line_number']:>4}  {payload['output']}"))
        else:
            kind = "BuildResult" if "tag" in payload else "LogStart"
            console.print(Text(f"      {kind}", style="dim"))


def _show_results(console: Console, farm: Farm, plan: Sequence[Act]) -> int:
    """Every job with its result; returns how many are not the expected one."""
    _say(console, "The results, as a consumer of the exchange `build-results` sees them")
    results: dict[int, list[dict[str, Any]]] = {}
    for result in farm.tap.results():
        results.setdefault(result["pr"]["number"], []).append(result)
    table = Table("PR", "job", "attrs", "expected", "result", box=None, pad_edge=False)
    wrong = 0
    for number, act in enumerate(plan, 1):
        got = [result["status"] for result in results.get(number, [])]
        right = got == ([act.expected] if act.expected else [])
        wrong += not right
        shown = ", ".join(map(str, got)) or "nothing sent"
        table.add_row(
            str(number),
            act.title,
            " ".join(act.attrs),
            act.expected or "nothing sent",
            Text(shown, style="green" if right else "bold red"),
        )
    console.print(table)
    return wrong


def _say(console: Console, text: str) -> None:
    console.print()
    console.print(Text(f"== {text}", style="bold"))


if __name__ == "__main__":
    sys.exit(main())
