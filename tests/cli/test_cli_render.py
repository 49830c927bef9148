"""Pictures at 80 and 160 columns: nothing essential is missing, nothing is too wide, nothing hostile gets through."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from attrs import evolve
from rich.console import Console, RenderableType

from ofborg_async.cli.render_lists import render_history, render_locks
from ofborg_async.cli.render_status import render_status
from ofborg_async.model.status import IdentityState

sys.path.append(str(Path(__file__).parents[1] / "control"))
from fake_daemon import (
    ATTEMPT,
    HISTORY,
    IDENTITIES,
    LOCKS,
    LONG_ERROR,
    LONG_REMEDY,
    OTHER_ATTEMPT,
    SNAPSHOT,
    WELL,
)

WIDTHS = (80, 160)


def printed(picture: RenderableType, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False, emoji=False, color_system=None).print(picture)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def flat(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_essential_is_missing(width: int) -> None:
    lines = printed(render_status(SNAPSHOT, width), width)
    assert max(len(line) for line in lines) <= width
    text = flat(lines)
    for identity in IDENTITIES:
        assert f"{identity.name} {identity.state} {identity.systems[0].system} {identity.systems[0].amqp}" in text
        assert identity.reason in text
    for essential in (
        "mac1.example.org",
        "process 4711",
        "up 1d02h",
        "DOWN",
        "9b0a44f1c0de its files changed since",
        "builds 2/4, evaluations 1/2 (3 waiting)",
        "7 held, 1 waiting",
        "48.0 GiB free, floor 512 MiB",
        "events.example.org:5671, vhost ofborg",
        "connection refused, next try in 12s",
        "NixOS/nixpkgs#123456",
        "hello firefox python311Packages.numpy +2",
        "12:34/6:00:00",
        f"attempt {ATTEMPT}",
        f"attempt {OTHER_ATTEMPT}",
        "20481 lines",
        "waiting for the work tree, held by mac1-a",
        f"error: {LONG_ERROR}",
        f"remedy: {LONG_REMEDY}",
        "error: disk: no space left on device",
        "2 results wait in the outbox",
    ):
        assert essential in text, essential


def test_the_wide_table_has_the_columns_of_the_interface() -> None:
    lines = printed(render_status(SNAPSHOT, 160), 160)
    columns = "IDENTITY STATE SYSTEM AMQP JOB PHASE ELAPSED/LIMIT QUIET LOCK OK/FAIL-24h RESTARTS LAST-ERROR"
    heads = [line for line in lines if line.startswith("IDENTITY")]
    assert [" ".join(head.split()) for head in heads] == [columns]
    row = next(line for line in lines if line.startswith("mac1-a "))
    wanted = "mac1-a busy x86_64-linux holding NixOS/nixpkgs#123456 build 12:34/6:00:00 12s held 12/3 0 -"
    assert " ".join(row.split()) == wanted


def test_a_quiet_day_at_80_columns() -> None:
    well = evolve(WELL, identities=WELL.identities[1:])
    assert printed(render_status(well, 80), 80) == [
        "mac1.example.org  ofborg-async 0.1.0, process 4711, up 1d02h  OK",
        "config  9b0a44f1c0de",
        "slots   builds 2/4, evaluations 1/2 (3 waiting)",
        "locks   7 held, 1 waiting   disk 48.0 GiB free, floor 512 MiB",
        "broker  consuming events.example.org:5671, vhost ofborg, user builder",
        "",
        "IDENTITY  STATE  SYSTEM        AMQP       OK/FAIL-24h  LOCK",
        "mac1-b    idle   x86_64-linux  consuming  12/3         held",
    ]


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_hostile_text_moves_no_cursor(width: int) -> None:
    pictures = [render_status(SNAPSHOT, width), render_history(HISTORY, width), render_locks(LOCKS, width)]
    for picture in pictures:
        text = "\n".join(printed(picture, width))
        assert all(character.isprintable() or character == "\n" for character in text)
    assert r"evil\x1b[2J\x1b]0;owned\x07\u202eattr" in flat(printed(render_status(SNAPSHOT, 160), 160))
    assert "[bold]x[/bold]" in flat(printed(render_status(SNAPSHOT, 160), 160))


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_lose_nothing(width: int) -> None:
    name = "a-very-long-identity-name-that-somebody-chose-on-a-long-afternoon"
    snapshot = evolve(SNAPSHOT, identities=(evolve(IDENTITIES[0], name=name),))
    text = flat(printed(render_status(snapshot, width), width))
    assert f"{name} busy x86_64-linux" in text or f"{name} busy" in text.replace("- ", "-")


@pytest.mark.parametrize("width", WIDTHS)
def test_history_tells_when_what_and_why(width: int) -> None:
    lines = printed(render_history(HISTORY, width), width)
    assert max(len(line) for line in lines) <= width
    text = flat(lines)
    for essential in (
        "2025-06-01 09:05Z mac1-a Success 5m00s NixOS/nixpkgs#99",
        "hello",
        "fetch 2s, checkout 8.5s, evaluate 31s, build 4m18s, report 0.5s",
        "UnexpectedError",
        "cancelled by the operator",
        HISTORY[0].attempt_id,
    ):
        assert essential in text, essential
    assert ("3.0 GiB" in text) == (width == 160)


@pytest.mark.parametrize("width", WIDTHS)
def test_locks_tell_holder_job_age_and_waiters(width: int) -> None:
    text = flat(printed(render_locks(LOCKS, width), width))
    for essential in (
        "tree mac1-a 12m34s 1 tree:38dca4e3aa6bca43ea96d2fcc04e8229",
        f"held by process 4711, attempt {ATTEMPT}",
        "waiting, in this order: mac1-two-systems",
    ):
        assert essential in text, essential


@pytest.mark.parametrize("width", WIDTHS)
def test_an_identity_that_could_not_start_shows_its_error(width: int) -> None:
    failed = evolve(IDENTITIES[3], systems=(), state=IdentityState.FAILED)
    text = flat(printed(render_status(evolve(SNAPSHOT, identities=(failed,)), width), width))
    assert "mac1-refused failed - down" in text
    assert f"error: {LONG_ERROR}" in text


def test_empty_lists_say_so() -> None:
    assert printed(render_locks((), 80), 80) == ["no lock is held or waited for"]
    assert printed(render_history((), 80), 80) == ["no attempt has finished in that time"]
    assert printed(render_status(evolve(WELL, identities=()), 80), 80)[-1].startswith("IDENTITY")
