"""The one reason why an identity does not build now, from snapshots alone. Pure."""

from __future__ import annotations

from ofborg_async.model.status import (
    AmqpState,
    DaemonSnapshot,
    IdentitySnapshot,
    IdentityState,
    JobSnapshot,
    SystemSnapshot,
)

_HELD = {
    IdentityState.PAUSED: "it is paused",
    IdentityState.DRAINING: "it is being drained",
    IdentityState.QUARANTINED: "it is quarantined",
    IdentityState.STOPPED: "it is stopped until it is resumed",
    IdentityState.FAILED: "it failed and was given up",
}


def why_not_building(identity: IdentitySnapshot, daemon: DaemonSnapshot) -> str:
    """One sentence. What keeps it from building comes first; waiting for work comes last."""
    if daemon.stopping:
        return "The daemon is stopping."
    if identity.state in _HELD:
        return _sentence(_HELD[identity.state], identity.reason or identity.last_error, identity.remedy)
    for system in identity.systems:
        if system.job is not None:
            return _how_it_builds(system.job, system)
    if daemon.disk_free_bytes < daemon.disk_floor_bytes:
        free, floor = daemon.disk_free_bytes, daemon.disk_floor_bytes
        return f"The disk has {free} bytes free, less than the floor of {floor}, at {daemon.disk_place}."
    return _broker_trouble(identity) or _pause(identity) or _want_of_work(identity)


def _how_it_builds(job: JobSnapshot, system: SystemSnapshot) -> str:
    doing = f"waits for {job.waiting_for}" if job.waiting_for else f"is in phase {job.phase}"
    since = f"{job.elapsed_seconds:.0f} s after its start, quiet for {job.quiet_seconds:.0f} s"
    text = f"It builds: {job.repo}#{job.pr} {doing}, {since}"
    if job.trouble:
        text += f"; this host failed, and it is tried again: {job.trouble}"
    if system.amqp in _TROUBLE:
        text += "; " + _TROUBLE[system.amqp] + (f": {system.amqp_detail}" if system.amqp_detail else "")
    return text + "."


_TROUBLE = {
    AmqpState.REFUSED: "the broker refuses it",
    AmqpState.BLOCKED: "the broker takes no messages for now: its memory or disk is used up",
    AmqpState.DOWN: "the broker cannot be reached",
    AmqpState.CONNECTING: "it is connecting to the broker",
}


def _broker_trouble(identity: IdentitySnapshot) -> str:
    for system in identity.systems:
        if system.amqp in _TROUBLE and (system.amqp is not AmqpState.CONNECTING or not identity.last_error):
            return _sentence(_TROUBLE[system.amqp], system.amqp_detail, "")
    if identity.state in {IdentityState.STARTING, IdentityState.BACKOFF}:
        return (
            _sentence("it cannot take work", identity.last_error, identity.remedy)
            if identity.last_error
            else "It starts."
        )
    return ""


def _pause(identity: IdentitySnapshot) -> str:
    """Why it takes nothing for a while, after a job that went back to its queue."""
    for system in identity.systems:
        if system.amqp is AmqpState.HOLDING and system.amqp_detail:
            return _sentence("it pauses, as its last job went back to the queue", system.amqp_detail, "")
    return ""


def _want_of_work(identity: IdentitySnapshot) -> str:
    text = "Its queues are empty: it waits for work."
    if identity.results_waiting:
        text += " " + _sentence(f"{identity.results_waiting} of its results wait", identity.results_detail, "")
    return text


def _sentence(what: str, why: str, remedy: str) -> str:
    text = what[0].upper() + what[1:] + (f": {why}" if why else "")
    if remedy and remedy not in text:
        text += f" ({remedy})"
    return text if text.endswith((".", ")")) else text + "."
