"""One Engine.IO connection, guarded: malformed input, half-open handshakes and slow readers end it, and only it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from engineio import packet
from engineio.async_drivers import aiohttp as aiohttp_driver
from engineio.async_socket import AsyncSocket
from engineio.exceptions import EngineIOError, SocketIsClosedError, UnknownPacketError

from gateway.engine.outbound import cut_off
from gateway.engine.websocket import CountedWebSocket
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.access.buckets import TokenBucket
    from gateway.engine.batch import Batch
    from gateway.engine.outbound import OutboundQueue
    from gateway.engine.stream import Receiver, Sink
    from gateway.runtime.timers import Timer, TimerWheel

_log = structlog.get_logger(__name__)

_PING = packet.Packet(packet.PING)

POLL_WATCH = 1.0
"""Seconds between looks whether the client of a poll is still there."""

PACKETS_A_TURN = 32
"""After so many packets of one connection the others have their turn."""

PACKET_TYPES = frozenset("0123456")


class MalformedError(ValueError):
    """A packet that cannot be taken. The message holds nothing of it: it goes to the log."""


def describe(error: BaseException) -> str:
    """Name an error for the log. Others' messages may hold what the client sent, a token among it."""
    return str(error) if isinstance(error, MalformedError) else type(error).__name__


class Driver(aiohttp_driver.WebSocket):  # type: ignore[misc]  # untyped base
    """python-engineio's WebSocket on aiohttp, closed with a code and within a time."""

    close_code = 1000
    said_goodbye = False
    """True once the client closed with 1000: Python's client does, often before its own packets for it left."""

    async def __call__(self, environ: dict[str, Any]) -> web.WebSocketResponse:
        """Serve one WebSocket."""
        self.environ = environ
        self._sock = CountedWebSocket(self.server.max_http_buffer_size)
        await self._sock.prepare(environ["aiohttp.request"])
        await self.handler(self)
        return self._sock

    async def wait(self) -> str | bytes:
        """Receive one frame.

        Raises:
            OSError: the connection is closed, or the frame is no Engine.IO packet; the caller closes it.
        """
        message = await self._sock.receive()
        if message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
            self.said_goodbye = message.type is WSMsgType.CLOSE and message.data == WSCloseCode.OK
            raise OSError("closed")
        frame: str | bytes = message.data
        if isinstance(frame, str) and frame[:1] not in PACKET_TYPES:
            raise OSError("not an Engine.IO packet")
        return frame

    async def close(self) -> None:
        """Send the close frame past whatever waits, and cut the connection where it does not leave."""
        async with cut_off(self.environ["aiohttp.request"].transport):
            await self._sock.close(code=self.close_code, drain=False)


