"""The client managers under python-socketio: its own, telling a namespace when a client knows it is connected."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import socketio
from engineio import packet as eio_packet
from socketio import packet

from gateway import wire
from gateway.engine.batch import Batch
from gateway.engine.namespace import Namespace
from gateway.engine.stream import Receiver
from gateway.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from gateway.engine.socket import Socket
    from gateway.nodes.bus import Bus
    from gateway.recovery.recovery import Reading

TOPIC = "socket.io"

BACKLOG = 1000
"""Messages of other nodes that wait for python-socketio; past it the bus waits, which keeps the next ones in Redis."""


class _OwnRoom:
    """The room that each client has for itself, with the part of a ``bidict`` that python-socketio asks for.

    A real one, of which each client would be the only member, takes half a kilobyte, and as long to make as to parse
    the packet that it is made for. A dictionary still takes four times as much as this.
    """

    __slots__ = ("_eio_sid", "_sid")

    def __init__(self, sid: str, eio_sid: str) -> None:
        self._sid: str | None = sid
        """None once the client has left it, when it is about to be forgotten."""
        self._eio_sid = eio_sid

    def __contains__(self, sid: object) -> bool:
        return sid == self._sid

    def __len__(self) -> int:
        return self._sid is not None

    def __setitem__(self, sid: str, eio_sid: str) -> None:
        """Enter it again: nobody else may."""

    def __delitem__(self, sid: str) -> None:
        if sid != self._sid:
            raise KeyError(sid)
        self._sid = None

    @property
    def _fwdm(self) -> dict[str, str]:
        return {} if self._sid is None else {self._sid: self._eio_sid}


class _Clients(socketio.AsyncManager):  # type: ignore[misc]  # untyped base
    """What both managers do otherwise than python-socketio's."""

    def __init__(self) -> None:
        super().__init__()
        self._entered: dict[tuple[str, str], set[Any]] = {}
        """The rooms of each client in a namespace, but for the one that has its name and that of all."""

    async def connect(self, sid: str, namespace: str) -> Any:
        """Register a client that has just been sent its CONNECT packet."""
        registered = await super().connect(sid, namespace)
        handler = self.server.namespace_handlers.get(namespace)
        if isinstance(handler, Namespace):
            eio_sid = self.eio_sid_from_sid(sid, namespace)
            if self.server.is_open(eio_sid):
                self.server.eio.sockets[eio_sid].receivers.append(Receiver(handler.route, handler.client(sid)))
                await handler.on_connected(sid)
            else:
                # It left while it was being let in, when python-socketio did not count it as connected and
                # so told nobody that it went: without this its user would stay for ever.
                await self.server.forget(eio_sid, namespace)
        return registered

    async def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Put a client into a room; it is there wherever it goes on when this returns, unless the store is away."""
        await super().enter_room(sid, namespace, room, eio_sid=eio_sid)
        await self._settle(sid, namespace)

    async def leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Take a client out of a room; it is out of it wherever it goes on when this returns, likewise."""
        await super().leave_room(sid, namespace, room)
        await self._settle(sid, namespace)

    async def _settle(self, sid: str, namespace: str) -> None:
        handler = self.server.namespace_handlers.get(namespace)
        waiting = handler.settling(sid) if isinstance(handler, Namespace) else None
        if waiting is not None:
            with suppress(StoreUnavailableError):
                await waiting

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Put a client into a room."""
        if room == sid and eio_sid is not None:
            self.rooms[namespace][room] = _OwnRoom(sid, eio_sid)
            return
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if room is not None and room not in (entered := self._entered.setdefault((sid, namespace), set())):
            entered.add(room)
            self._rooms_changed(sid, namespace)

    def enter_again(self, sid: str, namespace: str, rooms: Collection[Any]) -> None:
        """Put a client that goes on into the rooms that it was in: of a thousand, each change is one of a thousand."""
        for room in rooms:
            super().basic_enter_room(sid, namespace, room)
        if rooms:
            self._entered.setdefault((sid, namespace), set()).update(rooms)
            self._rooms_changed(sid, namespace)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Take a client out of a room."""
        super().basic_leave_room(sid, namespace, room)
        entered = self._entered.get((sid, namespace))
        if entered is not None and room in entered:
            entered.discard(room)
            if not entered:
                del self._entered[sid, namespace]
            self._rooms_changed(sid, namespace)

    def basic_disconnect(self, sid: str, namespace: str, **_options: Any) -> None:
        """Forget a client. python-socketio looks through every room, and there is one for each client."""
        socket = self.server.eio.sockets.get(self.eio_sid_from_sid(sid, namespace))
        if socket is not None:
            socket.receivers[:] = [each for each in socket.receivers if each.route.namespace != namespace]
        for room in (*self._entered.get((sid, namespace), ()), sid, None):
            self.basic_leave_room(sid, namespace, room)
        self.callbacks.pop(sid, None)
        for pending in (self.pending_connect, self.pending_disconnect):
            waiting = pending.get(namespace, [])
            if sid in waiting:
                waiting.remove(sid)
                if not waiting:
                    del pending[namespace]

    def entered(self, sid: str, namespace: str) -> Collection[object]:
        """The rooms that a client was put into; python-socketio would look through those of all."""
        return self._entered.get((sid, namespace), ())

    def _rooms_changed(self, sid: str, namespace: str) -> None:
        handler = self.server.namespace_handlers.get(namespace)
        if isinstance(handler, Namespace):
            handler.rooms_changed(sid, self._entered.get((sid, namespace), ()))

    # Emits to clients that can recover

    def _recovering(self, namespace: str | None) -> Namespace | None:
        """The handler of a namespace whose clients can recover; None for another."""
        handler = self.server.namespace_handlers.get(namespace or "/")
        return handler if isinstance(handler, Namespace) and handler.recovery is not None else None

    def _emit_here(self, handler: Namespace, emitted: Emitted, *, own: bool) -> None:
        """Keep an event, and write it to its recipients on this node at once, so that all they hear is in order."""
        assert handler.recovery is not None  # noqa: S101 - by the callers
        mark = handler.recovery.record(*emitted.reading(handler.namespace), own=own)
        for sid, eio_sid in self.get_participants(handler.namespace, emitted.room):
            socket = self.server.eio.sockets.get(eio_sid)
            if sid in emitted.skipped or socket is None or handler.is_coming(sid):
                continue
            if socket.closing or socket.closed:  # its session is lost by now: it hears this when it is back
                continue
            codec = handler.marking_codec_of(sid)
            emitted.write(socket, handler.namespace, None if codec is None else codec.offset(handler.told(sid), mark))


