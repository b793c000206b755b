"""The Socket.IO door: the namespace ``/ws/messages``."""

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
    """Lets Socket.IO clients in, and passes their requests on.

    Methods that refer to "the port" implement `engine.namespace.Namespace`.

    Args:
        connections: this node's live connections.
        requests: answers requests.
        authenticator: verifies tokens.
        origins: decides whether a page's cookies may be tokens.
        counts: counts refused connections.
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
        """Called with a connection that recovers, before it is told what it missed, and the rooms it was in; returns
        those that it may not be in any more. None without channels."""
        self.rejoin: Callable[[LiveConnection, Sequence[str], Sequence[str]], Awaitable[None]] | None = None
        """Called with a connection that has recovered, the rooms it was in, and the rooms that it was taken out of
        while it was away. None without channels."""
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
        """Greet the client, and put it back into its channels if it recovers; see the port."""
        live = self._live[sid]
        resumption = self.resume(sid)
        self._connections.greet(live, resumption)
        if resumption is not None and self.rejoin is not None:
            rooms = [room for room in self.rooms(sid) or () if isinstance(room, str)]
            await self.rejoin(live, rooms, [room for room in resumption.removed if isinstance(room, str)])

    async def rooms_lost(self, sid: str, found: Return) -> Collection[object]:
        """Find the rooms that a client that recovers may not be in any more; see the port."""
        if self.refused is None:
            return ()
        return await self.refused(self._live[sid], [room for room in found.session.rooms if isinstance(room, str)])

    def put(self, sid: str, room: str, inside: bool) -> None:  # noqa: FBT001 - the channels'
        """Put a client into a room, or take it out: recovery keeps rooms, and so puts it into its channels again."""
        if sid not in self._live:
            return
        change = self.server.manager.basic_enter_room if inside else self.server.manager.basic_leave_room
        change(sid, NAMESPACE, room)

    def on_acknowledged(self, sid: str, item_id: str) -> None:
        """Take note that the client has acknowledged a notification; see the port."""
        live = self._live.get(sid)
        if live is not None:
            self._connections.acknowledge(live, item_id)

    def owner(self, sid: str) -> tuple[str, str] | None:
        """The tenant and user id of a client; see the port."""
        live = self._live.get(sid)
        return None if live is None else (live.identity.tenant, live.identity.user_id)

    def live(self, sid: str) -> LiveConnection | None:
        """Whose client it is; see the port."""
        return self._live.get(sid)

    def token(self, sid: str) -> tuple[str | None, int | None]:
        """The id of a client's token, and when it was issued; see the port."""
        live = self._live.get(sid)
        return (None, None) if live is None else (live.identity.jti, live.identity.issued_at)

    def told(self, sid: str) -> int:
        """The position of the presence log up to which a client has been told; see the port."""
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
        """How requests are answered straight from their frames; see the port."""
        codec = self.codec
        return Route(self.namespace, codec.event, codec.acknowledgement, self._requests.answer_message, self._take)

    def client(self, sid: str) -> LiveConnection:
        """The live connection that `route`'s functions are given; see the port."""
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
        """Tell a client that asked for no acknowledgement what was wrong, by an ``exception`` event."""
        if isinstance(answer, wire.Failure):
            error = answer.error
            live.emit(
                "exception",
                wire.ExceptionEvent(event=event, code=error.code, message=error.message, retry_after=error.retry_after),
            )


def _read_meta(meta: object) -> bytes | None:
    """Encode the ``meta`` of a client's handshake as JSON; None for none.

    Raises:
        MetaRefusedError: it is not valid; the message says why.
    """
    if meta is not None and not isinstance(meta, dict):
        raise MetaRefusedError('auth.meta takes an object, such as {"page": "dashboard"}')
    try:
        return encode_meta(meta)
    except InvalidPayloadError as error:
        raise MetaRefusedError(f"auth.{error}") from None
