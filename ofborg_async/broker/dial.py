"""Makes one AMQP connection: address, TLS, credentials, vhost.

It is aio-pika's connection over an aiormq connection of our own making, because aio-pika makes one from a URL only. The
URL carries host, credentials and heartbeat only, built from literal parts. The vhost is set on
the connection, because aiormq would change some (``a%2Fb``), and TLS is a context of our own, because aiormq ignores
what a URL says of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika  # noqa: TID251 - this is that room
import aiormq  # noqa: TID251 - what aio-pika's connection is made from
import anyio
from aio_pika.abc import AbstractConnection, TimeoutType, UnderlayConnection  # noqa: TID251 - this is that room
from aio_pika.tools import OneShotCallback  # noqa: TID251 - this is that room
from aiormq.connection import TransportFactory  # noqa: TID251 - as above
from attrs import define, field, frozen
from yarl import URL

from ofborg_async.broker.calls import close_quietly, translated
from ofborg_async.broker.frametap import FrameTap
from ofborg_async.broker.refusals import Doing, Phase, translate
from ofborg_async.errors import BrokerRefusedError, BrokerUnavailableError, DeadlineExceededError, HostFault
from ofborg_async.model.identity import BrokerSettings
from ofborg_async.waiting import in_thread, within

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
_TLS_SHUTDOWN_SECONDS = 2.0


class _Underlay(aiormq.Connection):
    """aiormq's connection with one future that tells of its end.

    aiormq makes another each time it is asked for, so that a channel of aio-pika's that is closed takes its callback
    from one that does not have it: 4 KiB for each channel that ever was.
    """

    _end: asyncio.Future[Any] | None = None

    @property
    def closing(self) -> asyncio.Future[Any]:
        """Done once the connection is closed or lost."""
        if self._end is None:
            self._end = super().closing
        return self._end


class BrokerConnection(aio_pika.Connection):
    """aio-pika's plain connection over an aiormq connection that is given (``underlay``), not yet connected.

    ``ended`` is set once it is lost or closed, ``end_reason`` then tells by what (CancelledError: a lost heartbeat).
    """

    def __init__(self, underlay: aiormq.Connection) -> None:
        super().__init__(underlay.url)
        self.underlay = underlay
        self.ended = anyio.Event()
        self.end_reason: BaseException | None = None
        self.close_callbacks.add(_note_end)

    async def connect(self, timeout: TimeoutType = None) -> None:  # noqa: ASYNC109 - overrides
        """Connect, as ``aio_pika.Connection`` does once it has an aiormq connection. The deadline is the caller's.

        Raises what aiormq raises.
        """
        del timeout
        await self.underlay.connect()
        on_end = OneShotCallback(self._on_connection_close)
        self.underlay.closing.add_done_callback(on_end)
        self.transport = UnderlayConnection(connection=self.underlay, close_callback=on_end)
        await self._on_connected()


def _note_end(connection: AbstractConnection | None, reason: BaseException | None) -> None:
    if isinstance(connection, BrokerConnection):
        connection.end_reason = reason
        connection.ended.set()


@frozen
class Dialled:
    """An open connection, the transport below it and the address it goes to."""

    connection: BrokerConnection
    transport: asyncio.Transport
    address: str

    async def close(self) -> None:
        """Close with a handshake if the broker still answers; after that the socket is gone for certain."""
        farewell = aiormq.exceptions.ConnectionClosed(200, "closed on this side")
        await close_quietly(lambda: self.connection.close(farewell), CLOSE_SECONDS)
        self.transport.abort()
        # where the deadline cut it short: an aio-pika connection that was not closed starts a task when it is collected
        await close_quietly(self.connection.close, CLOSE_SECONDS)


class _TapFactory(TransportFactory):
    """Opens the socket as aiormq would, with a frame tap as its reader.

    A host with several IP addresses gets an equal share of the time for each: IPv6 that leads nowhere must not use it
    up. Not by asyncio's happy eyeballs, which in Python 3.11 leaks a socket when it is cancelled.
    """

    def __init__(
        self, host: str, port: int, tap: FrameTap, context: ssl.SSLContext | None, settings: BrokerSettings
    ) -> None:
        self._host = host
        self._port = port
        self._tap = tap
        self._context = context
        self._seconds = settings.connect_timeout_seconds
        self._server_name = settings.server_name or host
        self.transport: asyncio.Transport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. Raises OSError, ssl.SSLError."""
        del url, kwargs  # they would make aiormq's own TLS context
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._tap, loop=loop)
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        *others, last = [str(address[0]) for *_, address in found]
        for ip_address in others:
            try:
                with within(self._seconds / len(found), f"connecting to {ip_address}"):
                    self.transport = await self._open(ip_address, protocol)
                break
            except ssl.SSLError:
                raise
            except (OSError, DeadlineExceededError) as error:
                logger.debug("%s: %s", ip_address, error)
        if self.transport is None:
            self.transport = await self._open(last, protocol)
        return self._tap, asyncio.StreamWriter(self.transport, protocol, self._tap, loop)

    async def _open(self, ip_address: str, protocol: asyncio.StreamReaderProtocol) -> asyncio.Transport:
        tls: dict[str, Any] = {}
        if self._context is not None:
            tls = {"server_hostname": self._server_name, "ssl_shutdown_timeout": _TLS_SHUTDOWN_SECONDS}
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: protocol, ip_address, self._port, ssl=self._context, **tls)
        # aio-pika waits for the socket after each publish and ack: on a blocked broker for ever, and in the one task
        # that also writes heartbeats. Without a limit it never waits; what can be unanswered is bounded by its callers.
        transport.set_write_buffer_limits(high=sys.maxsize)
        return transport


