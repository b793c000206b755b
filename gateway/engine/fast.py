"""The fast path: an Engine.IO connection whose WebSocket is picows's, and whose events skip python-socketio's packets.

An event of a `Namespace` is taken apart here, answered where its answer is at hand, and acknowledged, all within the
call that brought the frame. Every other packet goes the way that it goes on the stock path, in a task of its own;
what comes behind it waits for it, so that each connection's packets stay in order.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import structlog
from aiohttp import web
from engineio import packet
from engineio.async_socket import AsyncSocket
from engineio.exceptions import SocketIsClosedError, UnknownPacketError

from gateway.engine.frames import binary_frame, text_frame
from gateway.engine.outbound import CLOSE_TIMEOUT, ITEM_OVERHEAD
from gateway.engine.socket import PACKET_TYPES, MalformedError, Socket, describe
from gateway.engine.stream import Outbox, Stream
from gateway.engine.takeover import TakenOver, WSListener, WSMsgType, is_upgrade, take_over
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from picows import WSFrame, WSTransport

    from gateway.engine.batch import Batch

_log = structlog.get_logger(__name__)

_CONTINUATION, _TEXT, _BINARY = WSMsgType.CONTINUATION, WSMsgType.TEXT, WSMsgType.BINARY
_CLOSE, _PING, _PONG = WSMsgType.CLOSE, WSMsgType.PING, WSMsgType.PONG
_PONG_PACKET, _MESSAGE, _PROBE, _UPGRADE = b"3", b"4", b"2probe", b"5"
_NO_CODE, _OK, _PROTOCOL_ERROR, _INVALID_TEXT, _TOO_BIG = 0, 1000, 1002, 1007, 1009
"""WebSocket's close codes: RFC 6455, section 7.4."""


