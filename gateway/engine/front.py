"""What stands before aiohttp where the gateway listens by itself: it opens Socket.IO's WebSockets at once.

Most connections begin with one request, to open Socket.IO's WebSocket. For aiohttp that is a parser, a task, a route
and a response, an eighth of what the connection costs. So the first bytes are looked at here: such a request that has
come whole, and of which there are no two opinions, goes straight to the engine. Everything else goes to aiohttp as it
came, with its connection: other requests, those in parts, with a body, or with anything that is odd or to be refused.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from gateway.engine.takeover import Handshake
from gateway.runtime.timers import RunningLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.runtime.timers import Scheduler

MAX_HEAD = 8190
"""Bytes: what aiohttp takes as one line. For longer heads it has its limits, and the words."""

MAX_FIELDS = 64
"""How many headers a head may have here; aiohttp takes more."""

_HEAD = re.compile(
    rb"GET (/socket\.io/\?[!$-~]*+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~]*+(?<![\t ])\r\n)++)\r\n"
)
"""A request for Socket.IO, and its headers: RFC 9112, without what it lets servers take besides. No byte of it is tried
twice, however it ends."""

_FIELD = re.compile(r"([^:\r]++):[\t ]*+([^\r]*+)\r\n")

_CONNECTION = frozenset({"upgrade", "keep-alive, upgrade"})
"""As browsers, proxies and libraries write it."""

_OF_BODIES = frozenset({"content-length", "transfer-encoding", "expect"})

_USUAL = URL.build(path="/socket.io/", query_string="EIO=4&transport=websocket", encoded=True)
"""What nearly all ask for; made once, as is what it says."""


class Runner(web.AppRunner):
    """aiohttp's runner of an application that is nothing but a gateway, with a front.

    Args:
        app: the application.
        open_at_once: opens the connection of a request, or says that it is not to be opened like that.
        keepalive_timeout: seconds after which a connection is closed that sends nothing; 0 for never.
        options: aiohttp's.
    """

    def __init__(
        self,
        app: web.Application,
        open_at_once: Callable[[Handshake], bool],
        *,
        keepalive_timeout: float,
        **options: Any,
    ) -> None:
        super().__init__(app, keepalive_timeout=keepalive_timeout, **options)
        self._open, self._timeout = open_at_once, keepalive_timeout
        self._front: Front | None = None

    async def setup(self) -> None:
        """Start the application; see the base."""
        await super().setup()
        server = super().server
        assert server is not None  # noqa: S101 - it is set up
        self._front = Front(self._open, server, RunningLoop(), self._timeout)

    @property
    def server(self) -> Any:
        """What a site asks for a protocol for each connection; None before it is set up."""
        return self._front

    async def shutdown(self) -> None:
        """Close the connections that have sent nothing, and then the application; see the base."""
        if self._front is not None:
            self._front.close()
        await super().shutdown()


class Front:
    """Makes the first protocol of each connection.

    Args:
        open_at_once: see `Runner`.
        others: makes aiohttp's protocol for whatever is not opened so.
        scheduler: the event loop.
        timeout: seconds after which a connection is closed that sends nothing; 0 for never.
    """

    def __init__(
        self,
        open_at_once: Callable[[Handshake], bool],
        others: Callable[[], asyncio.Protocol],
        scheduler: Scheduler,
        timeout: float,
    ) -> None:
        self.waiting: dict[Arrival, float] = {}
        """Connections that have sent nothing, and since when, by the scheduler's clock; the oldest is first."""
        self._open = open_at_once
        self._others = others
        self._scheduler = scheduler
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None
        """When to look at the oldest; None while none has come since the last look."""

    def __call__(self) -> Arrival:
        """Make a new connection's protocol."""
        return Arrival(self)

    def close(self) -> None:
        """Close the connections that have sent nothing."""
        if self._timer is not None:
            self._timer.cancel()
        for arrival in self.waiting:
            arrival.transport.close()  # which is told to it later

    def arrive(self, arrival: Arrival) -> None:
        """Take note of a new connection."""
        self.waiting[arrival] = now = self._scheduler.time()
        if self._timer is None and self._timeout > 0:
            self._timer = self._scheduler.call_at(now + self._timeout, self._close_old)

    def begin(self, arrival: Arrival, data: bytes) -> None:
        """Take a connection's first bytes."""
        self.waiting.pop(arrival, None)
        handshake = read(arrival, data)
        if handshake is None or not self._open(handshake):
            handler = self._others()
            arrival.transport.set_protocol(handler)
            handler.connection_made(arrival.transport)
            handler.data_received(data)

    def _close_old(self) -> None:
        self._timer = None
        now = self._scheduler.time()
        for arrival, since in self.waiting.items():
            if since + self._timeout > now:
                self._timer = self._scheduler.call_at(since + self._timeout, self._close_old)
                break
            arrival.transport.close()


class _Wire:
    """What a request asks of its connection."""

    __slots__ = ()

    transport: asyncio.Transport
    peername = sockname = None
    """aiohttp's requests ask for them; `Handshake` has another way to the first, and a Host instead of the other."""

    @property
    def ssl_context(self) -> Any:
        """Of a connection that is encrypted; None for another."""
        return self.transport.get_extra_info("sslcontext")


class Arrival(_Wire, asyncio.Protocol):
    """A connection until its first bytes.

    Args:
        front: whose.
    """

    __slots__ = ("_front", "transport")

    def __init__(self, front: Front) -> None:
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for what it sends; see the base."""
        self.transport = cast("asyncio.Transport", transport)
        self._front.arrive(self)

    def data_received(self, data: bytes) -> None:
        """Hand the connection on; see the base."""
        self._front.begin(self, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Wait no more; see the base."""
        self._front.waiting.pop(self, None)


def read(arrival: Arrival | Kept, data: bytes) -> Handshake | None:
    """Read a request, where it is Socket.IO's for a WebSocket, whole and plain; None for any other."""
    found = _HEAD.match(data, 0, MAX_HEAD)
    if found is None:
        return None
    fields = _FIELD.findall(found[2].decode())
    names = {name.lower() for name, _ in fields}
    if not len(names) == len(fields) <= MAX_FIELDS or "host" not in names or not names.isdisjoint(_OF_BODIES):
        return None
    headers = CIMultiDict(fields)
    if headers.get("Connection", "").lower() not in _CONNECTION:
        return None
    target = found[1].decode()
    path, _, query = target.partition("?")
    url = _USUAL if query == _USUAL.raw_query_string else URL.build(path=path, query_string=query, encoded=True)
    return Handshake(arrival, target, url, headers, data[: found.end()], data[found.end() :])


class Kept(_Wire):
    """What is kept of a handshake whose connection has joined: it is read again for the few who ask for it then.

    As a request it is five times as much, in some forty objects.

    Args:
        handshake: the request.
    """

    __slots__ = ("_head", "transport")

    def __init__(self, handshake: Handshake) -> None:
        self._head, self.transport = handshake.head, handshake.wire

    def request(self) -> Handshake:
        """Read it again."""
        handshake = read(self, self._head)
        assert handshake is not None  # noqa: S101 - it was one
        handshake._protocol = None  # type: ignore[assignment]  # noqa: SLF001 - as it was when it was kept
        return handshake
