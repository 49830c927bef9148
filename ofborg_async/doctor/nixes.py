"""nix as an identity will use it: reachable, one version on both sides, sandboxed, able to build (R05, R18-R22)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ofborg_async.doctor.findings import Finding, Group, Verdict
from ofborg_async.doctor.host import program_version, version_numbers
from ofborg_async.doctor.sandbox import SandboxTest, try_sandbox
from ofborg_async.errors import DeadlineExceededError, HostFault
from ofborg_async.model.identity import IdentitySettings, NixSettings
from ofborg_async.nix.environment import nix_environment, places_of_builds
from ofborg_async.nix.handshake import NixDaemon, greet_daemon
from ofborg_async.process import Command, Spawner

NIX_LEAST = (2, 3)
_CONFIGURATION_SECONDS = 20.0
_CONFIGURATION_WORDS = (("show-config",), ("config", "show"))  # the second is what nix calls it since 2.20
RESTART = {
    "darwin": "sudo launchctl stop org.nixos.nix-daemon; sudo launchctl start org.nixos.nix-daemon",
    "linux": "sudo systemctl restart nix-daemon",
}
"""The commands that restart nix-daemon (R21). They are shown, never run."""


@frozen
class NixUse:
    """One way to use nix and the identities that use it so."""

    settings: NixSettings
    identities: tuple[IdentitySettings, ...]

    @property
    def subject(self) -> str:
        """How findings name it."""
        return f"nix of {', '.join(identity.name for identity in self.identities)}"


@frozen
class NixExamination:
    """What was found, and what other checks want to know: ``features`` and ``sandboxed`` are None when unknown."""

    findings: tuple[Finding, ...]
    features: tuple[str, ...] | None
    sandboxed: bool | None


def uses_of(identities: Sequence[IdentitySettings]) -> list[NixUse]:
    """Identities by what decides which nix they reach."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[IdentitySettings]] = {}
    for identity in identities:
        key = identity.nix.remote, tuple(sorted(identity.nix.environment.items()))
        groups.setdefault(key, []).append(identity)
    return [NixUse(members[0].nix, tuple(members)) for members in groups.values()]


async def examine_nix(spawner: Spawner, use: NixUse, path: str) -> NixExamination:
    """Everything about one use of nix. Builds the sandbox's self-test where nix can be reached."""
    environment = nix_environment(use.settings, use.identities[0].root, path)
    version = await program_version(spawner, "nix", path)
    reach = await _reach(use, version or "")
    findings = [*_version(use, version or ""), *reach, _import_from_derivation(use)]
    values = await _configuration(spawner, environment)
    if values is None:
        findings.append(_nix("R18", use, Verdict.WARNING, "nix's configuration cannot be read", "run: nix show-config"))
    else:
        findings += [*judge_configuration(use, values), *judge_systems(use, values)]
    sandboxed = None
    if all(finding.verdict is not Verdict.FAILURE for finding in reach):
        test = await try_sandbox(spawner, environment)
        sandboxed = test.sandboxed
        findings.append(_self_test(use, test))
    return NixExamination(tuple(findings), _features(values), sandboxed)


def _version(use: NixUse, version: str) -> Iterator[Finding]:
    if version_numbers(version) < NIX_LEAST:
        cause = f"nix {version or 'tells no version, so it'} is older than {'.'.join(map(str, NIX_LEAST))}"
        yield _nix("R20", use, Verdict.FAILURE, cause, "install a newer nix and restart nix-daemon")


async def _reach(use: NixUse, client: str) -> list[Finding]:
    """Whether what ``nix.remote`` says is there (R05), and which version a nix-daemon has (R20)."""
    remote = use.settings.remote
    _, state, _ = places_of_builds(use.settings)
    socket = _socket(use.settings, state)
    if remote == "":
        if os.access(state, os.W_OK):
            return [_nix("R05", use, Verdict.OK, f"nix.remote is empty, and {state} can be written: no daemon is used")]
        if not socket.exists():
            cause = f"nix.remote is empty, but {state} cannot be written, and no nix-daemon listens at {socket}"
            return [_nix("R05", use, Verdict.FAILURE, cause, 'start nix-daemon and set nix.remote = "daemon"')]
    elif remote != "daemon" and not remote.startswith("unix://"):
        return [_nix("R05", use, Verdict.OK, f"nix.remote is {remote}")]
    try:
        daemon = await greet_daemon(socket)
    except (HostFault, DeadlineExceededError) as error:
        cause = f"nix.remote is {remote!r}, but {error.detail if isinstance(error, HostFault) else error}"
        remedy = f'start nix-daemon ({_restart()}), or set nix.remote = "" where this user owns the store'
        return [_nix("R05", use, Verdict.FAILURE, cause, remedy)]
    return judge_daemon(use, daemon, client, root=os.geteuid() == 0)


def _socket(settings: NixSettings, state: Path) -> Path:
    if settings.remote.startswith("unix://") and (named := settings.remote.removeprefix("unix://").partition("?")[0]):
        return Path(named)
    return Path(settings.environment.get("NIX_DAEMON_SOCKET_PATH", state / "daemon-socket" / "socket"))


