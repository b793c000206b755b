"""The Socket.IO door: namespace ``/ws/messages``, section 3 of the contract."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway import wire
from gateway.access.auth import Authenticator, find_token
from gateway.connections.requests import encode_meta
from gateway.engine.namespace import Namespace
from gateway.engine.stream import Route
from gateway.errors import InvalidPayloadError, MetaRefusedError, RefusedError
from gateway.presence.model import Ending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from aiohttp import web

    from gateway.access.origins import Origins
    from gateway.connections.connections import Connections
    from gateway.connections.counts import Counts
    from gateway.connections.live import LiveConnection
    from gateway.connections.requests import Reply, Requests
    from gateway.engine.stream import Told
    from gateway.recovery.recovery import Return

_log = structlog.get_logger(__name__)

NAMESPACE = "/ws/messages"


class SocketIODoor(Namespace):
    """Lets Socket.IO clients in.

    Args:
        connections: where their connections live.
        requests: what answers them.
        authenticator: what verifies their tokens.
        origins: whose cookies may be tokens.
        counts: where those that are refused are counted.
    """

    hears_presence = True

    def __init__(
        self,
        connections: Connections,
        requests: Requests,
        authenticator: Authenticator,
        origins: Origins,
        counts: Counts,
    ) -> None:
        super().__init__(NAMESPACE)
        self._origins = origins
        self._counts = counts
        self._connections = connections
        self._requests = requests
        self._authenticator = authenticator
        self._live: dict[str, LiveConnection] = {}
        self.refused: Callable[[LiveConnection, Sequence[str]], Awaitable[Collection[str]]] | None = None
        """Called with a connection that goes on, before it is told what it missed, and the rooms it was in; returns
        those that it may not be in any more. None where nobody asks."""
        self.rejoin: Callable[[LiveConnection, Sequence[str], Sequence[str]], Awaitable[None]] | None = None
        """Called with a connection that goes on, the rooms it was in, and those that it was taken out of while it was
        away; None where nobody puts it back."""
        connections.on_watch, connections.on_token = self.watched_changed, self.token_changed

    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
        """Open a connection for a token; see the port."""
        token = find_token(request.headers, request.query, self._origins.cookies(request), auth)
        try:
            identity = await self._authenticator.identify(token)
            self._live[sid] = live = await self._connections.open(
                identity,
                connection_id=sid,
                door="socketio",
                peer=self.peer(sid),
                user_agent=request.headers.get("User-Agent"),
                address=self._connections.quotas.address_of(request),
                meta_json=None if not isinstance(auth, dict) or "meta" not in auth else _read_meta(auth["meta"]),
                replaces=self._live.get(self.former(auth, (identity.tenant, identity.user_id))),
            )
            if self._connections.keeps_tokens:
                live.token = token
        except RefusedError as error:
            _log.info("refused", door="socketio", code=error.code, reason=str(error))
            self._counts.refuse("socketio", error.code)
            raise Refusal(str(error), error.told()) from None
        except Refusal:
            raise
        except Exception:
            _log.exception("a connection failed to open", door="socketio")
            self._counts.refuse("socketio", "INTERNAL")
            raise Refusal(
                "the gateway failed; its log says why", {"code": "INTERNAL", "message": "try again"}
            ) from None

    async def on_connected(self, sid: str) -> None:
        """Greet; see the port."""
        live = self._live[sid]
        resumption = self.resume(sid)
        self._connections.greet(live, resumption)
        if resumption is not None and self.rejoin is not None:
            rooms = [room for room in self.rooms(sid) or () if isinstance(room, str)]
            await self.rejoin(live, rooms, [room for room in resumption.removed if isinstance(room, str)])

    async def rooms_lost(self, sid: str, found: Return) -> Collection[object]:
        """Ask for its rights before it is told what it missed; see the port."""
        if self.refused is None:
            return ()
        return await self.refused(self._live[sid], [room for room in found.session.rooms if isinstance(room, str)])

    def put(self, sid: str, room: str, inside: bool) -> None:  # noqa: FBT001 - the channels'
        """Take note of the rooms that a client is to be in again, when it goes on where it lost its connection."""
        if sid not in self._live:
            return
        change = self.server.manager.basic_enter_room if inside else self.server.manager.basic_leave_room
        change(sid, NAMESPACE, room)

    def on_acknowledged(self, sid: str, item_id: str) -> None:
        """Tell the queue; see the port."""
        live = self._live.get(sid)
        if live is not None:
            self._connections.acknowledge(live, item_id)

    def owner(self, sid: str) -> tuple[str, str] | None:
        """Whose a client is; see the port."""
        live = self._live.get(sid)
        return None if live is None else (live.identity.tenant, live.identity.user_id)

    def token(self, sid: str) -> tuple[str | None, int | None]:
        """What a client's token says of itself; see the port."""
        live = self._live.get(sid)
        return (None, None) if live is None else (live.identity.jti, live.identity.issued_at)

    def told(self, sid: str) -> int:
        """Up to where a client has been told; see the port."""
        live = self._live.get(sid)
        return 0 if live is None else live.told

    async def on_disconnect(self, sid: str, reason: str) -> None:
        """End the connection; see the port."""
        live = self._live.pop(sid, None)
        if live is not None:
            said_goodbye = reason == self.server.reason.CLIENT_DISCONNECT
            await self._connections.end(live, Ending.GOODBYE if said_goodbye else Ending.LOST)

    def on_request(
        self, sid: str, event: str, args: list[Any], *, acknowledged: bool
    ) -> object | Coroutine[Any, Any, object]:
        """Answer a request; see the port."""
        live = self._live[sid]
        answer = self._requests.answer(live, event, *args)
        return answer if acknowledged else self._complain_of(live, event, answer)

    @cached_property
    def route(self) -> Route:
        """Where requests go as they come; see the port."""
        codec = self.codec
        return Route(self.namespace, codec.event, codec.acknowledgement, self._requests.answer_message, self._take)

    def client(self, sid: str) -> LiveConnection:
        """The connection, which requests are answered for; see the port."""
        return self._live[sid]

    def _take(self, live: LiveConnection, message: bytes) -> Told:
        return self._tell(live.connection.id, message)

    def _complain_of(
        self, live: LiveConnection, event: str, answer: Reply | Coroutine[Any, Any, Reply]
    ) -> Coroutine[Any, Any, None] | None:
        if isinstance(answer, Coroutine):
            return self._complain_later(live, event, answer)
        self._complain(live, event, answer)
        return None

    async def _complain_later(self, live: LiveConnection, event: str, answer: Coroutine[Any, Any, Reply]) -> None:
        self._complain(live, event, await answer)

    def _complain(self, live: LiveConnection, event: str, answer: Reply) -> None:
        """Tell a client that awaits no answer what was wrong, as an event."""
        if isinstance(answer, wire.Failure):
            error = answer.error
            live.emit(
                "exception",
                wire.ExceptionEvent(event=event, code=error.code, message=error.message, retry_after=error.retry_after),
            )


def _read_meta(meta: object) -> bytes | None:
    """What a client says of itself in its handshake, as JSON; None for nothing.

    Raises:
        MetaRefusedError: it is not acceptable; the message says why.
    """
    if meta is not None and not isinstance(meta, dict):
        raise MetaRefusedError('auth.meta takes an object, such as {"page": "dashboard"}')
    try:
        return encode_meta(meta)
    except InvalidPayloadError as error:
        raise MetaRefusedError(f"auth.{error}") from None
