"""The Socket.IO server: python-socketio as it comes, with what it leaves open closed.

What is relied on in it, beyond what it documents, is listed in this package's docstring.
"""

from __future__ import annotations

import asyncio
import math
import os
from binascii import b2a_base64
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import engineio
import socketio
import structlog
from aiohttp import web
from engineio import packet as eio_packet
from engineio.payload import Payload
from socketio import packet
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway import wire
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.access.origins import is_ascii
from gateway.engine import json
from gateway.engine.environ import REQUEST, Environ
from gateway.engine.namespace import Namespace
from gateway.engine.outbound import ITEM_OVERHEAD, OutboundQueue, text_size
from gateway.engine.socket import Driver, MalformedError, Socket, describe, is_gone
from gateway.engine.stream import Outbox
from gateway.engine.websocket import packet_rate
from gateway.errors import CloseCode, ConfigurationError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from gateway.access.admission import Admission
    from gateway.access.origins import Origins
    from gateway.connections.counts import Counts
    from gateway.engine.manager import BusManager, Manager
    from gateway.runtime.timers import TimerWheel
    from gateway.settings import Settings

try:
    from gateway.engine.fast import FastSocket, begin_upgrade
    from gateway.engine.front import Kept, Runner
    from gateway.engine.takeover import Handshake, TakenOver, is_upgrade
except ImportError:  # picows has no wheel for this platform: connections stay with aiohttp
    FAST = False
else:
    FAST = True

_log = structlog.get_logger(__name__)

# A page that emits some dozens of events in one turn sends them in one polling request; python-engineio's 16 would
# end its connection. What bounds a request is its bytes.
Payload.max_decode_packets = 1024

CONNECTS = Rate(10, 10.0)
"""How often one Engine.IO connection may try to join a namespace: each try is a token to verify, and a line."""

_ATTACHMENTS = range(1, 11)
"""How many a packet may announce: none of our requests takes any, and Node's parser takes ten."""

MAX_HEADERS = 16_384
"""Bytes. A session keeps the headers of its handshake for as long as it lives."""


_FOR_URLS = bytes.maketrans(b"+/", b"-_")
"""base64's other alphabet: RFC 4648, section 5."""


class _Log:
    """python-socketio's logger: what a client does wrong is for debugging, what fails inside is an error."""

    level = 0

    def debug(self, message: str, *args: object) -> None:
        """One or more for each packet, or message of another node; nobody reads them."""

    info = debug

    def warning(self, message: str, *args: object) -> None:
        """A client's mistake."""
        _log.debug("socket.io", detail=message % args if args else message)

    error = warning

    def exception(self, message: str, *args: object) -> None:
        """A failure inside."""
        _log.exception("socket.io", detail=message % args if args else message)