class Listener(WSListener):
    """What picows calls back: puts messages together from frames, and answers WebSocket's own.

    What it is part of takes the frames first (`Stream.on_frame`), and leaves it what is no event.
    """

    wire: WSTransport

    def __init__(self, socket: FastSocket, max_message: int) -> None:
        self.socket = socket
        self._max_message = max_message
        self._begun: bytearray | None = None
        """What has come of a message in more than one frame; None where there is none."""
        self._begun_text = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The client has been told that it is a WebSocket now, before its first frame is taken."""
        self.wire = transport

    def on_message(self, data: bytes, *, text: bool) -> None:
        """Take one message."""
        self.socket.take(data, text=text)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 - picows's name
        """The connection is gone."""
        self.socket.on_gone()

    def pause_writing(self) -> None:
        """More waits for the client than may."""
        self.socket.on_overflow()

    def resume_writing(self) -> None:
        """The client reads after all; it is being closed all the same."""

    def on_other(self, transport: WSTransport, data: bytes, frame: WSFrame, *, reserved: bool) -> None:
        """Take a frame that is no event."""
        kind = frame.msg_type
        if self.socket.stream.mute and kind != _CLOSE:
            self.socket.disregard()
        elif reserved:
            self.socket.hang_up(_PROTOCOL_ERROR)  # they belong to extensions, and none was agreed on
        elif kind == _CLOSE:
            self.socket.on_close_frame(cast("int", frame.get_close_code()))
        elif frame.fin and self._begun is None and kind in (_TEXT, _BINARY):
            self.on_message(data, text=kind == _TEXT)
        elif self.socket.allows_frame():
            if kind == _PING:
                transport.send_pong(data)
            elif kind != _PONG:
                self._put_together(data, kind, last=frame.fin)

    def _put_together(self, data: bytes, kind: WSMsgType, *, last: bool) -> None:
        if (kind == _CONTINUATION) == (self._begun is None):
            self.socket.hang_up(_PROTOCOL_ERROR)  # a fragment of nothing, or a message within another
            return
        if self._begun is None:
            self._begun, self._begun_text = bytearray(), kind == _TEXT
            self.socket.stream.in_parts = True
        self._begun += data
        if len(self._begun) > self._max_message:
            self.socket.hang_up(_TOO_BIG)
        elif last:
            whole, self._begun = bytes(self._begun), None
            self.socket.stream.in_parts = False
            self.on_message(whole, text=self._begun_text)


class ProbeListener(Listener):
    """A WebSocket beside a polling connection, until the client moves over to it."""

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
    return _take_over(socket, request, listener)


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


def _take_over(socket: Any, request: web.Request, listener: Listener) -> TakenOver:
    return take_over(
        request, listener, max_message=socket.server.max_http_buffer_size, max_buffer=socket.max_send_buffer
    )


class FastSocket(Socket):
    """An Engine.IO connection over a WebSocket of picows, from its first frame or since an upgrade."""

    outbox: Outbox
    stream: Stream
    _listener: Listener
    _transport: asyncio.Transport
    _held: deque[tuple[bytes, bool]] | None = None
    """What came while something before it was awaited; None where nothing is."""
    _held_bytes = 0
    _hung_up = False

    def __init__(self, server: Any, sid: str) -> None:
        # Not python-engineio's: its queue is for polling.
        self.server, self.sid = server, sid
        self.session: dict[str, Any] = {}
        self.receivers = []
        self.last_ping = None
        self.upgrading = self.closing = self.closed = False
        self.connected = self.upgraded = True

    # The connection

    def accept(self, request: web.Request, opening: packet.Packet) -> TakenOver:
        """Take a request's connection over, and send Engine.IO's handshake."""
        listener = Listener(self, self.server.max_http_buffer_size)
        assert request.transport is not None  # noqa: S101 - the client is there
        self.attach(listener, request.transport)  # first: frames may have come along
        taken = _take_over(self, request, listener)
        self.push(opening)
        self.schedule_ping()
        return taken

    def attach(self, listener: Listener, transport: asyncio.Transport) -> None:
        """Speak over a WebSocket from now on."""
        self._listener, self._transport = listener, transport
        is_file = os.name == "posix" and transport.get_extra_info("sslcontext") is None
        self.stream = Stream(
            self,
            self.outbox,
            transport,
            file=transport.get_extra_info("socket").fileno() if is_file else -1,
            receivers=self.receivers,
            max_buffer=self.max_send_buffer,
        )
        self.stream.awaits_bytes = self.awaits_bytes
        # Of the listener itself, so that picows calls it without a step between.
        listener.on_ws_frame = self.stream.on_frame  # type: ignore[method-assign]

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

    def writer(self) -> Callable[[Batch], None]:
        """What sends events: this transport is the last that the connection has."""
        return self.stream.write

    def write(self, batch: Batch) -> None:
        """Send events that were encoded once for all who hear of them."""
        self.stream.write(batch)

    # What comes

    def await_bytes(self, *, awaited: bool) -> None:
        """Take no events while attachments of one are still to come."""
        self.awaits_bytes = self.stream.awaits_bytes = awaited

    def is_over_rate(self, events: int) -> bool:
        """Count events; see `Stream`."""
        return bool(self.packets.take(asyncio.get_running_loop().time(), events))

    def on_other(self, transport: WSTransport, data: bytes, frame: WSFrame, *, reserved: bool) -> None:
        """Take a frame that is no event; see `Stream`."""
        self._listener.on_other(transport, data, frame, reserved=reserved)

    def allows_frame(self) -> bool:
        """Count what is no packet as one: a control frame, or a part of a message. One too many ends the connection.

        Returns:
            Whether it may be taken.
        """
        if not self.packets.take(asyncio.get_running_loop().time()):
            return True
        _log.info("too many frames on one connection; closing")
        self.hang_up(CloseCode.RATE_LIMITED)
        self._end(self.server.reason.SERVER_DISCONNECT)
        return False

    def disregard(self) -> None:
        """Take no notice of what comes behind this side's close frame. Who sends too much of it is read no more."""
        if self.packets.take(asyncio.get_running_loop().time()):
            self._transport.pause_reading()

    def take(self, data: bytes, *, text: bool) -> None:
        """Take one message, now or after those that are still being served."""
        if self.closing or self.stream.mute:
            return
        if self._held is None:
            waiting = self._serve(data, text=text)
            if waiting is not None:
                self.serve_later(waiting)
        else:
            self._held.append((data, text))
            self._held_bytes += ITEM_OVERHEAD + len(data)
            if self._held_bytes > self.server.max_http_buffer_size:
                self._transport.pause_reading()

    def serve_later(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Serve something that takes its time; what comes meanwhile is held."""
        self._held = deque()
        self.stream.busy = True
        self.server.start_background_task(self._serve_in_turn, waiting)

    async def _serve_in_turn(self, waiting: Coroutine[Any, Any, object] | None) -> None:
        held = self._held
        assert held is not None  # noqa: S101 - by the one caller
        while waiting is not None:
            await waiting
            waiting = None
            while held and waiting is None and not self.closing:
                data, text = held.popleft()
                self._held_bytes -= ITEM_OVERHEAD + len(data)
                waiting = self._serve(data, text=text)
        self._held, self._held_bytes = None, 0
        self.stream.busy = False
        if not self.closing and not self._transport.is_closing():
            self._transport.resume_reading()

    def _serve(self, data: bytes, *, text: bool) -> Coroutine[Any, Any, None] | None:
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
            self.hang_up(_INVALID_TEXT)
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
        await AsyncSocket.close(self, wait=False, abort=abort, reason=reason)
        self.cancel_timers()
        self.hang_up(self.close_code)
        self.server.sockets.pop(self.sid, None)

    async def cut(self, reason: str) -> None:
        """Close at once: for a client that does not read."""
        await self.close(abort=True, reason=reason)

    def hang_up(self, code: int) -> None:
        """Send WebSocket's close frame; the client has a time to answer it.

        A connection that is closing already, such as one that the client has closed, has the same time to be gone: it
        waits for what was sent before to be read.
        """
        if not self._hung_up:
            self.stream.flush()
            self._hung_up = self.stream.mute = True
            if not self._transport.is_closing():
                self._listener.wire.send_close(code)  # type: ignore[arg-type]  # takes any number
            self.timers.call_later(CLOSE_TIMEOUT, self._listener.wire.disconnect, False)

    def on_close_frame(self, code: int) -> None:
        """The client has closed, or has answered that this side did."""
        self.hang_up(_OK if code == _NO_CODE else code)
        self._listener.wire.disconnect()
        # Python's client closes with 1000, often before its own packets for it left.
        self._end(self.server.reason.CLIENT_DISCONNECT if code == _OK else self.server.reason.TRANSPORT_CLOSE)

    def on_gone(self) -> None:
        """The connection is gone."""
        self._hung_up = True
        self.stream.end()
        del self._listener
        self._end(self.server.reason.TRANSPORT_CLOSE)

    def on_overflow(self) -> None:
        """More waits for the client than may: it is too slow."""
        if not self.stream.mute:
            self.stream.mute = True
            self.too_slow(self.sid)

    def _end(self, reason: str) -> None:
        if not self.closing:
            self.server.start_background_task(self.close, False, True, reason)
