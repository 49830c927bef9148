from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from lock_helpers import PACKAGE_ROOT, bind_mount, held_elsewhere, is_free, needs_mount, open_descriptors, unprivileged

from ofborg_async.clock import SystemClock
from ofborg_async.errors import FaultKind, HostFault, LockHeldError
from ofborg_async.locks import (
    FileLock,
    HolderNote,
    RootLock,
    acquire_file_lock,
    acquire_root_lock,
    refuse_network_file_system,
)
from ofborg_async.locks.mounts import parse_mountinfo


async def take_root(path: Path, identity: str = "a", seconds: float = 0) -> RootLock:
    return await acquire_root_lock(path, identity=identity, clock=SystemClock(), deadline_seconds=seconds)


def directory_is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


async def test_a_lock_excludes_every_other_open_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = await acquire_file_lock(path, deadline_seconds=0)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(LockHeldError, match="held by another process"):
        await acquire_file_lock(path, deadline_seconds=0)
    lock.close()
    lock.close()
    (await acquire_file_lock(path, deadline_seconds=0)).close()
    assert path.exists(), "a lock file is never removed"


async def test_a_file_of_the_original_builder_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"what it wrote")
    path.chmod(0o644)
    (await acquire_file_lock(path, deadline_seconds=0)).close()
    with held_elsewhere(path, b'{"pid": "x"}'), pytest.raises(LockHeldError) as held:
        await acquire_file_lock(path, deadline_seconds=0)
    assert held.value.holder_pid is None
    assert path.read_bytes() == b'{"pid": "x"}'
    assert path.stat().st_mode & 0o777 == 0o644


async def test_a_longer_note_of_before_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"x" * 1000)
    note = HolderNote.of_this_process("mac1-a", SystemClock())
    lock = await acquire_file_lock(path, deadline_seconds=0, note=note)
    assert json.loads(path.read_bytes()) == {
        "pid": os.getpid(),
        "host": note.host,
        "started_at": note.started_at,
        "identity": "mac1-a",
    }
    assert lock.read_note() == note
    lock.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes a file that is always full: Linux")
async def test_a_full_disk_costs_the_note_and_not_the_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    path.symlink_to("/dev/full")
    note = HolderNote.of_this_process("mac1-a", SystemClock())
    lock = await acquire_file_lock(path, deadline_seconds=0, note=note)
    assert "does not say by whom" in caplog.text
    with pytest.raises(LockHeldError):
        await acquire_file_lock(path, deadline_seconds=0)
    lock.close()


async def test_a_lock_is_taken_once_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as other, anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                (await acquire_file_lock(path, deadline_seconds=20)).close()

            tasks.start_soon(take)
            await anyio.sleep(0.02)
            other.kill()


async def test_a_child_with_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = await acquire_file_lock(path, deadline_seconds=0)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    lock.close()
    assert not is_free(path)
    child.communicate()
    assert is_free(path)


async def test_a_child_without_the_descriptor_does_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = await acquire_file_lock(path, deadline_seconds=0)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    lock.close()
    assert is_free(path)
    child.communicate()


async def test_a_file_that_was_removed_is_made_again_before_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    path.unlink()
    assert lock.try_lock()
    assert path.stat().st_ino == os.fstat(lock.fileno()).st_ino
    assert not is_free(path)
    lock.close()


async def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with unprivileged(), pytest.raises(HostFault, match="let the daemon's user own") as fault:
        await acquire_file_lock(tmp_path / "closed/lock", deadline_seconds=0)
    assert fault.value.kind is FaultKind.PERMISSION


async def test_no_descriptor_is_left_by_failures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outer = await take_root(tmp_path)
    before = open_descriptors()
    for path in (tmp_path, tmp_path / "in", tmp_path / "gone"):
        with pytest.raises((LockHeldError, HostFault)):
            await take_root(path)
        with pytest.raises((LockHeldError, HostFault)):
            await acquire_file_lock(path / ".ofborg-async.lock" / "x", deadline_seconds=0)
    assert open_descriptors() == before
    outer.close()


async def test_who_holds_a_root_is_told(tmp_path: Path) -> None:
    lock = await take_root(tmp_path, "mac1-a")
    with pytest.raises(LockHeldError, match=r"identity mac1-a, on .* since 20") as held:
        await take_root(tmp_path, "mac1-b")
    assert held.value.holder_pid == os.getpid()
    lock.close()
    (await take_root(tmp_path, "mac1-b")).close()


