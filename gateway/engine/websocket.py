"""aiohttp's WebSocket, for what does not run on the fast path: plain WebSockets, and the stock engine."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import structlog
from aiohttp import WSMessage, WSMsgType, web

from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.engine.outbound import CLOSE_TIMEOUT
from gateway.errors import CloseCode

if TYPE_CHECKING:
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

PACKETS = Rate(1024, 5.0)
"""How many packets of any kind one connection may send, where its rate of requests asks for no more. A control frame is
as good as one: each ping is answered."""


def packet_rate(settings: Settings) -> Rate:
    """How many packets one connection may send, for a flood of requests to be found by these."""
    requests = settings.rate_limit_events
    enough = 11 * requests.count * PACKETS.seconds / requests.seconds
    return Rate(max(PACKETS.count, math.ceil(enough)), PACKETS.seconds)


_CLOSED = WSMessage(WSMsgType.CLOSED, None, None)


class CountedWebSocket(web.WebSocketResponse):
    """A WebSocket that is uncompressed, and whose control frames have a rate.

    The frames are small, and compression takes four times the memory.

    Args:
        max_message: bytes that one message may have.
        heartbeat: seconds between pings; None where what runs over it has its own.
        flood_code: what it is closed with where too many control frames come.
    """

    def __init__(
        self, max_message: int, *, heartbeat: float | None = None, flood_code: int = CloseCode.RATE_LIMITED
    ) -> None:
        super().__init__(
            max_msg_size=max_message, heartbeat=heartbeat, timeout=CLOSE_TIMEOUT, compress=False, autoping=False
        )
        self._flood_code = flood_code
        self._control = TokenBucket(PACKETS, asyncio.get_running_loop().time())

    async def receive(self, timeout: float | None = None) -> WSMessage:  # noqa: ASYNC109 - aiohttp's signature
        """Receive one message, or that the connection is closed: by who sends too many control frames, too."""
        while (message := await super().receive(timeout)).type in {WSMsgType.PING, WSMsgType.PONG}:
            if self._control.take(asyncio.get_running_loop().time()):
                _log.info("too many frames on one connection; closing")
                await self.close(code=self._flood_code, drain=False)
                return _CLOSED
            if message.type is WSMsgType.PING:
                await self.pong(message.data)
        return message
