"""One bare repository for each clone URL, which every root of the daemon borrows objects from.

It is only ever added to: no collection, no pruning, since a tree that borrows an object would lose it; maintenance.py
packs it at times. It holds refs of our own making only:

- ``refs/ofborg-async/branches/<hash of the name>``: target branches. Hashed, so that ``foo`` can become ``foo/bar``.
- ``refs/ofborg-async/trees/<hash of the path>/{base,head}``: what a work tree was last asked to merge. Each job fetches
  into those of its own tree, so everything that any tree stands on stays reachable, and nothing is left to clean up.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from attrs import frozen

from ofborg_async.checkout import disk
from ofborg_async.checkout.git import BoundGit, Git, GitFault, text_of
from ofborg_async.checkout.layout import branch_key, mirror_name
from ofborg_async.checkout.validate import is_commit_name, refuse_branch, shown
from ofborg_async.checkout.words import read_failure
from ofborg_async.clock import Clock
from ofborg_async.errors import FaultKind, HostFault, LockHeldError
from ofborg_async.locks import HolderNote, LockManager
from ofborg_async.model.checkout import Gone, Refused
from ofborg_async.process import Completed
from ofborg_async.waiting import in_thread

_log = logging.getLogger(__name__)

# A mirror is made anew at most this often: fetching all of it again does not help against a broken remote.
_REMAKE_SECONDS = 3600.0
# git would refuse a repository that another user owns; which ones may be cloned is for clone_url_schemes to say.
_LOCAL_UPLOAD_PACK = '--upload-pack=git -c "safe.directory=*" {}upload-pack'
# Deltas are worth their search, which is most of the time of a first fetch, where a network lies between. Those that
# the other repository's packs have are passed on all the same.
_WITHOUT_SEARCH = "-c pack.window=0 "


@frozen
class FetchRequest:
    """What a job needs of a remote.

    ``branch`` None: its default branch. ``keep_name`` names the tree, ``holder`` the identity.
    """

    url: str
    branch: str | None
    number: int
    keep_name: str
    holder: str
    attempt_id: str
    deadline_seconds: float


@frozen
class Fetched:
    """What the remote has: the target ``branch``, its commit ``base``, and the pull request's ``tip``."""

    branch: str
    base: str
    tip: str


class MirrorStore:
    """The mirrors of a daemon, in a directory of its own. One for all identities."""

    def __init__(self, directory: Path, *, locks: LockManager, clock: Clock) -> None:
        self._directory = directory
        self._locks = locks
        self._clock = clock
        self._sound: set[Path] = set()
        self._grown = set(directory.glob(f"{'?' * 64}"))
        self._remade_at: dict[Path, float] = {}

    def path_of(self, url: str) -> Path:
        """Where the mirror of ``url`` is or will be."""
        return self._directory / mirror_name(url)

    def lock_of(self, path: Path) -> Path:
        """The lock file of the mirror at ``path``."""
        return path.with_suffix(".lock")

    def take_grown(self) -> list[Path]:
        """The mirrors that were fetched into since this was asked, at first all there are. Sync."""
        grown, self._grown = sorted(self._grown), set()
        return grown

    def note_grown(self, path: Path) -> None:
        """Name a mirror at the next ``take_grown``. Sync."""
        self._grown.add(path)

    def doubt(self, path: Path) -> None:
        """Let the next fetch clear away what killed commands left in a mirror. Sync; under its lock."""
        self._sound.discard(path)

    async def fetch(self, git: Git, request: FetchRequest) -> Fetched | Gone | Refused:
        """Fetch the target branch and the pull request, with one git command, alone in the mirror.

        A mirror that is missing or broken is made. Raises HostFault (NETWORK, REPOSITORY, DISK, PERMISSION, LOCK ...).
        """
        path = self.path_of(request.url)
        self.note_grown(path)
        disk.make_private(self._directory)
        note = HolderNote.of_this_process(request.holder, self._clock)
        try:
            async with self._locks.hold_file(
                self.lock_of(path),
                holder=request.holder,
                job=request.attempt_id,
                deadline_seconds=request.deadline_seconds,
                note=note,
            ) as lock:
                bound = git.within(
                    request.deadline_seconds, attempt_id=request.attempt_id, descriptors=(lock.fileno(),)
                )
                return await self._fetch_soundly(_Fetch(bound, request, path))
        except LockHeldError as held:
            raise HostFault(FaultKind.LOCK, str(held), remedy="end the git that still uses it") from held

    async def keep(self, git: Git, request: FetchRequest, commit: str) -> None:
        """Keep ``commit``, which is not the pull request's tip, as what the tree is asked to merge. Raises HostFault.

        A commit that the original had fetched is in the tree's own repository only, and needs no keeping here.
        """
        bound = git.within(request.deadline_seconds, attempt_id=request.attempt_id)
        await bound.run(
            self.path_of(request.url),
            "update-ref",
            f"{_trees(request)}/head",
            commit,
            what="keeping a commit",
            expected=(0, 128),
        )

    async def remake(self, request: FetchRequest) -> bool:
        """Discard the mirror of a URL, if that was not done of late; the next fetch makes it. Raises HostFault."""
        path = self.path_of(request.url)
        try:
            async with self._locks.hold_file(
                self.lock_of(path),
                holder=request.holder,
                job=request.attempt_id,
                deadline_seconds=request.deadline_seconds,
            ):
                return await self._discard(path)
        except LockHeldError as held:
            raise HostFault(FaultKind.LOCK, str(held), remedy="end the git that still uses it") from held

    async def _fetch_soundly(self, fetch: _Fetch) -> Fetched | Gone | Refused:
        cleared = False
        while True:
            try:
                if fetch.path not in self._sound:
                    await fetch.make_ready()
                    self._sound.add(fetch.path)
                return await fetch.run()
            except GitFault as fault:
                self._sound.discard(fetch.path)
                if fault.reading.locked and not cleared:
                    cleared = True
                    continue
                if not fault.reading.damaged or not await self._discard(fetch.path):
                    raise
                _log.warning("the mirror of %s was broken and is made anew: %s", fetch.request.url, fault)
            except BaseException:
                self._sound.discard(fetch.path)
                raise

    async def _discard(self, path: Path) -> bool:
        now = self._clock.monotonic()
        last = self._remade_at.get(path)
        if last is not None and now - last < _REMAKE_SECONDS:
            return False
        self._remade_at[path] = now
        self._sound.discard(path)
        await disk.discard(path)
        return True


