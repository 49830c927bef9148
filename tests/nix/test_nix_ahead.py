"""One attr by one process, with a real nix: what the original prints, and faults and limits in either phase.

The recordings and the forms of files are compared in test_nix_recordings and test_nix_forms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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
    until,
)

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.evaluation import EvalRequest, Evaluation
from ofborg_async.model.result import BuildStatus, Status
from ofborg_async.nix import NixEngine, argv, strategy
from ofborg_async.nix.ahead import Ahead
from ofborg_async.nix.verdict import Watch, status_of

PACKAGES = package_set(
    """
    ok = mk "ok" "echo building ok; echo x > $out";
    fail = mk "fail" "echo about to fail; exit 3";
    slow = mk "slow" "echo sleeping; NAP; echo x > $out";
    four = mk "four" "sleep 4; echo x > $out";
    hash = derivation {
      name = "hash"; inherit system; builder = "/bin/sh"; args = [ "-c" "echo wrong > $out" ];
      outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "right";
    };
    needs = derivation {
      name = "needs"; inherit system; input = fail; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ];
    };
    outputs = { outputs = [ "dev" "out" ]; builder = "/bin/sh"; inherit system;
      args = [ "-c" "echo >$out; echo >$dev" ]; };
    two = derivation (outputs // { name = "two"; });
    twoout = two.out;
    hidden = derivation (outputs // { name = "hidden"; outputName = "out"; });
    empty = mk "empty" "echo makes no output";
    crlf = mk "crlf" "printf 'a\\\\r\\\\nb'; exit 1";
    wrong = ok // { outputName = "nothing"; };
    newline = ok // { outputName = "a\\nb"; };
    foreign = derivation { name = "foreign"; system = "mips-none"; builder = "/bin/sh"; };
    unwritten = { type = "derivation"; name = "x"; outputName = "out";
      drvPath = "/nix/store/00000000000000000000000000000000-x.drv"; };
    deep.er.pkg = mk "deep" "echo x > $out";
    ifd = mk "ifd${toString (import (mk "imported" "echo importing; echo 5 > $out"))}" "echo x > $out";
    traced = builtins.trace "two\\nlines" (mk "traced" "echo x > $out");
    tracedifd = builtins.trace "before" (builtins.seq ifd (builtins.trace "after" (mk "tracedifd" "echo x > $out")));
    tracedpath = ok // { drvPath = builtins.trace "its path" ok.drvPath; };
    late = mk "late" (builtins.trace "now\\ntrace: 0123456789abcdef root\\nthis derivation will be built:" "echo>$out");
    set = { recurseForDerivations = true; b = mk "b" "echo x > $out"; a = mk "a" "echo x > $out"; };
    list = [ (mk "l0" "echo x > $out") (mk "l1" "echo x > $out") ];
    call = { system }: mk "call" "echo x > $out";
    functor = ok // { __functor = self: { ... }: mk "functor" "echo x > $out"; };
    void = { };
    """.replace("NAP", NAP)
).replace("in {", "in rec {")
BAD = package_set(
    """
    ok = mk "ok" "x";
    says = throw "«string»:1:2 selection path 'root0.a'";
    fine = ok;
    thrown = throw "no";
    asserted = assert false; 1;
    latethrow = mk "latethrow" (throw "late");
    lateassert = ok // { drvPath = assert 1 == 2; ok.drvPath; };
    lateabort = ok // { drvPath = abort "abort"; };
    latemissing = mk "latemissing" (({ }).missing);
    once = let said = builtins.trace "once" 1; in mk "once" (builtins.seq said (throw "late"));
    latetrace = mk "latetrace" (builtins.trace "before" (throw "late"));
    missing = { x = 1; }.y;
    typed = "a" + 1;
    nameless = ok // { name = throw "name"; };
    outputless = removeAttrs ok [ "outputName" ];
    badoutput = ok // { outputName = throw "output"; };
    number = 5;
    part = { recurseForDerivations = true; a = ok; b = mk "b" (throw "late"); };
    failedimport = import (mk "failedimport" "echo why; exit 1");
    """
).replace("in {", "in rec {")
NAMES_WHEN_ENDED = """\
#!/bin/sh
word=$(printf %s "$*" | sed -n 's/.*-A peek\\([0-9a-f]*\\).*/\\1/p')
trap 'echo "trace: $word /nix/store/00000000000000000000000000000000-x.drv!out!"; exit 1' TERM
while :; do sleep 0.05; done
"""
COUNT = "count = n: list: builtins.foldl' (sum: i: sum + i) n list; numbers = builtins.genList (i: i);"
ENDLESS = (
    f"endless = let {COUNT} some = numbers 20000; in"
    " builtins.foldl' (a: _: builtins.foldl' (b: _: count b some) a some) 0 some;"
)


async def evaluate_and_build(
    engine: NixEngine, request: EvalRequest, sink: Lines, between: Callable[[Evaluation], None] | None = None
) -> tuple[Evaluation, Status | None]:
    """As the pipeline does; a HostFault goes on without a group of errors around it."""
    fault = None
    status = None
    async with anyio.create_task_group() as building:
        try:
            evaluation = await engine.evaluate(request, building)
            if between is not None:
                between(evaluation)
            if evaluation.attempted:
                status = await engine.build(request, evaluation, sink)
        except HostFault as raised:
            fault = raised
        building.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return evaluation, status


async def run(
    lab: NixLab, tree: Path, attr: str, engine: NixEngine | None = None, **settings: object
) -> tuple[Evaluation, Status | None, list[str]]:
    sink = Lines()
    engine = engine or lab.engine(lab.settings(**settings))
    request = lab.request(tree, attr)
    evaluation, status = await evaluate_and_build(engine, request, sink)
    await engine.forget(request.attempt_id)
    return evaluation, status, [line.decode(errors="replace") for line in sink.lines]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the evaluations here may take more than a small one."""
    monkeypatch.setattr(strategy, "SMALL_CPU_SECONDS", 60.0)


@pytest.fixture
def tree(lab: NixLab) -> Path:
    return lab.tree({"default.nix": PACKAGES})


class TestLikeTheOriginal:
    @pytest.mark.parametrize(
        ("attr", "programs"),
        [
            *((attr, ["nix-build"]) for attr in ("ok", "fail", "hash", "needs", "two", "twoout", "hidden", "empty")),
            *((attr, ["nix-build"]) for attr in ("crlf", "foreign", "wrong", "unwritten", "deep.er.pkg")),
            *((attr, ["nix-build"]) for attr in ("ifd", "traced", "tracedpath", "late", "tracedifd")),
            *((attr, ["nix-build", "nix-instantiate", "nix-build"]) for attr in ("set", "list", "call", "functor")),
            ("newline", ["nix-build", "nix-instantiate", "nix-build"]),
            ("list.1", ["nix-instantiate", "nix-build"]),
            ("void", ["nix-build", "nix-instantiate"]),
        ],
    )
    async def test_lines_status_and_processes_of_a_build(
        self, tmp_path: Path, lab: NixLab, tree: Path, attr: str, programs: list[str]
    ) -> None:
        theirs = NixLab(tmp_path / "theirs")
        evaluation, status, lines = await run(lab, tree, attr)
        theirs.original_instantiate(tree, attr)
        code, expected = theirs.original_build(tree, attr) if attr != "void" else (0, [])
        watch = Watch()
        watch.feed([line.encode() for line in expected])
        assert lines == [line.replace(str(theirs.folder), str(lab.folder)).removesuffix("\r") for line in expected]
        assert status == status_of(code, watch)
        assert (evaluation.attempted, evaluation.skipped) == ((attr,), ())
        assert lab.registry.programs == programs
        assert not lab.registry.running
        assert not lab.roots.exists() or not list(lab.roots.iterdir())

    @pytest.mark.parametrize(
        ("attr", "processes"),
        [
            *(
                (attr, 1)
                for attr in ("number", "thrown", "asserted", "lateassert", "latethrow", "missing", "typed", "nameless")
            ),
            *((attr, 1) for attr in ("failedimport", "nothing", "ok.nothing", "number.x", "badoutput")),
            ("once", 1),
            *((attr, 2) for attr in ("says", "lateabort", "latemissing", "latetrace", "outputless")),
            ("part", 3),
        ],
    )
    async def test_errors(self, lab: NixLab, attr: str, processes: int) -> None:
        tree = lab.tree({"default.nix": BAD})
        evaluation, status, lines = await run(lab, tree, attr)
        code, expected = lab.original_instantiate(tree, attr)
        assert code != 0
        assert [line.decode() for line in evaluation.skipped[0].lines] == expected
        assert (status, lines) == (None, [])
        assert lab.registry.programs == ["nix-build", *(processes - 1) * ["nix-instantiate"]]

    @pytest.mark.parametrize("attr", ["ok", "ok.nothing"])
    async def test_the_words_between_are_not_in_what_is_published(self, lab: NixLab, tree: Path, attr: str) -> None:
        evaluation, _, lines = await run(lab, tree, attr)
        text = "\n".join([*lines, *(line.decode() for item in evaluation.skipped for line in item.lines)])
        assert text
        assert "trace: " not in text
        assert "root" not in text

    @pytest.mark.parametrize("attr", ["ok", "ifd", "traced", "tracedifd"])
    async def test_all_is_built_before_its_name_is_read(
        self, tmp_path: Path, lab: NixLab, tree: Path, attr: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A busy host reads late. The lines of that build are never printed again."""
        instantiated = Ahead._instantiated

        def late(ahead: Ahead, derivation: bytes, rest: list[bytes]) -> None:
            (pid,) = lab.registry.running
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            instantiated(ahead, derivation, rest)

        monkeypatch.setattr(Ahead, "_instantiated", late)
        theirs = NixLab(tmp_path / "theirs")
        theirs.original_instantiate(tree, attr)
        _, expected = theirs.original_build(tree, attr)
        _, status, lines = await run(lab, tree, attr)
        assert status is BuildStatus.SUCCESS
        assert lines == [line.replace(str(theirs.folder), str(lab.folder)) for line in expected]

    async def test_many_lines_at_once(self, lab: NixLab) -> None:
        """The first of them come in one chunk with the line that ends the evaluation."""
        loop = "i=0; while [ $i -lt 50000 ]; do echo $i; i=$((i+1)); done; echo x > $out"
        _, status, lines = await run(lab, lab.tree({"default.nix": package_set(f'a = mk "a" "{loop}";')}), "a")
        assert status is BuildStatus.SUCCESS
        assert [line for line in lines if line.isdigit()] == [str(number) for number in range(50000)]
        assert lines[0] == "this derivation will be built:"

    async def test_nothing_to_do(self, lab: NixLab, tree: Path) -> None:
        _, _, first = await run(lab, tree, "ok")
        _, status, lines = await run(lab, tree, "ok")
        assert (status, lines) == (BuildStatus.SUCCESS, [first[-1]])
        assert lab.registry.programs == ["nix-build", "nix-build"]

    async def test_several_attrs_are_instantiated_first(self, lab: NixLab, tree: Path) -> None:
        request = lab.request(tree, "ok", "two")
        _, status = await evaluate_and_build(lab.engine(), request, Lines())
        assert status is BuildStatus.SUCCESS
        assert lab.registry.programs == ["nix-instantiate", "nix-build"]

    async def test_one_attr_beside_a_refused_one(self, lab: NixLab, tree: Path) -> None:
        evaluation, status = await evaluate_and_build(lab.engine(), lab.request(tree, "", "ok"), Lines())
        assert (evaluation.attempted, status) == (("ok",), BuildStatus.SUCCESS)
        assert lab.registry.programs == ["nix-build"]

    async def test_through_a_daemon(self, daemon: NixDaemon) -> None:
        tree = daemon.tree({"default.nix": PACKAGES})
        assert (await run(daemon, tree, "ok"))[1] is BuildStatus.SUCCESS
        assert (await run(daemon, tree, "slow"))[1] is BuildStatus.TIMED_OUT  # silent for too long
        assert (await run(daemon, tree, "needs"))[1] is BuildStatus.FAILURE
        assert daemon.registry.programs == 3 * ["nix-build"]


class TestTimeLimits:
    async def test_that_of_the_evaluation(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(ENDLESS)})
        began = time.monotonic()
        evaluation, _, _ = await run(lab, tree, "endless", eval_timeout_seconds=1.0)
        text = b"[ofborg-async: the evaluation was ended after its time limit of 1 s]"
        *before, last = evaluation.skipped[0].lines
        assert last == text
        assert set(before) <= {b"error: interrupted by the user"}  # what nix says of the signal, if it comes to it
        assert lab.registry.programs == ["nix-build"]
        assert time.monotonic() - began < 20  # not the half minute that a build is given
        assert not lab.registry.running

    async def test_the_derivation_is_named_while_it_is_ended(self, lab: NixLab, tree: Path, tmp_path: Path) -> None:
        """The time is over just before: then there is no build to take over."""
        (tmp_path / "bin").mkdir()
        nix_build = tmp_path / "bin" / "nix-build"
        nix_build.write_text(NAMES_WHEN_ENDED)
        nix_build.chmod(0o755)
        engine = lab.engine(lab.settings(eval_timeout_seconds=1.0), path=f"{nix_build.parent}:{os.environ['PATH']}")
        evaluation, status, _ = await run(lab, tree, "ok", engine)
        assert b"time limit of 1 s" in evaluation.skipped[0].lines[-1]
        assert status is None
        assert lab.registry.programs == ["nix-build"]

    async def test_an_import_that_never_ends_leaves_no_builder(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(f'ifd = import (mk "ifd" "{NAP}; echo 1 > $out");')})
        evaluation, _, _ = await run(lab, tree, "ifd", eval_timeout_seconds=2.0)
        assert b"time limit of 2 s" in evaluation.skipped[0].lines[-1]
        assert b"-ifd.drv'..." in evaluation.skipped[0].lines[0]
        assert processes_with(NAP) == []

    async def test_a_build_is_not_limited_by_that_of_the_evaluation(self, lab: NixLab, tree: Path) -> None:
        _, status, _ = await run(lab, tree, "four", eval_timeout_seconds=2.0)
        assert status is BuildStatus.SUCCESS
        assert lab.registry.programs == ["nix-build"]

    async def test_that_of_the_attempt(self, lab: NixLab, tree: Path) -> None:
        _, status, lines = await run(lab, tree, "slow", attempt_timeout_seconds=3.0)
        assert status is BuildStatus.TIMED_OUT
        assert "sleeping" in lines
        assert lines[-1:] == ["[ofborg-async: the time limit of an attempt, 3 s, is over]"]
        assert processes_with(NAP) == []


class TestCancellation:
    @pytest.mark.parametrize("attr", ["slow", "sleepyimport", "endless"])
    async def test_it_leaves_nothing_in_either_phase(self, lab: NixLab, attr: str) -> None:
        more = f'sleepyimport = import (mk "i" "{NAP}"); {ENDLESS}'
        tree = lab.tree({"default.nix": PACKAGES.replace("in rec {", f"in rec {{ {more}")})
        seen = (lambda: list(lab.registry.running)) if attr == "endless" else (lambda: processes_with(NAP))
        with anyio.CancelScope() as scope:
            async with meanwhile(seen, lambda _: scope.cancel()):
                await run(lab, tree, attr)
        assert scope.cancelled_caught
        assert processes_with(NAP) == []
        assert not lab.registry.running

    async def test_a_build_nobody_takes_over_ends_with_its_group(self, lab: NixLab, tree: Path) -> None:
        async with anyio.create_task_group() as building:
            evaluation = await lab.engine().evaluate(lab.request(tree, "slow"), building)
            assert evaluation.derivations is not None
            await until("the builder", lambda: processes_with(NAP) or None)
            building.cancel_scope.cancel()
        assert processes_with(NAP) == []
        assert not lab.registry.running


class TestFaultsOfTheHost:
    async def test_killed_while_it_evaluates(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set(f'ifd = import (mk "ifd" "{NAP}; echo 1 > $out");')})

        def end(builders: list[int]) -> None:
            kill(list(lab.registry.running))
            kill(builders)

        with pytest.raises(HostFault) as raised:
            async with meanwhile(lambda: processes_with(NAP), end):
                await run(lab, tree, "ifd")
        assert raised.value.kind is FaultKind.MEMORY
        assert lab.registry.programs == ["nix-build"]

    async def test_a_signal_while_it_builds_and_then_again(self, lab: NixLab, tree: Path) -> None:
        """The second build is that of the derivation, without an evaluation."""
        engine, request, sink = lab.engine(), lab.request(tree, "slow"), Lines()
        evaluations: list[Evaluation] = []

        def end(builders: list[int]) -> None:
            kill(list(lab.registry.running))
            kill(builders)

        with pytest.raises(HostFault) as raised:
            async with meanwhile(lambda: processes_with(NAP), end):
                await evaluate_and_build(engine, request, sink, evaluations.append)
        assert raised.value.kind is FaultKind.MEMORY
        assert "sleeping" in sink.text
        (tree / "default.nix").write_text("throw 0")
        with pytest.raises(HostFault):
            async with meanwhile(lambda: processes_with(NAP), end):
                await engine.build(request, evaluations[0], sink)
        assert lab.registry.programs == ["nix-build", "nix-build"]

    async def test_a_derivation_that_was_collected_before_the_second_build(self, lab: NixLab, tree: Path) -> None:
        engine, request = lab.engine(), lab.request(tree, "ok")
        evaluations: list[Evaluation] = []
        await evaluate_and_build(engine, request, Lines(), evaluations.append)
        lab.nix("nix-store", "--gc")
        sink = Lines()
        assert await engine.build(request, evaluations[0], sink) is BuildStatus.SUCCESS
        assert "building ok" in sink.text
        assert "error" not in sink.text

    async def test_a_builder_that_is_killed_twice(self, lab: NixLab, tree: Path) -> None:
        async with meanwhile(first_builders, kill, times=2):
            _, status, lines = await run(lab, tree, "slow")
        assert status is BuildStatus.FAILURE
        assert sum("failed due to signal 9" in line for line in lines) == 2
        assert lab.registry.programs == ["nix-build", "nix-build"]

    async def test_failures_while_the_kernel_kills(self, lab: NixLab, tree: Path) -> None:
        with pytest.raises(HostFault) as raised:
            await run(lab, tree, "fail", lab.engine(evidence=KernelKills((), 0, 0)))
        assert raised.value.kind is FaultKind.MEMORY

    async def test_no_daemon(self, tmp_path: Path) -> None:
        lab = NixLab(tmp_path / "lab", remote=f"unix://{tmp_path}/no-socket")
        with pytest.raises(HostFault) as raised:
            await run(lab, lab.tree({"default.nix": PACKAGES}), "ok")
        assert raised.value.kind is FaultKind.NIX_DAEMON

    async def test_a_daemon_that_dies_while_it_builds(self, daemon: NixDaemon) -> None:
        def die(builders: list[int]) -> None:
            daemon.kill_all()
            kill(builders)

        with pytest.raises(HostFault) as raised:
            async with meanwhile(lambda: processes_with(NAP), die):
                await run(daemon, daemon.tree({"default.nix": PACKAGES}), "slow")
        assert raised.value.kind is FaultKind.NIX_DAEMON

    async def test_no_nix(self, lab: NixLab, tree: Path) -> None:
        with pytest.raises(HostFault, match="nix-build"):
            await run(lab, tree, "ok", lab.engine(path="/nowhere"))

    async def test_a_package_that_says_so_is_evaluated_beside_a_probe(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set('a = throw "no space left on device";')})
        evaluation, _, _ = await run(lab, tree, "a")
        assert b"error: no space left on device" in b"\n".join(evaluation.skipped[0].lines)
        assert lab.registry.programs == ["nix-build", *3 * ["nix-instantiate"]]


class TestLargeEvaluations:
    async def test_the_next_one_does_not_stay_while_it_builds(
        self, lab: NixLab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = lab.tree({"default.nix": PACKAGES})
        engine = lab.engine()
        monkeypatch.setattr(strategy, "SMALL_CPU_SECONDS", 0.0)
        engine._session.last_cpu_seconds = -1.0
        _, status, lines = await run(lab, tree, "ok", engine)
        assert (status, lines.count("building ok")) == (BuildStatus.SUCCESS, 1)
        assert lab.registry.programs == ["nix-build"]
        _, status, _ = await run(lab, tree, "two", engine)
        assert status is BuildStatus.SUCCESS
        assert lab.registry.programs[1:] == ["nix-instantiate", "nix-build"]

    async def test_what_waits_is_not_large(self, lab: NixLab, monkeypatch: pytest.MonkeyPatch) -> None:
        """An import that sleeps stands for a busy host."""
        monkeypatch.setattr(strategy, "SMALL_CPU_SECONDS", 1.5)
        wait = 'seconds = import (mk "seconds" "sleep 2; echo 2 > $out");'
        tree = lab.tree(
            {
                "default.nix": package_set(f'{wait} a = mk "a" "echo ${{toString seconds}} > $out";').replace(
                    "in {", "in rec {"
                )
            }
        )
        engine = lab.engine()
        await run(lab, tree, "a", engine)
        await run(lab, tree, "a", engine)
        assert lab.registry.programs == ["nix-build", "nix-build"]

    async def test_what_computes_is(self, lab: NixLab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(strategy, "SMALL_CPU_SECONDS", 0.1)
        tree = lab.tree({"default.nix": package_set('a = mk "a${toString (sum 1)}" "echo x > $out";')})
        engine = lab.engine()
        for _ in range(3):
            await run(lab, tree, "a", engine)
        assert lab.registry.programs == ["nix-build", *2 * ["nix-instantiate", "nix-build"]]


class TestArguments:
    def test_which_attrs(self) -> None:
        assert all(argv.is_plain(attr) for attr in ("a", "a.b-c_1", "_x.y", "python3Packages.x"))
        assert not any(argv.is_plain(attr) for attr in ("a.0", "0", 'a."b"', "a..b", "a.", ".a", "a b", "ü", "a'", ""))

    async def test_keywords_are_names_here(self, lab: NixLab) -> None:
        tree = lab.tree({"default.nix": package_set('"if"."rec" = mk "keywords" "echo x > $out";')})
        _, status, _ = await run(lab, tree, "if.rec")
        assert status is BuildStatus.SUCCESS
        assert lab.registry.programs == ["nix-build"]
