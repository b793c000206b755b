"""WebSockets for what is not Socket.IO, by either engine.

A door says what messages mean: it has a `Talker` for each connection, and is given a `Wire`. How they travel, that they
are served one after the other, and that what waits for a client is bounded, is done here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import WSMsgType, web

from gateway.access.buckets import TokenBucket
from gateway.engine.frames import text_frame
from gateway.engine.outbound import ITEM_OVERHEAD, OutboundQueue, cut_off
from gateway.engine.server import FAST
from gateway.engine.stream import Outbox
from gateway.engine.websocket import CountedWebSocket, packet_rate
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.engine.batch import Batch
    from gateway.engine.stream import Sink
    from gateway.runtime.timers import TimerWheel
    from gateway.settings import Settings

if FAST:
    from gateway.engine.fastwebsocket import INVALID_TEXT, FastWebSocket, Listener
    from gateway.engine.takeover import TakenOver, is_upgrade, take_over
else:  # picows has no wheel for this platform
    FastWebSocket = object  # type: ignore[assignment, misc]  # and nothing is made of it

NO_CODE = 1005
"""The close code of a client that gave none."""

_MAX_WHY = 123
"""Bytes that a close frame can say besides its code."""


class Wire(Protocol):
    """What reaches one client."""

    @property
    def sink(self) -> Sink:
        """What `stream.write_all` writes to."""

    def write(self, batch: Batch) -> None:
        """Send what was encoded once for many."""

    def send(self, text: bytes) -> None:
        """Send one message."""

    def close(self, code: int, why: str, *, drop: bool = False) -> None:
        """Close after what was sent, without waiting; a second call changes nothing.

        Args:
            code: WebSocket's close code.
            why: what it says besides.
            drop: forget what waits, for a client that does not read.
        """


class Talker(Protocol):
    """What speaks with one client."""

    def begin(self, wire: Wire) -> Coroutine[Any, Any, object]:
        """The client is there; what it sends is taken when this is done."""

    def take(self, text: str) -> Coroutine[Any, Any, object] | None:
        """Take one message; what is returned is awaited before the next is taken."""

    def take_bytes(self) -> None:
        """Take a message that is no text."""

    def too_slow(self) -> None:
        """More waits for the client than may: close it."""

    def end(self, code: int | None) -> Coroutine[Any, Any, object]:
        """The client has closed with this code, or is gone. Called once, perhaps while something is awaited."""


class WebSockets:
    """Serves connections.

    Args:
        settings: sizes, and the engine.
        timers: what cuts off those that do not leave.
        flood_code: what a connection is closed with that sends too many frames.
    """

    def __init__(self, settings: Settings, timers: TimerWheel, *, flood_code: int) -> None:
        self.settings = settings
        self.timers = timers
        self.flood_code = flood_code
        self.outbox = Outbox()
        self.packets = packet_rate(settings)
        self._fast = FAST and settings.gateway_engine == "fast"
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, request: web.Request, talker: Talker) -> web.StreamResponse:
        """Serve one connection, from its upgrade on."""
        if self._fast and is_upgrade(request):
            if request.transport is None or request.transport.is_closing():
                return web.Response()  # the client has left, and hears no answer either
            return _FastTalk(self, talker).accept(request)
        ws = CountedWebSocket(self.settings.max_payload, flood_code=self.flood_code)
        if not ws.can_prepare(request):
            raise web.HTTPUpgradeRequired(
                text="this is a WebSocket endpoint", headers={"Upgrade": "websocket", "Connection": "Upgrade"}
            )
        try:
            await ws.prepare(request)
        except ConnectionResetError:
            return web.Response()
        wire, code = _StockWire(request, ws, talker, self.settings.max_send_buffer), None
        try:
            await talker.begin(wire)
            code = await _read(ws, talker)
        finally:
            await talker.end(code)
            await wire.finish()
        return ws

    def start(self, target: Callable[..., Coroutine[Any, Any, object]], *arguments: Any) -> None:
        """Run something until it is done, and keep it until then."""
        task = asyncio.get_running_loop().create_task(target(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, patience: float) -> None:
        """Wait so many seconds for what still runs, and end what does not end by itself."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        await end(list(self._tasks))

    def cut_off(self) -> None:
        """End the connections that were closed, and whose clients have not left."""
        self.outbox.cut_off()


