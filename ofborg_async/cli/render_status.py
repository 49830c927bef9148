"""``status`` as text: a header, then a row for each identity; built from a snapshot and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group
from rich.text import Text

from ofborg_async.cli.render_grid import Column, Row, render_grid
from ofborg_async.cli.text import clock, size, span
from ofborg_async.control.verdict import Verdict, identity_verdict
from ofborg_async.control.visible import visible
from ofborg_async.model.status import (
    AmqpState,
    BrokerSnapshot,
    DaemonSnapshot,
    IdentitySnapshot,
    JobSnapshot,
    SystemSnapshot,
)

WIDE = 140
"""From this width on a job has columns of its own; below it, lines."""

VERDICT_STYLE = {Verdict.OK: "green", Verdict.DEGRADED: "yellow", Verdict.DOWN: "bold red"}
_AMQP_STYLE = {
    AmqpState.CONSUMING: "green",
    AmqpState.HOLDING: "green",
    AmqpState.CONNECTING: "yellow",
    AmqpState.BLOCKED: "yellow",
    AmqpState.DOWN: "red",
    AmqpState.REFUSED: "bold red",
}
_ATTRS_SHOWN = 3

_WIDE_COLUMNS = (
    Column("IDENTITY"),
    Column("STATE"),
    Column("SYSTEM"),
    Column("AMQP"),
    Column("JOB", flexible=True),
    Column("PHASE"),
    Column("ELAPSED/LIMIT"),
    Column("QUIET"),
    Column("LOCK", droppable=True),
    Column("OK/FAIL-24h", droppable=True),
    Column("RESTARTS", droppable=True),
    Column("LAST-ERROR", droppable=True),
)
_NARROW_COLUMNS = (
    Column("IDENTITY"),
    Column("STATE"),
    Column("SYSTEM"),
    Column("AMQP"),
    Column("OK/FAIL-24h", droppable=True),
    Column("LOCK", droppable=True),
)


def render_status(snapshot: DaemonSnapshot, width: int) -> Group:
    """Header and table for a terminal of ``width`` columns. Everything others wrote is shown with escapes."""
    wide = width >= WIDE
    columns = _WIDE_COLUMNS if wide else _NARROW_COLUMNS
    said = _Said(broker.error for broker in snapshot.brokers)
    rows = [row for identity in snapshot.identities for row in _rows(identity, said, wide=wide)]
    return Group(*_header(snapshot), Text(""), render_grid(columns, rows, width))


class _Said:
    """What stands on the screen already: a broker's refusal concerns all its identities and is told once."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {self._bare(text) for text in texts if text}

    def again(self, text: str) -> bool:
        """Whether ``text`` was said before; it counts as said from now on."""
        bare = self._bare(text)
        known = bare in self._texts
        self._texts.add(bare)
        return known

    @staticmethod
    def _bare(text: str) -> str:
        for connection in ("consuming connection: ", "publishing connection: "):
            text = text.removeprefix(connection)
        return text


def _header(snapshot: DaemonSnapshot) -> Iterator[Text]:
    style = next((style for verdict, style in VERDICT_STYLE.items() if verdict == snapshot.verdict), "")
    yield Text.assemble(
        (visible(snapshot.host), "bold"),
        f"  ofborg-async {visible(snapshot.version)}, process {snapshot.pid}, up {span(snapshot.uptime_seconds)}  ",
        (visible(snapshot.verdict).upper(), style),
        (" STOPPING" if snapshot.stopping else "", "yellow"),
    )
    changed = ("  its files changed since: restart to apply them" if snapshot.config_changed else "", "yellow")
    yield Text.assemble("config  ", visible(snapshot.fingerprint[:12]), changed)
    slots = ", ".join(_slot(slot.name, slot.used, slot.total, slot.waiting) for slot in snapshot.slots)
    yield Text(f"slots   {slots}")
    locks = f"locks   {snapshot.locks_held} held, {snapshot.locks_waiting} waiting   "
    low = snapshot.disk_free_bytes < snapshot.disk_floor_bytes
    where = f" at {visible(snapshot.disk_place)}" if low else ""
    disk = f"disk {size(snapshot.disk_free_bytes)} free{where}, floor {size(snapshot.disk_floor_bytes)}"
    yield Text.assemble(locks, (disk, "bold red" if low else ""))
    for broker in snapshot.brokers:
        yield _broker(broker)


def _slot(name: str, used: int, total: int, waiting: int) -> str:
    return f"{visible(name)} {used}/{total}" + (f" ({waiting} waiting)" if waiting else "")


def _broker(broker: BrokerSnapshot) -> Text:
    text = Text.assemble("broker  ", (broker.state, _AMQP_STYLE[broker.state]))
    text.append(f" {visible(broker.address)}, vhost {visible(broker.vhost)}, user {visible(broker.username)}")
    if broker.error:
        text.append(f": {visible(broker.error)}", "red")
    if broker.retry_in_seconds is not None:
        text.append(f", next try in {span(broker.retry_in_seconds)}")
    return text


