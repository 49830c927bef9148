"""Evaluation with a real nix: what is skipped, what is protected, deadlines, and faults of the host."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from nix_lab import NAP, KernelKills, Lines, NixLab, first_builders, kill, meanwhile, package_set, processes_with, until

from ofborg_async.errors import ExecutableMissingError, FaultKind, HostFault
from ofborg_async.model.evaluation import Evaluation
from ofborg_async.model.result import BuildStatus
from ofborg_async.nix import strategy

GOOD = " ".join(f'g{number} = mk "g{number}" "echo x > $out";' for number in range(8))
COUNT = "count = n: list: builtins.foldl' (sum: i: sum + i) n list; numbers = builtins.genList (i: i);"
ENDLESS = (
    f"endless = let {COUNT} some = numbers 20000; in"
    " builtins.foldl' (a: _: builtins.foldl' (b: _: count b some) a some) 0 some;"
)


def skipped_text(evaluation: Evaluation) -> dict[str, str]:
    return {item.attr: b"\n".join(item.lines).decode(errors="replace") for item in evaluation.skipped}


class TestRefusedAttrs:
    async def test_they_are_skipped_and_never_reach_nix(self, lab: NixLab) -> None:
        attrs = ("", '""', "-A", "--help", "a\0b", "a\nb", "x" * 5000)
        evaluation = await lab.engine().evaluate(lab.request(lab.tree({"default.nix": "{ }"}), *attrs))
        assert tuple(skipped_text(evaluation)) == attrs
        assert all(
            "[ofborg-async: this attribute is refused: it " in text for text in skipped_text(evaluation).values()
        )
        assert evaluation.attempted == ()
        assert evaluation.derivations == ()
        assert lab.registry.programs == []

    async def test_the_others_are_evaluated_in_the_jobs_order(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD)})
        evaluation = await lab.engine().evaluate(lab.request(tree, "g1", "", "g0", "-x", "nothing"))
        assert evaluation.attempted == ("g1", "g0")
        assert [item.attr for item in evaluation.skipped] == ["", "-x", "nothing"]
        assert evaluation.derivations is not None
        assert ["-g1.drv!out" in evaluation.derivations[0], "-g0.drv!out" in evaluation.derivations[1]] == [True, True]


class TestWhatCannotBeInstantiated:
    async def test_many_among_many(self, lab: NixLab) -> None:
        bad = 'b0 = throw "b0"; b1 = assert false; 1; b2 = mk "b2" (throw "late"); b3 = { x = 1; }.y; b4 = "a" + 1;'
        tree = lab.tree({"default.nix": package_set(GOOD + bad)})
        attrs = ("b0", "g0", "g1", "b1", "g2", "g3", "g4", "b2", "b3", "g5", "g6", "b4", "g7", "nothing")
        evaluation = await lab.engine().evaluate(lab.request(tree, *attrs))
        by_hand = {attr: lab.original_instantiate(tree, attr) for attr in attrs}
        assert evaluation.attempted == tuple(f"g{number}" for number in range(8))
        assert skipped_text(evaluation) == {attr: "\n".join(lines) for attr, (code, lines) in by_hand.items() if code}
        assert evaluation.derivations == tuple(f"{lines[-1]}!out" for code, lines in by_hand.values() if code == 0)

    async def test_a_file_where_everything_fails_costs_little_more_than_one_process_each(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": '{ ... }: throw "all of it"'})
        evaluation = await lab.engine().evaluate(lab.request(tree, *(f"a{number}" for number in range(16))))
        assert len(evaluation.skipped) == 16
        assert all("all of it" in text for text in skipped_text(evaluation).values())
        assert len(lab.registry.programs) <= 16 + 2 * strategy.ROUNDS

    async def test_one_attr_that_fails_is_evaluated_once(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": '{ ... }: { a = throw "no"; }'})
        await lab.engine().evaluate(lab.request(tree, "a"))
        assert lab.registry.programs == ["nix-instantiate"]

    async def test_a_set_that_fails_after_its_first_derivation_reads_as_in_the_original(self, lab: NixLab) -> None:
        bad = 'part = { recurseForDerivations = true; a = mk "a" "x"; b = mk "b" (throw "late"); };'
        tree = lab.tree({"default.nix": package_set(GOOD + bad)})
        for attrs in (("part",), ("g0", "part", "g1")):
            evaluation = await lab.engine().evaluate(lab.request(tree, *attrs))
            _, lines = lab.original_instantiate(tree, "part")
            assert lines[-1].endswith("-a.drv")
            assert skipped_text(evaluation) == {"part": "\n".join(lines)}

    async def test_very_long_errors_are_cut(self, lab: NixLab) -> None:
        shout = 'b = throw (builtins.concatStringsSep "\\n" (builtins.genList (n: "line ${toString n}") 500000));'
        tree = lab.tree({"default.nix": package_set(shout)})
        evaluation = await lab.engine().evaluate(lab.request(tree, "b"))
        lines = evaluation.skipped[0].lines
        assert sum(map(len, lines)) < 5 << 20
        assert lines[-1] == b"[ofborg-async: the rest of the error is left out]"

    async def test_the_errors_of_all_attrs_together_are_bounded(self, lab: NixLab) -> None:
        shout = (
            'lines = builtins.concatStringsSep "\\n" (builtins.genList (n: "line ${toString n}") 200000);'
            "in { " + " ".join(f"b{number} = throw lines;" for number in range(5)) + "}"
        )
        tree = lab.tree({"default.nix": "{ ... }: let " + shout})
        evaluation = await lab.engine().evaluate(lab.request(tree, "b0", "b1", "b2", "b3", "b4"))
        assert sum(len(line) + 1 for item in evaluation.skipped for line in item.lines) < 9 << 20
        assert any(b"this job has too many errors" in item.lines[-1] for item in evaluation.skipped)


class TestWhatThePackagesPrint:
    async def test_a_trace_makes_the_build_evaluate_again_and_print_it_as_often_as_the_original(
        self, tmp_path: Path
    ) -> None:
        traced = (
            '{ system, ... }: builtins.trace "applied" (let mk = name: derivation { inherit name system;'
            ' builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; }; in { a = mk "a";'
            ' b = builtins.trace "b" (mk "b"); c = mk "c"; d = builtins.trace "a\\nb" (mk "d"); e = mk "e"; })'
        )
        ours, theirs = NixLab(tmp_path / "ours"), NixLab(tmp_path / "theirs")
        attrs = ("a", "b", "c", "d", "e", "nothing")
        tree = ours.tree({"default.nix": traced})
        request = ours.request(tree, *attrs)
        engine = ours.engine()
        evaluation = await engine.evaluate(request)
        assert evaluation.attempted == attrs[:-1]
        assert evaluation.derivations is None
        sink = Lines()
        assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
        code, lines = theirs.original_build(theirs.tree({"default.nix": traced}), *attrs[:-1])
        assert (code, lines) == (0, sink.text.split("\n"))
        assert lines.count("trace: applied") == 5

    async def test_a_package_cannot_pretend_to_be_further_than_it_is(self, lab: NixLab) -> None:
        fake = 'fake = builtins.trace "x\\ntrace: 0123456789abcdef 0\\ntrace:  0" (throw "no");'
        tree = lab.tree({"default.nix": package_set(GOOD + fake)})
        evaluation = await lab.engine().evaluate(lab.request(tree, "fake", "g0", "g1"))
        assert evaluation.attempted == ("g0", "g1")


class TestDeadlines:
    async def test_an_endless_attr_is_skipped_and_costs_the_others_nothing(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD + ENDLESS)})
        engine = lab.engine(lab.settings(eval_timeout_seconds=2.0))
        began = time.monotonic()
        evaluation = await engine.evaluate(lab.request(tree, "g0", "endless", "g1", "g2"))
        assert evaluation.attempted == ("g0", "g1", "g2")
        assert evaluation.derivations is not None
        text = "[ofborg-async: the evaluation was ended after its time limit of 2 s]"
        assert skipped_text(evaluation) == {"endless": text}
        assert time.monotonic() - began < 20
        assert not lab.registry.running

    async def test_an_endless_attr_alone(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(ENDLESS)})
        engine = lab.engine(lab.settings(eval_timeout_seconds=1.0))
        evaluation = await engine.evaluate(lab.request(tree, "endless"))
        assert "time limit of 1 s" in skipped_text(evaluation)["endless"]
        assert not lab.registry.running

    async def test_the_deadline_is_each_attrs_own(self, lab: NixLab) -> None:
        """Five attrs in one process take longer than the deadline, each of them alone does not."""
        imported = 'a{0} = mk "a${{toString (import (mk "i{0}" "sleep 1; echo {0} > $out"))}}" "x";'
        each = " ".join(imported.format(number) for number in range(5))
        tree = lab.tree({"default.nix": package_set(each)})
        engine = lab.engine(lab.settings(eval_timeout_seconds=4.0), parallel=1)
        began = time.monotonic()
        evaluation = await engine.evaluate(lab.request(tree, *(f"a{number}" for number in range(5))))
        assert evaluation.skipped == ()
        assert len(lab.registry.programs) == 1
        assert time.monotonic() - began > 4.0

    async def test_an_import_that_never_ends_leaves_no_builder(self, lab: NixLab) -> None:
        endless = f'ifd = import (mk "ifd" "echo $$; {NAP}; echo 1 > $out");'
        tree = lab.tree({"default.nix": package_set(GOOD + endless)})
        engine = lab.engine(lab.settings(eval_timeout_seconds=2.0))
        seen: list[int] = []

        async def watch() -> None:
            seen.extend(await until("the builder of the import", lambda: processes_with(NAP) or None))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            evaluation = await engine.evaluate(lab.request(tree, "g0", "ifd", "g1"))
        assert evaluation.attempted == ("g0", "g1")
        assert seen
        assert processes_with(NAP) == []

    async def test_the_time_of_the_whole_attempt(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD + ENDLESS)})
        engine = lab.engine(lab.settings(attempt_timeout_seconds=1.0), parallel=1)
        evaluation = await engine.evaluate(
            lab.request(tree, "g0", "endless", *(f"g{number}" for number in range(1, 8)))
        )
        assert evaluation.attempted == ()
        assert all("the time limit of the whole attempt is over" in text for text in skipped_text(evaluation).values())
        assert len(lab.registry.programs) == 1

    async def test_cancellation_leaves_nothing(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(ENDLESS)})
        engine = lab.engine()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(engine.evaluate, lab.request(tree, "endless"))
                await until("nix-instantiate", lambda: lab.registry.running or None)
                scope.cancel()
        assert scope.cancelled_caught
        assert not lab.registry.running


class TestCollector:
    async def test_derivations_are_protected_until_they_are_forgotten(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD)})
        engine = lab.engine()
        request = lab.request(tree, *(f"g{number}" for number in range(8)))
        evaluation = await engine.evaluate(request)
        lab.nix("nix-store", "--gc")
        sink = Lines()
        assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
        assert "error:" not in sink.text
        assert lab.registry.programs == ["nix-instantiate", "nix-instantiate", "nix-build"]
        await engine.forget(request.attempt_id)
        assert list(lab.roots.iterdir()) == []
        lab.nix("nix-store", "--gc")
        assert not list((lab.store / "nix/store").glob("*.drv"))
        await engine.forget(request.attempt_id)

    async def test_a_derivation_collected_all_the_same_is_instantiated_again(self, tmp_path: Path) -> None:
        ours, theirs = NixLab(tmp_path / "ours"), NixLab(tmp_path / "theirs")
        files = {"default.nix": package_set(GOOD)}
        tree = ours.tree(files)
        engine = ours.engine()
        request = ours.request(tree, "g0", "g1")
        evaluation = await engine.evaluate(request)
        shutil.rmtree(ours.roots)
        ours.nix("nix-store", "--gc")
        sink = Lines()
        assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
        _, lines = theirs.original_build(theirs.tree(files), "g0", "g1")
        assert sink.text.split("\n") == lines

    async def test_an_attempts_id_cannot_leave_the_directory(self, lab: NixLab) -> None:
        with pytest.raises(ValueError, match="names a directory"):
            await lab.engine().forget("../../etc")


class TestHostFaults:
    async def test_no_nix_on_the_path(self, lab: NixLab) -> None:
        engine = lab.engine(path="/nowhere")
        with pytest.raises(ExecutableMissingError, match="nix-instantiate"):
            await engine.evaluate(lab.request(lab.tree({"default.nix": "{ }"}), "a", "b"))

    @pytest.mark.parametrize("attrs", [("g0",), ("g0", "g1", "g2")])
    async def test_no_daemon(self, tmp_path: Path, attrs: tuple[str, ...]) -> None:
        lab = NixLab(tmp_path / "lab", remote=f"unix://{tmp_path}/no-socket")
        with pytest.raises(HostFault) as raised:
            await lab.engine().evaluate(lab.request(lab.tree({"default.nix": package_set(GOOD)}), *attrs))
        assert raised.value.kind is FaultKind.NIX_DAEMON
        assert not lab.registry.running

    async def test_killed_as_when_memory_runs_out(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD + ENDLESS)})

        async def kill() -> None:
            await until("nix-instantiate", lambda: lab.registry.running or None)
            os.kill(next(iter(lab.registry.running)), signal.SIGKILL)

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            with pytest.raises(HostFault) as raised:
                await lab.engine().evaluate(lab.request(tree, "endless"))
        assert raised.value.kind is FaultKind.MEMORY

    async def test_what_is_killed_together_is_tried_one_by_one(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(GOOD + 's0 = mk "s${toString (sum (sum 0))}" "x";')})

        async def kill() -> None:
            await until("nix-instantiate", lambda: lab.registry.running or None)
            os.kill(next(iter(lab.registry.running)), signal.SIGKILL)

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            evaluation = await lab.engine().evaluate(lab.request(tree, "s0", "g0", "g1"))
        assert evaluation.attempted == ("s0", "g0", "g1")
        assert evaluation.derivations is not None
        assert len(evaluation.derivations) == 3
        assert len(lab.registry.programs) == 4

    async def test_an_attr_that_only_succeeds_alone_leaves_the_order_to_nix(self, lab: NixLab) -> None:
        """nix crashes in the second of three, which then succeeds: the derivations are known in another order."""
        tree = lab.tree({"default.nix": package_set(GOOD + 's0 = mk "s${toString (sum (sum 0))}" "echo x > $out";')})
        engine = lab.engine()
        request = lab.request(tree, "g0", "s0", "g1")

        async def crash() -> None:
            await until("the link of g0", lambda: list((lab.roots / request.attempt_id).rglob("d*")) or None)
            kill(list(lab.registry.running), signal.SIGABRT)

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            evaluation = await engine.evaluate(request)
        assert evaluation.attempted == ("g0", "s0", "g1")
        assert evaluation.derivations is None
        sink = Lines()
        assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
        assert [line.rsplit(b"-")[-1][:1] for line in sink.lines[-3:]] == [b"g", b"s", b"g"]

    async def test_a_crash_of_nix_is_the_attrs_own(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(ENDLESS)})

        async def crash() -> None:
            await until("nix-instantiate", lambda: lab.registry.running or None)
            os.kill(next(iter(lab.registry.running)), signal.SIGABRT)

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            evaluation = await lab.engine().evaluate(lab.request(tree, "endless"))
        assert skipped_text(evaluation)["endless"].endswith("[ofborg-async: nix-instantiate ended by SIGABRT]")

    async def test_a_package_that_speaks_like_a_broken_host_is_only_skipped(self, lab: NixLab) -> None:
        lies = (
            'l0 = throw "writing to file: No space left on device"; l1 = throw "cannot connect to socket at \'x\'";'
            'l2 = throw "database is locked"; l3 = throw "x\\nerror: interrupted by the user";'
        )
        tree = lab.tree({"default.nix": package_set(GOOD + lies)})
        attrs = ("l0", "g0", "l1", "l2", "l3")
        evaluation = await lab.engine().evaluate(lab.request(tree, *attrs))
        assert evaluation.attempted == ("g0",)
        by_hand = {attr: "\n".join(lab.original_instantiate(tree, attr)[1]) for attr in attrs if attr != "g0"}
        assert skipped_text(evaluation) == by_hand

    @pytest.mark.parametrize("kernel", [False, True])
    async def test_the_builder_of_an_import_that_is_killed_twice(self, lab: NixLab, kernel: bool) -> None:
        """It counts as the attr's own, unless the kernel killed for want of memory meanwhile."""
        tree = lab.tree({"default.nix": package_set(f'a = import (mk "import" "{NAP}; echo 1 > $out");')})
        engine = lab.engine(evidence=KernelKills((), 0, 0) if kernel else None)
        async with meanwhile(first_builders, kill, times=2):
            if kernel:
                with pytest.raises(HostFault):
                    await engine.evaluate(lab.request(tree, "a"))
            else:
                evaluation = await engine.evaluate(lab.request(tree, "a"))
                assert "failed due to signal 9" in skipped_text(evaluation)["a"]

    async def test_out_of_memory_twice_is_believed(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set('l = throw "out of memory";')})
        with pytest.raises(HostFault) as raised:
            await lab.engine().evaluate(lab.request(tree, "l"))
        assert raised.value.kind is FaultKind.MEMORY

    async def test_a_full_disk(self, small_disk: Path) -> None:
        lab = NixLab(small_disk / "lab")
        text = 'builtins.toFile "text" (builtins.concatStringsSep "" (builtins.genList toString 1000000))'
        tree = lab.tree({"default.nix": package_set(f'a = mk "a" "cat ${{{text}}}";')})
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 16)):
                pass
        with pytest.raises(HostFault) as raised:
            await lab.engine().evaluate(lab.request(tree, "a"))
        assert raised.value.kind is FaultKind.DISK


class TestVeryManyAttrs:
    async def test_ten_thousand(self, lab: NixLab) -> None:
        many = (
            '{ system, ... }: let one = derivation { name = "one"; inherit system; builder = "/bin/sh";'
            ' args = [ "-c" "echo x > $out" ]; }; in builtins.listToAttrs (builtins.genList'
            ' (n: { name = "package-with-a-longer-name-${toString n}"; value = one; }) 10000)'
        )
        tree = lab.tree({"default.nix": many})
        attrs = tuple(f"package-with-a-longer-name-{number}" for number in range(10_000))
        engine = lab.engine()
        request = lab.request(tree, *attrs)
        evaluation = await engine.evaluate(request)
        assert evaluation.attempted == attrs
        assert evaluation.derivations is not None
        assert len(evaluation.derivations) == 10_000
        assert len(lab.registry.programs) < 20
        sink = Lines()
        assert await engine.build(request, evaluation, sink) is BuildStatus.SUCCESS
        assert sum(line.endswith(b"-one") for line in sink.lines) == 10_000
