"""The client of the control API: typed calls over any byte stream, every failure as one clear error.

Each call opens a connection of its own through ``connect`` (a Unix socket, or a channel of an SSH connection).
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import anyio
import cattrs
from anyio.abc import ByteStream

from ofborg_async.clock import rfc3339
from ofborg_async.control.fetch import BROKEN, Connect, Reply, fetch
from ofborg_async.control.problems import AnsweredError, NoDaemonError
from ofborg_async.control.values import BREAK_SECONDS, LONG_POLL_SECONDS, REFUSED, SCHEMA
from ofborg_async.errors import DeadlineExceededError
from ofborg_async.model.reload import ReloadReport
from ofborg_async.model.status import BrokenLock, DaemonSnapshot, HistoryEntry, LockSnapshot
from ofborg_async.waiting import idle, within

_T = TypeVar("_T")

_ANSWER_BYTES = 64 * 1024 * 1024
_STOP_POLL_SECONDS = 0.1


def unix_connector(path: Path) -> Connect:
    """Connects to the control socket of this host."""

    async def connect() -> ByteStream:
        try:
            return await anyio.connect_unix(path)
        except OSError as error:
            remedy = _REMEDIES.get(
                error.errno or 0, "name the socket with --socket, or set OFBORG_ASYNC_CONTROL_SOCKET"
            )
            raise NoDaemonError(str(path), error.strerror or str(error), remedy=remedy) from error

    return connect


_REMEDIES = {
    errno.ECONNREFUSED: "the daemon that made this socket is gone; start it again",
    errno.ENOENT: "start the daemon, or name its socket with --socket",
    errno.EACCES: "use the daemon's own user or root, or be a member of daemon.control_group",
}


class ControlClient:
    """The control API of one daemon.

    ``where`` names it in errors; ``call_seconds`` bounds each call. Every method raises NoDaemonError when no daemon
    answers (in time, or intelligibly) and AnsweredError when it answered with a problem.
    """

    def __init__(self, connect: Connect, *, where: str, call_seconds: float = 10.0) -> None:
        self._connect = connect
        self._where = where
        self._call_seconds = call_seconds

    async def status(self) -> DaemonSnapshot:
        """Everything that ``status`` shows."""
        return self._structure(await self._call("GET", "/v1/status"), DaemonSnapshot)

    async def locks(self) -> tuple[LockSnapshot, ...]:
        """Each lock that is held or waited for."""
        return self._structure((await self._call("GET", "/v1/locks")).get("locks"), tuple[LockSnapshot, ...])

    async def break_lock(self, key: str) -> BrokenLock:
        """Free a lock whose holder is dead."""
        document = await self._call("POST", "/v1/locks/break", body={"key": key}, seconds=BREAK_SECONDS)
        return self._structure(document.get("lock"), BrokenLock)

    async def history(
        self,
        *,
        identity: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
        before: str | None = None,
    ) -> tuple[HistoryEntry, ...]:
        """Finished attempts, newest first."""
        query = {
            "identity": identity,
            "since": rfc3339(since) if since is not None else None,
            "limit": limit,
            "before": before,
        }
        document = await self._call("GET", "/v1/history", query=query)
        return self._structure(document.get("entries"), tuple[HistoryEntry, ...])

    async def why(self, identity: str) -> str:
        """The one reason why an identity is not building now."""
        document = await self._call("GET", f"/v1/identities/{_segment(identity)}/why")
        return self._structure(document.get("why"), str)

    async def drain(self, identities: Sequence[str], *, deadline_seconds: float | None = None) -> None:
        """Take no new job; ``wait_drained`` tells when the running ones have finished."""
        body: dict[str, Any] = {"identities": list(identities)}
        if deadline_seconds is not None:
            body["deadline_seconds"] = deadline_seconds
        await self._call("POST", "/v1/drain", body=body)

    async def wait_drained(self, identities: Sequence[str]) -> None:
        """Return once these identities are drained, however long their jobs take."""
        patience = LONG_POLL_SECONDS + self._call_seconds
        while True:
            document = await self._call("GET", "/v1/drained", query={"identity": list(identities)}, seconds=patience)
            if document.get("drained") is True:
                return

    async def pause(self, identities: Sequence[str], *, reason: str = "", for_seconds: float | None = None) -> None:
        """Take no new job until resumed, or until the time is over."""
        body: dict[str, Any] = {"identities": list(identities), "reason": reason}
        if for_seconds is not None:
            body["for_seconds"] = for_seconds
        await self._call("POST", "/v1/pause", body=body)

    async def resume(self, identities: Sequence[str]) -> None:
        """Undo pause, drain and quarantine."""
        await self._call("POST", "/v1/resume", body={"identities": list(identities)})

    async def cancel(self, attempt_id: str) -> None:
        """End one build."""
        await self._call("POST", f"/v1/attempts/{_segment(attempt_id)}/cancel")

    async def restart(self, identity: str) -> None:
        """Start an identity anew."""
        await self._call("POST", f"/v1/identities/{_segment(identity)}/restart")

    async def reload(self) -> ReloadReport:
        """Read the configuration again; a report that is not ``ok`` has its faults."""
        return self._structure(await self._call("POST", "/v1/reload", also=REFUSED), ReloadReport)

    async def stop(self) -> None:
        """Stop the daemon."""
        await self._call("POST", "/v1/stop")

    async def wait_stopped(self) -> None:
        """Return once nobody listens any more: the builds of a daemon that stops are over by then."""
        with self._translated(), idle("the daemon's end: its stop has limits of its own"):
            while True:
                try:
                    with within(self._call_seconds, "a connection to the daemon that stops"):
                        stream = await self._connect()
                except NoDaemonError:
                    return
                await stream.aclose()
                await anyio.sleep(_STOP_POLL_SECONDS)

    @asynccontextmanager
    async def log(self, selector: str, *, follow: bool) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The log of an attempt or identity, in chunks as they come; NoDaemonError among them: it was cut short."""
        target = _target(f"/v1/logs/{_segment(selector)}", {"follow": "true"} if follow else {})
        async with AsyncExitStack() as stack:
            with self._translated(), within(self._call_seconds, "the beginning of the log"):
                reply = await stack.enter_async_context(fetch(self._connect, "GET", target, b""))
                if reply.status != 200:
                    raise _problem(reply.status, await reply.whole(_ANSWER_BYTES))
            yield await stack.enter_async_context(aclosing(self._chunks(reply, follow=follow)))

    async def _chunks(self, reply: Reply, *, follow: bool) -> AsyncGenerator[bytes, None]:
        while True:
            with self._translated():
                if follow:
                    with idle("the next lines of a log: ended by the attempt's end, or by the caller"):
                        chunk = await reply.next_chunk()
                else:
                    with within(self._call_seconds, "the rest of the log"):
                        chunk = await reply.next_chunk()
            if not chunk:
                return
            yield chunk

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        also: int | None = None,
    ) -> dict[str, Any]:
        sent = b"" if body is None else json.dumps(body).encode()
        with self._translated(), within(seconds or self._call_seconds, f"the answer to {method} {path}"):
            async with fetch(self._connect, method, _target(path, query or {}), sent) as reply:
                received = await reply.whole(_ANSWER_BYTES)
        if reply.status >= 400 and reply.status != also:
            raise _problem(reply.status, received)
        try:
            document = json.loads(received)
        except (ValueError, RecursionError) as error:
            raise self._unintelligible("it is not JSON") from error
        if not isinstance(document, dict) or document.get("schema", SCHEMA) != SCHEMA:
            raise self._unintelligible(f"it is no document of schema {SCHEMA}")
        return document

    def _structure(self, value: Any, wanted: type[_T]) -> _T:
        try:
            return cattrs.structure(value, wanted)
        except (cattrs.BaseValidationError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise self._unintelligible(f"a field is missing or wrong ({type(error).__name__})") from error

    def _unintelligible(self, detail: str) -> NoDaemonError:
        return NoDaemonError(
            self._where,
            f"its answer was not understood: {detail}",
            remedy="use the same version of ofborg-async on both sides",
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            detail = str(error) or "the connection ended before the answer"
            raise NoDaemonError(
                self._where, detail, remedy="see the daemon's log, or whether it is stopping"
            ) from error
        except DeadlineExceededError as error:
            raise NoDaemonError(self._where, str(error), remedy="the daemon or the way to it is stuck") from error


def _segment(name: str) -> str:
    return quote(name, safe="")


def _target(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return path + ("?" + urlencode(given, doseq=True) if given else "")


def _problem(status: int, body: bytes) -> AnsweredError:
    try:
        document = json.loads(body)
        return AnsweredError(status, str(document["error"]), remedy=str(document.get("remedy") or ""))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return AnsweredError(status, f"the daemon answered with HTTP status {status}")
