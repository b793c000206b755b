"""The client manager under python-socketio: its own, telling a namespace when a client knows it is connected."""

from __future__ import annotations

from typing import Any

import socketio

from gateway.engine.namespace import Namespace


class Manager(socketio.AsyncManager):  # type: ignore[misc]  # untyped base
    """Keeps rooms and clients."""

    async def connect(self, sid: str, namespace: str) -> Any:
        """Register a client that has just been sent its CONNECT packet."""
        registered = await super().connect(sid, namespace)
        handler = self.server.namespace_handlers.get(namespace)
        if isinstance(handler, Namespace):
            eio_sid = self.eio_sid_from_sid(sid, namespace)
            if self.server.is_open(eio_sid):
                await handler.on_connected(sid)
            else:
                # It left while it was being let in, when python-socketio did not count it as connected and
                # so told nobody that it went: without this its user would stay for ever.
                await self.server.forget(eio_sid, namespace)
        return registered

    def basic_disconnect(self, sid: str, namespace: str, **_options: Any) -> None:
        """Forget a client. python-socketio looks through every room, and there is one for each client."""
        self.basic_leave_room(sid, namespace, sid)
        self.basic_leave_room(sid, namespace, None)
        self.callbacks.pop(sid, None)
        for pending in (self.pending_connect, self.pending_disconnect):
            waiting = pending.get(namespace, [])
            if sid in waiting:
                waiting.remove(sid)
                if not waiting:
                    del pending[namespace]
