"""Builds with a real nix: lines, verdicts, time limits, cancellation, and faults of the host."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import anyio
import pytest
from nix_lab import (
    NAP,
    KernelKills,
    Lines,
    NixDaemon,
    NixLab,
    first_builders,
    kill,
    meanwhile,
    package_set,
    processes_with,
)

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.result import BuildStatus, Status, UnexpectedError
from ofborg_async.nix import HostEvidence

PACKAGES = package_set(
    """
    ok = mk "ok" "echo building ok; echo x > $out";
    other = mk "other" "echo y > $out";
    fail = mk "fail" "echo about to fail; exit 3";
    slow = mk "slow" "echo sleeping; NAP; echo x > $out";
    hash = derivation {
      name = "hash"; inherit system; builder = "/bin/sh"; args = [ "-c" "echo wrong > $out" ];
      outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "right";
    };
    needs = input: name: derivation {
      inherit name system input; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ];
    };
    needsok = needs ok "needsok";
    needsfail = needs fail "needsfail";
    needshash = needs hash "needshash";
    needsslow = needs slow "needsslow";
    lies = mk "lies" ''
      echo "error: hash mismatch in fixed-output derivation '/nix/store/x.drv':"
      echo "error: timed out after 5 seconds"
      echo "error: unexpected end-of-file"
      exit 1
    '';
    empty = mk "empty" "echo makes no output";
    void = { };
    wrong = ok // { outputName = "nothing"; };
    newline = ok // { outputName = "a\\nb"; };
    foreign = derivation { name = "foreign"; system = "mips-none"; builder = "/bin/sh"; };
    """.replace("NAP", NAP)
).replace("in {", "in rec {")


async def build(lab: NixLab, tree: Path, *attrs: str, **settings: object) -> tuple[Status, list[str]]:
    engine = lab.engine(lab.settings(**settings))
    request = lab.request(tree, *attrs)
    sink = Lines()
    evaluation = await engine.evaluate(request)
    assert evaluation.skipped == ()
    status = await engine.build(request, evaluation, sink)
    await engine.forget(request.attempt_id)
    assert not lab.registry.running
    return status, sink.text.split("\n") if sink.lines else []


class TestAsTheOriginal:
    """The same lines as the original's command prints, and the status its exit code means."""

    @pytest.mark.parametrize(
        ("attrs", "status"),
        [
            (("ok",), BuildStatus.SUCCESS),
            (("ok", "other", "needsok", "ok"), BuildStatus.SUCCESS),
            (("fail",), BuildStatus.FAILURE),
            (("needsfail",), BuildStatus.FAILURE),
            (("needsfail", "fail", "ok"), BuildStatus.FAILURE),
            (("hash",), BuildStatus.HASH_MISMATCH),
            (("needshash", "ok"), BuildStatus.HASH_MISMATCH),
            (("slow", "ok"), BuildStatus.TIMED_OUT),
            (("needsslow", "fail"), BuildStatus.TIMED_OUT),
            (("slow", "hash", "fail", "ok"), BuildStatus.HASH_MISMATCH),
            (("lies",), BuildStatus.FAILURE),
            (("void",), BuildStatus.SUCCESS),
            (("void", "ok"), BuildStatus.SUCCESS),
            (("wrong",), UnexpectedError("command failed with exit code 1")),
            (("newline", "ok"), UnexpectedError("command failed with exit code 1")),
            (("empty", "ok"), UnexpectedError("command failed with exit code 1")),
            (("foreign",), UnexpectedError("command failed with exit code 1")),
        ],
    )
    async def test_lines_and_status(self, tmp_path: Path, attrs: tuple[str, ...], status: Status) -> None:
        ours, theirs = (NixLab(tmp_path / name, "max-silent-time = 3\n") for name in ("ours", "theirs"))
        files = {"default.nix": PACKAGES}
        _, expected = theirs.original_build(theirs.tree(files), *attrs)
        expected = [line.replace(str(theirs.store), str(ours.store)) for line in expected]
        assert await build(ours, ours.tree(files), *attrs) == (status, expected)

    async def test_nothing_to_build_starts_no_nix_build(self, lab: NixLab) -> None:
        await build(lab, lab.tree({"default.nix": PACKAGES}), "void")
        assert lab.registry.programs == ["nix-instantiate"]

    async def test_i686_builds_on_x86_64(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set('a = mk "a" "echo on $system; echo x > $out";')})
        engine = lab.engine()
        request = lab.request(tree, "a", system="i686-linux")
        sink = Lines()
        assert await engine.build(request, await engine.evaluate(request), sink) is BuildStatus.SUCCESS
        assert "on i686-linux" in sink.text

    async def test_an_argument_list_that_is_too_long_is_cut_into_several(
        self, lab: NixLab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ofborg_async.nix.build._LEAST_ARGUMENT_BYTES", 150)
        monkeypatch.setattr("os.sysconf", lambda name: 0)
        status, lines = await build(lab, lab.tree({"default.nix": PACKAGES}), "ok", "fail", "other")
        assert status is BuildStatus.FAILURE
        assert lab.registry.programs.count("nix-build") == 3
        assert sum(line.startswith("/nix/store/") for line in lines) == 2


class TestThroughADaemon:
    @pytest.mark.parametrize(
        ("attrs", "status"),
        [
            (("ok",), BuildStatus.SUCCESS),
            (("fail",), BuildStatus.FAILURE),
            (("needsfail",), BuildStatus.FAILURE),
            (("hash", "ok"), BuildStatus.HASH_MISMATCH),
            (("needshash", "fail"), BuildStatus.HASH_MISMATCH),
            (("slow",), BuildStatus.TIMED_OUT),
            (("needsslow", "fail"), BuildStatus.TIMED_OUT),
            (("foreign",), UnexpectedError("command failed with exit code 1")),
        ],
    )
    async def test_status_by_the_texts(self, daemon: NixDaemon, attrs: tuple[str, ...], status: Status) -> None:
        assert (await build(daemon, daemon.tree({"default.nix": PACKAGES}), *attrs))[0] == status

    async def test_roots_are_registered(self, daemon: NixDaemon) -> None:
        engine = daemon.engine()
        request = daemon.request(daemon.tree({"default.nix": PACKAGES}), "ok", "other")
        evaluation = await engine.evaluate(request)
        assert evaluation.derivations is not None
        _, roots = daemon.nix("nix-store", "--gc", "--print-roots")
        assert {line.split(" -> ")[1] + "!out" for line in roots if str(daemon.roots) in line} == set(
            evaluation.derivations
        )

    async def test_a_daemon_that_is_gone_when_the_build_starts(self, daemon: NixDaemon) -> None:
        engine = daemon.engine()
        request = daemon.request(daemon.tree({"default.nix": PACKAGES}), "ok")
        evaluation = await engine.evaluate(request)
        daemon.kill_all()
        sink = Lines()
        with pytest.raises(HostFault) as raised:
            await engine.build(request, evaluation, sink)
        assert raised.value.kind is FaultKind.NIX_DAEMON
        assert "cannot connect to" in sink.text

    async def test_a_daemon_that_dies_is_the_hosts_fault(self, daemon: NixDaemon) -> None:
        tree = daemon.tree({"default.nix": PACKAGES})

        def die(builders: list[int]) -> None:
            daemon.kill_all()
            kill(builders)

        with pytest.raises(HostFault) as raised:
            async with meanwhile(lambda: processes_with(NAP), die):
                await build(daemon, tree, "slow")
        assert raised.value.kind is FaultKind.NIX_DAEMON


async def test_what_an_untrusted_user_is_told_of_restricted_settings_is_left_out(lab: NixLab, tmp_path: Path) -> None:
    """nix 2.8 does not warn, so a wrapper says what others say, and then runs the real one."""
    wrappers = tmp_path / "bin"
    wrappers.mkdir()
    warning = (
        "warning: ignoring the {}-specified setting 'build-timeout',"
        " because it is a restricted setting and you are not a trusted user"
    )
    says = "".join(f'echo "{warning.format(who)}" >&2\n' for who in ("user", "client"))
    for name in ("nix-build", "nix-instantiate"):
        (wrappers / name).write_text(f'#!/bin/sh\n{says}exec {shutil.which(name)} "$@"\n')
        (wrappers / name).chmod(0o755)
    engine = lab.engine(path=f"{wrappers}:{os.environ['PATH']}")
    request = lab.request(lab.tree({"default.nix": PACKAGES}), "ok", "other", "nothing")
    sink = Lines()
    evaluation = await engine.evaluate(request)
    assert evaluation.attempted == ("ok", "other")
    assert evaluation.derivations is not None
    assert evaluation.skipped[0].lines == (b"error: attribute 'nothing' in selection path 'nothing' not found",)
    assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
    assert "building ok" in sink.text
    assert "restricted" not in sink.text


class TestEndings:
    async def test_the_time_limit_of_the_attempt(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": PACKAGES})
        status, lines = await build(lab, tree, "slow", attempt_timeout_seconds=3.0)
        assert status is BuildStatus.TIMED_OUT
        assert "sleeping" in lines
        assert lines[-1] == "[ofborg-async: the time limit of an attempt, 3 s, is over]"
        assert processes_with(NAP) == []

    async def test_cancellation_ends_the_builders_and_then_goes_on(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": PACKAGES})
        with anyio.CancelScope() as scope:
            async with meanwhile(lambda: processes_with(NAP), lambda _: scope.cancel()):
                await build(lab, tree, "slow")
        assert scope.cancelled_caught
        assert processes_with(NAP) == []
        assert not lab.registry.running

    @pytest.mark.parametrize(
        ("number", "kind"), [(signal.SIGKILL, FaultKind.MEMORY), (signal.SIGTERM, FaultKind.PROCESS)]
    )
    async def test_a_signal_from_outside_is_the_hosts_fault(self, lab: NixLab, number: int, kind: FaultKind) -> None:
        tree = lab.tree({"default.nix": PACKAGES})

        def end_nix_build(builders: list[int]) -> None:
            kill(list(lab.registry.running), number)
            kill(builders)  # only a daemon, which is a subreaper, finds them (tests/process)

        with pytest.raises(HostFault) as raised:
            async with meanwhile(lambda: processes_with(NAP), end_nix_build):
                await build(lab, tree, "slow")
        assert raised.value.kind is kind

    async def test_a_crash_of_nix_build_is_nobodys(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": PACKAGES})

        def crash(builders: list[int]) -> None:
            kill(list(lab.registry.running), signal.SIGABRT)
            kill(builders)

        async with meanwhile(lambda: processes_with(NAP), crash):
            status, _ = await build(lab, tree, "slow")
        assert status == UnexpectedError("unexpected build failure")


class TestKilledBuilders:
    async def test_one_that_is_killed_once_succeeds_in_the_second_go(self, tmp_path: Path) -> None:
        flag = tmp_path / "flag"
        flag.mkdir()
        flag.chmod(0o777)
        lab = NixLab(tmp_path / "lab", f"sandbox-paths = /bin/sh=/usr/bin/busybox /flag={flag}\n")
        script = f"if [ -e /flag/second ]; then echo x > $out; else echo > /flag/second; {NAP}; fi"
        tree = lab.tree({"default.nix": package_set(f'a = mk "a" "{script}";')})
        async with meanwhile(first_builders, kill):
            status, lines = await build(lab, tree, "a")
        assert status is BuildStatus.SUCCESS
        note = "a builder was killed (signal 9), as the kernel does when memory runs out; building again what failed"
        assert [line for line in lines if line.startswith("[ofborg-async: ")] == [f"[ofborg-async: {note}]"]

    async def test_one_that_is_killed_twice_has_failed(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": PACKAGES})
        async with meanwhile(first_builders, kill, times=2):
            status, lines = await build(lab, tree, "slow")
        assert status is BuildStatus.FAILURE
        assert sum("failed due to signal 9" in line for line in lines) == 2
        assert lab.registry.programs.count("nix-build") == 2

    async def test_failures_while_the_kernel_kills_are_the_hosts(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": PACKAGES})
        engine = lab.engine(evidence=KernelKills((), 0, 0))
        request = lab.request(tree, "fail")
        sink = Lines()
        with pytest.raises(HostFault) as raised:
            await engine.build(request, await engine.evaluate(request), sink)
        assert raised.value.kind is FaultKind.MEMORY
        assert lab.registry.programs.count("nix-build") == 2
        assert "[ofborg-async: the kernel killed processes of this host" in sink.text

    async def test_success_is_not_questioned(self, lab: NixLab) -> None:
        engine = lab.engine(evidence=KernelKills((), 0, 0))
        request = lab.request(lab.tree({"default.nix": PACKAGES}), "ok")
        assert await engine.build(request, await engine.evaluate(request), Lines()) is BuildStatus.SUCCESS


class TestDisk:
    async def test_a_build_that_fills_the_disk_is_the_hosts_fault(self, small_disk: Path) -> None:
        lab = NixLab(small_disk / "lab")
        tree = lab.tree({"default.nix": package_set('a = mk "a" "dd if=/dev/zero of=$out bs=1M count=100";')})
        engine = lab.engine(evidence=HostEvidence((lab.store,), 1 << 20, 0))
        request = lab.request(tree, "a")
        sink = Lines()
        with pytest.raises(HostFault) as raised:
            await engine.build(request, await engine.evaluate(request), sink)
        assert raised.value.kind is FaultKind.DISK
        assert "No space left on device" in sink.text

    async def test_a_builder_that_finds_it_full(self, lab: NixLab) -> None:
        """nix itself may go on well: what the builder wrote is gone when it has failed."""
        tree = lab.tree({"default.nix": package_set('a = mk "a" "echo cp: x: No space left on device; exit 1";')})
        engine = lab.engine(evidence=HostEvidence((lab.store,), 1 << 60, 0))
        request = lab.request(tree, "a")
        with pytest.raises(HostFault) as raised:
            await engine.build(request, await engine.evaluate(request), Lines())
        assert raised.value.kind is FaultKind.DISK
        assert str(lab.store) in raised.value.detail

    async def test_a_package_that_only_says_so_has_failed(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set('a = mk "a" "echo No space left on device; exit 1";')})
        engine = lab.engine(evidence=HostEvidence((lab.store,), 1, 1))
        request = lab.request(tree, "a")
        assert await engine.build(request, await engine.evaluate(request), Lines()) is BuildStatus.FAILURE

    def test_places(self, tmp_path: Path) -> None:
        assert HostEvidence((tmp_path / "nothing", tmp_path), 0, 0).full_place() is None
        assert HostEvidence((tmp_path / "nothing", tmp_path), 1 << 60, 0).full_place() == tmp_path
        # A file system without a fixed number of inodes is never short of them.
        counted = os.statvfs(tmp_path).f_files > 0
        assert HostEvidence((tmp_path,), 0, 1 << 60).full_place() == (tmp_path if counted else None)


def test_the_engine_is_the_pipelines_port(lab: NixLab) -> None:
    from ofborg_async.pipeline.ports import Nix

    port: Nix = lab.engine()
    assert port is not None