def _rows(identity: IdentitySnapshot, said: _Said, *, wide: bool) -> Iterator[Row]:
    # An identity that could not start has no system yet, and its error is what matters.
    systems = identity.systems or (SystemSnapshot("-", "", AmqpState.DOWN, None),)
    last = len(systems) - 1
    for index, system in enumerate(systems):
        first = index == 0
        cells = _wide_cells(identity, system, first=first) if wide else _narrow_cells(identity, system, first=first)
        details = [*_system_details(system, said, wide=wide)]
        if index == last:
            details += _identity_details(identity, said, wide=wide)
        yield Row(cells, tuple(details))


def _common_cells(identity: IdentitySnapshot, system: SystemSnapshot, *, first: bool) -> tuple[Text, ...]:
    state = Text(identity.state, VERDICT_STYLE[identity_verdict(identity)])
    return (
        Text(visible(identity.name) if first else "", "bold"),
        state if first else Text(""),
        Text(visible(system.system)),
        Text(system.amqp, _AMQP_STYLE[system.amqp]),
    )


def _narrow_cells(identity: IdentitySnapshot, system: SystemSnapshot, *, first: bool) -> tuple[Text, ...]:
    counts, lock = (_counts(identity), _lock(identity)) if first else (Text(""), Text(""))
    return (*_common_cells(identity, system, first=first), counts, lock)


def _wide_cells(identity: IdentitySnapshot, system: SystemSnapshot, *, first: bool) -> tuple[Text, ...]:
    job = system.job
    common = _common_cells(identity, system, first=first)
    if job is None:
        running = (Text("-", "dim"), Text("-", "dim"), Text("-", "dim"), Text("-", "dim"))
    else:
        running = (
            Text(_pull_request(job)),
            Text(job.phase),
            Text(_elapsed(job)),
            Text(span(job.quiet_seconds)),
        )
    if not first:
        return (*common, *running, Text(""), Text(""), Text(""), Text(""))
    below = Text("see text", "red") if identity.last_error else Text("-", "dim")
    return (*common, *running, _lock(identity), _counts(identity), Text(str(identity.restarts)), below)


def _system_details(system: SystemSnapshot, said: _Said, *, wide: bool) -> Iterator[Text]:
    job = system.job
    if job is not None:
        if wide:
            yield Text(_attrs(job))
            yield Text(f"attempt {visible(job.attempt_id)}, {job.lines} lines", "dim")
        else:
            yield Text(f"{job.phase} {_elapsed(job)}, quiet {span(job.quiet_seconds)}, {job.lines} lines")
            yield Text(f"{_pull_request(job)} {_attrs(job)}")
            yield Text(f"attempt {visible(job.attempt_id)}", "dim")
        if job.waiting_for:
            yield Text(f"waiting for {visible(job.waiting_for)}", "yellow")
        if job.trouble and not said.again(job.trouble):
            yield Text(f"tried again after: {visible(job.trouble)}", "yellow")
    if system.amqp_detail and not said.again(system.amqp_detail):
        what = "pauses" if system.amqp is AmqpState.HOLDING else "amqp"
        yield Text(f"{what}: {visible(system.amqp_detail)}", _AMQP_STYLE[system.amqp])


def _identity_details(identity: IdentitySnapshot, said: _Said, *, wide: bool) -> Iterator[Text]:
    if identity.reason and not said.again(identity.reason):
        yield Text(visible(identity.reason), VERDICT_STYLE[identity_verdict(identity)])
    if identity.results_waiting:
        waiting = identity.results_waiting
        detail = identity.results_detail
        because = f": {visible(detail)}" if detail and not said.again(detail) else ""
        yield Text(f"{waiting} result{' waits' if waiting == 1 else 's wait'} in the outbox{because}", "yellow")
    if identity.restarts and not wide:
        yield Text(f"{identity.restarts} restarts")
    if identity.last_error and not said.again(identity.last_error):
        yield Text(f"error: {visible(identity.last_error)}", "red")
        if identity.remedy and identity.remedy not in identity.last_error:
            yield Text.assemble(("remedy: ", "bold"), visible(identity.remedy))


def _pull_request(job: JobSnapshot) -> str:
    return f"{visible(job.repo)}#{job.pr}"


def _attrs(job: JobSnapshot) -> str:
    more = len(job.attrs) - _ATTRS_SHOWN
    return " ".join(visible(attr) for attr in job.attrs[:_ATTRS_SHOWN]) + (f" +{more}" if more > 0 else "")


def _elapsed(job: JobSnapshot) -> str:
    return f"{clock(job.elapsed_seconds)}/{clock(job.limit_seconds)}"


def _counts(identity: IdentitySnapshot) -> Text:
    return Text(f"{identity.ok_24h}/{identity.failed_24h}")


def _lock(identity: IdentitySnapshot) -> Text:
    return Text(visible(identity.lock) or "-")
