"""The routes of the control API: what each takes, what it answers, and the one call of the daemon behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import unquote

from attrs import frozen

from ofborg_async.clock import Clock
from ofborg_async.control.http import Answer, Streamed
from ofborg_async.control.inputs import Inputs, Kind, Parameter
from ofborg_async.control.metrics import CONTENT_TYPE as METRICS_TYPE
from ofborg_async.control.metrics import render_metrics
from ofborg_async.control.port import DaemonControl
from ofborg_async.control.problems import RequestError, nearest
from ofborg_async.control.values import (
    LONG_POLL_SECONDS,
    REFUSED,
    broken_lock_document,
    encode,
    history_document,
    locks_document,
    reload_document,
    status_document,
)
from ofborg_async.control.verdict import Verdict
from ofborg_async.waiting import at_most

HISTORY_LIMIT = 50

PLAIN = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
BYTES = "application/octet-stream"


@frozen
class Call:
    """What a handler gets: the daemon, the clock, the path's variables by name, the query's and the body's values."""

    daemon: DaemonControl
    clock: Clock
    path: dict[str, str]
    inputs: Inputs


@frozen
class Route:
    """One route. ``answers`` names the schema of its JSON document, or is a content type.

    ``open`` routes are also on the read-only loopback listener. ``also`` are further statuses with the same document.
    """

    method: str
    path: str
    summary: str
    handle: Callable[[Call], Awaitable[Answer | Streamed]]
    answers: str = "Accepted"
    query: tuple[Parameter, ...] = ()
    body: tuple[Parameter, ...] = ()
    open: bool = False
    also: tuple[HTTPStatus, ...] = ()


def json_answer(document: object, status: int = HTTPStatus.OK) -> Answer:
    """A JSON document as an answer."""
    return Answer(status, encode(document))


def _accepted() -> Answer:
    return json_answer({"accepted": True}, HTTPStatus.ACCEPTED)


async def _status(call: Call) -> Answer:
    return json_answer(status_document(call.daemon.snapshot()))


async def _locks(call: Call) -> Answer:
    return json_answer(locks_document(call.daemon.locks()))


async def _break_lock(call: Call) -> Answer:
    return json_answer(broken_lock_document(await call.daemon.break_lock(call.inputs["key"] or "")))


async def _history(call: Call) -> Answer:
    entries = await call.daemon.history(
        call.inputs["identity"], call.inputs["since"], call.inputs["limit"] or HISTORY_LIMIT, call.inputs["before"]
    )
    return json_answer(history_document(entries))


async def _log(call: Call) -> Streamed:
    return Streamed(await call.daemon.read_log(call.path["selector"], bool(call.inputs["follow"])), BYTES)


async def _why(call: Call) -> Answer:
    identity = call.path["identity"]
    return json_answer({"identity": identity, "why": call.daemon.why(identity)})


async def _drain(call: Call) -> Answer:
    await call.daemon.drain(call.inputs["identities"], call.inputs["deadline_seconds"])
    return _accepted()


async def _drained(call: Call) -> Answer:
    with at_most(LONG_POLL_SECONDS) as scope:
        await call.daemon.wait_drained(call.inputs["identity"])
    return json_answer({"drained": not scope.cancelled_caught})


async def _pause(call: Call) -> Answer:
    seconds = call.inputs["for_seconds"]
    until = None if seconds is None else call.clock.now() + timedelta(seconds=seconds)
    await call.daemon.pause(call.inputs["identities"], call.inputs["reason"] or "", until)
    return _accepted()


async def _resume(call: Call) -> Answer:
    await call.daemon.resume(call.inputs["identities"])
    return _accepted()


async def _cancel(call: Call) -> Answer:
    await call.daemon.cancel(call.path["attempt_id"])
    return _accepted()


async def _restart(call: Call) -> Answer:
    await call.daemon.restart(call.path["identity"])
    return _accepted()


async def _reload(call: Call) -> Answer:
    report = await call.daemon.reload()
    return json_answer(reload_document(report), HTTPStatus.OK if report.ok else REFUSED)


async def _stop(call: Call) -> Answer:
    await call.daemon.stop()
    return _accepted()


async def _metrics(call: Call) -> Answer:
    text = render_metrics(call.daemon.snapshot(), call.daemon.metrics())
    return Answer(HTTPStatus.OK, text.encode(), METRICS_TYPE)


async def _healthz(call: Call) -> Answer:
    verdict = call.daemon.snapshot().verdict
    well = verdict == Verdict.OK
    return json_answer({"verdict": verdict}, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)


async def _page(call: Call) -> Answer:
    from ofborg_async.control.page import CONTENT_SECURITY_POLICY, render_page  # imported once somebody looks

    body = render_page(call.daemon.snapshot()).encode("utf-8", "replace")
    return Answer(HTTPStatus.OK, body, HTML, (("Content-Security-Policy", CONTENT_SECURITY_POLICY),))


async def _openapi(call: Call) -> Answer:
    del call
    from ofborg_async.control.openapi import openapi_document  # imported once somebody asks

    return json_answer(openapi_document())


