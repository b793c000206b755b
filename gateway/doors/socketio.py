"""The Socket.IO door: namespace ``/ws/messages``, section 3 of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway import wire
from gateway.auth import Authenticator, find_token
from gateway.engine.namespace import Namespace
from gateway.errors import RefusedError
from gateway.presence.model import Ending

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.connections import Connections, LiveConnection
    from gateway.origins import Origins
    from gateway.requests import Requests

_log = structlog.get_logger(__name__)

NAMESPACE = "/ws/messages"


class SocketIODoor(Namespace):
    """Lets Socket.IO clients in.

    Args:
        connections: where their connections live.
        requests: what answers them.
        authenticator: what verifies their tokens.
        origins: whose cookies may be tokens.
    """

    def __init__(
        self, connections: Connections, requests: Requests, authenticator: Authenticator, origins: Origins
    ) -> None:
        super().__init__(NAMESPACE)
        self._origins = origins
        self._connections = connections
        self._requests = requests
        self._authenticator = authenticator
        self._live: dict[str, LiveConnection] = {}

    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
        """Open a connection for a token; see the port."""
        token = find_token(request.headers, request.query, self._origins.cookies(request), auth)
        try:
            identity = await self._authenticator.identify(token)
            self._live[sid] = await self._connections.open(
                identity,
                connection_id=sid,
                door="socketio",
                peer=self.peer(sid),
                user_agent=request.headers.get("User-Agent"),
            )
        except RefusedError as error:
            _log.info("refused", door="socketio", code=error.code, reason=str(error))
            raise Refusal(str(error), {"code": error.code, "message": str(error)}) from None
        except Exception:
            _log.exception("a connection failed to open", door="socketio")
            raise Refusal(
                "the gateway failed; its log says why", {"code": "INTERNAL", "message": "try again"}
            ) from None

    async def on_connected(self, sid: str) -> None:
        """Greet; see the port."""
        self._connections.greet(self._live[sid])

    async def on_disconnect(self, sid: str, reason: str) -> None:
        """End the connection; see the port."""
        live = self._live.pop(sid, None)
        if live is not None:
            said_goodbye = reason == self.server.reason.CLIENT_DISCONNECT
            await self._connections.end(live, Ending.GOODBYE if said_goodbye else Ending.LOST)

    async def on_request(self, sid: str, event: str, args: list[Any], *, acknowledged: bool) -> object:
        """Answer a request; see the port."""
        live = self._live[sid]
        if len(args) > 1:
            answer: wire.Answer | wire.Failure = self._requests.malformed(live, "a request takes one argument")
        else:
            answer = await self._requests.answer(live, event, args[0] if args else None)
        if not acknowledged and isinstance(answer, wire.Failure):
            error = answer.error
            live.emit(
                "exception",
                wire.ExceptionEvent(event=event, code=error.code, message=error.message, retry_after=error.retry_after),
            )
        return answer
