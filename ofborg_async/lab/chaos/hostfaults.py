"""What happens to the host of a builder: its disks, its nix-daemon and its clock."""

from __future__ import annotations

import anyio
import anyio.to_thread

from ofborg_async.lab.chaos.ground import Ground, Stand
from ofborg_async.lab.chaos.plan import FaultPlan
from ofborg_async.lab.chaos.seeking import sought, until_up
from ofborg_async.lab.chaos.smalldisk import SmallDisk
from ofborg_async.lab.store import start_nix_daemon

_READ_ONLY = ((0, "roots"), (1, "state/mirrors"), (1, "state/logs"), (1, "state/gcroots"))
_YEAR_SECONDS = 365 * 86400.0


async def fill_disk(ground: Ground, fault: FaultPlan) -> bool:
    """No byte is free where a builder has its roots, its state or both, for a while.

    It may start meanwhile, but not for the first time: without any room there is no place to begin a journal.
    """
    stand = ground.stands[fault.daemon]
    disks = _chosen(stand, fault)
    if disks:
        await until_up(stand.builder)
        for disk in disks:
            await anyio.to_thread.run_sync(disk.fill)
        await anyio.sleep(fault.seconds)
        for disk in disks:
            disk.empty()
    return bool(disks)


async def use_up_inodes(ground: Ground, fault: FaultPlan) -> bool:
    """No file can be made there for a while. A builder does not start meanwhile: it could not open its journal."""
    stand = ground.stands[fault.daemon]
    disks = _chosen(stand, fault)
    if disks:
        async with stand.lock:
            await until_up(stand.builder)
            for disk in disks:
                await anyio.to_thread.run_sync(disk.use_up_inodes)
            await anyio.sleep(fault.seconds)
            for disk in disks:
                await anyio.to_thread.run_sync(disk.give_back_inodes)
    return bool(disks)


def _chosen(stand: Stand, fault: FaultPlan) -> tuple[SmallDisk, ...]:
    """The roots' disk, the state's, or both."""
    disks = stand.disks
    return (disks[:1], disks[1:], disks)[int(fault.choice * 3)]


async def make_read_only(ground: Ground, fault: FaultPlan) -> bool:
    """One of a builder's directories is read-only for a while, once it is there."""
    disks = ground.stands[fault.daemon].disks
    if not disks:
        return False
    number, inside = _READ_ONLY[int(fault.choice * len(_READ_ONLY))]
    disk = disks[number]
    struck = bool(await sought((disk.view / inside).is_dir))
    if struck:
        await disk.set_read_only(disk.place / inside, on=True)
        await anyio.sleep(fault.seconds)
        await disk.set_read_only(disk.place / inside, on=False)
    return struck


async def restart_nix_daemon(ground: Ground, fault: FaultPlan) -> bool:
    """nix-daemon is killed with what it builds, and started again."""
    if ground.nix_daemon is None:
        return False
    async with ground.nix_lock:
        ground.nix_daemon.kill()
        await anyio.sleep(fault.seconds)
        await start_nix_daemon(ground.nix_daemon)
    return True


async def set_clock_back(ground: Ground, fault: FaultPlan) -> bool:
    """The wall clock goes back by a second to a year, all in one step; half of the times it is put right later."""
    clock = ground.stands[fault.daemon].clock
    if clock is None:
        return False
    clock.shift(-(_YEAR_SECONDS**fault.choice))
    await anyio.sleep(fault.seconds)
    if int(fault.choice * 1009) % 2:
        clock.shift(0)
    return True