class Engine(engineio.AsyncServer):  # type: ignore[misc]  # untyped base
    """python-engineio's server, kept from requests that it fails on."""

    begin_upgrade: Callable[[Socket, web.Request], web.StreamResponse] | None = None
    """How a polling connection becomes a WebSocket; None leaves it to python-engineio."""
    allows: Callable[[str | None, web.BaseRequest], bool]
    """Whether a page of an origin may connect."""
    begin: Callable[[str, Environ], None]
    """Begins a session, as the handler ``connect`` does."""
    admission: Admission
    counts: Counts

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tasks: set[asyncio.Task[Any]] = set()

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """Start a task, and keep it until it has ended: neither the loop nor python-engineio does."""
        task = asyncio.get_running_loop().create_task(target(*arguments, **options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def generate_id(self) -> str:
        """Make the name of a session, or of a client in a namespace: as long as python-engineio's, in one step."""
        return b2a_base64(os.urandom(15), newline=False).translate(_FOR_URLS).decode()

    async def _handle_connect(self, environ: dict[str, Any], transport: str, jsonp_index: int | None = None) -> Any:
        refused = await self._turn(environ[REQUEST])
        return await super()._handle_connect(environ, transport, jsonp_index) if refused is None else refused

    async def _turn(self, request: web.Request) -> web.Response | None:
        """Wait for the turn of a session that is in order so far, before anything is kept of it.

        Returns:
            What to answer where it gets none; None where it does.
        """
        try:
            if (turn := self.admission.enter(lambda: is_gone(request))) is not None:
                await turn
                self.admission.check_open()
        except RefusedError as error:
            return self._refuse(error, request)
        return None

    def _refuse(self, error: RefusedError, request: web.Request) -> web.Response:
        """Refuse a session by HTTP: a failed transport, after which socket.io-client tries again by itself."""
        self.counts.refuse("socketio", error.code)
        headers = [*self._cors_headers(Environ(request)), ("Retry-After", str(math.ceil(error.retry_after or 0)))]
        return web.Response(
            body=wire.encode(error.told()),
            status=error.http_status,
            headers=headers,
            content_type="application/json",
        )

    def opening(self, sid: str, transport: str) -> dict[str, Any]:
        """Engine.IO's handshake."""
        return {
            "sid": sid,
            "upgrades": self._upgrades(sid, transport),
            "pingTimeout": round(self.ping_timeout * 1000),
            # python-engineio says whole seconds, and 0 for less than one.
            "pingInterval": round(self.ping_interval * 1000),
            "maxPayload": self.max_http_buffer_size,
        }

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Serve one request. A POST to a session that has just ended is answered as one to a session that never was."""
        if (refusal := _refusal(request)) is not None:
            raise web.HTTPBadRequest(text=refusal)
        _require_client(request)
        if self.begin_upgrade is not None and self._opens_websocket(request):
            return await self._open(request)
        session = self.sockets.get(request.query.get("sid"))
        if request.method == "POST" and session is not None and session.closed:
            del self.sockets[session.sid]
        response: web.StreamResponse = await super().handle_request(request)
        return response

    def _opens_websocket(self, request: web.Request) -> bool:
        """Whether a request opens a connection by a WebSocket, and nothing is wrong with it.

        For whatever is, python-engineio has the words.
        """
        query, origin = request.query, request.headers.get("Origin")
        return (
            query.get("transport") == "websocket"
            and query.get("EIO") == "4"
            and not query.get("sid")
            and is_upgrade(request)
            and (origin is None or self.allows(origin, request))
        )

    async def _open(self, request: web.Request) -> web.StreamResponse:
        if (refused := await self._turn(request)) is not None:
            return refused
        _require_client(request)  # nothing is waited for from here on
        self._accept(request)
        return TakenOver()

    def open_at_once(self, request: Handshake) -> bool:
        """Open a connection by a WebSocket, where nothing is wrong with its request, and its turn is now.

        Returns:
            Whether it is open; where not, it is as if nobody had asked.
        """
        opens = "j" not in request.query and self._opens_websocket(request) and self.admission.enter_at_once()
        if opens:
            self._accept(request)
        return opens

    def _accept(self, request: web.Request) -> None:
        sid = self.generate_id()
        socket = self.sockets[sid] = FastSocket(self, sid)
        self.begin(sid, Environ(request))
        socket.accept(request, b"0" + wire.encode(self.opening(sid, "websocket")))


def _require_client(request: web.Request) -> None:
    """Check that a request's client is there; it may have left while the request waited.

    Raises:
        aiohttp.web.HTTPBadRequest: the client has left, and reads nothing of it.
    """
    if request.transport is None or request.transport.is_closing():
        raise web.HTTPBadRequest(text="the client has left")


def _refusal(request: web.Request) -> str | None:
    """Why a request is not even looked at; None where it is."""
    headers = request.headers
    if "j" in request.query:
        return "JSONP is not served: it hands a session to any page that loads it as a script"
    if not is_ascii(request):
        return "Origin and Sec-WebSocket-Key are ASCII"
    if "Upgrade" in headers and "upgrade" not in headers.get("Connection", "").lower():
        return "an upgrade needs Connection: Upgrade; a proxy in front may have dropped it"
    if sum(map(len, headers.keys())) + sum(map(len, headers.values())) > MAX_HEADERS:
        return f"the headers may have {MAX_HEADERS} bytes"
    return None


class Server(socketio.AsyncServer):  # type: ignore[misc]  # untyped base
    """A Socket.IO server for namespaces of the kind `Namespace`.

    Args:
        settings: sizes and times.
        origins: which pages may connect.
        manager: what keeps its clients, of one node or of many.
        timers: what pings them, and ends those that take too long.
        admission: what lets their sessions in.
        counts: where those that are refused, or too slow, are counted.

    Raises:
        ConfigurationError: the engine that is asked for cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        origins: Origins,
        manager: Manager | BusManager,
        timers: TimerWheel,
        admission: Admission,
        counts: Counts,
    ) -> None:
        # Of this origin only the namespace of the Admin UI takes anybody without a token, and no cookie is a token.
        admin = settings.admin_ui_origin if settings.admin_ui_password is not None else None

        def allows(origin: str | None, request: web.BaseRequest) -> bool:
            return (admin is not None and origin == admin) or origins.allows(origin, request)

        def allowed(origin: str | None, environ: dict[str, Any]) -> bool:
            return allows(origin, environ[REQUEST])

        log = _Log()
        super().__init__(
            client_manager=manager,
            logger=log,
            engineio_logger=log,
            json=json,
            # In order, one at a time for each connection; a flood waits in its own socket.
            async_handlers=False,
            async_mode="aiohttp",
            cors_allowed_origins=allowed,
            cors_credentials="*" not in settings.cors_allowed_origins,
            max_http_buffer_size=settings.max_payload,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            monitor_clients=False,  # the timers do
        )
        self.eio.allows, self.eio.begin = allows, self._begin
        self.opened = 0
        """How many Engine.IO connections there ever were."""
        self.namespaces: list[str] = []  # none but those registered
        self.eio._async = {**self.eio._async, "websocket": Driver}  # noqa: SLF001
        self.eio.admission, self.eio.counts = admission, counts
        self._admission, self._counts = admission, counts
        self._settings = settings
        self._timers = timers
        self._outbox: Outbox | None = None
        if settings.gateway_engine == "fast" and not FAST and "gateway_engine" in settings.model_fields_set:
            raise ConfigurationError("GATEWAY_ENGINE is fast, and picows is not installed; install it, or take stock")
        if settings.gateway_engine == "fast" and FAST:
            self.eio.begin_upgrade = begin_upgrade
            self._outbox = Outbox()
        self._packets = packet_rate(settings)
        self._when_too_slow = self.too_slow  # one for all connections

    def runner(self, app: web.Application, **options: Any) -> web.AppRunner:
        """What runs an application that is nothing but a gateway: with a front, where the engine is the fast one.

        Args:
            app: the application.
            options: aiohttp's.
        """
        options = {"keepalive_timeout": self._settings.keepalive_timeout, **options}
        if self._outbox is None:
            return web.AppRunner(app, **options)
        return Runner(app, self.eio.open_at_once, **options)

    async def end(self) -> None:
        """Cut off whoever was told to leave, and has not."""
        if self._outbox is not None:
            self._outbox.cut_off()
            await asyncio.sleep(0)  # in which the loop closes them

    # For this package

    def is_open(self, eio_sid: str | None) -> bool:
        """Whether an Engine.IO connection is there and not closing."""
        socket = self.eio.sockets.get(eio_sid)
        return socket is not None and not socket.closing and not socket.closed

    async def forget(self, eio_sid: str, namespace: str) -> None:
        """Run the disconnection of a client whose connection is gone."""
        await self._handle_disconnect(eio_sid, namespace, self.reason.TRANSPORT_CLOSE)

    def close_socket(self, eio_sid: str, code: CloseCode) -> None:
        """Close an Engine.IO connection with a WebSocket close code, without waiting."""
        socket = self.eio.sockets.get(eio_sid)
        if socket is None or socket.closed:
            return
        socket.close_code = code
        if code is CloseCode.TOO_SLOW:
            self.eio.start_background_task(socket.cut, self.reason.TRANSPORT_ERROR)
        else:
            abort = code is not CloseCode.GOING_AWAY
            self.eio.start_background_task(socket.close, abort=abort, reason=self.reason.SERVER_DISCONNECT)

    def too_slow(self, eio_sid: str) -> None:
        """Close a connection for which more waits than may."""
        if self.is_open(eio_sid):
            _log.info("client too slow; closing")
            self._counts.too_slow["socketio"] += 1
        self.close_socket(eio_sid, CloseCode.TOO_SLOW)

    def count_clients(self) -> tuple[int, int]:
        """How many Engine.IO connections there are, and how many of these are by polling."""
        sockets = self.eio.sockets.values()
        return len(sockets), sum(not socket.upgraded for socket in sockets)

    def count_by_namespace(self) -> dict[str, int]:
        """How many clients are in each namespace."""
        rooms = self.manager.rooms
        return {name: len(rooms.get(name, {}).get(None, ())) for name in sorted(self.namespace_handlers)}

    def clients(self) -> Iterator[tuple[Namespace, str, str]]:
        """Each client, as its namespace, its name there and its Engine.IO connection; the oldest of each come first."""
        for name, handler in self.namespace_handlers.items():
            if isinstance(handler, Namespace):
                for sid, eio_sid in list(self.manager.rooms.get(name, {}).get(None, {}).items()):
                    if self.is_open(eio_sid):
                        yield handler, sid, eio_sid

    def close_nobodys(self) -> None:
        """Close the sessions that have joined no namespace yet, so that their clients go elsewhere.

        Refused by a packet when they do, socket.io-client would not try again.
        """
        for eio_sid in list(self.eio.sockets):
            if self._is_nobodys(eio_sid):
                self.close_socket(eio_sid, CloseCode.GOING_AWAY)

    # In python-socketio's place

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        self._begin(eio_sid, environ)

    def _begin(self, eio_sid: str, environ: MutableMapping[str, Any]) -> None:
        self.opened += 1
        if not self.manager_initialized:  # type: ignore[has-type]  # untyped base
            self.manager_initialized = True
            self.manager.initialize()
        self.environ[eio_sid] = environ
        socket, now = self.eio.sockets[eio_sid], asyncio.get_running_loop().time()
        if not isinstance(socket, Socket):
            socket.__class__ = Socket
            socket.queue = self._outbound_queue(eio_sid, socket.queue)
            socket.receivers = []
            socket.posting = asyncio.Lock()
        socket.timers, socket.outbox = self._timers, self._outbox
        socket.handshake_timeout = self._settings.handshake_timeout
        socket.too_slow = self._when_too_slow
        socket.max_send_buffer = self._settings.max_send_buffer
        socket.packets = TokenBucket(self._packets, now)
        self._expect_namespace(eio_sid)

    async def _send_eio_packet(self, eio_sid: str, eio_pkt: eio_packet.Packet) -> None:
        if eio_pkt.binary:  # which python-socketio shares between recipients, and it keeps its first encoding
            eio_pkt = eio_packet.Packet(eio_pkt.packet_type, eio_pkt.data)
        await super()._send_eio_packet(eio_sid, eio_pkt)

    async def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        socket = self.eio.sockets[eio_sid]
        if _is_over_connects(socket, asyncio.get_running_loop().time()):
            _log.info("too many attempts to connect on one connection; closing")
            self.close_socket(eio_sid, CloseCode.RATE_LIMITED)
        elif (namespace or "/") in self.namespace_handlers:
            try:
                socket.joins += 1
                if socket.joins > len(self.namespace_handlers):  # beyond what its handshake has waited for
                    self._admission.enter_now()
                handler = self.namespace_handlers[namespace or "/"]
                if isinstance(handler, Namespace):
                    await self._let_in(handler, eio_sid, data)
                else:
                    await super()._handle_connect(eio_sid, namespace, data)
            except RefusedError as error:
                self._counts.refuse("socketio", error.code)
                told = {"message": str(error), "data": error.told()}
                await self._send_packet(eio_sid, packet.Packet(packet.CONNECT_ERROR, data=told, namespace=namespace))
            except BaseException:
                # python-socketio has registered it by now, and would keep it.
                if (sid := self.manager.sid_from_eio_sid(eio_sid, namespace or "/")) is not None:
                    self.manager.basic_disconnect(sid, namespace or "/")
                raise
        else:
            refusal = packet.Packet(packet.CONNECT_ERROR, data={"message": "Invalid namespace"}, namespace=namespace)
            await self._send_packet(eio_sid, refusal)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            # python-socketio collects as many attachments as are announced, of any size, and text among them.
            if eio_sid in self._binary_packet and not isinstance(data, bytes):
                raise MalformedError("text where an attachment was due")
            if eio_sid not in self._binary_packet and isinstance(data, str) and await self._come_or_go(eio_sid, data):
                return
            await super()._handle_eio_message(eio_sid, data)
            awaiting = self._binary_packet.get(eio_sid)
            if (socket := self.eio.sockets.get(eio_sid)) is not None:
                socket.await_bytes(awaited=awaiting is not None)
            if awaiting is not None and awaiting.attachment_count not in _ATTACHMENTS:
                raise MalformedError("no or too many attachments")
        except Exception as error:
            _log.info("malformed packet", error=describe(error))
            self._binary_packet.pop(eio_sid, None)
            if self.is_open(eio_sid):
                await self.eio.sockets[eio_sid].close(reason=self.reason.TRANSPORT_ERROR)

    async def _handle_event(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:  # noqa: A002 - python-socketio's name
        namespace = namespace or "/"
        handler = self.namespace_handlers.get(namespace)
        if not isinstance(handler, Namespace):
            await super()._handle_event(eio_sid, namespace, id, data)
            return
        event, *args = data
        if not isinstance(event, str) or event in wire.SOCKET_IO_EVENTS:
            raise MalformedError("no name for an event")
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if not self.manager.is_connected(sid, namespace):
            return
        answer = handler.on_request(sid, event, args, acknowledged=id is not None)
        if isinstance(answer, Coroutine):
            answer = await answer
        if id is not None:
            await self._send_packet(eio_sid, packet.Packet(packet.ACK, data=[answer], namespace=namespace, id=id))

    async def _handle_disconnect(self, eio_sid: str, namespace: str | None, reason: str | None = None) -> None:
        handler = self.namespace_handlers.get(namespace or "/")
        if isinstance(handler, Namespace):
            await self._let_go(handler, eio_sid, reason or self.reason.CLIENT_DISCONNECT)
        else:
            await super()._handle_disconnect(eio_sid, namespace, reason)
        if self.is_open(eio_sid):
            self._expect_namespace(eio_sid)

    # One step each

    async def _come_or_go(self, eio_sid: str, text: str) -> bool:
        """Take a packet that every client sends once, without the object that python-socketio makes of each.

        Returns:
            Whether it was one, as clients write them; what is written otherwise python-socketio takes apart.
        """
        head, comma, data = text.partition(",")
        if not comma or not isinstance(self.namespace_handlers.get(head[1:]), Namespace):
            return False
        if head[0] == "0" and data.startswith("{"):
            await self._handle_connect(eio_sid, head[1:], json.loads(data))
            return True
        if head[0] == "1" and not data:
            await self._handle_disconnect(eio_sid, head[1:])
            return True
        return False

    async def _let_go(self, handler: Namespace, eio_sid: str, reason: str) -> None:
        """Do what python-socketio does; see `_let_in`."""
        namespace = handler.namespace
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if self.manager.is_connected(sid, namespace):
            self.manager.pre_disconnect(sid, namespace)
            self._binary_packet.pop(eio_sid, None)
            await handler.trigger_event("disconnect", sid, reason)
            await self.manager.disconnect(sid, namespace, ignore_queue=True)

    async def _let_in(self, handler: Namespace, eio_sid: str, auth: object) -> None:
        """Do what python-socketio does, which finds out each time how its handlers want to be called."""
        namespace = handler.namespace
        sid = await self.manager.pre_connect(eio_sid, namespace)
        if sid is None:
            already = packet.Packet(packet.CONNECT_ERROR, "Unable to connect", namespace)
            await self._send_packet(eio_sid, already)
            return
        try:
            await handler.trigger_event("connect", sid, self.environ[eio_sid], auth or None)
        except Refusal as refusal:
            await self._send_packet(eio_sid, packet.Packet(packet.CONNECT_ERROR, refusal.error_args, namespace))
            await self.manager.disconnect(sid, namespace, ignore_queue=True)
        else:
            pid = handler.begin_session(sid)
            if self.is_open(eio_sid):
                told = {"sid": sid} if pid is None else {"sid": sid, "pid": pid}
                self.eio.sockets[eio_sid].say(handler.codec.connect + wire.encode(told))
                self._let_go_of_handshake(eio_sid)
            await self.manager.connect(sid, namespace)

    def _let_go_of_handshake(self, eio_sid: str) -> None:
        """Keep no more than must be of how a connection began, which has come to what it began for."""
        socket = self.eio.sockets[eio_sid]
        if socket.late is not None:
            socket.late.cancel()
            socket.late = None
        environ = self.environ[eio_sid]
        if FAST and isinstance(environ, Environ) and isinstance(environ.came, Handshake):
            environ.keep(Kept(environ.came))

    def _outbound_queue(self, eio_sid: str, opening: asyncio.Queue[Any]) -> OutboundQueue:
        queue = OutboundQueue(_packet_size, self._settings.max_send_buffer, lambda: self.too_slow(eio_sid))
        while not opening.empty():
            opened = opening.get_nowait()
            opened.data = self.eio.opening(eio_sid, "polling" if opened.data["upgrades"] else "websocket")
            queue.put_nowait(opened)
        return queue

    def _expect_namespace(self, eio_sid: str) -> None:
        """Give a connection that is nobody's a time to become somebody's."""
        socket = self.eio.sockets[eio_sid]
        if socket.late is not None:
            socket.late.cancel()
        socket.late = self._timers.call_later(self._settings.handshake_timeout, self._close_if_nobodys, eio_sid)

    def _close_if_nobodys(self, eio_sid: str) -> None:
        if self._is_nobodys(eio_sid):
            _log.debug("closing a connection that joined no namespace")
            self.close_socket(eio_sid, CloseCode.TOKEN_REFUSED)

    def _is_nobodys(self, eio_sid: str) -> bool:
        somebodys = any(self.manager.sid_from_eio_sid(eio_sid, name) for name in self.namespace_handlers)
        return not somebodys and self.is_open(eio_sid)


def _is_over_connects(socket: Socket, now: float) -> bool:
    """Count an attempt to join a namespace. Most connections make one, and have no bucket for it."""
    socket.attempts += 1
    if socket.attempts == 1:
        return False
    if socket.connects is None:
        socket.connects = TokenBucket(CONNECTS, now)
        socket.connects.take(now)
    return bool(socket.connects.take(now))


def _packet_size(item: eio_packet.Packet | None) -> int:
    if item is None:
        return 0
    # A packet keeps its first encoding, and bytes have another one over polling.
    return ITEM_OVERHEAD + (len(item.data) if item.binary else text_size(item.encode()))
