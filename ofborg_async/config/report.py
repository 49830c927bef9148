"""What ``check`` tells: every fault, or what this configuration will do and what of it the public will see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ofborg_async.config.addresses import format_address
from ofborg_async.config.fingerprint import plain
from ofborg_async.config.loading import RootConflicts, examine, overlapping_roots
from ofborg_async.config.places import Host
from ofborg_async.config.problems import Problems
from ofborg_async.model.identity import BrokerSettings, IdentitySettings, Settings

EX_CONFIG = 78


@frozen
class CheckReport:
    """``text`` for people, ``document`` for scripts (JSON types only), ``exit_status`` 0 or 78."""

    exit_status: int
    text: str
    document: dict[str, Any]


def check_report(
    paths: Sequence[Path],
    *,
    environ: Mapping[str, str],
    credentials_directory: Path | None = None,
    host: Host | None = None,
    root_conflicts: RootConflicts = overlapping_roots,
) -> CheckReport:
    """Read a configuration as ``load`` does and tell what came of it. Never raises ConfigError."""
    settings, problems = examine(
        paths, environ=environ, credentials_directory=credentials_directory, host=host, root_conflicts=root_conflicts
    )
    exit_status = 0 if settings is not None else EX_CONFIG
    document = {
        "schema": 1,
        "ok": settings is not None,
        "faults": [
            {"file": fault.file, "line": fault.line, "key": fault.key, "message": fault.message}
            for fault in problems.faults
        ],
        "warnings": list(problems.warnings),
    }
    if settings is None:
        return CheckReport(exit_status, "\n".join(_fault_lines(problems)), document)
    return CheckReport(exit_status, "\n".join(_settings_lines(settings)), document | _settings_document(settings))


def exposed(settings: Settings) -> list[str]:
    """What running this shows to the public (requirement R23), a sentence each."""
    names = ", ".join(identity.name for identity in settings.identities)
    systems = ", ".join(dict.fromkeys(system for identity in settings.identities for system in identity.nix.systems))
    shown = [str(identity.root) for identity in settings.identities if not identity.replace_root_in_logs]
    sentences = [
        f"the names of its identities, on the wire and in results: {names}",
        f"that these names build for {systems}, when, and how long it takes",
        "every line that nix prints while it evaluates and builds, in full, for whoever reads the build log",
    ]
    if shown:
        sentences.append(
            f"these paths, in error traces: {', '.join(shown)} (checkout.replace_root_in_logs = true hides them)"
        )
    sentences.append("to the administrators of the broker also: this host's address and the user name it connects with")
    return sentences


def broker_url(broker: BrokerSettings) -> str:
    """The broker in one word, without its password."""
    scheme = "amqps" if broker.ssl else "amqp"
    hosts = ",".join(format_address(host, port) for host, port in broker.addresses)
    return f"{scheme}://{broker.username}@{hosts}, vhost {broker.vhost!r}"


def _fault_lines(problems: Problems) -> Iterator[str]:
    yield from (str(fault) for fault in problems.faults)
    yield from (f"warning: {warning}" for warning in problems.warnings)
    count = len(problems.faults)
    yield f"{count} {'fault' if count == 1 else 'faults'}: the daemon would not start."


def _settings_lines(settings: Settings) -> Iterator[str]:
    count = len(settings.identities)
    yield f"{count} {'identity' if count == 1 else 'identities'} in {', '.join(map(str, settings.files))}"
    yield f"fingerprint     {settings.fingerprint[:16]}"
    yield f"state           {settings.daemon.state_dir}"
    yield f"control socket  {settings.daemon.control_socket}"
    for identity in settings.identities:
        yield ""
        yield from _identity_lines(identity)
    yield ""
    yield "In public this shows:"
    yield from (f"  - {sentence}" for sentence in exposed(settings))
    if settings.warnings:
        yield ""
        yield from (f"warning: {warning}" for warning in settings.warnings)


def _identity_lines(identity: IdentitySettings) -> Iterator[str]:
    yield f"{identity.name}  ({identity.source})"
    if identity.build_all_jobs:
        yield "  takes EVERY job from a queue of its own: for development only"
    for system, queue in _queues(identity):
        yield f"  {system:15} from queue {queue}"
    yield f"  root            {identity.root}"
    yield f"  broker          {broker_url(identity.broker)}"
    yield f"  consumer tag    {identity.consumer_tag}"
    yield f"  nix remote      {identity.nix.remote!r}"
    yield (
        f"  time limits     build {identity.nix.build_timeout_seconds} s, "
        f"evaluation {identity.nix.eval_timeout_seconds:g} s, job {identity.nix.attempt_timeout_seconds:g} s"
    )


def _queues(identity: IdentitySettings) -> list[tuple[str, str]]:
    """Each system with the queue it takes jobs from (wire document, "Connection and topology")."""
    named_by_broker = "(named by the broker)"
    return [
        (system, named_by_broker if identity.build_all_jobs else f"build-inputs-{system}")
        for system in identity.nix.systems
    ]


def _settings_document(settings: Settings) -> dict[str, Any]:
    identities = [
        plain(identity)
        | {
            "source": identity.source,
            "queues": dict(_queues(identity)),
            "consumer_tag": identity.consumer_tag,
        }
        for identity in settings.identities
    ]
    return {
        "fingerprint": settings.fingerprint,
        "files": [str(path) for path in settings.files],
        "daemon": plain(settings.daemon),
        "identities": identities,
        "exposed": exposed(settings),
    }