class _Whole:
    """A polling request's body, all of it: python-engineio reads what has arrived so far, and no further."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self, _length: int) -> bytes:
        return self._body


class Socket(AsyncSocket):  # type: ignore[misc]  # untyped base
    """python-engineio's socket, with guards.

    It has no extension point for its socket class, so `Server` makes each new socket one of these by assigning
    its ``__class__``; there is no state here that ``__init__`` would have to set.
    """

    close_code = 1000
    timers: TimerWheel
    handshake_timeout: float
    max_send_buffer: int
    too_slow: Callable[[str], None]
    """Called with `sid` where more waits for the client than may."""
    receivers: list[Receiver]
    """Where the events go of the namespaces that the client has joined; the list stays the same."""
    awaits_bytes = False
    driver: Driver | None = None
    queue: OutboundQueue
    lost = False
    """True once a polling request failed, which python-engineio ends as if the server had meant to."""
    connects: TokenBucket | None = None
    """What counts its attempts to join a namespace; None until the second."""
    attempts = 0
    packets: TokenBucket
    joins = 0
    """How often it has tried to join a namespace that is there."""
    received = 0
    posting: asyncio.Lock
    """Of a connection that began with polling."""
    late: Timer | None = None
    """Runs out where the connection joins no namespace in time."""
    late_upgrade: Timer | None = None
    ping: Timer | None = None
    """The next ping, or the time by which the last one is to be answered."""
    upgrading: bool

    def push(self, pkt: packet.Packet) -> None:
        """Send a packet."""
        self.queue.put_nowait(pkt)

    def say(self, text: bytes) -> None:
        """Send a packet of Socket.IO's."""
        self.push(packet.Packet(packet.MESSAGE, text.decode()))

    @property
    def sink(self) -> Sink:
        """What sends events, by the transport that the connection has then."""
        return self

    def write(self, batch: Batch) -> None:
        """Send events that were encoded once for all who hear of them."""
        for pkt in batch.packets:
            # One that is too slow closes in a moment: nothing more may pile up.
            if self.closed or self.close_code is CloseCode.TOO_SLOW:
                break
            self.queue.put_nowait(pkt)

    # Heartbeats, by the one timer of all connections instead of a task for each

    def schedule_ping(self) -> None:
        """Ping in an interval's time. Called when the connection is made, and by each pong."""
        if self.ping is not None:
            self.ping.cancel()
        self.ping = self.timers.call_later(self.server.ping_interval, self._send_ping)

    def _send_ping(self) -> None:
        if not self.closing and not self.closed:
            self.push(_PING)
            self.ping = self.timers.call_later(self.server.ping_timeout, self._ping_unanswered)

    def _ping_unanswered(self) -> None:
        if not self.closing:
            # With a CLOSE packet: the client may only be half gone.
            self.server.start_background_task(self.close, False, False, self.server.reason.PING_TIMEOUT)

    async def check_ping_timeout(self) -> bool:
        """Whether the connection may be sent to; the timer sees to what is not answered.

        Raises:
            SocketIsClosedError: it is closed.
        """
        if self.closed:
            raise SocketIsClosedError
        return True

    def cancel_timers(self) -> None:
        """Wait for nothing any more."""
        for timer in (self.late, self.late_upgrade, self.ping):
            if timer is not None:
                timer.cancel()

    # What comes

    def await_bytes(self, *, awaited: bool) -> None:
        """Take note of whether attachments of the packet that came last are still to come."""
        self.awaits_bytes = awaited

    async def receive(self, pkt: packet.Packet) -> None:
        """Take one packet. An Engine.IO close is no goodbye: socket.io-client sends it when a poll failed, too.

        Raises:
            UnknownPacketError: the packet has no place here.
        """
        if self.closing or self.closed:
            return  # what came behind a close in one request
        if self.packets.take(asyncio.get_running_loop().time()):
            _log.info("too many packets on one connection; closing")
            self.close_code = CloseCode.RATE_LIMITED
            await self.close(abort=True, reason=self.server.reason.SERVER_DISCONNECT)
            return
        self.received += 1
        if not self.received % PACKETS_A_TURN:
            await asyncio.sleep(0)
        if pkt.packet_type == packet.UPGRADE:  # which the WebSocket's own handler reads, during an upgrade
            raise UnknownPacketError
        if pkt.packet_type == packet.CLOSE:
            await self.close(abort=True, reason=self.server.reason.TRANSPORT_CLOSE)
        else:
            await super().receive(pkt)

    async def handle_get_request(self, environ: dict[str, Any]) -> Any:
        """Serve a poll, or an upgrade. A client that vanishes from its poll is lost then, not at its ping's time-out.

        Raises:
            EngineIOError: the poll is over without packets; python-engineio ends the connection.
        """
        if "HTTP_UPGRADE" in environ:
            if self.server.begin_upgrade is None:
                return await super().handle_get_request(environ)
            return self.server.begin_upgrade(self, environ["aiohttp.request"])
        request: web.Request = environ["aiohttp.request"]
        poll = asyncio.ensure_future(super().handle_get_request(environ))
        try:
            # aiohttp tells a handler that its client has gone only where the whole application asked for it.
            while not (await asyncio.wait({poll}, timeout=POLL_WATCH))[0]:
                if is_gone(request):
                    poll.cancel()
            packets = await poll
            # Answered in time for nobody: these packets are lost, and with them the connection.
            if is_gone(request) and not self.upgrading and not self.upgraded and not self.closed:
                raise EngineIOError("the client left its poll")
            return packets  # noqa: TRY300 - what is raised above is caught, too
        except EngineIOError:
            self.lost = True
            raise
        finally:
            poll.cancel()

    async def handle_post_request(self, environ: dict[str, Any]) -> None:
        """Take a polling client's packets.

        Raises:
            EngineIOError: the body is malformed; python-engineio answers 400 and ends the connection.
        """
        request: web.Request = environ["aiohttp.request"]
        try:
            async with asyncio.timeout(self.handshake_timeout):
                body = await request.clone(client_max_size=self.server.max_http_buffer_size).read()
            environ |= {"wsgi.input": _Whole(body), "CONTENT_LENGTH": str(len(body))}
            async with self.posting:  # one request after the other, as over WebSocket
                await super().handle_post_request(environ)
        except (ValueError, LookupError, EOFError, OSError, EngineIOError, web.HTTPRequestEntityTooLarge) as error:
            _log.info("malformed polling request", error=describe(error))
            # One that has just ended is no longer there, and python-engineio would not know what to answer.
            self.server.sockets.setdefault(self.sid, self)
            self.lost = True
            raise EngineIOError("malformed") from error

    async def _websocket_handler(self, ws: Driver) -> None:
        """Serve a WebSocket, from its first frame or from an upgrade; an upgrade has a time to finish."""
        if self.upgrading:  # a second probe beside the first: one connection, one WebSocket
            await ws.close()
            return
        self.driver = ws
        self.late_upgrade = self.timers.call_later(self.handshake_timeout, self._give_up_upgrade, ws)
        try:
            await super()._websocket_handler(ws)
        except Exception as error:
            _log.info("websocket ended by an error", error=describe(error))
            await self.close(wait=False, abort=True, reason=self.server.reason.TRANSPORT_ERROR)
        finally:
            self.late_upgrade.cancel()
            self.upgrading = False  # python-engineio leaves it set where a probe's WebSocket just closes
            if not self.upgraded:
                self.driver = None

    def _give_up_upgrade(self, ws: Driver) -> None:
        if not self.upgraded:
            _log.info("websocket upgrade not finished")
            self.server.start_background_task(ws.close)

    async def close(self, wait: bool = True, abort: bool = False, reason: str | None = None) -> None:  # noqa: ARG002, FBT001, FBT002 - python-engineio's signature
        """Close after what was sent before, without waiting for the client to have read it."""
        if self.driver is not None and self.driver.said_goodbye and reason == self.server.reason.TRANSPORT_CLOSE:
            reason = self.server.reason.CLIENT_DISCONNECT
        await super().close(wait=False, abort=abort, reason=reason)
        if self.driver is not None:
            self.driver.close_code = self.close_code
        if self.late_upgrade is not None:
            self.late_upgrade.fire()  # a WebSocket that was to take over has nothing to come to
        self.cancel_timers()
        self.server.sockets.pop(self.sid, None)
        self.queue.put_nowait(None)  # lets the writer, or a waiting poll, end

    async def cut(self, reason: str) -> None:
        """Close at once, past what waits to be sent: for a client that does not read."""
        self.queue.drop_all()
        await self.close(abort=True, reason=reason)
        if self.driver is not None:
            await self.driver.close()


def is_gone(request: web.Request) -> bool:
    """Whether the client of a request has left."""
    return request.transport is None or request.transport.is_closing()
