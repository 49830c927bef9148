"""What happens to the network between a builder and its broker, or the remote repository.

Each waits for a connection that it can be done to.
"""

from __future__ import annotations

import anyio

from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.plan import FaultPlan
from ofborg_async.lab.chaos.seeking import sought
from ofborg_async.lab.proxy import Proxy, Way


async def freeze(ground: Ground, fault: FaultPlan) -> bool:
    """Nothing passes any more, and nobody says so. Afterwards what was open is gone."""
    path = ground.stands[fault.daemon].path
    struck = await _is_used(path)
    path.freeze()
    await anyio.sleep(fault.seconds)
    if fault.choice < 0.5:
        path.cut()
    path.heal()
    return struck


async def freeze_one_way(ground: Ground, fault: FaultPlan) -> bool:
    """One way only: for instance acknowledgements are written, and do not arrive."""
    path = ground.stands[fault.daemon].path
    struck = await _is_used(path)
    path.freeze(Way.UP if fault.choice < 0.7 else Way.DOWN)
    await anyio.sleep(fault.seconds)
    if fault.choice < 0.5:
        path.cut()
    path.heal()
    return struck


async def slow(ground: Ground, fault: FaultPlan) -> bool:
    """Each chunk takes a while."""
    path = ground.stands[fault.daemon].path
    struck = await _is_used(path)
    path.slow(0.05 + 0.4 * fault.choice)
    await anyio.sleep(2 * fault.seconds)
    path.heal()
    return struck


async def cut(ground: Ground, fault: FaultPlan) -> bool:
    """Connections are reset."""
    path = ground.stands[fault.daemon].path
    struck = await _is_used(path)
    path.cut()
    return struck


async def refuse(ground: Ground, fault: FaultPlan) -> bool:
    """Connections are reset, new ones too for a while."""
    path = ground.stands[fault.daemon].path
    struck = await _is_used(path)
    path.refuse()
    await anyio.sleep(fault.seconds)
    path.heal()
    return struck


async def silence_upstream(ground: Ground, fault: FaultPlan) -> bool:
    """The remote repository takes connections and never says a word: for a while, from the first one on."""
    path = ground.upstream_path
    if path is None:
        return False
    path.freeze()
    struck = await _is_used(path)
    await anyio.sleep(fault.seconds)
    path.cut()
    path.heal()
    return struck


async def _is_used(path: Proxy) -> bool:
    return bool(await sought(lambda: path.connections > 0))
