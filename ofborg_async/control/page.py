"""The read-only status page: one self-contained HTML document that loads nothing and runs nothing."""

from __future__ import annotations

import html
from string import Template

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

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_REFRESH_SECONDS = 5
_ATTRS_SHOWN = 4
_MEBIBYTE = 1024 * 1024

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1d2430; --soft: #667085; --line: #e3e7ed;
  --ok: #12805c; --degraded: #b25e09; --down: #c01c28; --accent: #3157d5; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151b; --card: #1b2029; --ink: #e6eaf2; --soft: #98a2b3;
  --line: #2c333f; --ok: #4cc38a; --degraded: #f1a10d; --down: #ff6369; --accent: #8da4ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.35rem; margin: 0; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin-bottom: 1.25rem; }
header p { margin: 0; color: var(--soft); }
.ok { color: var(--ok); } .degraded { color: var(--degraded); } .down { color: var(--down); }
.pill { border: 1px solid currentColor; border-radius: 99px; padding: 0 .7rem; font-weight: 600; font-size: .85rem;
  white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 0 0 .75rem; }
.brokers { grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); margin-bottom: 1.5rem; }
dl div, article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1rem; }
dt, th { color: var(--soft); font-size: .78rem; text-transform: uppercase; letter-spacing: .05em; font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
article { margin-bottom: .9rem; }
article h2 { font-size: 1.05rem; margin: 0; }
.top { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .9rem; }
.soft { color: var(--soft); } .right { margin-left: auto; }
.scroll { overflow-x: auto; }
table { width: 100%; min-width: 44rem; table-layout: fixed; border-collapse: collapse; margin-top: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; }
td { border-top: 1px solid var(--line); overflow-wrap: anywhere; }
th:nth-child(1), th:nth-child(2) { width: 15%; } th:nth-child(4) { width: 16%; } th:nth-child(5) { width: 19%; }
code { font: .92em ui-monospace, monospace; }
.trouble { margin: .6rem 0 0; padding: .5rem .8rem; border-left: 3px solid currentColor; border-radius: 0 6px 6px 0;
  background: color-mix(in srgb, currentColor 9%, transparent); overflow-wrap: anywhere; }
.trouble span { color: var(--ink); }
"""

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="$refresh">
<title>$verdict: ofborg-async on $host</title>
<style>$style</style>
</head>
<body>
<header><h1>ofborg-async on $host</h1><span class="pill $verdict">$verdict</span>
<p>version $version, process $pid, up $uptime</p></header>
<main>
<dl>$facts</dl>
<dl class="brokers">$brokers</dl>
$identities
</main>
</body>
</html>
"""
)


def render_page(snapshot: DaemonSnapshot) -> str:
    """The page for one snapshot; everything that others wrote is escaped."""
    return _PAGE.substitute(
        refresh=_REFRESH_SECONDS,
        style=_STYLE,
        host=escape(snapshot.host),
        verdict=escape(snapshot.verdict),
        version=escape(snapshot.version),
        pid=snapshot.pid,
        uptime=_span(snapshot.uptime_seconds),
        facts=_list(_facts(snapshot)),
        brokers=_list([_broker(broker) for broker in snapshot.brokers]),
        identities="\n".join(_identity(identity) for identity in snapshot.identities),
    )


def escape(text: str) -> str:
    """What others wrote, for HTML: without control characters, and as text."""
    return html.escape(visible(text))


def _facts(snapshot: DaemonSnapshot) -> list[tuple[str, str]]:
    changed = ' <span class="degraded">(the files changed since)</span>' if snapshot.config_changed else ""
    return [
        ("Configuration", f"<code>{escape(snapshot.fingerprint[:12])}</code>{changed}"),
        *(
            (escape(slot.name), f"{slot.used} of {slot.total} in use, {slot.waiting} waiting")
            for slot in snapshot.slots
        ),
        ("Disk", _disk(snapshot)),
        ("Locks", f"{snapshot.locks_held} held, {snapshot.locks_waiting} waiting"),
    ]


