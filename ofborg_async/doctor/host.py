"""The user, the programs and the devices of this host (requirements R01, R07, R11, R20; hazard D23)."""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ofborg_async.doctor.findings import Finding, Group, Verdict
from ofborg_async.errors import ExecutableMissingError, HostFault
from ofborg_async.process import Command, Spawner

HOMELESS = Path("/homeless-shelter")
GIT_LEAST = (2, 38)
"""The first git with ``merge-tree --write-tree``."""

_NEEDED = ("git", "nix", "nix-build", "nix-instantiate")
_EXPECTED = ("curl", "bash")
_VERSION_SECONDS = 20.0
_FIRST_LOGIN_UID = 500 if sys.platform == "darwin" else 1000
_NO_SHELLS = frozenset({"", "nologin", "false"})
_OWN_USER = "useradd --system --user-group --home-dir /var/lib/ofborg-async --shell /usr/sbin/nologin ofborg"


def examine_user(user_id: int, *, allow_root: bool) -> Finding:
    """Who runs this, which is whose rights everything else here was looked at with (R01)."""
    try:
        entry = pwd.getpwuid(user_id)
        name, shell = entry.pw_name, Path(entry.pw_shell).name
    except KeyError:  # a user id without an entry, as in a container
        name, shell = str(user_id), ""
    if user_id == 0:
        if allow_root:
            return _host(
                "R01", "user", Verdict.OK, "root, as daemon.allow_root allows; all below was looked at as root"
            )
        cause = "this is root: `run` refuses to be root, because pull requests are evaluated with its rights"
        remedy = (
            "run doctor as the daemon's own user (sudo -u ofborg ofborg-async doctor ...), or set daemon.allow_root"
        )
        return _host("R01", "user", Verdict.FAILURE, cause, remedy)
    if user_id >= _FIRST_LOGIN_UID and shell not in _NO_SHELLS:
        cause = f"{name} is a user who logs in: what a pull request breaks out into is a person's account"
        return _host("R01", "user", Verdict.WARNING, cause, f"make a user for it alone: {_OWN_USER}")
    return _host("R01", "user", Verdict.OK, f"{name}; all below was looked at with the rights of this user")


async def examine_programs(spawner: Spawner, path: str) -> list[Finding]:
    """The programs that jobs need, on ``path``, with their versions (R11, R20)."""
    versions = {name: await program_version(spawner, name, path) for name in (*_NEEDED, *_EXPECTED)}
    found = [f"{name} {version or '(tells no version)'}" for name, version in versions.items() if version is not None]
    findings = [
        _missing([name for name in _NEEDED if versions[name] is None], Verdict.FAILURE, "jobs cannot run", path),
        _missing([name for name in _EXPECTED if versions[name] is None], Verdict.WARNING, "some builds need it", path),
        _host("R11", "programs", Verdict.OK, ", ".join(found)) if found else None,
        None if versions["git"] is None else git_finding(versions["git"]),
    ]
    return [finding for finding in findings if finding is not None]


def git_finding(version: str) -> Finding | None:
    """Whether git is new enough; None if it is, which the list of programs says."""
    numbers = version_numbers(version)
    if numbers >= GIT_LEAST:
        return None
    cause = (
        f"git {version or 'tells no version, so it'} is older than {'.'.join(map(str, GIT_LEAST))}: every merge fails"
    )
    return _host("R11", "git", Verdict.FAILURE, cause, "install a newer git and put it first on the service's PATH")


def _missing(names: Sequence[str], verdict: Verdict, effect: str, path: str) -> Finding | None:
    if not names:
        return None
    cause = f"{', '.join(names)} not found on PATH ({path}): {effect}"
    remedy = f"install {', '.join(names)}, or set PATH where the service is defined"
    return _host("R11", "programs", verdict, cause, remedy)


async def program_version(spawner: Spawner, program: str, path: str) -> str | None:
    """The version a program tells of itself, "" if it tells none, None if there is no such program on ``path``."""
    command = Command((program, "--version"), {"PATH": path, "HOME": str(HOMELESS), "LC_ALL": "C"})
    try:
        done = await spawner.capture(command, deadline_seconds=_VERSION_SECONDS, what=f"{program} --version")
    except ExecutableMissingError:
        return None
    except HostFault:
        return ""
    match = re.search(r"\d+(\.\d+)+\S*", done.stdout.decode(errors="replace"))
    return match[0].rstrip(",") if match else ""


def version_numbers(version: str) -> tuple[int, ...]:
    """``2.39.5`` as numbers that compare; () where there are none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def examine_kvm(
    systems: Iterable[str], features: Sequence[str] | None, device: Path = Path("/dev/kvm")
) -> list[Finding]:
    """/dev/kvm, which tests in virtual machines need; ``features``: what nix says it has, None if unknown (R07)."""
    if not any(system.endswith("-linux") for system in systems):
        return []
    advertised = features is not None and "kvm" in features
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        effect = (
            "nix has kvm among its system-features all the same, so jobs that need it start and fail"
            if advertised
            else "jobs that test in virtual machines cannot be built here"
        )
        cause = f"{device} cannot be used ({error.strerror}): {effect}"
        remedy = "load the kvm module and let the daemon's user and nix's build users open it (usermod -aG kvm ofborg)"
        return [_host("R07", "kvm", Verdict.WARNING, cause, remedy)]
    if features is not None and not advertised:
        cause = f"{device} can be used, but nix's system-features ({' '.join(features)}) are without kvm"
        remedy = "add kvm to system-features in nix.conf and restart nix-daemon"
        return [_host("R07", "kvm", Verdict.WARNING, cause, remedy)]
    return [_host("R07", "kvm", Verdict.OK, f"{device} can be used")]


def examine_homeless(sandboxed: bool | None, place: Path = HOMELESS) -> Finding:
    """The directory that must not be: nix without a sandbox, as root, makes it and then refuses every build (D23)."""
    if not os.path.lexists(place):
        return _host("D23", str(place), Verdict.OK, "does not exist, as it should be")
    remedy = (
        f"rm -r {place}, and see to it that builds are sandboxed: nix as root makes it again for an unsandboxed build, "
        "or for an evaluation that fetches"
    )
    if sandboxed:
        cause = f"{place} exists: it tells of builds without a sandbox, and without one nix would refuse to build"
        return _host("D23", str(place), Verdict.WARNING, cause, remedy)
    return _host(
        "D23", str(place), Verdict.FAILURE, f"{place} exists: without a sandbox nix refuses every build", remedy
    )


def _host(requirement: str, subject: str, verdict: Verdict, cause: str, remedy: str = "") -> Finding:
    return Finding(Group.HOST, requirement, subject, verdict, cause, remedy)
