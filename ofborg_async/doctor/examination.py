"""The whole examination: every check in its turn, those that wait for others side by side."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio
from attrs import evolve

from ofborg_async.clock import Clock
from ofborg_async.config.report import exposed
from ofborg_async.doctor import brokers, host, nixes, storage
from ofborg_async.doctor.findings import Finding, Group, Report, Verdict
from ofborg_async.errors import ConfigFault
from ofborg_async.model.identity import Settings
from ofborg_async.process import Spawner

_T = TypeVar("_T")


async def examine_host(settings: Settings, clock: Clock) -> Report:
    """Examine this host for the identities of ``settings``, with the rights of whoever runs this."""
    spawner = Spawner(clock, None)
    path = os.environ.get("PATH", os.defpath)
    user_id = os.geteuid()
    programs = await host.examine_programs(spawner, path)
    # Without nix there is nothing more to be found out about it; that it is missing is said already.
    uses = [] if await host.program_version(spawner, "nix", path) is None else nixes.uses_of(settings.identities)
    nix_found = await _all([partial(nixes.examine_nix, spawner, use, path) for use in uses])
    broker_found = await _all(
        [partial(brokers.examine_broker, use, clock.now()) for use in brokers.uses_of(settings.identities)]
    )
    systems = [system for identity in settings.identities for system in identity.nix.systems]
    features = next((found.features for found in nix_found if found.features is not None), None)
    findings = [
        *_warnings(settings),
        *storage.examine_files(settings.digests, user_id),
        host.examine_user(user_id, allow_root=settings.daemon.allow_root),
        *programs,
        *host.examine_kvm(systems, features),
        host.examine_homeless(_sandboxed(nix_found)),
        *(finding for found in nix_found for finding in found.findings),
        *_storage(settings, user_id),
        *(finding for found in broker_found for finding in found),
        Finding(Group.PUBLIC, "R23", "what others see", Verdict.OK, "; ".join(exposed(settings))),
    ]
    return Report.of(findings)


def report_faults(faults: Sequence[ConfigFault]) -> Report:
    """The report on a configuration that cannot be used: nothing else can be examined."""
    return Report.of(
        Finding(Group.CONFIGURATION, "R08" if fault.key == "checkout.root" else "", _place(fault), Verdict.FAILURE,
                fault.message, "mend the configuration; `ofborg-async check` tells these faults alone")
        for fault in faults
    )  # fmt: skip


def only(settings: Settings, identity: str) -> Settings:
    """The same settings with one identity alone; none if there is none of that name."""
    return evolve(settings, identities=tuple(each for each in settings.identities if each.name == identity))


def _place(fault: ConfigFault) -> str:
    where = f"{fault.file}:{fault.line}" if fault.line is not None else fault.file
    return f"{where}: {fault.key}" if fault.key else where


def _warnings(settings: Settings) -> list[Finding]:
    """What ``check`` warns of, R24 and R25 among it."""
    remedy = "as it says; `ofborg-async check` tells it as well"
    warnings = [
        Finding(Group.CONFIGURATION, "", "warning", Verdict.WARNING, text, remedy) for text in settings.warnings
    ]
    names = ", ".join(map(str, settings.files))
    return warnings or [Finding(Group.CONFIGURATION, "R06", names, Verdict.OK, "read without a fault or a warning")]


def _storage(settings: Settings, user_id: int) -> list[Finding]:
    findings = [storage.examine_directory(settings.daemon.state_dir, "state directory", user_id)]
    for identity in settings.identities:
        findings.append(storage.examine_directory(identity.root, f"root of {identity.name}", user_id))
        findings += storage.examine_holders(identity)
    return [*findings, *storage.examine_disks(settings.daemon.state_dir, settings.identities)]


def _sandboxed(found: Sequence[nixes.NixExamination]) -> bool | None:
    """Whether all builds are sandboxed; None when it is not known of all."""
    answers = {each.sandboxed for each in found}
    return False if False in answers else None if None in answers or not answers else True


async def _all(calls: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """All calls side by side; their results in the order of the calls."""
    results: dict[int, _T] = {}

    async def run(index: int, call: Callable[[], Awaitable[_T]]) -> None:
        results[index] = await call()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    return [results[index] for index in range(len(calls))]
