"""The fast path: an Engine.IO connection whose WebSocket is picows's, and whose events skip python-socketio's packets.

An event of a `Namespace` is taken apart here, answered where its answer is at hand, and acknowledged, all within the
call that brought the frame. Every other packet goes the way that it goes on the stock path, in a task of its own;
what comes behind it waits for it, so that each connection's packets stay in order.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from engineio import packet
from engineio.exceptions import SocketIsClosedError, UnknownPacketError

from gateway.engine.fastwebsocket import INVALID_TEXT, OK, FastWebSocket, Listener
from gateway.engine.frames import binary_frame, text_frame
from gateway.engine.outbound import CLOSE_TIMEOUT
from gateway.engine.socket import PACKET_TYPES, MalformedError, Socket, describe
from gateway.engine.takeover import TakenOver, WSMsgType, is_upgrade, take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from picows import WSFrame, WSTransport

    from gateway.engine.batch import Batch
    from gateway.engine.stream import Receiver, Sink

_log = structlog.get_logger(__name__)

_TEXT, _PING = WSMsgType.TEXT, WSMsgType.PING
_CLOSE = packet.Packet(packet.CLOSE)
_PONG_PACKET, _MESSAGE, _PROBE, _UPGRADE = b"3", b"4", b"2probe", b"5"


class ProbeListener(Listener):
    """A WebSocket beside a polling connection, until the client moves over to it."""

    socket: Any

    def __init__(self, socket: Any, max_message: int, transport: asyncio.Transport) -> None:
        super().__init__(socket, max_message)
        self.transport = transport
        self._probed = False

    def on_message(self, data: bytes, *, text: bool) -> None:
        """Take the probe, and then the client's word that it has moved."""
        if self.socket.upgraded:
            super().on_message(data, text=text)
        elif not self._probed and data == _PROBE and text:
            self._probed = True
            self.wire.send(_TEXT, b"3probe")
            self.socket.queue.put_nowait(packet.Packet(packet.NOOP))  # ends the poll that waits
        elif self._probed and data == _UPGRADE and text and not self.socket.closed:
            upgrade(self.socket, self)
        else:
            self.give_up()

    def give_up(self) -> None:
        """Leave the client to its polling."""
        if not self.socket.upgraded and not self.transport.is_closing():
            self.wire.send_close()
            self.wire.disconnect()
            self.socket.timers.call_later(CLOSE_TIMEOUT, self.wire.disconnect, False)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone, and with it the upgrade, where it was not done."""
        if self.socket.upgraded:
            super().on_ws_disconnected(transport)
        else:
            self.socket.outbox.wires.pop(transport, None)
            self.socket.upgrading = False

    def pause_writing(self) -> None:
        """More waits for the client than may."""
        if self.socket.upgraded:
            super().pause_writing()
        else:
            self.wire.disconnect(False)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take one frame of a client that has not moved over: only a message."""
        if frame.fin and frame.msg_type == _TEXT:
            self.on_message(frame.get_payload_as_bytes(), text=True)
        elif frame.msg_type == _PING and not self.socket.packets.take(asyncio.get_running_loop().time()):
            transport.send_pong(frame.get_payload_as_bytes())
        else:
            self.give_up()


def begin_upgrade(socket: Socket, request: web.Request) -> TakenOver:
    """Open a WebSocket beside a polling connection; it has a time to finish the upgrade."""
    if socket.upgrading or not is_upgrade(request):
        raise web.HTTPBadRequest(text="one WebSocket at a time, with the headers of one")
    assert request.transport is not None  # noqa: S101 - the client is there
    listener = ProbeListener(socket, socket.server.max_http_buffer_size, request.transport)
    socket.upgrading = True
    socket.late_upgrade = socket.timers.call_later(socket.handshake_timeout, listener.give_up)
    _take_over(socket, request, listener)
    return TakenOver()


def upgrade(socket: Any, listener: ProbeListener) -> None:
    """Make a polling connection, whose client has moved over, one of this path, and send what waits for it."""
    socket.upgraded, socket.upgrading = True, False
    socket.late_upgrade.cancel()
    waiting = []
    while not socket.queue.empty():
        waiting.append(socket.queue.get_nowait())
    socket.queue.put_nowait(None)  # ends a poll that still waits
    socket.__class__ = FastSocket
    socket.attach(listener, listener.transport)
    for each in waiting:
        if each is not None and each.packet_type != packet.NOOP:
            socket.push(each)


def _take_over(socket: Any, request: web.Request, listener: Listener, opening: bytes = b"") -> None:
    take_over(
        request,
        listener,
        max_message=socket.server.max_http_buffer_size,
        max_buffer=socket.max_send_buffer,
        opening=opening,
    )