_IDENTITIES = Parameter("identities", Kind.NAMES, "the identities meant; left out or empty: all")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/status", "everything that `status` shows", _status, "DaemonSnapshot"),
    Route("GET", "/v1/locks", "each lock with its holder, age and waiters", _locks, "Locks"),
    Route(
        "POST",
        "/v1/locks/break",
        "free a lock whose holder is dead by ending what it left behind; 409: the holder is alive, or not known",
        _break_lock,
        "Broken",
        body=(Parameter("key", Kind.TEXT, "which lock, as `locks` names it"),),
    ),
    Route(
        "GET",
        "/v1/history",
        "finished attempts, newest first",
        _history,
        "History",
        query=(
            Parameter("identity", Kind.TEXT, "of this identity alone"),
            Parameter("since", Kind.MOMENT, "that finished at this time or later"),
            Parameter("limit", Kind.WHOLE, f"at most so many; {HISTORY_LIMIT} when left out"),
            Parameter("before", Kind.TEXT, "the page after the one that ended with this attempt_id"),
        ),
    ),
    Route(
        "GET",
        "/v1/logs/{selector}",
        "the log of an attempt (its id or a unique prefix), or of an identity's running or newest attempt, as it is",
        _log,
        BYTES,
        query=(Parameter("follow", Kind.FLAG, "stay until the attempt has ended"),),
    ),
    Route("GET", "/v1/identities/{identity}/why", "the one reason why it is not building now", _why, "Why"),
    Route("POST", "/v1/identities/{identity}/restart", "start an identity anew; its jobs are requeued", _restart),
    Route("POST", "/v1/attempts/{attempt_id}/cancel", "end one build, its whole process tree, and report it", _cancel),
    Route(
        "POST",
        "/v1/drain",
        "take no new job, finish the running one",
        _drain,
        body=(
            _IDENTITIES,
            Parameter("deadline_seconds", Kind.SECONDS, "then end what still runs and requeue it; left out: wait"),
        ),
    ),
    Route(
        "GET",
        "/v1/drained",
        f"wait at most {LONG_POLL_SECONDS:g} s for a drain to end and say whether it has; ask again until it has",
        _drained,
        "Drained",
        query=(Parameter("identity", Kind.NAMES, "an identity meant, repeatable; left out: all"),),
    ),
    Route(
        "POST",
        "/v1/pause",
        "take no new job until resumed; survives a restart",
        _pause,
        body=(
            _IDENTITIES,
            Parameter("reason", Kind.TEXT, "why, for people"),
            Parameter("for_seconds", Kind.SECONDS, "resume by itself after this time; left out: never"),
        ),
    ),
    Route("POST", "/v1/resume", "undo pause, drain and quarantine", _resume, body=(_IDENTITIES,)),
    Route(
        "POST",
        "/v1/reload",
        "read the configuration again and apply it identity by identity; 422: it has faults, and nothing was changed",
        _reload,
        "ReloadReport",
        also=(REFUSED,),
    ),
    Route("POST", "/v1/stop", "stop the daemon", _stop),
    Route("GET", "/metrics", "Prometheus' text format", _metrics, METRICS_TYPE, open=True),
    Route(
        "GET",
        "/healthz",
        "200 when the verdict is ok, 503 when it is degraded or down",
        _healthz,
        "Health",
        open=True,
        also=(HTTPStatus.SERVICE_UNAVAILABLE,),
    ),
    Route("GET", "/openapi.json", "this document", _openapi, "object", open=True),
    Route("GET", "/", "a status page for people", _page, HTML, open=True),
)


def find_route(method: str, path: str, *, read_only: bool) -> tuple[Route, dict[str, str]]:
    """The route of a path and the values of its variables. Raises RequestError: 400, 404 or 405.

    ``read_only`` leaves out all but the open routes.
    """
    segments = [_segment(text) for text in path.split("/")]
    candidates = [route for route in ROUTES if route.open or not read_only]
    found = [(route, values) for route in candidates if (values := _match(route.path, segments)) is not None]
    if not found:
        close = nearest(path, [route.path for route in candidates])
        raise RequestError(
            HTTPStatus.NOT_FOUND,
            "there is nothing at this path",
            remedy=f"did you mean {close}?" if close else "see /openapi.json",
        )
    for route, values in found:
        if route.method == method or (method == "HEAD" and route.method == "GET"):
            return route, values
    allowed = found[0][0].method
    raise RequestError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"this path does not take {method[:20]!a}",
        remedy=f"use {allowed}",
        headers=(("Allow", allowed),),
    )


def _match(template: str, segments: list[str]) -> dict[str, str] | None:
    wanted = template.split("/")
    if len(wanted) != len(segments):
        return None
    values = {}
    for want, got in zip(wanted, segments, strict=True):
        if want.startswith("{") and got:
            values[want[1:-1]] = got
        elif want != got:
            return None
    return values


def _segment(text: str) -> str:
    try:
        segment = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from None
    if segment in {".", ".."} or "/" in segment or not segment.isprintable():
        raise RequestError(HTTPStatus.BAD_REQUEST, "the path has a segment that no name can be")
    return segment
