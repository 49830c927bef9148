"""The control server: one accept loop per listener, one task per connection, never an exception out of it."""

from __future__ import annotations

import ipaddress
import logging
import re
from http import HTTPStatus
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskStatus
from attrs import define, frozen

from ofborg_async.clock import Clock
from ofborg_async.control.http import DEFAULT_LIMITS, Answer, Exchange, Limits, Request, Streamed, problem
from ofborg_async.control.inputs import read_body, read_query
from ofborg_async.control.listen import ControlSocket, bind_loopback, peer_of
from ofborg_async.control.port import DaemonControl
from ofborg_async.control.problems import ConflictError, RequestError, UnknownNameError
from ofborg_async.control.routes import Call, find_route
from ofborg_async.errors import DeadlineExceededError, HostFault
from ofborg_async.waiting import idle, within

logger = logging.getLogger(__name__)

_ACCEPT_PAUSE_SECONDS = 0.5


@define
class _Door:
    """One listener: its control socket (None: the loopback) and how many connections are open."""

    socket: ControlSocket | None
    connections: int = 0

    def check_peer(self, stream: SocketStream) -> None:
        """Raise RequestError (403) when the peer may not use the control socket."""
        if self.socket is None:
            return
        try:
            peer = peer_of(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - anyio's, not Django's
        except OSError as error:  # macOS: it has left already
            raise RequestError(HTTPStatus.FORBIDDEN, f"the peer is unknown: {error}") from error
        if not self.socket.admits(peer):
            raise RequestError(
                HTTPStatus.FORBIDDEN,
                f"user {peer.uid} may not control this daemon",
                remedy="use the daemon's own user or root, or be a member of daemon.control_group",
            )

    def check_host(self, request: Request) -> None:
        """Raise RequestError (421) when a web page reaches the loopback by a name of its own (DNS rebinding)."""
        if self.socket is not None or _is_loopback_name(request.host):
            return
        raise RequestError(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"this listener is not called {request.host[:100]!a}",
            remedy="use localhost or the address",
        )


@frozen
class ControlServer:
    """Serves the control API of one daemon. ``limits`` hold for each listener by itself."""

    daemon: DaemonControl
    clock: Clock
    limits: Limits = DEFAULT_LIMITS

    async def serve_socket(
        self,
        path: Path,
        *,
        group: str | None = None,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve everything on a Unix socket until cancelled; "started" means that it listens.

        Raises LockHeldError, ConfigError or HostFault before that (see ControlSocket), and nothing after.
        """
        bound = ControlSocket(path, group=group)
        try:
            listener = await bound.listen()
            task_status.started()
            await self._accept(listener, _Door(bound))
        finally:
            bound.remove()

    async def serve_loopback(
        self, host: str, port: int, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the open routes over TCP until cancelled; "started" hands over the port. Raises HostFault."""
        listener = await SocketListener.from_socket(bind_loopback(host, port))
        task_status.started(listener.extra(SocketAttribute.local_port))  # noqa: S610 - anyio's, not Django's
        await self._accept(listener, _Door(None))

    async def _accept(self, listener: SocketListener, door: _Door) -> None:
        async with listener, anyio.create_task_group() as group:
            while True:
                try:
                    with idle("the next connection: ended by the daemon's stop"):
                        stream = await listener.accept()
                except OSError as error:
                    # Out of descriptors or memory: what is open now will end, and then there is room again.
                    logger.warning("a control connection could not be accepted: %s", error)
                    await self.clock.sleep(_ACCEPT_PAUSE_SECONDS)
                    continue
                group.start_soon(self._serve, stream, door)

    async def _serve(self, stream: SocketStream, door: _Door) -> None:
        door.connections += 1
        try:
            async with stream:
                await self._exchange(Exchange(stream, self.limits), stream, door)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, DeadlineExceededError) as error:
            logger.debug("a control connection ended early: %r", error)
        except Exception:  # a fault of one connection must not end the daemon's builds
            logger.exception("a control connection failed")
        finally:
            door.connections -= 1

    async def _exchange(self, exchange: Exchange, stream: SocketStream, door: _Door) -> None:
        answer: Answer | Streamed
        try:
            if door.connections > self.limits.connections:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", remedy="try again later")
            door.check_peer(stream)
            request = await exchange.read()
            if request is None:
                return
            door.check_host(request)
            answer = await self._call(request, door)
        except RequestError as error:
            answer = problem(error.status, str(error), remedy=error.remedy, headers=error.headers)
        except DeadlineExceededError as error:
            answer = problem(HTTPStatus.REQUEST_TIMEOUT, str(error))
        if isinstance(answer, Streamed):
            await exchange.stream(answer)
        else:
            await exchange.answer(answer)

    async def _call(self, request: Request, door: _Door) -> Answer | Streamed:
        path, _, query = request.target.partition("?")
        route, values = find_route(request.method, path, read_only=door.socket is None)
        inputs = {**read_query(query, route.query), **read_body(request.body, route.body)}
        try:
            with within(self.limits.handle_seconds, f"the daemon's answer to {route.method} {route.path}"):
                return await route.handle(Call(self.daemon, self.clock, values, inputs))
        except UnknownNameError as error:
            return problem(HTTPStatus.NOT_FOUND, str(error), remedy=error.remedy)
        except ConflictError as error:
            return problem(HTTPStatus.CONFLICT, str(error), remedy=error.remedy)
        except HostFault as error:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, error.detail, remedy=error.remedy)
        except DeadlineExceededError as error:
            return problem(HTTPStatus.GATEWAY_TIMEOUT, str(error), remedy="try again; the daemon is slow")
        except Exception:  # whoever asked is told, and the log says what it was
            logger.exception("%s %s failed", route.method, route.path)
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the daemon made a mistake", remedy="see the daemon's log")


_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?")


def _is_loopback_name(host: str) -> bool:
    match = _HOST.fullmatch(host)
    name = (match[1] or match[2] or "") if match else ""
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
