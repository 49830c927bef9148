"""Expressions that want to read outside of their work tree, or to run something: refused, and the canary unseen."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nix_lab import NixLab, package_set

HOMELESS = Path("/homeless-shelter")
SECRET = "the-canary-sings"

READS = {
    "readFile": "builtins.readFile {file}",
    "readDir": "builtins.toJSON (builtins.readDir {folder})",
    "import": "import {file}",
    "scopedImport": "scopedImport {{ }} {file}",
    "path literal into the store": '"${{{file}}}"',
    "builtins.path": "builtins.path {{ path = {file}; }}",
    "filterSource": "builtins.filterSource (_: _: true) {folder}",
    "pathExists": 'if builtins.pathExists {file} then builtins.throw {file} else builtins.throw "none"',
    "hashFile": 'builtins.hashFile "sha256" {file}',
    "fetchurl": 'builtins.fetchurl "file://{file}"',
    "fetchTarball": 'builtins.fetchTarball "file://{file}"',
    "fetchGit": "builtins.fetchGit {{ url = {folder}; }}",
    "findFile": 'builtins.readFile (builtins.findFile [ {{ path = "{folder}"; prefix = "x"; }} ] "x/secret")',
    "up from the tree": "builtins.readFile ./../../../../../../../..{file}",
    "a link in the tree": "builtins.readFile ./link",
    "a linked folder in the tree": "import ./linked/secret",
    "the environment": 'if builtins.getEnv "CANARY" == "" then builtins.throw "unset" else builtins.getEnv "CANARY"',
    "exec": 'builtins.exec [ "/bin/sh" "-c" "echo x > {folder}/canary" ]',
    "importNative": 'builtins.importNative {file} "x"',
    "toFile that leaves": 'builtins.toFile "../../canary" "x"',
}


@pytest.fixture(autouse=True)
def homeless() -> Iterator[None]:
    """nix's HOME is not made: where it exists nix refuses every build without a sandbox."""
    before = os.path.lexists(HOMELESS)
    yield
    assert os.path.lexists(HOMELESS) is before


@pytest.mark.parametrize("expression", READS.values(), ids=READS)
async def test_an_expression_reads_nothing_outside_and_runs_nothing(
    lab: NixLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    secret = folder / "secret"
    secret.write_text(f'"{SECRET}"')
    monkeypatch.setenv("CANARY", SECRET)
    hostile = f'hostile = mk "hostile" ({expression.format(file=secret, folder=folder)});'
    tree = lab.tree({"default.nix": package_set(hostile + 'good = mk "good" "echo x > $out";')})
    (tree / "link").symlink_to(secret)
    (tree / "linked").symlink_to(folder)
    evaluation = await lab.engine().evaluate(lab.request(tree, "good", "hostile"))
    assert evaluation.attempted == ("good",)
    (skipped,) = evaluation.skipped
    assert SECRET.encode() not in b"\n".join(skipped.lines)
    assert sorted(folder.iterdir()) == [secret]
    assert not [path for path in lab.folder.rglob("*secret*") if "nix/store" in str(path)]


async def test_what_nix_caches_is_the_attempts_own(lab: NixLab) -> None:
    """A work tree is a repository that an evaluation may fetch. The next pull request must not find what that left."""
    fetched = "builtins.fetchGit { url = toString ./.; rev = builtins.readFile ./rev; }"
    tree = lab.tree({"default.nix": package_set(f'a = mk "a" "cat ${{{fetched}}}/file > $out";'), "file": "fetched"})
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tree)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (tree / "rev").write_bytes(subprocess.check_output([*git, "rev-parse", "HEAD"]).strip())
    engine, request = lab.engine(), lab.request(tree, "a")
    evaluation = await engine.evaluate(request)
    if any(b"forbidden in restricted mode" in line for item in evaluation.skipped for line in item.lines):
        pytest.skip("this nix lets no restricted evaluation fetch its own work tree")
    assert evaluation.attempted == ("a",)
    assert [path.name for path in (lab.roots / request.attempt_id / "cache").iterdir()] == ["nix"]
    await engine.forget(request.attempt_id)
    assert list(lab.roots.iterdir()) == []