class Emitted:
    """One event that an application emits to a room.

    Args:
        event: its name.
        arguments: what it brings.
        room: whom it is for: python-socketio's name of a room, or several; None is everyone.
        skip: who of these it is not for: one name, or several; None is nobody.
    """

    def __init__(self, event: str, arguments: list[Any], room: Any, skip: Any) -> None:
        self.room = room
        self.skipped = frozenset(skip if isinstance(skip, list | tuple | set) else [skip]) - {None}
        self._data = [event, *arguments]
        self._encoded: dict[str | None, Batch | list[str | bytes]] = {}

    def reading(self, namespace: str) -> Reading:
        """Whom it is for, its text, and who is skipped."""
        rooms = self.room if isinstance(self.room, list | tuple | set) else [self.room]
        text = None if packet.Packet.data_is_binary(self._data) else wire.encode(self._data)
        return tuple(("room", namespace, room) for room in rooms), text, self.skipped

    def write(self, socket: Socket, namespace: str, offset: str | None) -> None:
        """Write it to a client, encoded once for all whose offset is the same; None for a client without."""
        encoded = self._encoded.get(offset)
        if encoded is None:
            data = self._data if offset is None else [*self._data, offset]
            text = packet.Packet(packet.EVENT, namespace=namespace, data=data).encode()
            encoded = self._encoded[offset] = text if isinstance(text, list) else Batch([text.encode()])
        if isinstance(encoded, Batch):
            socket.write(encoded)
        else:
            for each in encoded:
                socket.push(eio_packet.Packet(eio_packet.MESSAGE, each))  # which keeps its first encoding


