"""Implements the pipeline's ``Workspace`` port for one system of one identity."""

from __future__ import annotations

import enum
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from ofborg_async.checkout import disk
from ofborg_async.checkout.git import BoundGit, Git, GitFault
from ofborg_async.checkout.holder import flock_holder
from ofborg_async.checkout.layout import Layout, layout_of
from ofborg_async.checkout.mirror import FetchRequest, MirrorStore
from ofborg_async.checkout.preparation import Preparation
from ofborg_async.checkout.seen import SeenCommits
from ofborg_async.checkout.tree import TreeState, WorkTree
from ofborg_async.checkout.validate import judge_job
from ofborg_async.checkout.words import Reading
from ofborg_async.clock import Clock
from ofborg_async.errors import FaultKind, HostFault, LockHeldError, host_fault_of
from ofborg_async.locks import LockManager
from ofborg_async.model.checkout import CheckoutOutcome
from ofborg_async.model.identity import IdentitySettings
from ofborg_async.model.job import BuildJob
from ofborg_async.model.status import Phase
from ofborg_async.process import Spawner

_log = logging.getLogger(__name__)


class _Repair(enum.Enum):
    """What helps against something broken, cheapest first."""

    LOOK = enum.auto()
    TREE = enum.auto()
    MIRROR = enum.auto()


class Held(Protocol):
    """A lease, as the pipeline gives it back."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Open lock files to pass to every child."""
        ...


@frozen
class TreeLease:
    """The exclusive right to one work tree. ``descriptors``: its open lock file, for every child that works in it."""

    descriptors: tuple[int, ...]


class GitWorkspace:
    """The work trees of one system of an identity, one for each repository it gets jobs of.

    ``settings`` say where its root is, which of its systems is the first, which transports are allowed and how long git
    may take; ``mirrors`` are shared with the other identities; ``environment`` is the daemon's own.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        system: str,
        *,
        mirrors: MirrorStore,
        spawner: Spawner,
        locks: LockManager,
        clock: Clock,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._further_system = None if system == settings.nix.systems[0] else system
        self._mirrors = mirrors
        self._locks = locks
        self._clock = clock
        self._git = Git(
            spawner,
            environment,
            author_name=settings.git_name,
            author_email=settings.git_email,
            schemes=settings.clone_url_schemes,
        )
        self._states: dict[Path, TreeState] = {}
        self._base_trees: dict[str, str] = {}
        self._seen: dict[Path, SeenCommits] = {}
        layout_of(Path("/"), "", settings.name, self._further_system)  # a name that cannot be used shows now

    @asynccontextmanager
    async def lease(self, job: BuildJob, attempt_id: str) -> AsyncIterator[TreeLease]:
        """Wait in turn for the job's work tree and hold it, against the original builder too.

        Raises HostFault (LOCK names who has it; PERMISSION, DISK).
        """
        with disk.translated("the work tree cannot be found"):
            layout = self._layout(job)
        disk.make_private(layout.tree.parent)
        async with self._file_lock(layout.tree_lock, attempt_id) as descriptors:
            try:
                yield TreeLease(descriptors)
            except BaseException:
                self._states.pop(layout.tree, None)  # whatever ended the job may have left something in the tree
                raise

    async def prepare(
        self, job: BuildJob, attempt_id: str, lease: Held, on_phase: Callable[[Phase], None]
    ) -> CheckoutOutcome:
        """Fetch, merge, check out. What is broken of ours is made anew, once: first the tree, then the mirror too.

        Raises HostFault (NETWORK, REPOSITORY, DISK, PERMISSION, LOCK, MEMORY, PROCESS ...).
        """
        on_phase(Phase.FETCH)
        if (refusal := judge_job(job, self._settings.clone_url_schemes)) is not None:
            return refusal
        preparation = self._preparation(job, attempt_id, lease, on_phase)
        tree = preparation.tree.layout.tree
        repairs = list(_Repair) if tree in self._states else [_Repair.TREE, _Repair.MIRROR]
        while True:
            try:
                return await preparation.run()
            except GitFault as fault:
                if not repairs or not await self._repair(preparation, fault.reading, repairs.pop(0)):
                    raise
                _log.warning("the work tree %s or what it borrows from was broken: %s", tree, fault)
            except OSError as error:
                raise host_fault_of(error, "the work tree cannot be prepared") from error

    async def _repair(self, preparation: Preparation, reading: Reading, repair: _Repair) -> bool:
        """Do what may help against a fault; False if it cannot."""
        if not reading.damaged and not (reading.locked and repair is _Repair.LOOK):
            return False
        self._states.pop(preparation.tree.layout.tree, None)  # so that the next try looks at everything
        if repair is _Repair.LOOK:
            return True
        if repair is _Repair.MIRROR and not reading.objects_damaged:
            return False
        await preparation.tree.discard()
        return repair is _Repair.TREE or await self._mirrors.remake(preparation.request)

    async def release(self, attempt_id: str) -> None:
        """Nothing is left to forget: refs of its tree keep what is built from, until the next job replaces them."""

    def _layout(self, job: BuildJob) -> Layout:
        # Restricted evaluation compares paths as they are, so a root below a symbolic link would be refused.
        root = self._settings.root.resolve()
        return layout_of(root, job.repo.full_name, self._settings.name, self._further_system)

    def _preparation(
        self, job: BuildJob, attempt_id: str, lease: Held, on_phase: Callable[[Phase], None]
    ) -> Preparation:
        layout, limits, url = self._layout(job), self._settings.limits, job.repo.clone_url
        request = FetchRequest(
            url=url,
            branch=job.pr.target_branch,
            number=job.pr.number,
            keep_name=layout.keep_name,
            holder=self._settings.name,
            attempt_id=attempt_id,
            deadline_seconds=limits.fetch_timeout_seconds,
        )
        git = self._git.within(limits.checkout_timeout_seconds, attempt_id=attempt_id, descriptors=lease.descriptors)
        tree = WorkTree(git, layout, url, self._mirrors.path_of(url) / "objects")
        return Preparation(
            git=self._git,
            mirrors=self._mirrors,
            clock=self._clock,
            request=request,
            head=job.pr.head_sha,
            tree=tree,
            seen=self._seen.setdefault(layout.seen, SeenCommits(layout.seen)),
            states=self._states,
            base_trees=self._base_trees,
            lock_clone=lambda: self._clone_lock(layout, attempt_id, lease),
            on_phase=on_phase,
        )

    @asynccontextmanager
    async def _clone_lock(self, layout: Layout, attempt_id: str, lease: Held) -> AsyncIterator[BoundGit]:
        deadline_seconds = self._settings.limits.checkout_timeout_seconds
        async with self._file_lock(layout.clone_lock, attempt_id) as descriptors:
            held = (*lease.descriptors, *descriptors)
            yield self._git.within(deadline_seconds, attempt_id=attempt_id, descriptors=held)

    @asynccontextmanager
    async def _file_lock(self, path: Path, attempt_id: str) -> AsyncIterator[tuple[int, ...]]:
        """Hold a lock file of the original's. It gets no note: the original truncates it whenever it looks."""
        deadline = self._settings.limits.checkout_timeout_seconds
        try:
            async with self._locks.hold_file(
                path, holder=self._settings.name, job=attempt_id, deadline_seconds=deadline
            ) as lock:
                yield (lock.fileno(),)
        except LockHeldError as held:
            who = flock_holder(path) or "another process"
            detail = f"{path} is still held by {who} after {deadline:g} s"
            remedy = "is the original builder at work on this root? stop it, or wait"
            raise HostFault(FaultKind.LOCK, detail, remedy=remedy) from held
