"""What happens to repositories: the remote one, the mirrors, clones and work trees; and to the store."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.jobs import BRANCHES, Job
from ofborg_async.lab.chaos.plan import FaultPlan, JobKind
from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import base_environment

_LOCKS = ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock", "refs/heads/master.lock")


async def take_upstream_away(ground: Ground, fault: FaultPlan) -> None:
    """The remote repository is not there for a while."""
    async with ground.upstream_lock:
        away = ground.upstream.path.with_suffix(".away")
        ground.upstream.path.rename(away)
        await anyio.sleep(fault.seconds)
        away.rename(ground.upstream.path)


async def force_push(ground: Ground, fault: FaultPlan) -> None:
    """The pull request of a job gets another head: the job's own may be nowhere any more."""
    job = _choose(ground, fault)
    if job is not None:
        async with ground.upstream_lock:
            job.optional = True
            await ground.upstream.force_push(job.pr, {"token": f"{job.token}-forced"})


async def delete_pr(ground: Ground, fault: FaultPlan) -> None:
    """The pull request of a job is deleted."""
    job = _choose(ground, fault)
    if job is not None:
        async with ground.upstream_lock:
            job.optional = True
            await ground.upstream.delete_pr(job.pr)


async def rename_branch(ground: Ground, _: FaultPlan) -> None:
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


async def leave_locks(ground: Ground, fault: FaultPlan) -> None:
    """Lock files of a git that was killed."""
    for number, place in enumerate(repositories(ground, fault.daemon)):
        for name in _LOCKS:
            if (int(fault.choice * 1009 + number * 7 + len(name)) % 3 == 0) and (place / name).parent.is_dir():
                (place / name).touch()


async def truncate(ground: Ground, fault: FaultPlan) -> None:
    """Half of some file of git's is gone: an object, a pack or an index."""
    places = _mendable(ground, fault)
    if not places:
        return
    place = places[int(fault.choice * len(places))]
    files = sorted(place.glob("objects/??/*")) + sorted(place.glob("objects/pack/*.pack"))
    files += [path for path in (place / "index",) if path.is_file()]
    if files:
        victim = files[int(fault.choice * 7919) % len(files)]
        _note(ground, place)
        os.truncate(victim, victim.stat().st_size // 2)
        ground.notes.append(f"truncated {victim}")


async def halve_clone(ground: Ground, fault: FaultPlan) -> None:
    """A repository as a killed git leaves it that was making it: without a HEAD."""
    places = _mendable(ground, fault)
    if places:
        place = places[int(fault.choice * len(places))]
        _note(ground, place)
        (place / "HEAD").unlink(missing_ok=True)
        ground.notes.append(f"removed HEAD of {place}")


async def collect(ground: Ground, _: FaultPlan) -> None:
    """The garbage collection of nix."""
    async with ground.nix_lock:
        await ground.store.nix("nix-store", "--gc")


def repositories(ground: Ground, daemon: int) -> list[Path]:
    """Mirrors, clones and work trees of a builder, as git directories."""
    builder = ground.stands[daemon].builder
    found = sorted(builder.mirrors.glob("*/objects"))
    for root in builder.roots:
        found += sorted(root.glob("repo/*/clone/objects")) + sorted(root.glob("repo/*/builder/*/.git/objects"))
    return [path.parent for path in found]


def _mendable(ground: Ground, fault: FaultPlan) -> list[Path]:
    """Repositories that were not damaged in this round: a mirror is made anew rarely, on purpose."""
    mended = ground.directory / "damaged"
    known = mended.read_text().splitlines() if mended.exists() else []
    return [place for place in repositories(ground, fault.daemon) if str(place) not in known]


def _note(ground: Ground, place: Path) -> None:
    with (ground.directory / "damaged").open("a") as file:
        file.write(f"{place}\n")


def _choose(ground: Ground, fault: FaultPlan) -> Job | None:
    """A job whose pull request is there and is its own."""
    plain = (JobKind.OK, JobKind.LOUD, JobKind.FAILS, JobKind.MIXED)
    found = [job for job in ground.jobs.values() if job.plan.kind in plain and not job.optional]
    return found[int(fault.choice * len(found))] if found else None