class FastSocket(FastWebSocket, Socket):
    """An Engine.IO connection over a WebSocket of picows, from its first frame or since an upgrade."""

    _ending = False

    def __init__(self, server: Any, sid: str) -> None:
        # Not python-engineio's: its queue is for polling.
        self.server, self.sid = server, sid
        self.receivers = []
        self.last_ping = None
        self.upgrading = self.closing = self.closed = False
        self.connected = self.upgraded = True

    @cached_property
    def session(self) -> dict[str, Any]:
        """What an application keeps with a connection: most keep nothing."""
        return {}

    # The connection

    def accept(self, request: web.Request, opening: bytes) -> None:
        """Take a request's connection over, and send Engine.IO's handshake."""
        listener = Listener(self, self.server.max_http_buffer_size)
        assert request.transport is not None  # noqa: S101 - the client is there
        self.attach(listener, request.transport)  # first: frames may have come along
        _take_over(self, request, listener, text_frame(opening))
        self.schedule_ping()

    @property
    def max_message(self) -> int:  # type: ignore[override]  # the server's
        """Bytes that one message may have."""
        size: int = self.server.max_http_buffer_size
        return size

    def attach(self, listener: Listener, transport: asyncio.Transport, receivers: list[Receiver] | None = None) -> None:
        """Speak over a WebSocket from now on."""
        super().attach(listener, transport, self.receivers if receivers is None else receivers)
        self.stream.awaits_bytes = self.awaits_bytes

    # What is sent

    async def send(self, pkt: packet.Packet) -> None:
        """Send a packet: python-engineio's way in.

        Raises:
            SocketIsClosedError: the connection is closed.
        """
        if self.closed:
            raise SocketIsClosedError
        self.push(pkt)

    def push(self, pkt: packet.Packet) -> None:
        """Send a packet."""
        encoded = pkt.encode()
        self.stream.send(text_frame(encoded.encode()) if isinstance(encoded, str) else binary_frame(encoded))

    def say(self, text: bytes) -> None:
        """Send a packet of Socket.IO's."""
        self.stream.send(text_frame(_MESSAGE + text))

    @property
    def sink(self) -> Sink:
        """What sends events: this transport is the last that the connection has."""
        return self.stream

    def write(self, batch: Batch) -> None:
        """Send events that were encoded once for all who hear of them."""
        self.stream.write(batch)

    # What comes

    def await_bytes(self, *, awaited: bool) -> None:
        """Take no events while attachments of one are still to come."""
        self.awaits_bytes = self.stream.awaits_bytes = awaited

    def serve(self, data: bytes, *, text: bool) -> Coroutine[Any, Any, None] | None:
        """Serve one message; what it returns, where it does, is to be awaited before the next."""
        if text and data == _PONG_PACKET and not self.packets.take(asyncio.get_running_loop().time()):
            self.schedule_ping()
            return None
        return self._serve_packet(data, text=text)

    async def _serve_packet(self, data: bytes, *, text: bool) -> None:
        """Serve a packet as the stock path does."""
        try:
            if text and data.startswith(_MESSAGE) and not self.packets.take(asyncio.get_running_loop().time()):
                await self.server.handlers["message"](self.sid, data[1:].decode())  # what `receive` would come to
                return
            if text and data[:1].decode(errors="replace") not in PACKET_TYPES:
                raise MalformedError("not an Engine.IO packet")
            await self.receive(packet.Packet(encoded_packet=data.decode() if text else data))
        except UnicodeDecodeError:
            self.hang_up(INVALID_TEXT)
        except UnknownPacketError:
            pass  # of no meaning here; the connection stays, as python-engineio lets it
        except SocketIsClosedError:
            pass
        except Exception as error:
            _log.info("websocket ended by an error", error=describe(error))
            await self.close(wait=False, abort=True, reason=self.server.reason.TRANSPORT_ERROR)

    # The end

    async def close(self, wait: bool = True, abort: bool = False, reason: str | None = None) -> None:  # noqa: ARG002, FBT001, FBT002 - python-engineio's signature
        """Close after what was sent before, without waiting for the client to have read it."""
        if not self.closed and not self.closing:
            self.closing = True
            # Not by python-engineio, which looks each time what kind of handler it is.
            try:
                await self.server.handlers["disconnect"](self.sid, reason or self.server.reason.SERVER_DISCONNECT)
            except Exception:
                _log.exception("the end of a connection failed")
            if not abort:
                self.push(_CLOSE)
            self.closed = True
        self.cancel_timers()
        self.hang_up(self.close_code)
        self.server.sockets.pop(self.sid, None)

    async def cut(self, reason: str) -> None:
        """Close at once: for a client that does not read."""
        await self.close(abort=True, reason=reason)

    def start(self, target: Callable[..., Coroutine[Any, Any, object]], *arguments: Any) -> None:
        """Run something until it is done; see the base."""
        self.server.start_background_task(target, *arguments)

    def on_flood(self) -> None:
        """Too much came; see the base."""
        self._end(self.server.reason.SERVER_DISCONNECT)

    def on_too_slow(self) -> None:
        """More waits than may; see the base."""
        self.too_slow(self.sid)

    def on_closed(self, code: int | None) -> None:
        """The client has gone; see the base."""
        # Python's client closes with 1000, often before its own packets for it left.
        self._end(self.server.reason.CLIENT_DISCONNECT if code == OK else self.server.reason.TRANSPORT_CLOSE)

    def _end(self, reason: str) -> None:
        if not self.closing and not self._ending:
            self._ending = True
            self.server.start_background_task(self.close, False, True, reason)