@frozen
class _Fetch:
    """One fetch under way, into the mirror at ``path``, whose lock the caller and ``git`` hold."""

    git: BoundGit
    request: FetchRequest
    path: Path

    async def make_ready(self) -> None:
        """Clear away what killed commands left, and make the mirror if there is none, all of it or nothing."""
        await disk.discard_leftovers(self.path)
        if self.path.is_dir():
            await in_thread(partial(disk.remove_stale_locks, self.path))
            return
        await disk.discard(self.path)
        new = disk.fresh_sibling(self.path)
        await self.git.run(None, "init", "--quiet", "--bare", "--template=", str(new), what="making a mirror")
        with disk.translated("a mirror cannot be made"):
            new.rename(self.path)

    async def run(self) -> Fetched | Gone | Refused:
        branch = self.request.branch
        if branch is None:
            default = await self._default_branch()
            if isinstance(default, Refused):
                return default
            branch = default
        trees = _trees(self.request)
        try:
            done = await self._run(
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--no-show-forced-updates",
                "--no-recurse-submodules",
                *self._transport(),
                "--end-of-options",
                self.request.url,
                f"+refs/heads/{branch}:refs/ofborg-async/branches/{branch_key(branch)}",
                f"+refs/heads/{branch}:{trees}/base",
                f"+refs/pull/{self.request.number}/head:{trees}/head",
            )
        except GitFault as fault:
            return self._outcome_of(fault, branch)
        if (reading := read_failure(done.stderr, done.returncode)).objects_damaged:
            # It was fetched all the same, but every later command would stumble over the broken pack.
            raise GitFault(self._what, done.returncode, reading)
        base, tip = await self._tip(f"{trees}/base"), await self._tip(f"{trees}/head")
        return Fetched(branch=branch, base=base, tip=tip)

    async def _default_branch(self) -> str | Refused:
        done = await self._git(
            "ls-remote", "--symref", *self._transport(), "--end-of-options", self.request.url, "HEAD"
        )
        for line in done.splitlines():
            target, _, name = line.partition("\t")
            if name == "HEAD" and target.startswith("ref: refs/heads/"):
                branch = target.removeprefix("ref: refs/heads/")
                if reason := refuse_branch(branch):
                    return Refused(f"the default branch {shown(branch)} is refused: {reason}")
                return branch
        return Refused("the job names no target branch, and the repository has no default branch")

    def _outcome_of(self, fault: GitFault, branch: str) -> Gone | Refused:
        """What a failed fetch says about the job; what it says about this host is raised."""
        missing = fault.reading.missing_ref
        if missing == f"refs/heads/{branch}":
            return Refused(f"the target branch {shown(branch)} does not exist")
        if missing:
            return Gone(f"the remote has no {missing}")
        if fault.reading.other_hash:
            return Refused("repositories whose objects are named by SHA-256 are not supported")
        raise fault

    @property
    def _what(self) -> str:
        return f"fetching from {shown(self.request.url)}"

    async def _git(self, *words: str) -> str:
        return text_of(await self._run(*words))

    async def _run(self, *words: str) -> Completed:
        return await self.git.run(self.path, *words, what=self._what, fault_of_deadline=FaultKind.NETWORK)

    async def _tip(self, ref: str) -> str:
        """What one of our refs points at. It is a file of its own: nothing packs them here."""
        with disk.translated("a ref of the mirror cannot be read"):
            try:
                found = (self.path / ref).read_text(encoding="ascii", errors="replace").strip()
            except FileNotFoundError:
                found = ""
        return found if is_commit_name(found) else await self._git("rev-parse", "--verify", "--end-of-options", ref)

    def _transport(self) -> tuple[str, ...]:
        if not self.request.url.startswith(("/", "file://")):
            return ()
        first = not any((self.path / "objects" / "pack").glob("*.pack"))
        return (_LOCAL_UPLOAD_PACK.format(_WITHOUT_SEARCH if first else ""),)


def _trees(request: FetchRequest) -> str:
    return f"refs/ofborg-async/trees/{request.keep_name}"
