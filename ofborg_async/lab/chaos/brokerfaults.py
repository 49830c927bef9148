"""What happens to the broker and to what it holds."""

from __future__ import annotations

import anyio

from ofborg_async.lab.chaos.ground import PASSWORD, USER, Ground
from ofborg_async.lab.chaos.ledger import QUEUE, delete_exchange, open_ledger, unbind
from ofborg_async.lab.chaos.plan import SYSTEMS, FaultPlan
from ofborg_async.lab.chaos.seeking import LOOK_SECONDS, POLL_SECONDS
from ofborg_async.lab.wiretap import LOGS, RESULTS, job_queue
from ofborg_async.waiting import at_most


async def kill(ground: Ground, fault: FaultPlan) -> bool:
    """As a machine that loses its power, and comes back."""
    async with ground.broker_lock:
        ground.broker.kill()
        await anyio.sleep(fault.seconds)
        await ground.broker.start()
    return True


async def restart(ground: Ground, fault: FaultPlan) -> bool:
    """In good order, with a while in between."""
    async with ground.broker_lock:
        await ground.broker.stop()
        await anyio.sleep(fault.seconds)
        await ground.broker.start()
    return True


async def close_connections(ground: Ground, _: FaultPlan) -> bool:
    """Every connection of the builders, with 320, once there is one."""
    closed = 0
    with at_most(LOOK_SECONDS):
        while not closed:
            await anyio.sleep(POLL_SECONDS)
            async with ground.broker_lock:
                closed = await _close_connections(ground)
    return closed > 0


async def alarm(ground: Ground, fault: FaultPlan) -> bool:
    """The memory alarm for a while."""
    async with ground.broker_lock:
        await ground.broker.set_memory_alarm(on=True)
        await anyio.sleep(fault.seconds)
        await ground.broker.set_memory_alarm(on=False)
    return True


async def disk_alarm(ground: Ground, fault: FaultPlan) -> bool:
    """The disk alarm for a while."""
    async with ground.broker_lock:
        await ground.broker.set_disk_alarm(on=True)
        await anyio.sleep(fault.seconds)
        await ground.broker.set_disk_alarm(on=False)
    return True


async def wrong_password(ground: Ground, fault: FaultPlan) -> bool:
    """The password is changed, connections are closed, and it is changed back."""
    async with ground.broker_lock:
        await ground.broker.change_password(USER, "another")
        await _close_connections(ground)
        await anyio.sleep(fault.seconds)
        await ground.broker.change_password(USER, PASSWORD)
    return True


async def delete_queue(ground: Ground, fault: FaultPlan) -> bool:
    """A job queue is deleted and made again: what lay in it has died, and may have no result."""
    system = SYSTEMS[int(fault.choice * len(SYSTEMS))]
    async with ground.broker_lock:
        for job in ground.jobs.values():
            if job.submitted and job.plan.system == system:
                job.optional = True
        struck = job_queue(system) in await ground.broker.list_queues()
        if struck:
            await ground.broker.delete_queue(job_queue(system))
        await anyio.sleep(fault.seconds)
        await open_ledger(ground.url, *SYSTEMS)
    return struck


async def delete_results(ground: Ground, fault: FaultPlan) -> bool:
    """The exchange of results is deleted for a while."""
    async with ground.broker_lock:
        await delete_exchange(ground.url, RESULTS)
        await anyio.sleep(fault.seconds)
        await open_ledger(ground.url, *SYSTEMS)
    return True


async def delete_logs(ground: Ground, fault: FaultPlan) -> bool:
    """The exchange of logs is deleted for a while; what was to go there meanwhile may be missing."""
    async with ground.broker_lock:
        for job in ground.jobs.values():
            job.log_incomplete |= job.submitted
        await delete_exchange(ground.url, LOGS)
        await anyio.sleep(fault.seconds)
        await open_ledger(ground.url, *SYSTEMS)
    return True


async def unbind_results(ground: Ground, fault: FaultPlan) -> bool:
    """Results have no queue to go to for a while."""
    async with ground.broker_lock:
        await unbind(ground.url, QUEUE, RESULTS)
        await anyio.sleep(fault.seconds)
        await open_ledger(ground.url, *SYSTEMS)
    return True


async def _close_connections(ground: Ground) -> int:
    """How many they were."""
    user = ",".join(map(str, USER.encode()))
    return int(
        await ground.broker.evaluate(
            'length([rabbit_networking:close_connection(Pid, "closed by the lab") || [{pid, Pid}, {user, U}]'
            f" <- rabbit_networking:connection_info_all([pid, user]), U =:= <<{user}>>])"
        )
    )
