"""The host's budget: never more than its slots, fair by weight, nothing lost to a cancellation."""

from __future__ import annotations

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from ofborg_async.supervisor.budget import FairQueue, HostBudget


async def settle() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_slots_are_bounded_and_given_in_turn() -> None:
    budget = HostBudget("builds", 2)
    order: list[str] = []
    release = {name: anyio.Event() for name in "abcd"}

    async def job(name: str) -> None:
        async with budget.slot(name, 1):
            order.append(name)
            await release[name].wait()

    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(job, name)
            await settle()
        assert order == ["a", "b"]
        snapshot = budget.statistics()
        assert (snapshot.used, snapshot.total, snapshot.waiting) == (2, 2, 2)
        release["b"].set()
        await settle()
        assert order == ["a", "b", "c"]
        for event in release.values():
            event.set()
    assert order == ["a", "b", "c", "d"]
    assert budget.statistics().used == 0


async def test_a_waiter_cancelled_as_it_is_served_passes_its_slot_on() -> None:
    budget = HostBudget("builds", 1)
    served: list[str] = []

    async def wait(name: str) -> None:
        async with budget.slot(name, 1):
            served.append(name)

    async with anyio.create_task_group() as group, budget.slot("holder", 1):
        doomed = anyio.CancelScope()

        async def doomed_wait() -> None:
            with doomed:
                await wait("doomed")

        group.start_soon(doomed_wait)
        await settle()
        group.start_soon(wait, "next")
        await settle()
        doomed.cancel()  # and served, as the holder leaves, before the cancellation reaches it
    assert served == ["next"]
    assert budget.statistics().used == 0


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 4))
def test_each_identity_gets_its_share(pushes: list[str], weight: int) -> None:
    queue = FairQueue()
    for name in pushes:
        queue.push(name, weight if name == "a" else 1, anyio.Event())
    tickets = [queue.pop() for _ in pushes]
    assert None not in tickets
    assert queue.pop() is None
    assert len(queue) == 0


def test_a_crowd_of_one_identity_does_not_starve_another() -> None:
    queue = FairQueue()
    mine = anyio.Event()
    for _ in range(50):
        queue.push("crowd", 1, anyio.Event())
    for _ in range(10):
        queue.pop()
    queue.push("single", 1, mine)
    assert mine in {queue.pop(), queue.pop()}


def test_weight_gives_twice_the_turns() -> None:
    queue = FairQueue()
    tickets = {name: [anyio.Event() for _ in range(30)] for name in ("heavy", "light")}
    for name, weight in (("heavy", 2), ("light", 1)):
        for ticket in tickets[name]:
            queue.push(name, weight, ticket)
    first = [queue.pop() for _ in range(30)]
    heavy = sum(ticket in tickets["heavy"] for ticket in first)
    assert 19 <= heavy <= 21


async def test_a_budget_can_grow_and_shrink_while_it_is_used() -> None:
    budget = HostBudget("builds", 1)
    let_go = {name: anyio.Event() for name in "abc"}
    held: set[str] = set()

    async def hold(name: str) -> None:
        async with budget.slot(name, 1):
            held.add(name)
            await let_go[name].wait()
        held.discard(name)

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(hold, name)
            await settle()
        assert held == {"a"}
        budget.resize(2)
        await settle()
        assert held == {"a", "b"}
        budget.resize(1)
        await settle()
        assert held == {"a", "b"}, "nobody loses what he has"
        let_go["a"].set()
        await settle()
        assert held == {"b"}
        let_go["b"].set()
        await settle()
        assert held == {"c"}
        let_go["c"].set()
    assert (budget.statistics().used, budget.free) == (0, 1)
