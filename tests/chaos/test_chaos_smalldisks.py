"""The small disks of a daemon: one can be full while the other is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofborg_async.lab.chaos.smalldisk import SmallDisk, small_disks
from ofborg_async.lab.commands import run
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.servers import base_environment

pytestmark = pytest.mark.skipif(not namespaces_work(), reason="mount namespaces: Linux, root")


async def writable(disk: SmallDisk) -> bool:
    """To a program that sees it at its place."""
    script = 'if echo x > "$0/file"; then rm "$0/file"; echo yes; fi'
    said = await run(*disk.prefix, "sh", "-c", script, str(disk.place), env=base_environment())
    return b"yes" in said


async def test_each_is_full_or_read_only_by_itself(tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    async with small_disks(tmp_path / "log", *places) as (one, two):
        one.fill()
        assert (await writable(one), await writable(two)) == (False, True)
        one.empty()
        two.use_up_inodes()
        one.fill()
        two.fill()  # no inode is left for what fills it
        one.empty()
        assert (await writable(one), await writable(two)) == (True, False)
        two.give_back_inodes()
        await one.set_read_only(one.place, on=True)
        assert (await writable(one), await writable(two)) == (False, True)
        await one.set_read_only(one.place, on=False)
        assert (await writable(one), await writable(two)) == (True, True)
    assert not list(places[0].iterdir())