@define
class Dialer:
    """Opens connections with one set of settings; remembers the address that worked and the TLS context.

    ``client_properties`` go to the broker, for its administrator's list of connections.
    """

    _settings: BrokerSettings
    _client_properties: Mapping[str, str]
    _first: int = 0  # where in the addresses to begin: the one that worked last
    _context: ssl.SSLContext | None = field(default=None, init=False)
    _context_stamp: object = field(default=None, init=False)

    async def dial(self, *, consuming: bool, on_blocked: Callable[[bool], None]) -> Dialled:
        """Try the addresses in turn, each for ``connect_timeout_seconds``.

        Raises BrokerRefusedError when one of them refused (it is the news that an operator needs), else
        BrokerUnavailableError that names each address and what was wrong with it.
        """
        context = await self._tls_context() if self._settings.ssl else None
        refusal: BrokerRefusedError | None = None
        failures: list[str] = []
        count = len(self._settings.addresses)
        for index in ((self._first + step) % count for step in range(count)):
            try:
                dialled = await self._dial(self._settings.addresses[index], context, consuming, on_blocked)
            except BrokerRefusedError as error:
                refusal = refusal or error
            except BrokerUnavailableError as error:
                failures.append(str(error))
            except DeadlineExceededError as error:
                failures.append(str(error))
            else:
                self._first = index
                return dialled
        if refusal is not None:
            raise refusal
        raise BrokerUnavailableError("; ".join(failures))

    async def _dial(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext | None,
        consuming: bool,
        on_blocked: Callable[[bool], None],
    ) -> Dialled:
        host, port = address
        settings = self._settings
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        tap = FrameTap(on_blocked=on_blocked)
        factory = _TapFactory(host, port, tap, context, settings)
        doing = Doing(settings, Phase.CONNECT, address=shown)
        connection: BrokerConnection | None = None
        opened = False
        try:
            with translated(doing), within(settings.connect_timeout_seconds, f"connecting to {shown}"):
                connection = BrokerConnection(self._unconnected(host, port, factory, consuming))
                try:
                    await connection.connect()
                except Exception as error:
                    raise translate(error, doing, closed=tap.closed, garbage=tap.garbage) from error
            opened = True
        finally:
            if not opened:
                if factory.transport is not None:
                    factory.transport.abort()
                if connection is not None:
                    await close_quietly(connection.close, CLOSE_SECONDS)
        assert factory.transport is not None  # noqa: S101 - connect() went through the factory
        logger.debug("connected to %s", shown)
        return Dialled(connection, factory.transport, shown)

    def _unconnected(self, host: str, port: int, factory: TransportFactory, consuming: bool) -> aiormq.Connection:
        settings = self._settings
        connection = _Underlay(
            URL.build(
                scheme="amqp",
                host=host,
                port=port,
                user=settings.username,
                password=settings.password.reveal(),
                path="/",
                query={"heartbeat": str(settings.heartbeat_seconds)},
            ),
            transport_factory=factory,
            client_properties={
                **self._client_properties,
                "connection_name": f"ofborg-async {'consume' if consuming else 'publish'}",
            },
        )
        connection.vhost = settings.vhost
        return connection

    async def _tls_context(self) -> ssl.SSLContext:
        """The TLS context; made anew when a file changed, so that renewed certificates are taken up.

        One for both connections: with the system's authorities in it, a context takes about a megabyte.
        Raises BrokerRefusedError naming the file that cannot be used, BrokerUnavailableError.
        """
        files = self._settings.ca_file, self._settings.client_certificate_file, self._settings.client_key_file
        try:
            return await self._renewed_context(files)
        except HostFault as fault:
            raise BrokerUnavailableError(str(fault)) from fault

    async def _renewed_context(self, files: tuple[Path | None, ...]) -> ssl.SSLContext:
        """Raises BrokerRefusedError, HostFault."""
        stamp = await in_thread(partial(_stamp, files))
        if self._context is None or stamp != self._context_stamp:
            try:
                self._context = await in_thread(partial(_make_context, self._settings))
            except (OSError, ValueError) as error:
                names = ", ".join(str(file) for file in files if file is not None)
                raise BrokerRefusedError(
                    who=self._settings.username,
                    vhost=self._settings.vhost,
                    resource="(TLS on this side)",
                    said=f"{names}: {error}",
                    remedy="Check rabbitmq.ca_file, client_certificate_file and client_key_file: PEM, readable.",
                ) from error
            self._context_stamp = stamp
        return self._context


def _stamp(files: tuple[Path | None, ...]) -> object:
    """Something that changes when one of the files does."""
    stamps: list[object] = []
    for file in files:
        try:
            status = file.stat() if file is not None else None
        except OSError as error:
            stamps.append(str(error))
        else:
            stamps.append(status and (status.st_ino, status.st_mtime_ns, status.st_size))
    return stamps


def _make_context(settings: BrokerSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.client_certificate_file is not None:
        context.load_cert_chain(settings.client_certificate_file, settings.client_key_file)
    return context
