"""The sandbox tried: a derivation that looks for a file of this host, built in the configured store (R22).

It leaves a result of one line, without a root, which the next garbage collection removes. It cannot tell of what it
did not look at: other files that ``sandbox-paths`` lets in, or a nix-daemon with another file system than this user's.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from ofborg_async.errors import HostFault
from ofborg_async.process import Command, Completed, Spawner

_EXPRESSION = """\
{ nonce, canary }: derivation {
  name = "ofborg-async-doctor-${nonce}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  inherit canary;
  args = [ "-c" "if [ -e \\"$canary\\" ]; then echo ofborg-async-doctor: seen; fi; echo done > $out" ];
}"""
_SEEN = b"ofborg-async-doctor: seen"
_NO_SHELL = b"executing '/bin/sh': No such file or directory"
_SECONDS = 120.0
# Where build users may look: on macOS the temporary directory is closed to all but its user.
_PLACES = ("/private/var/tmp", "/var/tmp")  # noqa: S108 - a directory of our own is made in it
_LAST_LINES = 5


@frozen
class SandboxTest:
    """``sandboxed`` None: it could not be found out; ``said`` is what was seen."""

    sandboxed: bool | None
    said: str


async def try_sandbox(spawner: Spawner, environment: Mapping[str, str]) -> SandboxTest:
    """Build the test with ``environment``, a nix process's complete one."""
    canary = _lay_out_canary()
    try:
        words = ("nix-build", "--no-out-link", "--option", "substitute", "false", "-E", _EXPRESSION)
        arguments = ("--argstr", "nonce", uuid.uuid4().hex[:12], "--argstr", "canary", str(canary))
        command = Command((*words, *arguments), environment, canary.parent)
        try:
            done = await spawner.capture(command, deadline_seconds=_SECONDS, what="the sandbox's self-test", merge=True)
        except HostFault as fault:
            return SandboxTest(None, str(fault))
        return judge(done, canary)
    finally:
        shutil.rmtree(canary.parent, ignore_errors=True)


def _lay_out_canary() -> Path:
    """A file that everybody on this host can read, alone in a directory."""
    place = next((name for name in _PLACES if Path(name).is_dir()), None)
    directory = Path(tempfile.mkdtemp(prefix="ofborg-async-doctor-", dir=place))
    directory.chmod(0o755)
    canary = directory / "of-the-host"
    canary.write_text("A build that sees this file is not in a sandbox.\n")
    canary.chmod(0o644)
    return canary


def judge(done: Completed, canary: Path) -> SandboxTest:
    """What came of the test build."""
    if _SEEN in done.stdout:
        return SandboxTest(sandboxed=False, said=f"not sandboxed: a build saw {canary}, a file of this host")
    if done.returncode == 0:
        return SandboxTest(sandboxed=True, said=f"a build did not see {canary}, a file of this host")
    if _NO_SHELL in done.stdout:
        return SandboxTest(sandboxed=True, said="a build saw nothing of this host, not even its /bin/sh")
    if done.timed_out:
        return SandboxTest(None, f"the test build took longer than {_SECONDS:g} s")
    lines = done.stdout.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return SandboxTest(None, f"the test build failed: {' / '.join(line.strip() for line in lines) or 'without a word'}")