async def _read(ws: web.WebSocketResponse, talker: Talker) -> int | None:
    while True:
        message = await ws.receive()
        if message.type is WSMsgType.TEXT:
            waiting = talker.take(message.data)
            if waiting is not None:
                await waiting
        elif message.type is WSMsgType.BINARY:
            talker.take_bytes()
        else:
            return (message.data or NO_CODE) if message.type is WSMsgType.CLOSE else None


class _StockWire:
    """By aiohttp: a bounded queue, and the task that writes it out."""

    def __init__(self, request: web.Request, ws: web.WebSocketResponse, talker: Talker, max_send_buffer: int) -> None:
        self._transport = request.transport
        self._ws = ws
        self._queue = OutboundQueue(_size, max_send_buffer, talker.too_slow)
        self._closing: asyncio.Task[None] | None = None
        self._writer = asyncio.create_task(self._write_out())

    @property
    def sink(self) -> Sink:
        return self

    def write(self, batch: Batch) -> None:
        for text in batch.texts:
            self.send(text)

    def send(self, text: bytes) -> None:
        if self._closing is None:
            self._queue.put_nowait(text)

    def close(self, code: int, why: str, *, drop: bool = False) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code, why.encode()[:_MAX_WHY], drop=drop))

    async def finish(self) -> None:
        """Let go of everything; the connection is closed, or closes now."""
        if self._closing is not None:
            await self._closing
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write_out(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reading side finds out
            while (text := await self._queue.get()) is not None:
                await self._ws.send_frame(text, WSMsgType.TEXT)

    async def _close(self, code: int, why: bytes, *, drop: bool) -> None:
        if drop:
            self._queue.drop_all()
        self._queue.put_nowait(None)
        async with cut_off(self._transport):
            if not drop:
                await asyncio.shield(self._writer)
            await self._ws.close(code=code, message=why, drain=False)


def _size(text: bytes | None) -> int:
    return 0 if text is None else ITEM_OVERHEAD + len(text)


class _FastTalk(FastWebSocket):
    """By picows."""

    def __init__(self, sockets: WebSockets, talker: Talker) -> None:
        self.outbox, self.timers = sockets.outbox, sockets.timers
        self.packets = TokenBucket(sockets.packets, asyncio.get_running_loop().time())
        self.max_send_buffer = sockets.settings.max_send_buffer
        self.max_message = sockets.settings.max_payload
        self.flood_code = sockets.flood_code
        self.start = sockets.start  # type: ignore[method-assign]  # one that all share
        self.closing = False
        self._talker = talker

    def accept(self, request: web.Request) -> web.StreamResponse:
        """Take a request's connection over."""
        listener = Listener(self, self.max_message)
        assert request.transport is not None  # noqa: S101 - the client is there
        self.attach(listener, request.transport)  # first: frames may have come along
        self.serve_later(self._talker.begin(self))
        take_over(request, listener, max_message=self.max_message, max_buffer=self.max_send_buffer)
        return TakenOver()

    @property
    def sink(self) -> Sink:
        return self.stream

    def write(self, batch: Batch) -> None:
        self.stream.write(batch)

    def send(self, text: bytes) -> None:
        self.stream.send(text_frame(text))

    def close(self, code: int, why: str, *, drop: bool = False) -> None:
        if drop:
            self.stream.mute = True
        self.hang_up(code, why.encode()[:_MAX_WHY])

    def serve(self, data: bytes, *, text: bool) -> Coroutine[Any, Any, object] | None:
        if not text:
            self._talker.take_bytes()
            return None
        try:
            message = data.decode()
        except UnicodeDecodeError:
            self.hang_up(INVALID_TEXT)
            return None
        return self._talker.take(message)

    def on_flood(self) -> None:
        """It is gone in a moment, and ends then."""

    def on_too_slow(self) -> None:
        self._talker.too_slow()

    def on_closed(self, code: int | None) -> None:
        if not self.closing:
            self.closing = True
            self.start(self._talker.end, NO_CODE if code == 0 else code)