def judge_daemon(use: NixUse, daemon: NixDaemon, client: str, *, root: bool) -> list[Finding]:
    """A nix-daemon that answered, beside a client of version ``client``."""
    findings = []
    if daemon.version and client and daemon.version != client:
        cause = f"the nix-daemon that runs is {daemon.version}, the client {client}: they were not restarted together"
        findings.append(_nix("R20", use, Verdict.WARNING, cause, f"restart it: {_restart()}"))
    else:
        findings.append(_nix("R05", use, Verdict.OK, f"nix-daemon {daemon.version or '(tells no version)'} answers"))
    if daemon.trusts_us and not root:
        cause = "nix-daemon trusts this user (trusted-users), who could take any rights on this host through it"
        findings.append(_nix("", use, Verdict.WARNING, cause, "take the user out of trusted-users in nix.conf"))
    return findings


def _restart() -> str:
    return RESTART.get(sys.platform, "restart nix-daemon")


async def _configuration(spawner: Spawner, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The effective configuration of nix as this user's client has it, None when it cannot be read."""
    for words in _CONFIGURATION_WORDS:
        command = Command(
            ("nix", "--extra-experimental-features", "nix-command", *words, "--json"), {**environment, "LC_ALL": "C"}
        )
        try:
            done = await spawner.capture(command, deadline_seconds=_CONFIGURATION_SECONDS, what="nix's configuration")
            document = json.loads(done.stdout) if done.returncode == 0 else None
        except (HostFault, ValueError):
            continue
        if isinstance(document, dict):
            return {name: _value(setting) for name, setting in document.items()}
    return None


def _value(setting: Any) -> Any:
    return setting.get("value") if isinstance(setting, dict) else setting


def judge_configuration(use: NixUse, values: Mapping[str, Any]) -> list[Finding]:
    """The settings that builders need, under their old and new names (R18, R19). ``values``: setting to value."""
    findings = []
    sandbox = next(
        (values[name] for name in ("sandbox", "build-use-sandbox", "build-use-chroot") if name in values), None
    )
    if sandbox not in (True, "true"):
        verdict = Verdict.WARNING if sandbox == "relaxed" else Verdict.FAILURE
        cause = f"sandbox is {_shown(sandbox)} in nix's configuration: builds can see and change things of this host"
        remedy = f"set sandbox = true in nix.conf (older nix: build-use-sandbox = true), then {_restart()}"
        findings.append(_nix("R18", use, verdict, cause, remedy))
    if hook := values.get("pre-build-hook"):
        cause = f"pre-build-hook is {hook}: it runs before each build and can open the sandbox"
        remedy = f"set pre-build-hook to nothing in nix.conf, then {_restart()}"
        findings.append(_nix("R19", use, Verdict.WARNING, cause, remedy))
    if values.get("require-sigs") is False:
        cause = "require-sigs is false: results that nobody signed are taken from substituters"
        findings.append(_nix("", use, Verdict.WARNING, cause, "set require-sigs = true in nix.conf"))
    if not findings:
        caches = " ".join(map(str, values.get("substituters") or ())) or "none, so everything is built here"
        cause = f"sandbox is on, no pre-build-hook; substituters: {caches}; restrict-eval is set for each job"
        findings.append(_nix("R18", use, Verdict.OK, cause))
    return findings


def judge_systems(use: NixUse, values: Mapping[str, Any]) -> list[Finding]:
    """Whether nix here builds for the systems whose jobs are taken."""
    here = [str(values.get("system", "")), *map(str, values.get("extra-platforms") or ())]
    wanted = dict.fromkeys(system for identity in use.identities for system in identity.nix.systems)
    foreign = [system for system in wanted if system not in here]
    if not foreign:
        return []
    cause = (
        f"nix builds for {' '.join(here)} here, not for {' '.join(foreign)}: unless a remote builder does, jobs fail"
    )
    remedy = "take these systems out of nix.systems, add them to extra-platforms in nix.conf, or set builders there"
    return [_nix("R07", use, Verdict.WARNING if _has_builders(values) else Verdict.FAILURE, cause, remedy)]


def _has_builders(values: Mapping[str, Any]) -> bool:
    """``@FILE`` names a file of builders, which by default does not exist."""
    builders = str(values.get("builders") or "").strip()
    return Path(builders[1:]).exists() if builders.startswith("@") else bool(builders)


def _features(values: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    return None if values is None or "system-features" not in values else tuple(map(str, values["system-features"]))


def _self_test(use: NixUse, test: SandboxTest) -> Finding:
    if test.sandboxed:
        return _nix("R22", use, Verdict.OK, f"the self-test was built in the configured store: {test.said}")
    if test.sandboxed is None:
        remedy = "mend what nix says: as it is, no job can be built, and whether builds are sandboxed is not known"
        return _nix("R22", use, Verdict.FAILURE, test.said, remedy)
    remedy = (
        f"set sandbox = true (and sandbox-fallback = false) in the nix.conf of the nix that builds, then {_restart()}"
    )
    return _nix("R22", use, Verdict.FAILURE, test.said, remedy)


def _import_from_derivation(use: NixUse) -> Finding:
    cause = (
        "evaluation may build (import from derivation): restricted evaluation does not forbid it, jobs use it. "
        "Such builds are sandboxed as others are, and end with the evaluation's time limit "
        f"({use.settings.eval_timeout_seconds:g} s)"
    )
    return _nix("", use, Verdict.OK, cause)


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "not known" if value is None else str(value)


def _nix(requirement: str, use: NixUse, verdict: Verdict, cause: str, remedy: str = "") -> Finding:
    return Finding(Group.NIX, requirement, use.subject, verdict, cause, remedy)
