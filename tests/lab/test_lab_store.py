from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ofborg_async.lab.commands import run
from ofborg_async.lab.namespace import namespaces_work, private_nix
from ofborg_async.lab.servers import LabError, base_environment
from ofborg_async.lab.store import Store, private_nix_daemon, private_store
from ofborg_async.lab.upstream import package_set

BUILD = ("nix-build", "--no-out-link", "./default.nix")
LOOKS_OUTSIDE = """
derivation { name = "looks"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "if test -e /etc/hostname || test -e /proc/1/root/root; then exit 9; fi; echo x > $out" ]; }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "default.nix").write_text(package_set()["default.nix"])
    return place


async def test_it_builds_under_real_names_and_not_in_the_machines_store(store: Store, tree: Path) -> None:
    for system in ("x86_64-linux", "i686-linux"):
        built = (await store.nix(*BUILD, "-A", "ok", "--argstr", "system", system, cwd=tree)).strip()
        assert built.startswith("/nix/store/")
        assert (store.directory / "root" / built.removeprefix("/")).read_text() == "done\n"
        assert not Path(built).exists()


async def test_builds_are_sandboxed(store: Store, tree: Path) -> None:
    (tree / "default.nix").write_text(LOOKS_OUTSIDE)
    await store.nix(*BUILD, cwd=tree)


async def test_the_look_outside_can_fail(tree: Path) -> None:
    """By hand, on the machine itself, it finds what a sandboxed build must not see."""
    script = LOOKS_OUTSIDE.partition('"-c" "')[2].partition('" ];')[0]
    with pytest.raises(LabError, match="ended with 9"):
        await run("sh", "-c", script, env=base_environment(out="/dev/null"), cwd=tree)


async def test_settings_hold_and_the_store_is_removed(tree: Path, tmp_path: Path) -> None:
    async with private_store(tmp_path / "store", max_silent_time="1") as store:
        await store.nix(*BUILD, "-A", "ok", cwd=tree)
        with pytest.raises(LabError, match="timed out after 1 seconds of silence"):
            await store.nix(*BUILD, "-A", "slow", cwd=tree)
    assert not (tmp_path / "store").exists()


async def test_a_daemon_builds_for_clients_that_say_daemon(tree: Path, tmp_path: Path) -> None:
    async with private_store(tmp_path / "store") as store, private_nix_daemon(store) as client:
        assert client.remote == "daemon"
        built = (await client.nix(*BUILD, "-A", "ok", cwd=tree)).strip()
        assert Path(built).is_relative_to(store.directory)
        assert Path(built).is_file()


@pytest.mark.skipif(not namespaces_work(), reason="mount namespaces are for root on Linux")
async def test_a_private_slash_nix_for_programs_that_say_daemon(tree: Path, tmp_path: Path) -> None:
    had_nix = Path("/nix").exists()
    env = base_environment(HOME="/homeless-shelter", NIX_REMOTE="daemon")
    async with private_nix(tmp_path / "private") as place:
        # The evaluation reads what it built, which a daemon elsewhere could not show it.
        output = await run(*place.prefix, *BUILD, "-A", "ifdpkg", env=env, cwd=tree)
        built = output.decode().strip()
        assert built.endswith("-ifdpkg-7")
        assert (tmp_path / "private" / built.removeprefix("/")).is_file()
        assert not Path(built).exists()
    assert Path("/nix").exists() == had_nix


@pytest.mark.skipif(not namespaces_work(), reason="mount namespaces are for root on Linux")
async def test_one_private_slash_nix_does_not_take_another_away(tree: Path, tmp_path: Path) -> None:
    had_nix = Path("/nix").exists()
    env = base_environment(HOME="/homeless-shelter", NIX_REMOTE="daemon")
    async with AsyncExitStack() as second:
        async with private_nix(tmp_path / "one"):
            place = await second.enter_async_context(private_nix(tmp_path / "two"))
        await run(*place.prefix, *BUILD, "-A", "ok", env=env, cwd=tree)
    assert Path("/nix").exists() == had_nix