def _arguments(data: Any) -> list[Any]:
    """What python-socketio makes of what an application gives it to emit."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


class Manager(_Clients):
    """Keeps rooms and clients of one node.

    Args:
        bus: what counts what is said; None where nobody recovers.
    """

    def __init__(self, bus: Bus | None = None) -> None:
        super().__init__()
        self._bus = bus

    async def emit(
        self,
        event: str,
        data: Any,
        namespace: str,
        room: Any = None,
        skip_sid: Any = None,
        callback: Any = None,
        to: Any = None,
        **options: Any,
    ) -> None:
        """Emit to a client, a room or everyone; an event that is to be acknowledged is not kept for who is away."""
        handler = self._recovering(namespace)
        if handler is None or callback is not None or self._bus is None:
            await super().emit(
                event, data, namespace, room=room, skip_sid=skip_sid, callback=callback, to=to, **options
            )
        else:
            self._bus.publish(TOPIC, None)
            self._emit_here(handler, Emitted(event, _arguments(data), to or room, skip_sid), own=True)

    async def run(self) -> None:
        """Nothing to do."""


class BusManager(_Clients, socketio.AsyncRedisManager):  # type: ignore[misc]  # untyped base
    """Keeps rooms and clients of many nodes, which hear of each other by the bus.

    python-socketio's own gives up what it cannot publish twice in a row, and hears nothing of what was published while
    it was away. The bus keeps both, and brings each message once. No connection of python-socketio's is ever opened.

    Args:
        bus: how nodes hear of each other.
    """

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus
        self._heard: asyncio.Queue[Any] = asyncio.Queue(BACKLOG)
        self._published: Any = None
        """What was published before it was emitted here, and python-socketio is about to publish."""
        bus.subscribe(TOPIC, dict, self._hear)

    def initialize(self) -> None:
        """Start nothing: python-socketio would listen from its first client on, and nobody would end it."""

    async def run(self) -> None:
        """Do what other nodes ask for, until cancelled."""
        task = asyncio.current_task()
        while task is not None and not task.cancelling():  # which `_thread` keeps to itself
            await self._thread()

    def read(self, data: msgspec.Raw) -> Reading | None:
        """Read another node's message from the bus; None for one that nobody recovers."""
        message = msgspec.json.decode(data)
        if not isinstance(message, dict) or message.get("method") != "emit" or message.get("callback") is not None:
            return None
        emitted = self._emitted(message)
        return emitted.reading(message.get("namespace") or "/")

    async def _handle_emit(self, message: Any) -> None:
        handler = self._recovering(message.get("namespace"))
        if handler is None or message.get("callback") is not None:
            await super()._handle_emit(message)
            return
        own = message.get("host_id") == self.host_id
        if own:  # told first, so that it has its number when it is written
            self._bus.publish(TOPIC, message)
            self._published = message
        self._emit_here(handler, self._emitted(message), own=own)

    def _emitted(self, message: Any) -> Emitted:
        data = message["data"]
        if message.get("binary"):
            data = packet.Packet.reconstruct_binary(data[0], [base64.b64decode(each) for each in data[1:]])
        # python-socketio takes a list of one for that one, which may be None: then it brings nothing.
        arguments = _arguments(data[0] if len(data) == 1 else tuple(data))
        return Emitted(message["event"], arguments, message.get("room"), message.get("skip_sid"))

    async def _publish(self, data: Any) -> None:
        if data is self._published:
            self._published = None
        else:
            self._bus.publish(TOPIC, data)

    async def _hear(self, message: Any) -> None:
        """Take a message, and return when python-socketio has done what it says: the next one is told after it."""
        await self._heard.put(message)
        await self._heard.join()

    async def _listen(self) -> AsyncIterator[Any]:
        while True:
            message = await self._heard.get()
            try:
                yield message
            finally:
                self._heard.task_done()
