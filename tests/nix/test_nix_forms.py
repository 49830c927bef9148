"""The shared form gives exactly what the original's form gives, whatever kind of file the repository has."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup
from nix_lab import NixLab, package_set

from ofborg_async.model.job import Subset
from ofborg_async.nix.instantiate import Instantiated, Instantiation, Stopped

LET = """
let
  d = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
in
"""

FILES: dict[str, dict[str, str]] = {
    "function with ellipsis": {
        "default.nix": package_set('a = mk "a-${toString supportedSystems}" "x"; b = mk "b" "x";'),
    },
    "function without ellipsis": {
        "default.nix": package_set('a = mk "a" "x"; b = mk "b" "x";', "{ system }:"),
    },
    "function without ellipsis that takes nothing": {"default.nix": '{ }: LET { a = d "a"; b = d "b"; }'},
    "function that only has an ellipsis": {
        "default.nix": """
            args@{ ... }: LET {
              a = d "a-${args.system}";
              b = d "b-${toString args.supportedSystems}";
            }
        """
    },
    "default values that refer to other arguments": {
        "default.nix": """
            { system ? "none", name ? system, ... }@args: LET {
              a = d name;
              b = d "b-${toString (args ? name)}";
            }
        """
    },
    "a set": {"default.nix": 'LET { a = d "a"; b = d "b"; }'},
    "a list": {"default.nix": 'LET [ (d "zero") (d "one") ]'},
    "a function of one plain argument": {"default.nix": 'x: LET { a = d "a"; b = d "b"; }'},
    "a function of two argument sets": {"default.nix": '{ ... }: { ... }: LET { a = d "a"; b = d "b"; }'},
    "a functor": {
        "default.nix": """
            LET {
              __functor = self: { system, ... }: { a = d "a-${system}"; b = d "b"; };
              a = 1;
            }
        """
    },
    "a function that gives a functor": {
        "default.nix": """
            { ... }: LET {
              a = d "outer";
              b = d "b";
              __functor = self: { ... }: { a = d "inner"; b = d "innerb"; };
            }
        """
    },
    "a required argument that nobody gives": {
        "default.nix": '{ system, missing, ... }: LET { a = d "a"; b = d missing; }',
    },
    "an import of a folder": {
        "default.nix": "import ./pkgs",
        "pkgs/default.nix": package_set('a = mk "a" "x"; b = mk "b" (builtins.readFile ./text);'),
        "pkgs/text": "echo x > $out",
    },
    "an import that passes its arguments on": {
        "default.nix": "{ system, ... }@args: import ./pkgs (args // { extra = 1; })",
        "pkgs/default.nix": package_set('a = mk "a-${toString extra}" "x"; b = mk "b" "x";', "{ system, extra, ... }:"),
    },
    "functions inside that are called for an attr": {
        "default.nix": package_set(
            """
            a = { system ? "none", supportedSystems ? [ "none" ], other ? "o" }:
              mk "a-${system}-${toString supportedSystems}-${other}" "x";
            b = { ... }@args: {
              recurseForDerivations = true;
              c = { system }: mk "bc" "x";
              d = mk "d-${args.system}" "x";
            };
            """
        ),
    },
    "a file that only throws": {"default.nix": 'throw "nothing here"'},
    "a function that throws": {"default.nix": '{ ... }: throw "nothing here"'},
    "a function that gives a number": {"default.nix": "{ ... }: 3"},
    "a syntax error": {"default.nix": "{ ... }: {"},
    "paths relative to the file": {
        "default.nix": package_set('a = mk "a" "cat ${./lib/text}"; b = mk "b" "${toString ./lib}";'),
        "lib/text": "text\n",
    },
    "the system of the builder": {"default.nix": '{ ... }: LET { a = d builtins.currentSystem; b = d "b"; }'},
}
FORMS = {name: {path: text.replace("LET", LET) for path, text in files.items()} for name, files in FILES.items()}


def original_derivations(lines: list[str]) -> list[str]:
    """What the original's nix-instantiate prints for derivations, as arguments with their output."""
    paths = [line for line in lines if line.startswith("/")]
    return [path if "!" in path else f"{path}!out" for path in paths]


