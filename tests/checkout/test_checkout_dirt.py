"""A dirty, broken or half-made tree or mirror is never built from: it is cleaned, or made anew."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from checkout_bench import Bench, job_of
from git_upstream import Link, Picture, Upstream, git, picture

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.checkout import Gone, Ready

Damage = Callable[[Path], object]


def write(path: Path, content: bytes = b"dirt\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def nested_repository(tree: Path) -> None:
    git("init", "--quiet", str(tree / "nested"))
    write(tree / "nested" / "file")


def same_size_and_time(path: Path) -> None:
    """Changed in place, with its old size and modification time."""
    before = path.stat()
    path.write_bytes(b"X" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def file_becomes_folder(path: Path) -> None:
    path.unlink()
    write(path / "x")


def folder_becomes_file(path: Path) -> None:
    shutil.rmtree(path)
    write(path)


def folder_becomes_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.parent.parent)


def staged(tree: Path) -> None:
    write(tree / "staged")
    git("add", "staged", cwd=tree)


def committed(tree: Path) -> None:
    staged(tree)
    git("commit", "-qm", "x", cwd=tree)


def flagged(flag: str) -> Damage:
    def damage(tree: Path) -> None:
        git("update-index", flag, "pkgs/a.nix", cwd=tree)
        write(tree / "pkgs/a.nix")

    return damage


def attributes_of_the_repository(tree: Path) -> None:
    write(tree / ".git/info/attributes", b"* text eol=crlf\n")
    (tree / "pkgs/a.nix").unlink()


def repository_elsewhere(tree: Path) -> None:
    shutil.rmtree(tree / ".git")
    write(tree / ".git", b"gitdir: /tmp\n")


DIRT: dict[str, Damage] = {
    "untracked": lambda tree: write(tree / "new"),
    "untracked in a folder": lambda tree: write(tree / "pkgs" / "deep" / "new"),
    "empty folder": lambda tree: (tree / "empty").mkdir(),
    "ignored": lambda tree: write(tree / "pkgs" / "x.ignored"),
    "nested repository": nested_repository,
    "modified": lambda tree: write(tree / "pkgs/a.nix"),
    "modified, as if it were not": lambda tree: same_size_and_time(tree / "pkgs/a.nix"),
    "deleted": lambda tree: (tree / "pkgs/a.nix").unlink(),
    "mode": lambda tree: (tree / "pkgs/a.nix").chmod(0o755),
    "link": lambda tree: replace_by_link(tree / "pkgs/a.nix"),
    "folder instead of a file": lambda tree: file_becomes_folder(tree / "pkgs/a.nix"),
    "file instead of a folder": lambda tree: folder_becomes_file(tree / "pkgs"),
    "link instead of a folder": lambda tree: folder_becomes_link(tree / "pkgs"),
    "staged": staged,
    "committed": committed,
    "assumed unchanged": flagged("--assume-unchanged"),
    "skipped": flagged("--skip-worktree"),
    "sparse": lambda tree: git("sparse-checkout", "set", "--no-cone", "default.nix", cwd=tree),
    "attributes of the repository": attributes_of_the_repository,
    "merge in progress": lambda tree: git("merge", "--no-commit", "--no-ff", "refs/heads/side", cwd=tree, check=False),
    "stale index.lock": lambda tree: write(tree / ".git/index.lock", b""),
    "stale HEAD.lock": lambda tree: write(tree / ".git/HEAD.lock", b""),
    "stale config.lock": lambda tree: write(tree / ".git/config.lock", b""),
    "stale lock of a ref": lambda tree: write(tree / ".git/refs/remotes/origin/master.lock", b""),
    "broken ref": lambda tree: write(tree / ".git/refs/remotes/origin/master", b""),
    "no index": lambda tree: (tree / ".git/index").unlink(),
    "broken index": lambda tree: write(tree / ".git/index"),
    "broken HEAD": lambda tree: write(tree / ".git/HEAD", b""),
    "HEAD at nothing": lambda tree: write(tree / ".git/HEAD", b"0" * 39 + b"1\n"),
    "no HEAD": lambda tree: (tree / ".git/HEAD").unlink(),
    "broken configuration": lambda tree: write(tree / ".git/config", b"[[[\n"),
    "no alternates": lambda tree: (tree / ".git/objects/info/alternates").unlink(),
    "no merges": lambda tree: shutil.rmtree(tree / ".git/ofborg-async"),
    "no repository": lambda tree: shutil.rmtree(tree / ".git"),
    "repository elsewhere": repository_elsewhere,
    "no tree": shutil.rmtree,
    "file instead of the tree": folder_becomes_file,
}


class Steps:
    """One workspace that does job after job, each of another pull request onto a branch that moved on."""

    def __init__(self, bench: Bench, upstream: Upstream, *, restarts: bool) -> None:
        self._bench = bench
        self._upstream = upstream
        self._restarts = restarts
        self._heads = [upstream.pull_request(number, {f"new{number}": b"1\n"}) for number in range(2)]
        self._workspace = bench.workspace()
        self._count = 0
        self.tree = bench.tree()

    async def do(self, name: str) -> None:
        """A job, after which the tree must be as it should be. ``name`` says what was done to it before."""
        self._count += 1
        number = self._count % 2
        moved = b"moved by %d\n" % self._count
        tip = self._upstream.commit("refs/heads/master", {"pkgs/b.nix": moved})
        if self._restarts:
            self._bench.start()
            self._workspace = self._bench.workspace()
        job = job_of(self._upstream.url, number, self._heads[number])
        assert await self._bench.ready(self._workspace, job) == self.tree, name
        expected: Picture = {
            ".gitignore": ("file", b"*.ignored\n"),
            "default.nix": ("file", b"{}\n"),
            "pkgs": ("folder", b""),
            "pkgs/a.nix": ("file", b"1\n"),
            "pkgs/b.nix": ("file", moved),
            f"new{number}": ("file", b"1\n"),
        }
        assert picture(self.tree) == expected, name
        assert git("rev-parse", "origin/master", cwd=self.tree) == tip, name
        git("fsck", "--no-dangling", cwd=self.tree)
        left = [path for path in (*self.tree.parent.iterdir(), *self.mirror.parent.iterdir()) if path.name[0] == "."]
        assert left == [], name

    @property
    def mirror(self) -> Path:
        return self._bench.mirror(self._upstream.url)


@pytest.fixture
def steps(bench: Bench, upstream: Upstream, request: pytest.FixtureRequest) -> Steps:
    upstream.commit("refs/heads/master", {".gitignore": b"*.ignored\n"})
    return Steps(bench, upstream, restarts=request.param)


RUNNING_OR_RESTARTED = pytest.mark.parametrize("steps", [False, True], ids=["running", "restarted"], indirect=True)


@RUNNING_OR_RESTARTED
async def test_tree_is_clean_whatever_was_done_to_it(steps: Steps) -> None:
    await steps.do("nothing")
    for name, damage in DIRT.items():
        git("update-ref", "refs/heads/side", git("rev-parse", "HEAD^2", cwd=steps.tree), cwd=steps.tree)
        damage(steps.tree)
        await steps.do(name)


async def test_same_job_again_is_cleaned_too(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    path = await bench.ready(workspace, job)
    clean = picture(path)
    for name in ("untracked", "modified, as if it were not", "skipped", "nested repository"):
        DIRT[name](path)
        await bench.ready(workspace, job)
        assert picture(path) == clean, name


async def test_job_that_ended_badly_leaves_nothing_to_rely_on(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    await bench.ready(workspace, job)
    bench.spawner.commands.clear()
    await bench.ready(workspace, job)
    assert "reset" not in bench.spawner.names()
    with pytest.raises(RuntimeError):
        async with workspace.lease(job, "attempt"):
            raise RuntimeError("the build was cancelled")
    bench.spawner.commands.clear()
    await bench.ready(workspace, job)
    assert "reset" in bench.spawner.names()


async def test_fault_of_the_network_costs_no_look_at_everything(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    async with workspace.lease(job, "attempt") as lease:
        for there in (True, False, True):
            bench.spawner.commands.clear()
            if there:
                await workspace.prepare(job, "attempt", lease, bench.phases.append)
                upstream.path.rename(upstream.path.with_name("away"))
            else:
                with pytest.raises(HostFault):
                    await workspace.prepare(job, "attempt", lease, bench.phases.append)
                upstream.path.with_name("away").rename(upstream.path)
    assert sorted(bench.spawner.names()) == ["checkout", "clean", "fetch"]


def loose(repository: Path, name: str) -> Path:
    """The file of an object."""
    sha = git("rev-parse", name, cwd=repository)
    path = repository / "objects" / sha[:2] / sha[2:]
    path.chmod(0o644)
    return path


def each(pattern: str, damage: Damage) -> Damage:
    def damage_all(mirror: Path) -> None:
        for path in list(mirror.glob(pattern)):
            damage(path)

    return damage_all


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


MIRROR_DAMAGE: dict[str, Damage] = {
    "empty commit": lambda mirror: loose(mirror, BASE).write_bytes(b""),
    "cut commit": lambda mirror: os.truncate(loose(mirror, BASE), 20),
    "cut folder": lambda mirror: os.truncate(loose(mirror, f"{BASE}^{{tree}}"), 20),
    "no objects": each("objects/??", shutil.rmtree),
    "no folder of objects": lambda mirror: shutil.rmtree(mirror / "objects"),
    "empty ref": each("refs/ofborg-async/trees/*/base", lambda path: write(path, b"")),
    "broken ref": each("refs/ofborg-async/trees/*/head", write),
    "stale locks": each("refs/ofborg-async/trees/*/base", lambda path: write(path.with_name("base.lock"), b"")),
    "no HEAD": lambda mirror: (mirror / "HEAD").unlink(),
    "broken configuration": lambda mirror: write(mirror / "config", b"[[[\n"),
    "empty folder": emptied,
    "file": folder_becomes_file,
    "gone": shutil.rmtree,
}
BASE = "refs/damaged"


@RUNNING_OR_RESTARTED
async def test_broken_mirror_is_made_anew(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofborg_async.checkout.mirror._REMAKE_SECONDS", 0.0)
    await steps.do("nothing")
    for name, damage in MIRROR_DAMAGE.items():
        git("update-ref", BASE, git("rev-parse", "HEAD^1", cwd=steps.tree), cwd=steps.mirror)
        damage(steps.mirror)
        await steps.do(name)
        git("fsck", "--no-dangling", cwd=steps.mirror)


@pytest.mark.parametrize("kind", ["pack", "file"])
async def test_content_that_was_cut_is_fetched_anew(bench: Bench, upstream: Upstream, kind: str) -> None:
    """Found only when the content is needed, as nobody reads all of a mirror."""
    count = 150 if kind == "pack" else 5
    upstream.commit("refs/heads/master", {f"file{number}": b"%d\n" % number for number in range(count)})
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    path = await bench.ready(workspace, job)
    clean = picture(path)
    mirror = bench.mirror(upstream.url)
    if kind == "pack":
        (pack,) = (mirror / "objects/pack").glob("*.pack")
        pack.chmod(0o644)
        os.truncate(pack, 100)
    else:
        os.truncate(loose(mirror, f"{job.pr.head_sha}:file3"), 5)
    shutil.rmtree(path)
    assert await bench.ready(workspace, job) == path
    assert picture(path) == clean
    git("fsck", "--no-dangling", cwd=mirror)


async def test_remote_that_is_broken_itself_does_not_cost_the_mirror_each_time(
    bench: Bench, upstream: Upstream
) -> None:
    workspace = bench.workspace()
    await bench.ready(workspace, job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"})))
    mirror = bench.mirror(upstream.url)
    second = job_of(upstream.url, 2, upstream.pull_request(2, {"second": b"2\n"}))
    git("repack", "-qad", cwd=upstream.path)
    for pack in (upstream.path / "objects/pack").glob("*.pack"):
        pack.chmod(0o644)
        os.truncate(pack, pack.stat().st_size // 2)
    for _ in range(3):
        with pytest.raises(HostFault):
            await bench.prepare(workspace, second)
    assert sum("init" in argv and str(mirror.name) in argv[-1] for argv in bench.spawner.commands) <= 2


async def test_fetch_that_is_killed_is_done_again(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """SIGKILL in the middle of the first fetch and of a later one; nothing half-made stays."""
    workspace = bench.workspace()
    mirror = bench.mirror(upstream.url)
    for number in (1, 2):
        changes = {f"big{number}-{part}": os.urandom(100_000) for part in range(150)}
        head = upstream.pull_request(number, changes)
        job = job_of(upstream.url, number, head)
        async with anyio.create_task_group() as group:
            group.start_soon(kill_receivers, mirror)
            with pytest.raises(HostFault):
                await bench.prepare(workspace, job)
            group.cancel_scope.cancel()
        path = await bench.ready(workspace, job)
        assert picture(path) == upstream.reference(tmp_path / f"reference{number}", "master", head)
        assert list(mirror.rglob("tmp_*")) == []


async def kill_receivers(mirror: Path) -> None:
    """Wait until a pack is coming in, then kill who writes it."""
    pids: list[int] = []
    while not pids:
        await anyio.sleep(0.001)
        for pack in mirror.glob("objects/pack/tmp_pack_*"):
            if pack.stat().st_size > 100_000:
                pids += _users_of(pack)
    for pid in pids:
        with suppress(ProcessLookupError):  # it may end by itself in this moment, mostly with another of them
            os.kill(pid, signal.SIGKILL)


def _users_of(path: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                links = [str(link.readlink()) for link in (process / "fd").iterdir()]
            except OSError:
                continue
            if str(path) in links:
                found.append(int(process.name))
    return found


async def test_job_that_is_cancelled_in_its_checkout(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    workspace = bench.workspace()
    await bench.ready(workspace, job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"})))
    head = upstream.pull_request(2, {f"f{number // 50}/f{number}": b"%d\n" % number for number in range(3000)})
    tree = bench.tree()
    async with anyio.create_task_group() as group:

        async def cancel_when_half_done() -> None:
            while not (tree / "f20").exists():
                await anyio.sleep(0)
            group.cancel_scope.cancel()

        group.start_soon(cancel_when_half_done)
        await bench.prepare(workspace, job_of(upstream.url, 2, head))
        group.cancel_scope.cancel()
    third = upstream.pull_request(3, {"third": b"3\n"})
    path = await bench.ready(workspace, job_of(upstream.url, 3, third))
    assert picture(path) == upstream.reference(tmp_path / "reference", "master", third)


async def test_tree_that_cannot_be_cleaned_is_replaced(bench: Bench, upstream: Upstream) -> None:
    """A read-only mount stands for whatever cannot be removed."""
    workspace = bench.workspace()
    job = job_of(upstream.url, 1, upstream.pull_request(1, {"first": b"1\n"}))
    path = await bench.ready(workspace, job)
    clean = picture(path)
    write(path / "pkgs" / "stuck")
    made = subprocess.run(["chattr", "+i", str(path / "pkgs" / "stuck")], check=False, capture_output=True)
    if made.returncode != 0:
        pytest.skip("this file system or user has no immutable files")
    try:
        assert await bench.ready(workspace, job) == path
        assert picture(path) == clean
    finally:
        for stuck in path.parent.rglob("stuck"):
            subprocess.run(["chattr", "-i", str(stuck)], check=True)


async def test_tracked_file_that_cannot_be_replaced(bench: Bench, upstream: Upstream) -> None:
    workspace = bench.workspace()
    first = job_of(upstream.url, 1, upstream.pull_request(1, {"x/first": b"1\n"}))
    path = await bench.ready(workspace, first)
    made = subprocess.run(["chattr", "+i", str(path / "x" / "first")], check=False, capture_output=True)
    if made.returncode != 0:
        pytest.skip("this file system or user has no immutable files")
    try:
        second = job_of(upstream.url, 2, upstream.pull_request(2, {"second": b"2\n"}))
        assert await bench.ready(workspace, second) == path
        assert "x" not in picture(path)
    finally:
        for stuck in path.parent.rglob("first"):
            subprocess.run(["chattr", "-i", str(stuck)], check=True)


async def test_full_disk_is_a_fault_of_the_disk(bench: Bench, upstream: Upstream, tmp_path: Path) -> None:
    """A small file system for the root, then one for the mirrors; once there is room the job goes on."""
    head = upstream.pull_request(1, {"big": os.urandom(3_000_000)})
    job = job_of(upstream.url, 1, head)
    for place in (bench.root("a"), bench.place / "state"):
        place.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False)
        if mounted.returncode != 0:
            pytest.skip("only root can mount a small file system")
        try:
            workspace = bench.workspace()
            with pytest.raises(HostFault) as caught:
                await bench.prepare(workspace, job)
            assert caught.value.kind == FaultKind.DISK, caught.value
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            path = await bench.ready(workspace, job)
            assert (path / "big").stat().st_size == 3_000_000
        finally:
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(bench.place)


async def test_trees_of_other_roots_survive_a_mirror_made_anew(bench: Bench, upstream: Upstream) -> None:
    mine, other = bench.workspace("a"), bench.workspace("b")
    old = upstream.pull_request(1, {"first": b"1\n"})
    await bench.ready(mine, job_of(upstream.url, 1, old))
    before = set(picture(await bench.ready(other, job_of(upstream.url, 1, old))))
    shutil.rmtree(bench.mirror(upstream.url))
    upstream.pull_request(1, {"first": b"2\n"})
    new = upstream.pull_request(2, {"link": Link("first")})
    for workspace in (mine, other, mine, other):
        path = await bench.ready(workspace, job_of(upstream.url, 2, new))
        assert set(picture(path)) == {*before, "link"} - {"first"}
    # What nobody has any more is gone, without a fault.
    assert isinstance(await bench.prepare(other, job_of(upstream.url, 1, old)), Gone)
    assert isinstance(await bench.prepare(mine, job_of(upstream.url, 2, new)), Ready)
