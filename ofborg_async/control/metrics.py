"""Prometheus' text format (exposition format 0.0.4), from the snapshot and from the daemon's own counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ofborg_async.control.port import Metric, MetricKind, Sample
from ofborg_async.control.verdict import Verdict
from ofborg_async.model.status import AmqpState, DaemonSnapshot, IdentityState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "ofborg_async_"


def render_metrics(snapshot: DaemonSnapshot, counters: Iterable[Metric]) -> str:
    """The whole page: what the snapshot says, then the daemon's counters."""
    lines: list[str] = []
    for metric in (*_host(snapshot), *_identities(snapshot), *counters):
        lines.append(f"# HELP {metric.name} {_escape(metric.help, quotes=False)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines.extend(f"{metric.name}{_labels(sample.labels)} {_number(sample.value)}" for sample in metric.samples)
    return "\n".join(lines) + "\n"


def _host(snapshot: DaemonSnapshot) -> Iterator[Metric]:
    build = (("version", snapshot.version), ("fingerprint", snapshot.fingerprint))
    yield _gauge("build_info", "The program and its configuration.", [Sample(1, build)])
    yield _gauge("uptime_seconds", "Since the daemon started.", [Sample(snapshot.uptime_seconds)])
    yield _gauge("verdict", "1 for the verdict of status.", _one_of("verdict", snapshot.verdict, Verdict, ()))
    yield _gauge("config_changed", "1 when the files differ from what runs.", [Sample(snapshot.config_changed)])
    nearest = "Free space at that place of those that jobs write to which is nearest to its floor."
    yield _gauge("disk_free_bytes", nearest, [Sample(snapshot.disk_free_bytes)])
    yield _gauge("disk_floor_bytes", "Below this no job is taken.", [Sample(snapshot.disk_floor_bytes)])
    yield _gauge("locks_held", "Locks that are held.", [Sample(snapshot.locks_held)])
    yield _gauge("locks_waiting", "Waiters for locks.", [Sample(snapshot.locks_waiting)])
    slots = [(slot, (("name", slot.name),)) for slot in snapshot.slots]
    yield _gauge("slots_used", "Slots of the host's budgets in use.", [Sample(slot.used, at) for slot, at in slots])
    yield _gauge("slots_limit", "Slots of the host's budgets.", [Sample(slot.total, at) for slot, at in slots])
    yield _gauge("slots_waiting", "Waiters for a slot.", [Sample(slot.waiting, at) for slot, at in slots])
    samples = [
        Sample(
            broker.state in {AmqpState.CONSUMING, AmqpState.HOLDING},
            (("address", broker.address), ("vhost", broker.vhost), ("username", broker.username)),
        )
        for broker in snapshot.brokers
    ]
    yield _gauge("broker_up", "1 when the connection can be used.", samples)


def _identities(snapshot: DaemonSnapshot) -> Iterator[Metric]:
    rows = [(identity, (("identity", identity.name),)) for identity in snapshot.identities]
    lanes = [(system, (*labels, ("system", system.system))) for identity, labels in rows for system in identity.systems]
    states = [sample for row, labels in rows for sample in _one_of("state", row.state, IdentityState, labels)]
    yield _gauge("identity_state", "1 for the state of the identity.", states)
    restarts = [Sample(row.restarts, labels) for row, labels in rows]
    yield _metric("identity_restarts_total", MetricKind.COUNTER, "Restarts since the daemon started.", restarts)
    undecodable = [Sample(row.jobs_undecodable, labels) for row, labels in rows]
    yield _metric("jobs_undecodable_total", MetricKind.COUNTER, "Messages that were no build job.", undecodable)
    waiting = [Sample(row.results_waiting, labels) for row, labels in rows]
    yield _gauge("results_waiting", "Results that no queue would take yet.", waiting)
    amqp = [sample for lane, labels in lanes for sample in _one_of("state", lane.amqp, AmqpState, labels)]
    yield _gauge("amqp_state", "1 for how the system stands with its broker.", amqp)
    busy = [Sample(lane.job is not None, labels) for lane, labels in lanes]
    yield _gauge("job_running", "1 while a job runs.", busy)
    elapsed = [Sample(lane.job.elapsed_seconds, labels) for lane, labels in lanes if lane.job is not None]
    yield _gauge("job_elapsed_seconds", "Since the running job started.", elapsed)


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    return _metric(name, MetricKind.GAUGE, text, samples)


def _metric(name: str, kind: MetricKind, text: str, samples: Iterable[Sample]) -> Metric:
    return Metric(_PREFIX + name, kind, text, tuple(samples))


def _one_of(label: str, now: str, values: Iterable[str], labels: tuple[tuple[str, str], ...]) -> list[Sample]:
    return [Sample(value == now, (*labels, (label, str(value)))) for value in values]


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels) + "}"


def _escape(text: str, *, quotes: bool) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    return f"{float(value):.15g}"
