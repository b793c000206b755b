"""The client managers under python-socketio: its own, telling a namespace when a client knows it is connected."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import socketio

from gateway.engine.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.bus import Bus

TOPIC = "socket.io"

BACKLOG = 1000
"""Messages of other nodes that wait for python-socketio; past it the bus waits, which keeps the next ones in Redis."""


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
                self.server.eio.sockets[eio_sid].receivers.append((handler.codec.event, handler, sid))
                await handler.on_connected(sid)
            else:
                # It left while it was being let in, when python-socketio did not count it as connected and
                # so told nobody that it went: without this its user would stay for ever.
                await self.server.forget(eio_sid, namespace)
        return registered

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Put a client into a room."""
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if room not in {None, sid}:
            self._entered.setdefault((sid, namespace), set()).add(room)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Take a client out of a room."""
        super().basic_leave_room(sid, namespace, room)
        if entered := self._entered.get((sid, namespace)):
            entered.discard(room)
            if not entered:
                del self._entered[sid, namespace]

    def basic_disconnect(self, sid: str, namespace: str, **_options: Any) -> None:
        """Forget a client. python-socketio looks through every room, and there is one for each client."""
        for room in (*self._entered.get((sid, namespace), ()), sid, None):
            self.basic_leave_room(sid, namespace, room)
        self.callbacks.pop(sid, None)
        for pending in (self.pending_connect, self.pending_disconnect):
            waiting = pending.get(namespace, [])
            if sid in waiting:
                waiting.remove(sid)
                if not waiting:
                    del pending[namespace]


class Manager(_Clients):
    """Keeps rooms and clients of one node."""

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
        bus.subscribe(TOPIC, dict, self._heard.put)

    def initialize(self) -> None:
        """Start nothing: python-socketio would listen from its first client on, and nobody would end it."""

    async def run(self) -> None:
        """Do what other nodes ask for, until cancelled."""
        task = asyncio.current_task()
        while task is not None and not task.cancelling():  # which `_thread` keeps to itself
            await self._thread()

    async def _publish(self, data: Any) -> None:
        self._bus.publish(TOPIC, data)

    async def _listen(self) -> AsyncIterator[Any]:
        while True:
            yield await self._heard.get()
