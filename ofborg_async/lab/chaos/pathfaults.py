"""What happens to the network between a builder and its broker, or the remote repository."""

from __future__ import annotations

import anyio

from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.plan import FaultPlan
from ofborg_async.lab.proxy import Way


async def freeze(ground: Ground, fault: FaultPlan) -> None:
    """Nothing passes any more, and nobody says so. Afterwards what was open is gone."""
    path = ground.stands[fault.daemon].path
    path.freeze()
    await anyio.sleep(fault.seconds)
    if fault.choice < 0.5:
        path.cut()
    path.heal()


async def freeze_one_way(ground: Ground, fault: FaultPlan) -> None:
    """One way only: for instance acknowledgements are written, and do not arrive."""
    path = ground.stands[fault.daemon].path
    path.freeze(Way.UP if fault.choice < 0.7 else Way.DOWN)
    await anyio.sleep(fault.seconds)
    if fault.choice < 0.5:
        path.cut()
    path.heal()


async def slow(ground: Ground, fault: FaultPlan) -> None:
    """Each chunk takes a while."""
    path = ground.stands[fault.daemon].path
    path.slow(0.05 + 0.4 * fault.choice)
    await anyio.sleep(2 * fault.seconds)
    path.heal()


async def cut(ground: Ground, fault: FaultPlan) -> None:
    """Connections are reset."""
    ground.stands[fault.daemon].path.cut()


async def refuse(ground: Ground, fault: FaultPlan) -> None:
    """Connections are reset, new ones too for a while."""
    path = ground.stands[fault.daemon].path
    path.refuse()
    await anyio.sleep(fault.seconds)
    path.heal()


async def silence_upstream(ground: Ground, fault: FaultPlan) -> None:
    """The remote repository takes connections and never says a word, for a while."""
    if ground.upstream_path is not None:
        ground.upstream_path.freeze()
        await anyio.sleep(fault.seconds)
        ground.upstream_path.cut()
        ground.upstream_path.heal()
