"""What a door that speaks Socket.IO is written against, and how it reaches one client."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import socketio
from engineio import packet as eio_packet

from gateway import wire
from gateway.engine import json
from gateway.engine.environ import REQUEST
from gateway.engine.frames import text_frame
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

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
    def on_request(
        self, sid: str, event: str, args: list[Any], *, acknowledged: bool
    ) -> object | Coroutine[Any, Any, object]:
        """Answer an event, at once or by a coroutine. The answer is the acknowledgement, where one is awaited."""

    def on_message(self, sid: str, message: bytes, *, acknowledged: bool) -> object | Coroutine[Any, Any, object]:
        """Answer an event as it came: a JSON array of its name and its arguments.

        Raises:
            ValueError: it is no event.
        """
        event, *args = json.loads(message)
        if not isinstance(event, str) or event in wire.SOCKET_IO_EVENTS:
            raise ValueError("no name for an event")
        return self.on_request(sid, event, args, acknowledged=acknowledged)

    async def trigger_event(self, event: str, *args: Any) -> None:
        """Hand python-socketio's two calls on.

        Its own version calls a disconnect handler again after a TypeError, and finds handlers by event names
        that clients choose; requests come to `on_request` by another way.
        """
        if event == "connect":
            sid, environ, auth = args
            await self.on_connect(sid, environ[REQUEST], auth)
        elif event == "disconnect":
            await self.on_disconnect(*args)

    def peer(self, sid: str) -> SocketPeer:
        """Reach a client of this namespace."""
        return SocketPeer(self.server, self.codec, self.server.manager.eio_sid_from_sid(sid, self.namespace))


class Batch:
    """Events of one namespace, encoded once for all who are sent them, whatever their transport."""

    __slots__ = ("_frames", "_packets", "_texts")

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts
        self._frames: bytes | None = None
        self._packets: list[eio_packet.Packet] | None = None

    @property
    def frames(self) -> bytes:
        """WebSocket frames, one after the other, as they are written."""
        if self._frames is None:
            self._frames = b"".join(text_frame(b"4" + text) for text in self._texts)
        return self._frames

    @property
    def packets(self) -> Sequence[eio_packet.Packet]:
        """Engine.IO packets."""
        if self._packets is None:
            self._packets = [eio_packet.Packet(eio_packet.MESSAGE, text.decode()) for text in self._texts]
        return self._packets


class EventCodec:
    """Encodes events for one namespace."""

    def __init__(self, namespace: str) -> None:
        self.event = f"42{namespace},".encode()
        """How a client's event begins, as Engine.IO carries it."""
        self.acknowledgement = f"43{namespace},".encode()
        self.disconnect = Batch([f"1{namespace},".encode()])
        self._prefix = f"2{namespace},".encode()

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode events, each a name and its data, to be sent in their order."""
        return Batch([self._prefix + wire.encode(event) for event in events])


class SocketPeer:
    """One client, as its Engine.IO connection reaches it."""

    def __init__(self, server: Server, codec: EventCodec, eio_sid: str) -> None:
        self.codec = codec
        self._server = server
        self._eio_sid = eio_sid
        self.write: Callable[[Batch], None] = server.eio.sockets[eio_sid].writer()
        """Sends events; a connection for which more waits than may is closed with 4008."""

    def close(self, code: CloseCode) -> None:
        """Close the connection with `code`.

        A client whose node goes away is left to reconnect by itself; the others are told that the server meant
        them, and do not.
        """
        if code is not CloseCode.GOING_AWAY:
            self.write(self.codec.disconnect)
        self._server.close_socket(self._eio_sid, code)
