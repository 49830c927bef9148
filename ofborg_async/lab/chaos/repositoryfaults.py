"""What happens to repositories: the remote one, the mirrors, clones and work trees; and to the store."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import anyio

from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.jobs import BRANCHES, Job
from ofborg_async.lab.chaos.plan import FaultPlan, JobKind
from ofborg_async.lab.chaos.seeking import sought
from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import base_environment

_LOCKS = ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock", "refs/heads/master.lock")


async def take_upstream_away(ground: Ground, fault: FaultPlan) -> bool:
    """The remote repository is not there for a while."""
    async with ground.upstream_lock:
        away = ground.upstream.path.with_suffix(".away")
        ground.upstream.path.rename(away)
        await anyio.sleep(fault.seconds)
        away.rename(ground.upstream.path)
    return True


async def force_push(ground: Ground, fault: FaultPlan) -> bool:
    """The pull request of a job gets another head: the job's own may be nowhere any more."""
    job = _choose(ground, fault)
    if job is not None:
        async with ground.upstream_lock:
            job.gone = True
            await ground.upstream.force_push(job.pr, {"token": f"{job.token}-forced"})
    return job is not None


async def delete_pr(ground: Ground, fault: FaultPlan) -> bool:
    """The pull request of a job is deleted."""
    job = _choose(ground, fault)
    if job is not None:
        async with ground.upstream_lock:
            job.gone = True
            await ground.upstream.delete_pr(job.pr)
    return job is not None


async def rename_branch(ground: Ground, _: FaultPlan) -> bool:
    """``foo`` becomes ``foo/bar``, or back: jobs for the old one may find no target any more."""
    async with ground.upstream_lock, ground.broker_lock:
        old = ground.branch
        new = BRANCHES[1 - BRANCHES.index(old)]
        for job in ground.jobs.values():
            if job.plan.kind is JobKind.BRANCH and job.submitted:
                job.statuses |= {"UnexpectedError"}
        commit = await ground.upstream.sha(f"refs/heads/{old}")
        env = base_environment(HOME="/nonexistent", GIT_CONFIG_NOSYSTEM="1")
        for words in (("-d", f"refs/heads/{old}"), (f"refs/heads/{new}", commit)):
            await run("git", "update-ref", *words, env=env, cwd=ground.upstream.path)
        ground.branch = new
    return True


async def leave_locks(ground: Ground, fault: FaultPlan) -> bool:
    """Lock files of a git that was killed."""
    before = len(ground.planted)

    def plant() -> bool:
        for number, place in enumerate(repositories(ground, fault.daemon)):
            for name in _LOCKS:
                lock = place / name
                if (int(fault.choice * 1009 + number * 7 + len(name)) % 3 == 0) and lock.parent.is_dir():
                    with suppress(FileExistsError):  # a git of its own is there
                        lock.touch(exist_ok=False)
                        ground.planted[lock] = identity_of(lock)
        return len(ground.planted) > before

    return bool(await sought(plant))


async def truncate(ground: Ground, fault: FaultPlan) -> bool:
    """Half of some file of git's is gone: an object, a pack or an index."""

    def look() -> Path | None:
        for place in _mendable(ground, fault):
            files = sorted(place.glob("objects/??/*")) + sorted(place.glob("objects/pack/*.pack"))
            files += [path for path in (place / "index",) if path.is_file()]
            if files:
                victim = files[int(fault.choice * 7919) % len(files)]
                with suppress(FileNotFoundError):  # it was a temporary one
                    victim.chmod(0o644)  # git's are read-only, which counts for all but root
                    os.truncate(victim, victim.stat().st_size // 2)
                    _note(ground, place)
                    return victim
        return None

    victim = await sought(look)
    ground.notes.append(f"truncated {victim}")
    return victim is not None


async def halve_clone(ground: Ground, fault: FaultPlan) -> bool:
    """A repository as a killed git leaves it that was making it: without a HEAD."""

    def look() -> Path | None:
        for place in _mendable(ground, fault):
            if (place / "HEAD").exists():
                (place / "HEAD").unlink()
                _note(ground, place)
                return place
        return None

    place = await sought(look)
    ground.notes.append(f"removed HEAD of {place}")
    return place is not None


async def collect(ground: Ground, _: FaultPlan) -> bool:
    """The garbage collection of nix."""
    async with ground.nix_lock:
        await ground.store.nix("nix-store", "--gc")
    return True


def identity_of(file: Path) -> tuple[int, int]:
    """Tells a file from another one of its name: its inode and when it was last written."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


def repositories(ground: Ground, daemon: int) -> list[Path]:
    """Mirrors, clones and work trees of a builder, as git directories."""
    builder = ground.stands[daemon].builder
    found = sorted(builder.mirrors.glob("*/objects"))
    for root in builder.roots:
        found += sorted(root.glob("repo/*/clone/objects")) + sorted(root.glob("repo/*/builder/*/.git/objects"))
    return [path.parent for path in found]


def _mendable(ground: Ground, fault: FaultPlan) -> list[Path]:
    """Repositories that were not damaged in this round, in an order of the fault's own.

    For a mirror is made anew rarely, on purpose.
    """
    mended = ground.directory / "damaged"
    known = mended.read_text().splitlines() if mended.exists() else []
    found = [place for place in repositories(ground, fault.daemon) if str(place) not in known]
    first = int(fault.choice * len(found))
    return found[first:] + found[:first]


def _note(ground: Ground, place: Path) -> None:
    with (ground.directory / "damaged").open("a") as file:
        file.write(f"{place}\n")


def _choose(ground: Ground, fault: FaultPlan) -> Job | None:
    """A job whose pull request is there and is its own."""
    plain = (JobKind.OK, JobKind.LOUD, JobKind.FAILS, JobKind.MIXED)
    found = [job for job in ground.jobs.values() if job.plan.kind in plain and not job.optional and not job.gone]
    return found[int(fault.choice * len(found))] if found else None
