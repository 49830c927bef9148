"""One try at preparing a work tree: fetch, judge the commit, merge, check out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from attrs import frozen

from ofborg_async.checkout.clone import RootClone
from ofborg_async.checkout.git import BoundGit, Git, GitFault
from ofborg_async.checkout.merge import Merging
from ofborg_async.checkout.mirror import Fetched, FetchRequest, MirrorStore
from ofborg_async.checkout.objects import identity
from ofborg_async.checkout.seen import SeenCommits
from ofborg_async.checkout.tree import Settled, TreeState, WorkTree
from ofborg_async.checkout.validate import shown
from ofborg_async.clock import Clock
from ofborg_async.model.checkout import CheckoutOutcome, Gone, MergeConflict, Ready, Refused
from ofborg_async.model.status import Phase

# Merges older than this are deleted when a tree moves on.
_PRUNE_SECONDS = 3600.0

A = TypeVar("A")
B = TypeVar("B")


@frozen
class Preparation:
    """Prepares ``tree`` so that ``head`` is merged as ``request`` says.

    ``states`` remembers how each tree was left, ``base_trees`` the tree of the last base.
    ``lock_clone`` takes the lock of the root's bare clone and gives the git to use under it.
    """

    git: Git
    mirrors: MirrorStore
    clock: Clock
    request: FetchRequest
    head: str
    tree: WorkTree
    seen: SeenCommits
    states: dict[Path, TreeState]
    base_trees: dict[str, str]
    lock_clone: Callable[[], AbstractAsyncContextManager[BoundGit]]
    on_phase: Callable[[Phase], None]

    async def run(self) -> CheckoutOutcome:
        """Do it. Raises HostFault; a GitFault whose reading says ``damaged`` when something of ours is broken."""
        state = self.states.get(self.tree.layout.tree)
        fetched, settled = await together(
            partial(self.mirrors.fetch, self.git, self.request), partial(self.tree.settle, state)
        )
        if not isinstance(fetched, Fetched):
            return fetched
        if not settled.sure:
            state = None
            await self._see_to_root(fetched)
        known = self.head == fetched.tip or await self.tree.has_commit(
            self.head, (fetched.tip, fetched.base), self.seen
        )
        self.seen.add(fetched.base, fetched.tip)
        if not known:
            return Gone(f"{self.head} is neither in the pull request nor in anything this root had before")
        if self.head != fetched.tip:
            await self.mirrors.keep(self.git, self.request, self.head)
        if state is not None and self.clock.monotonic() - state.pruned_at_seconds > _PRUNE_SECONDS:
            state = None
        merged = await self._merge(state, fetched.base)
        if isinstance(merged, str):
            self.on_phase(Phase.CHECKOUT)
            try:
                await self._move(state, settled, fetched, merged)
            except GitFault as fault:
                if not fault.reading.bad_path:
                    raise
                return Refused(f"the tree cannot be checked out: {shown(fault.reading.words)}")
            return Ready(self.tree.layout.tree, merged)
        return merged

    async def _see_to_root(self, fetched: Fetched) -> None:
        """What is done once after a start for each tree: the root's bare clone, and what the original had fetched."""
        async with self.lock_clone() as git:
            clone = RootClone(git, self.tree.layout, self.request.url, self.tree.borrowed)
            await clone.ensure(fetched.branch, fetched.base)
        if not self.seen.exists():
            self.seen.add(*await self.tree.known_commits())

    async def _merge(self, state: TreeState | None, base: str) -> str | MergeConflict | Gone:
        if state is not None and (state.base, state.head) == (base, self.head):
            return state.commit
        tree = self.tree
        merging = Merging(
            tree.git,
            tree.layout.git_directory,
            objects=tree.objects,
            scratch=tree.scratch,
            borrowed=tree.borrowed,
            author=identity(*self.git.author, self.clock.now().timestamp()),
            trees=self.base_trees,
        )
        return await merging.merge(base, self.head)

    async def _move(self, state: TreeState | None, settled: Settled, fetched: Fetched, commit: str) -> None:
        """Check out ``commit``. ``state`` None: nothing of an earlier merge is relied on, so old ones can go."""
        self.states.pop(self.tree.layout.tree, None)
        if state is not None and (state.branch, state.base) == (fetched.branch, fetched.base):
            await self.tree.move(settled, commit, fetched.base)
        else:
            await together(
                partial(self.tree.move, settled, commit, fetched.base),
                partial(self.tree.set_origin, fetched.branch, fetched.base),
            )
        if state is None:
            await self.tree.prune()
        fingerprint = self.tree.fingerprint()
        if fingerprint is None or fingerprint.head != commit:
            return  # somebody else is at work here: the next job finds out
        self.states[self.tree.layout.tree] = TreeState(
            url=self.request.url,
            branch=fetched.branch,
            base=fetched.base,
            head=self.head,
            commit=commit,
            fingerprint=fingerprint,
            pruned_at_seconds=self.clock.monotonic() if state is None else state.pruned_at_seconds,
        )


async def together(first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]]) -> tuple[A, B]:
    """Do both at once. When one fails the other is cancelled, and its error is raised as it is."""
    results: list[A] = []
    others: list[B] = []

    async def run_second() -> None:
        others.append(await second())

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(run_second)
            results.append(await first())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return results[0], others[0]