async def test_a_dead_holder_whose_child_goes_on_is_called_dead(tmp_path: Path) -> None:
    script = (
        "import anyio, subprocess, sys\n"
        "from pathlib import Path\n"
        "from ofborg_async.clock import SystemClock\n"
        "from ofborg_async.locks import acquire_root_lock\n"
        "async def main():\n"
        "    lock = await acquire_root_lock(Path(sys.argv[1]), identity='a', clock=SystemClock(), deadline_seconds=0)\n"
        "    subprocess.Popen(['cat'], pass_fds=[lock.fileno()])\n"
        "anyio.run(main)\n"
    )
    reading, writing = os.pipe()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path],
        stdin=reading,
        env={**os.environ, "PYTHONPATH": PACKAGE_ROOT},
        check=True,
    )
    try:
        with pytest.raises(LockHeldError, match="it is gone, a child of it holds the lock"):
            await take_root(tmp_path)
    finally:
        os.close(reading)
        os.close(writing)
    (await take_root(tmp_path, seconds=20)).close()


async def test_nested_roots_exclude_each_other(tmp_path: Path) -> None:
    outer, inner, beside = tmp_path / "r", tmp_path / "r/deep/in", tmp_path / "r-2"
    for directory in (inner, beside):
        directory.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inner)
    lock = await take_root(outer, "outer")
    for path in (inner, tmp_path / "link"):
        with pytest.raises(LockHeldError, match=r"identity outer.*it is a root around") as held:
            await take_root(path)
        assert held.value.holder_pid == os.getpid()
    (await take_root(beside)).close()
    lock.close()
    lock = await take_root(tmp_path / "link", "inner")
    with pytest.raises(LockHeldError, match="a root inside it is in use"):
        await take_root(outer)
    (await take_root(beside)).close()
    lock.close()
    (await take_root(outer)).close()


async def test_directories_that_everybody_shares_are_not_locked(tmp_path: Path) -> None:
    shared, private = tmp_path / "shared", tmp_path / "shared/private"
    (private / "root").mkdir(parents=True)
    shared.chmod(0o1777)
    lock = await take_root(private / "root")
    assert directory_is_free(shared)
    assert not directory_is_free(private)
    lock.close()
    assert directory_is_free(private)


@needs_mount
async def test_a_bind_mount_of_the_inside_of_a_root_is_inside_it(tmp_path: Path) -> None:
    inner = tmp_path / "r/deep/in"
    inner.mkdir(parents=True)
    with bind_mount(inner, tmp_path / "elsewhere") as elsewhere:
        lock = await take_root(tmp_path / "r")
        with pytest.raises(LockHeldError, match="it is a root around"):
            await take_root(elsewhere)
        lock.close()
        lock = await take_root(elsewhere)
        for path in (inner, tmp_path / "r"):
            with pytest.raises(LockHeldError):
                await take_root(path)
        lock.close()


def test_local_file_systems_are_accepted(tmp_path: Path) -> None:
    refuse_network_file_system(tmp_path)
    refuse_network_file_system(Path("/dev/shm"))


MOUNTINFO = r"""
24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 24 0:55 / /mnt/with\040space\134 rw,relatime shared:9 master:2 - nfs4 server:/export rw,vers=4.2
91 24 0:56 /a /mnt/sshfs rw - fuse.sshfs user@host:/a rw
""".strip()


def test_mountinfo_is_read() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert [(m.device, m.root, m.point, m.fs_type) for m in mounts.values()] == [
        ("254:0", "/", "/", "ext4"),
        ("0:55", "/", "/mnt/with space\\", "nfs4"),
        ("0:56", "/a", "/mnt/sshfs", "fuse.sshfs"),
    ]


@pytest.mark.parametrize("fs_type", ["nfs4", "fuse.sshfs", "cifs"])
async def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs_type: str) -> None:
    text = Path("/proc/self/mountinfo").read_text()
    seen = "\n".join(f"{line.partition(' - ')[0]} - {fs_type} server:/ rw" for line in text.splitlines())
    monkeypatch.setattr("ofborg_async.locks.mounts._mounts", lambda: parse_mountinfo(seen))
    with pytest.raises(HostFault, match=f"is on a network file system .{fs_type}.*put it on a local disk") as fault:
        await take_root(tmp_path)
    assert fault.value.kind is FaultKind.LOCK
    assert not (tmp_path / ".ofborg-async.lock").exists()