async def compare(
    lab: NixLab, tree: Path, attrs: list[str], subset: Subset | None = None, building: TaskGroup | None = None
) -> int:
    """Evaluate with ours and with the original's commands; returns how many attrs could be instantiated."""
    request = lab.request(tree, *attrs, subset=subset)
    evaluation = await lab.engine().evaluate(request, building)
    expected_derivations: list[str] = []
    expected_skipped = {}
    for attr in attrs:
        code, lines = lab.original_instantiate(tree, attr, subset)
        if code == 0:
            expected_derivations += original_derivations(lines)
        else:
            expected_skipped[attr] = lines
    skipped = {item.attr: [line.decode() for line in item.lines] for item in evaluation.skipped}
    assert skipped == expected_skipped
    assert evaluation.attempted == tuple(attr for attr in attrs if attr not in expected_skipped)
    assert evaluation.derivations == tuple(expected_derivations)
    return len(evaluation.attempted)


@pytest.mark.parametrize("form", FORMS)
async def test_derivations_and_errors_are_those_of_the_original_form(lab: NixLab, form: str) -> None:
    await compare(lab, lab.tree(FORMS[form]), ["a", "b", "0", "1", "b.c", "a.nothing"])


@pytest.mark.parametrize("form", FORMS)
async def test_so_they_are_where_each_is_built_by_the_process_that_evaluates_it(lab: NixLab, form: str) -> None:
    tree = lab.tree(FORMS[form])
    for attr in ("a", "b", "0", "b.c", "a.nothing", "nothing", "a.drvPath", "a.all", "b.d"):
        async with anyio.create_task_group() as building:
            await compare(lab, tree, [attr], building=building)
            building.cancel_scope.cancel()


@pytest.mark.parametrize("form", FORMS)
async def test_one_process_is_enough_where_everything_instantiates(lab: NixLab, form: str) -> None:
    """The shared form itself, which the attr by attr form would cover up for."""
    tree = lab.tree(FORMS[form])
    by_hand = {attr: lab.original_instantiate(tree, attr) for attr in ("a", "b", "0", "1", "b.c")}
    expected = {attr: original_derivations(lines) for attr, (code, lines) in by_hand.items() if code == 0}
    request = lab.request(tree, *expected)
    instantiation = Instantiation(lab.engine()._session, request, lab.roots / "several")
    outcome = await instantiation.several(list(expected) or ["a"])
    if expected:
        assert outcome == Instantiated(tuple(path for paths in expected.values() for path in paths))
    else:
        assert isinstance(outcome, Stopped)


async def test_the_argument_of_the_nixos_subset(lab: NixLab) -> None:
    release = (
        "{ nixpkgs ? { }, system ? builtins.currentSystem, supportedSystems ? [ ], ... }: {\n"
        '  tests.a = derivation { name = "a-${nixpkgs.shortRev}-${toString nixpkgs.revCount}"; inherit system;'
        ' builder = "/bin/sh"; src = "${nixpkgs.outPath}/x"; };\n'
        '  tests.b = { nixpkgs }: derivation { name = "b-${nixpkgs.rev}"; inherit system; builder = "/bin/sh"; };\n}'
    )
    tree = lab.tree({"default.nix": "{ }", "nixos/release.nix": release, "text": "x"})
    assert await compare(lab, tree, ["tests.a", "tests.b"], Subset.NIXOS) == 2


async def test_sets_outputs_and_duplicates_keep_their_order(lab: NixLab) -> None:
    outputs = 'outputs = [ "out" "dev" ]; builder = "/bin/sh"; inherit system;'
    tree = lab.tree(
        {
            "default.nix": package_set(
                f"""
                two = derivation {{ name = "two"; {outputs} }};
                dev = (derivation {{ name = "two"; {outputs} }}).dev;
                first = derivation {{ name = "f"; outputs = [ "bin" "out" ]; builder = "/bin/sh"; inherit system; }};
                hidden = derivation {{ name = "hidden"; outputName = "dev"; {outputs} }};
                set = {{ recurseForDerivations = true; b = mk "b" "x"; a = mk "a" "x"; }};
                flat = {{ inner = mk "inner" "x"; deeper.no = mk "no" "x"; }};
                list = [ (mk "l0" "x") (mk "l1" "x") ];
                empty = {{ }}; emptylist = [ ];
                "quo\\"ted" = 1; "with space" = mk "space" "x"; "with.dot" = mk "dot" "x"; "ünï" = mk "u" "x";
                """
            )
        }
    )
    attrs = [
        "dev",
        "set",
        "two",
        "empty",
        "first",
        "list",
        "hidden",
        "emptylist",
        "flat",
        "two",
        "with space",
        '"with.dot"',
        "ünï",
        "list.1",
    ]
    assert await compare(lab, tree, attrs) == len(attrs)
