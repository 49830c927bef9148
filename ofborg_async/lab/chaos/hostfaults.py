"""What happens to the host of a builder: its disk and its nix-daemon."""

from __future__ import annotations

import anyio
import anyio.to_thread

from ofborg_async.errors import OfborgAsyncError
from ofborg_async.lab.chaos.builders import Builder
from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.plan import FaultPlan
from ofborg_async.waiting import at_most

_READ_ONLY = ("roots", "state/mirrors", "state/logs", "state/gcroots")
_UP_SECONDS = 20.0
_POLL_SECONDS = 0.05


async def fill_disk(ground: Ground, fault: FaultPlan) -> None:
    """No byte is free where a builder has its state and its roots, for a while.

    It may start meanwhile, but not for the first time: without any room there is no place to begin a journal.
    """
    stand = ground.stands[fault.daemon]
    if stand.disk is not None:
        await _until_up(stand.builder)
        await anyio.to_thread.run_sync(stand.disk.fill)
        await anyio.sleep(fault.seconds)
        stand.disk.empty()


async def use_up_inodes(ground: Ground, fault: FaultPlan) -> None:
    """No file can be made there for a while. A builder does not start meanwhile: it could not open its journal."""
    stand = ground.stands[fault.daemon]
    if stand.disk is not None:
        async with stand.lock:
            await _until_up(stand.builder)
            await anyio.to_thread.run_sync(stand.disk.use_up_inodes)
            await anyio.sleep(fault.seconds)
            await anyio.to_thread.run_sync(stand.disk.give_back_inodes)


async def make_read_only(ground: Ground, fault: FaultPlan) -> None:
    """One of a builder's directories is read-only for a while."""
    disk = ground.stands[fault.daemon].disk
    inside = _READ_ONLY[int(fault.choice * len(_READ_ONLY))]
    if disk is not None and (disk.view / inside).is_dir():
        path = ground.directory / f"daemon-{fault.daemon}" / "disk" / inside
        await disk.set_read_only(path, on=True)
        await anyio.sleep(fault.seconds)
        await disk.set_read_only(path, on=False)


async def restart_nix_daemon(ground: Ground, fault: FaultPlan) -> None:
    """nix-daemon is killed with what it builds, and started again."""
    if ground.nix_daemon is not None:
        async with ground.nix_lock:
            ground.nix_daemon.kill()
            await anyio.sleep(fault.seconds)
            ground.nix_daemon.start()


async def _until_up(builder: Builder) -> None:
    """Wait for a builder that was just launched."""
    with at_most(_UP_SECONDS):
        while builder.pids:
            try:
                await builder.held_locks()
            except OfborgAsyncError:
                await anyio.sleep(_POLL_SECONDS)
            else:
                return
