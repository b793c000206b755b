"""The plain WebSocket door: ``/ws``."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from gateway import wire
from gateway.access.auth import Authenticator, find_token
from gateway.access.origins import is_ascii
from gateway.engine.outbound import ITEM_OVERHEAD, OutboundQueue, cut_off, text_size
from gateway.engine.websocket import CountedWebSocket
from gateway.errors import CloseCode, NodeBusyError, RefusedError, ServerDrainingError
from gateway.presence.model import Ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.access.admission import Admission
    from gateway.access.origins import Origins
    from gateway.connections.connections import Connections
    from gateway.connections.counts import Counts
    from gateway.connections.live import LiveConnection
    from gateway.connections.requests import Requests
    from gateway.delivery.queue import Queued
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

_GOODBYES = frozenset({WSCloseCode.OK, 1005, 0})
"""Close codes that count as a goodbye: 1000, and a close frame without a code, which is 1005 or, to aiohttp, 0. Not
1001, with which browsers close when a page is left or reloaded: it may be back in a moment."""


class RequestFrame(msgspec.Struct):
    """What a client sends: ``{"event", "data"?, "id"?}``."""

    event: str
    data: Any = None
    id: int | str | None = None
    """Comes back in the answer; if it is None, the answer has none either."""


_decoder = msgspec.json.Decoder(RequestFrame)


class _TextCodec:
    def encode(self, events: Sequence[tuple[str, object]]) -> Sequence[str]:
        return [wire.encode({"event": event, "data": data}).decode() for event, data in events]

    def write_all(self, batch: Sequence[str], sinks: Sequence[_WebSocketPeer]) -> None:
        for peer in sinks:
            peer.write(batch)


_CODEC = _TextCodec()


class _WebSocketPeer:
    """One client: a bounded queue of frames, and the task that writes them."""

    codec = _CODEC

    def __init__(self, request: web.Request, ws: web.WebSocketResponse, max_send_buffer: int, counts: Counts) -> None:
        self._transport = request.transport
        self._ws = ws
        self._counts = counts
        self._queue = OutboundQueue(_frame_size, max_send_buffer, self._too_slow)
        self._closing: asyncio.Task[None] | None = None
        self._writer = asyncio.create_task(self._write_out())

    @property
    def sink(self) -> _WebSocketPeer:
        return self

    def write(self, batch: Sequence[str]) -> None:
        if self._closing is None:
            for frame in batch:
                self._queue.put_nowait(frame)

    def hand(self, queued: Queued) -> None:
        body = {"event": queued.event, "data": queued.data, "id": queued.id}
        self.write([wire.encode(body).decode()])

    def close(self, code: CloseCode) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code))

    def _too_slow(self) -> None:
        if self._closing is None:
            _log.info("client too slow; closing")
            self._counts.too_slow["websocket"] += 1
        self.close(CloseCode.TOO_SLOW)

    async def finish(self) -> None:
        """Wait until the connection is closed, and end the task."""
        if self._closing is not None:
            await self._closing
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write_out(self) -> None:
        try:
            while (frame := await self._queue.get()) is not None:
                await self._ws.send_str(frame)
        except ConnectionError:
            pass  # the reading side finds out, and ends the connection

    async def _close(self, code: CloseCode) -> None:
        if code is CloseCode.TOO_SLOW:
            self._queue.drop_all()
        self._queue.put_nowait(None)
        async with cut_off(self._transport):
            if code is not CloseCode.TOO_SLOW:
                await asyncio.shield(self._writer)
            await self._ws.close(code=code, message=code.name.encode(), drain=False)


def _frame_size(frame: str | None) -> int:
    return 0 if frame is None else ITEM_OVERHEAD + text_size(frame)


class WebSocketDoor:
    """Lets plain WebSocket clients in, and passes their requests on.

    Args:
        settings: sizes and times.
        origins: which pages may connect: a cookie may be a token, and a browser sends it with any page's WebSocket.
        admission: lets handshakes in at a bounded rate.
        counts: counts connections that are refused, or closed as too slow.
        connections: this node's live connections.
        requests: answers requests.
        authenticator: verifies tokens.
    """

    def __init__(
        self,
        settings: Settings,
        origins: Origins,
        admission: Admission,
        counts: Counts,
        connections: Connections,
        requests: Requests,
        authenticator: Authenticator,
    ) -> None:
        self._settings = settings
        self._origins = origins
        self._admission = admission
        self._counts = counts
        self._connections = connections
        self._requests = requests
        self._authenticator = authenticator

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection, from its upgrade to its end."""
        if not is_ascii(request):
            raise web.HTTPBadRequest(text="Origin and Sec-WebSocket-Key must be ASCII")
        if not self._origins.allows(request.headers.get("Origin"), request):
            raise web.HTTPForbidden(text="this origin is not allowed; see CORS_ALLOWED_ORIGINS")
        ws = CountedWebSocket(self._settings.max_payload, heartbeat=self._settings.ping_interval)
        if not ws.can_prepare(request):
            raise web.HTTPUpgradeRequired(
                text="this is a WebSocket endpoint", headers={"Upgrade": "websocket", "Connection": "Upgrade"}
            )
        try:
            await self._wait_for_turn(request)
        except NodeBusyError as error:
            self._counts.refuse("websocket", error.code)
            raise web.HTTPServiceUnavailable(
                text=str(error), headers={"Retry-After": str(math.ceil(error.retry_after or 0))}
            ) from None
        try:
            await ws.prepare(request)
        except ConnectionResetError:  # the client has left, so it does not matter what is answered
            return web.Response()
        peer = _WebSocketPeer(request, ws, self._settings.max_send_buffer, self._counts)
        try:
            live = await self._open(request, peer)
        except RefusedError as error:
            _log.info("refused", door="websocket", code=error.code, reason=str(error))
            self._counts.refuse("websocket", error.code)
            await ws.close(code=error.close_code, message=error.code.encode())
        except Exception:
            _log.exception("a connection failed to open", door="websocket")
            self._counts.refuse("websocket", "INTERNAL")
            await ws.close(code=WSCloseCode.INTERNAL_ERROR)
        else:
            goodbye = False
            try:
                self._connections.greet(live)
                goodbye = await self._serve(live, ws)
            finally:
                await self._connections.end(live, Ending.GOODBYE if goodbye else Ending.LOST)
        finally:
            await peer.finish()
        return ws

    async def _wait_for_turn(self, request: web.Request) -> None:
        # A node that drains does not refuse here: `_open` does, and the client gets a close code.
        with contextlib.suppress(ServerDrainingError):
            turn = self._admission.enter(lambda: request.transport is None or request.transport.is_closing())
            if turn is not None:
                await turn

    async def _open(self, request: web.Request, peer: _WebSocketPeer) -> LiveConnection:
        token = find_token(request.headers, request.query, self._origins.cookies(request))
        identity = await self._authenticator.identify(token)
        live = await self._connections.open(
            identity,
            connection_id=secrets.token_urlsafe(15),
            door="websocket",
            peer=peer,
            user_agent=request.headers.get("User-Agent"),
            address=self._connections.quotas.address_of(request),
        )
        if self._connections.keeps_tokens:
            live.token = token
        return live

    async def _serve(self, live: LiveConnection, ws: web.WebSocketResponse) -> bool:
        """Answer requests until the connection ends; return whether the client said goodbye.

        The code is taken from the close frame, since aiohttp's own `close_code` is 1000 after other endings, too.
        """
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.TEXT:
                await self._answer(live, message.data)
            elif message.type is WSMsgType.BINARY:
                self._reply(live, self._requests.malformed(live, "a request is a text frame"), None)
            else:
                return message.type is WSMsgType.CLOSE and message.data in _GOODBYES

    async def _answer(self, live: LiveConnection, text: str) -> None:
        try:
            frame = _decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            malformed = self._requests.malformed(live, f'{error}; a frame is {{"event": "…", "data": {{…}}, "id": 1}}')
            self._reply(live, malformed, None)
        else:
            answer = self._requests.answer(live, frame.event, frame.data)
            self._reply(live, await answer if isinstance(answer, Coroutine) else answer, frame.id)

    def _reply(self, live: LiveConnection, answer: wire.Answer | wire.Failure, request_id: int | str | None) -> None:
        body = msgspec.structs.asdict(answer)
        if request_id is not None:
            body["id"] = request_id
        live.peer.write([wire.encode(body).decode()])
