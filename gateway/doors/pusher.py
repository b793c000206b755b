"""The Pusher door: ``/app/{key}``, version 7 of the protocol, as pusher-js and Laravel Echo speak it.

A client is nobody's until a token, a sign-in or the signature of a presence channel says whose it is; from then on its
user is online by it. What it may enter is signed by the application's backend, so nobody else is asked.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.access.limits import Rate
from gateway.access.origins import is_ascii
from gateway.channels.membership import is_presence
from gateway.engine.stream import write_all
from gateway.errors import (
    CloseCode,
    NodeBusyError,
    ServerDrainingError,
)
from gateway.pusher import frames
from gateway.pusher.client import ChannelListener, Client, batch_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.access.entrance import Entrance
    from gateway.channels.authorization import Authorizer
    from gateway.channels.channels import Channels
    from gateway.connections.live import LiveConnection
    from gateway.engine.talk import WebSockets
    from gateway.presence.visibility import Sight
    from gateway.pusher.signature import Signer

FLOOD_PATIENCE: Final = 10
"""A connection is closed that is refused at more than so many times its rate."""


class PusherDoor:
    """Lets Pusher's clients in.

    Args:
        entrance: what lets them in.
        signer: what has the application's key and secret.
        sockets: what their connections go over.
        channels: where they hear of each other.
        authorizer: who may be in public channels.
        sight: who is online, as each of them may know.
    """

    def __init__(
        self,
        entrance: Entrance,
        signer: Signer,
        sockets: WebSockets,
        channels: Channels,
        authorizer: Authorizer,
        sight: Sight,
    ) -> None:
        settings, self._admission = entrance.settings, entrance.admission
        self.connections, self.authenticator = entrance.connections, entrance.authenticator
        self.origins, self.counts = entrance.origins, entrance.counts
        self.timers, self.clock = entrance.timers, entrance.clock
        self.signer = signer
        self.channels = channels
        self.authorizer = authorizer
        self.sight = sight
        self.clients: set[Client] = set()
        """Those that were let in."""
        self.activity_timeout = max(1, math.ceil(settings.ping_interval))
        """Seconds of silence after which a client is asked whether it is there, and asks."""
        self.pong_timeout = settings.ping_timeout
        self.events = rate = settings.rate_limit_events
        per_second, most = rate.count / rate.seconds, max(rate.count, settings.max_channels_per_connection)
        # A page that comes back subscribes to all that it had at once, and to none of it again that is refused.
        self.subscriptions = Rate(most, most / per_second)
        self.patience = Rate(FLOOD_PATIENCE * most, FLOOD_PATIENCE * most / per_second)
        self._sockets = sockets

    @staticmethod
    def loop_time() -> float:
        """Seconds on the loop's clock."""
        return asyncio.get_running_loop().time()

    @property
    def anonymous(self) -> int:
        """How many clients are nobody's now. It looks at all of them."""
        return sum(client.live is None for client in self.clients)

    def active(self, live: LiveConnection) -> Coroutine[Any, Any, object] | None:
        """Record that a user asked for something; see `Connections.active`."""
        return self.connections.active(live.identity, self.clock())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection, from its upgrade on."""
        if not is_ascii(request):
            raise web.HTTPBadRequest(text="Origin and Sec-WebSocket-Key are ASCII")
        try:
            await self._wait_for_turn(request)
        except NodeBusyError as error:
            self.counts.refuse("pusher", error.code)
            raise web.HTTPServiceUnavailable(
                text=str(error), headers={"Retry-After": str(math.ceil(error.retry_after or 0))}
            ) from None
        return await self._sockets.serve(request, Client(self, request, request.match_info["key"]))

    async def _wait_for_turn(self, request: web.Request) -> None:
        try:
            turn = self._admission.enter(lambda: request.transport is None or request.transport.is_closing())
            if turn is not None:
                await turn
        except ServerDrainingError:
            pass  # told by a close code

    def tell_count(self, tenant: str, channel: str, count: int) -> None:
        """Tell this node's clients in a channel how many connections are in it, on all nodes.

        Those of a presence channel know its members instead: by a count they would know who is there unseen.
        """
        if is_presence(channel):
            return
        found = [each.listener for each in self.channels.subscribers(tenant, channel)]
        sinks = [each.sink for each in found if isinstance(each, ChannelListener)]
        if sinks:
            write_all(batch_of(frames.subscription_count(channel, count)), sinks)

    def close_nobodys(self) -> None:
        """Close the clients that are nobody's, so that they go elsewhere."""
        for client in list(self.clients):
            if client.live is None:
                client.close(CloseCode.GOING_AWAY)

    async def close(self, patience: float) -> None:
        """Let go of everything, in so many seconds."""
        for client in list(self.clients):
            client.close(CloseCode.GOING_AWAY)
        await self._sockets.close(patience)

    def cut_off(self) -> None:
        """Wait for nobody any more."""
        self._sockets.cut_off()
