"""Pauses."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from journal_helpers import EPOCH, FakeClock, opened


async def test_pauses_survive_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    until = EPOCH + timedelta(hours=2)
    async with opened(tmp_path, clock) as journal:
        await journal.set_pause("a", "maintenance", until)
        await journal.set_pause("b", "for ever", None)
    clock.jump(3600)
    async with opened(tmp_path, clock) as journal:
        pauses = {hold.identity: hold for hold in await journal.pauses()}
        assert (pauses["a"].reason, pauses["a"].since, pauses["a"].until) == ("maintenance", EPOCH, until)
        assert (pauses["b"].reason, pauses["b"].until) == ("for ever", None)
        await journal.set_pause("b", "again", None)
        clock.jump(3600)
        assert [(hold.identity, hold.reason) for hold in await journal.pauses()] == [("b", "again")]
        assert await journal.clear_pause("b")
        assert not await journal.clear_pause("b")
        assert await journal.pauses() == ()
