"""What a door that speaks Socket.IO is written against, and how it reaches one client."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import socketio
from engineio import packet as eio_packet

from gateway.engine import json
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from gateway.engine.server import Server


class Namespace(socketio.AsyncNamespace):  # type: ignore[misc]  # untyped base
    """A namespace whose requests arrive whole: with their name, and whether an acknowledgement is awaited."""

    server: Server

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.codec = EventCodec(namespace)

    @abstractmethod
    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
        """Let a client in.

        Raises:
            socketio.exceptions.ConnectionRefusedError: it is not let in; its arguments are the client's
                ``connect_error``: message and data.
        """

    @abstractmethod
    async def on_connected(self, sid: str) -> None:
        """The client has been told that it is connected."""

    @abstractmethod
    async def on_disconnect(self, sid: str, reason: str) -> None:
        """The connection ended; `reason` is one of `Server.reason`."""

    @abstractmethod
    async def on_request(self, sid: str, event: str, args: list[Any], *, acknowledged: bool) -> object:
        """Answer an event. What it returns is the acknowledgement, where the client awaits one."""

    async def trigger_event(self, event: str, *args: Any) -> None:
        """Hand python-socketio's two calls on.

        Its own version calls a disconnect handler again after a TypeError, and finds handlers by event names
        that clients choose; requests come to `on_request` by another way.
        """
        if event == "connect":
            sid, environ, auth = args
            await self.on_connect(sid, environ["aiohttp.request"], auth)
        elif event == "disconnect":
            await self.on_disconnect(*args)

    def peer(self, sid: str) -> SocketPeer:
        """Reach a client of this namespace."""
        return SocketPeer(self.server, self.codec, self.server.manager.eio_sid_from_sid(sid, self.namespace))


class EventCodec:
    """Encodes events for one namespace."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"2{namespace},"
        self.disconnect = eio_packet.Packet(eio_packet.MESSAGE, f"1{namespace},")

    def encode(self, event: str, data: object) -> eio_packet.Packet:
        """Encode one event as a packet, which keeps its encoding for all who are sent it."""
        return eio_packet.Packet(eio_packet.MESSAGE, self._prefix + json.dumps([event, data]))


class SocketPeer:
    """One client, as its Engine.IO connection reaches it."""

    def __init__(self, server: Server, codec: EventCodec, eio_sid: str) -> None:
        self.codec = codec
        self._server = server
        self._eio_sid = eio_sid

    def write(self, frames: Sequence[eio_packet.Packet]) -> None:
        """Queue packets in order; a queue that grows past its bound closes the connection with 4008."""
        socket = self._server.eio.sockets.get(self._eio_sid)
        if socket is not None and not socket.closed:
            for frame in frames:
                if socket.close_code is CloseCode.TOO_SLOW:  # which closes in a moment: nothing more may pile up
                    break
                socket.queue.put_nowait(frame)

    def close(self, code: CloseCode) -> None:
        """Close the connection with `code`.

        A client whose node goes away is left to reconnect by itself; the others are told that the server meant
        them, and do not.
        """
        if code is not CloseCode.GOING_AWAY:
            self.write([self.codec.disconnect])
        self._server.close_socket(self._eio_sid, code)
