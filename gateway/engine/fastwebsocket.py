"""A WebSocket of picows: messages in order, one at a time, and what is sent bounded. What they mean others say."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import structlog

from gateway.engine.outbound import CLOSE_TIMEOUT, ITEM_OVERHEAD
from gateway.engine.stream import Outbox, Receiver, Stream
from gateway.engine.takeover import WSListener, WSMsgType
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from picows import WSFrame, WSTransport

    from gateway.access.buckets import TokenBucket
    from gateway.runtime.timers import Timer, TimerWheel

_log = structlog.get_logger(__name__)

_CONTINUATION, _TEXT, _BINARY = WSMsgType.CONTINUATION, WSMsgType.TEXT, WSMsgType.BINARY
_CLOSE, _PING, _PONG = WSMsgType.CLOSE, WSMsgType.PING, WSMsgType.PONG
NO_CODE, OK, PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG = 0, 1000, 1002, 1007, 1009
"""WebSocket's close codes: RFC 6455, section 7.4; the first is that of a close frame without one."""


class Listener(WSListener):
    """What picows calls back: puts messages together from frames, and answers WebSocket's own.

    What it is part of takes the frames first (`Stream.on_frame`), and leaves it what is no event.
    """

    __slots__ = ("_begun", "_begun_text", "_max_message", "on_ws_frame", "socket", "wire")

    wire: WSTransport

    def __init__(self, socket: FastWebSocket, max_message: int) -> None:
        self.socket = socket
        self._max_message = max_message
        self._begun: bytearray | None = None
        """What has come of a message in more than one frame; None where there is none."""
        self._begun_text = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The client has been told that it is a WebSocket now, before its first frame is taken."""
        self.wire = transport
        self.socket.outbox.wires[transport] = None

    def on_message(self, data: bytes, *, text: bool) -> None:
        """Take one message."""
        self.socket.take(data, text=text)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        self.socket.outbox.wires.pop(transport, None)
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
            self.socket.hang_up(PROTOCOL_ERROR)  # they belong to extensions, and none was agreed on
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
            self.socket.hang_up(PROTOCOL_ERROR)  # a fragment of nothing, or a message within another
            return
        if self._begun is None:
            self._begun, self._begun_text = bytearray(), kind == _TEXT
            self.socket.stream.in_parts = True
        self._begun += data
        if len(self._begun) > self._max_message:
            self.socket.hang_up(TOO_BIG)
        elif last:
            whole, self._begun = bytes(self._begun), None
            self.socket.stream.in_parts = False
            self.on_message(whole, text=self._begun_text)


class FastWebSocket:
    """A connection over a WebSocket of picows."""

    outbox: Outbox
    timers: TimerWheel
    packets: TokenBucket
    """What counts frames that are no events."""
    flood_code: int = CloseCode.RATE_LIMITED
    """What it is closed with where too many of these come."""
    max_send_buffer: int
    max_message: int
    """Bytes that one message may have, and that may be held before it is read on."""
    closing: bool
    stream: Stream
    _listener: Listener
    _transport: asyncio.Transport
    _held: deque[tuple[bytes, bool]] | None = None
    """What came while something before it was awaited; None where nothing is."""
    _held_bytes = 0
    _hung_up = False
    _cut: Timer | None = None
    """Cuts a connection off that has been sent a close frame and does not leave."""

    # What its protocol does

    def serve(self, data: bytes, *, text: bool) -> Coroutine[Any, Any, object] | None:
        """Serve one message; what it returns, where it does, is to be awaited before the next."""
        raise NotImplementedError

    def start(self, target: Callable[..., Coroutine[Any, Any, object]], *arguments: Any) -> None:
        """Run something in the background until it is done."""
        raise NotImplementedError

    def on_flood(self) -> None:
        """It was closed because too much came."""
        raise NotImplementedError

    def on_too_slow(self) -> None:
        """More waits for the client than may; nothing is sent any more but a close frame."""
        raise NotImplementedError

    def on_closed(self, code: int | None) -> None:
        """The client has closed with a code, or None: is gone. It may be called again."""
        raise NotImplementedError

    # The connection

    def attach(self, listener: Listener, transport: asyncio.Transport, receivers: list[Receiver] | None = None) -> None:
        """Speak over a WebSocket from now on."""
        self._listener, self._transport = listener, transport
        is_file = os.name == "posix" and transport.get_extra_info("sslcontext") is None
        self.stream = Stream(
            self,
            self.outbox,
            transport,
            file=transport.get_extra_info("socket").fileno() if is_file else -1,
            receivers=[] if receivers is None else receivers,
            max_buffer=self.max_send_buffer,
        )
        # Of the listener itself, so that picows calls it without a step between.
        listener.on_ws_frame = self.stream.on_frame  # type: ignore[method-assign]

    # What comes

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
        self.hang_up(self.flood_code)
        self.on_flood()
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
            waiting = self.serve(data, text=text)
            if waiting is not None:
                self.serve_later(waiting)
        else:
            self._held.append((data, text))
            self._held_bytes += ITEM_OVERHEAD + len(data)
            if self._held_bytes > self.max_message:
                self._transport.pause_reading()

    def serve_later(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Serve something that takes its time; what comes meanwhile is held."""
        self._held = deque()
        self.stream.busy = True
        self.start(self._serve_in_turn, waiting)

    async def _serve_in_turn(self, waiting: Coroutine[Any, Any, object] | None) -> None:
        held = self._held
        assert held is not None  # noqa: S101 - by the one caller
        while waiting is not None:
            await waiting
            waiting = None
            while held and waiting is None and not self.closing:
                data, text = held.popleft()
                self._held_bytes -= ITEM_OVERHEAD + len(data)
                waiting = self.serve(data, text=text)
        self._held, self._held_bytes = None, 0
        self.stream.busy = False
        if not self.closing and not self._transport.is_closing():
            self._transport.resume_reading()

    # The end

    def hang_up(self, code: int, why: bytes | None = None) -> None:
        """Send WebSocket's close frame; the client has a time to answer it.

        A connection that is closing already, such as one that the client has closed, has the same time to be gone: it
        waits for what was sent before to be read.
        """
        if not self._hung_up:
            self.stream.flush()
            self._hung_up = self.stream.mute = True
            if not self._transport.is_closing():
                self._listener.wire.send_close(code, why)  # type: ignore[arg-type]  # takes any number
            self._cut = self.timers.call_later(CLOSE_TIMEOUT, self._listener.wire.disconnect, False)

    def on_close_frame(self, code: int) -> None:
        """The client has closed, or has answered that this side did."""
        self.hang_up(OK if code == NO_CODE else code)
        self._listener.wire.disconnect()
        self.on_closed(code)

    def on_gone(self) -> None:
        """The connection is gone."""
        self._hung_up = True
        self.stream.end()
        if self._cut is not None:
            self._cut.cancel()
        del self._listener
        self.on_closed(None)

    def on_overflow(self) -> None:
        """More waits for the client than may: it is too slow."""
        if not self.stream.mute:
            self.stream.mute = True
            self.on_too_slow()