def _broker(broker: BrokerSnapshot) -> tuple[str, str]:
    kind = _amqp_class(broker.state)
    error = f'<br><span class="{kind}">{escape(broker.error)}</span>' if broker.error else ""
    again = f", next try in {_span(broker.retry_in_seconds)}" if broker.retry_in_seconds is not None else ""
    where = escape(f"{broker.address}, vhost {broker.vhost}, user {broker.username}")
    return "Broker", f'<span class="{kind}">{escape(broker.state)}</span> {where}{again}{error}'


def _list(facts: list[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def _disk(snapshot: DaemonSnapshot) -> str:
    text = f"{snapshot.disk_free_bytes // _MEBIBYTE:,} MiB free, floor {snapshot.disk_floor_bytes // _MEBIBYTE:,} MiB"
    if snapshot.disk_free_bytes >= snapshot.disk_floor_bytes:
        return text
    return f'<span class="down">{text}, at {escape(snapshot.disk_place)}</span>'


def _identity(identity: IdentitySnapshot) -> str:
    verdict = identity_verdict(identity)
    reason = f'<span class="soft">{escape(identity.reason)}</span>' if identity.reason else ""
    restarts = f", {identity.restarts} restarts" if identity.restarts else ""
    waiting = f", {identity.results_waiting} results waiting" if identity.results_waiting else ""
    return (
        f'<article><div class="top"><h2>{escape(identity.name)}</h2>'
        f'<span class="pill {verdict}">{escape(identity.state)}</span>{reason}'
        f'<span class="soft right">{identity.ok_24h} ok, {identity.failed_24h} failed in 24 h{restarts}{waiting}</span>'
        '</div><div class="scroll"><table><tr><th>System</th><th>AMQP</th><th>Job</th><th>Phase</th><th>Time</th></tr>'
        + "".join(_system(system) for system in identity.systems)
        + f"</table></div>{_trouble(identity)}</article>"
    )


def _system(system: SystemSnapshot) -> str:
    detail = f'<br><span class="soft">{escape(system.amqp_detail)}</span>' if system.amqp_detail else ""
    amqp = f'<span class="{_amqp_class(system.amqp)}">{escape(system.amqp)}</span>{detail}'
    return f"<tr><td>{escape(system.system)}</td><td>{amqp}</td>{_job(system.job)}</tr>"


def _job(job: JobSnapshot | None) -> str:
    if job is None:
        return '<td class="soft">none</td><td></td><td></td>'
    attrs = " ".join(job.attrs[:_ATTRS_SHOWN])
    if len(job.attrs) > _ATTRS_SHOWN:
        attrs += f" and {len(job.attrs) - _ATTRS_SHOWN} more"
    waiting = f"<br>waiting for {escape(job.waiting_for)}" if job.waiting_for else ""
    waiting += f"<br>tried again after: {escape(job.trouble)}" if job.trouble else ""
    return (
        f"<td>{escape(job.repo)} #{job.pr}<br><code>{escape(attrs)}</code>"
        f'<br><span class="soft">attempt {escape(job.attempt_id[:8])}, {job.lines:,} lines</span></td>'
        f"<td>{escape(job.phase)}{waiting}</td>"
        f"<td>{_span(job.elapsed_seconds)} of {_span(job.limit_seconds)}"
        f'<br><span class="soft">quiet for {_span(job.quiet_seconds)}</span></td>'
    )


def _trouble(identity: IdentitySnapshot) -> str:
    if not identity.last_error:
        return ""
    verdict = identity_verdict(identity)
    kind = "soft" if verdict is Verdict.OK else verdict  # it may be over
    remedy = f"<br><strong>Remedy:</strong> {escape(identity.remedy)}" if identity.remedy else ""
    return f'<p class="trouble {kind}"><span>{escape(identity.last_error)}{remedy}</span></p>'


def _amqp_class(state: AmqpState) -> str:
    match state:
        case AmqpState.CONSUMING | AmqpState.HOLDING:
            return "ok"
        case AmqpState.CONNECTING | AmqpState.BLOCKED:
            return "degraded"
        case _:
            return "down"


def _span(seconds: float) -> str:
    """A length of time in its two largest units: ``4 d 3 h``, ``3 h 07 min``, ``12 min 05 s``, ``8 s``."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"
