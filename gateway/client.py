"""`PresenceClient`: who is online, and word to their connections, for a process that is no gateway."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import structlog

from gateway.cluster import Cluster
from gateway.errors import StoreUnavailableError
from gateway.presence.clock import SteadyClock, follow
from gateway.presence.follower import Follower
from gateway.presence.model import DEFAULT_TENANT, Timing
from gateway.presence.store_redis import RedisStore
from gateway.presence.view import View
from gateway.reads import Reads
from gateway.redis.bus import RedisBus
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect
from gateway.tasks import end

if TYPE_CHECKING:
    from types import TracebackType

    from gateway.delivery.notifications import Delivery

_log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between looks whether Redis has lost something."""

GIVEN_BACK = 3.0
"""Seconds that gateways have to give it back, which they do as soon as they find out."""

_NO_TIMING = Timing(away_after=0, ttl=0, grace=0, lease=0)
"""A client commits nothing: how long things last is the gateways' own."""


class _Reads(Reads):
    """Reads whose view can be changed for another."""

    def look_at(self, view: View) -> None:
        self._view = view


class PresenceClient:
    """The reads, `notify` and `disconnect` of a `Gateway`, for a worker, a Django or a FastAPI application.

    It opens no port, and says nothing of users itself: heartbeats come in by a gateway's HTTP.

    It follows presence as a gateway does: reads are plain calls, answered from its own view without I/O. While Redis
    is away they are answered as it was, and what is to be told to users waits::

        async with PresenceClient("redis://127.0.0.1:6379/0") as client:
            client.presence.status("user-1")
            await client.notify("user-1", "notification", {"message": "hi"})

    Args:
        redis_url: the gateways' ``REDIS_URL``.
        prefix: their ``REDIS_PREFIX``.

    Raises:
        ValueError: the URL is of no known form.
    """

    def __init__(self, redis_url: str, *, prefix: str = "presence") -> None:
        client = connect(redis_url, timeout=TIMEOUT)
        self._store = RedisStore(client, prefix, _NO_TIMING)
        self._bus = RedisBus(client, prefix, f"client-{socket.gethostname()}-{secrets.token_hex(4)}")
        self._clock = SteadyClock()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        view = View()
        self._reads = _Reads(view)
        self._look_at(view)

    @property
    def presence(self) -> Reads:
        """Who is online, as plain calls.

        Raises:
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        return self._reads

    async def start(self) -> None:
        """Load who is online, and follow it from then on.

        Raises:
            StoreUnavailableError: Redis cannot be reached; it may be tried again.
            RuntimeError: the client is started, or closed.
        """
        if self._tasks or self._closed:
            raise RuntimeError("a client is started once")
        try:
            await follow(self._clock, self._store.time)
            await self._follower.start()
        except BaseException:
            await self._store.close()  # whoever does not get in need not go out
            raise
        self._tasks = [
            asyncio.create_task(self._follow(), name="PresenceClient follows"),
            asyncio.create_task(self._bus.run(), name="PresenceClient sends"),
        ]

    async def close(self) -> None:
        """Send what waits to be sent, for some seconds at the most, and let go of Redis."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._bus.flush(TIMEOUT)
        finally:
            await end(self._tasks)
            await self._bus.close()
            await self._store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def notify(self, user_id: str, event: str, data: object, *, tenant: str = DEFAULT_TENANT) -> Delivery:
        """Send an event to every connection of a user; see `Gateway.notify`.

        Raises:
            InvalidPayloadError: the name or the data is not acceptable.
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        return self._cluster.notify(tenant, user_id, event, data)

    async def disconnect(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> int:
        """Close a user's connections, and end what else keeps them online; see `Gateway.disconnect`.

        Returns:
            How many connections were closed; 0 while Redis is away, and they are closed when it is back.

        Raises:
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        with suppress(StoreUnavailableError):
            await follow(self._clock, self._store.time)
        return await self._cluster.disconnect(tenant, user_id, self._clock())

    def _check(self) -> None:
        if not self._tasks or self._closed:
            raise RuntimeError("use the client within `async with`, or between `start` and `close`")

    async def _follow(self) -> None:
        """Follow the log; begin anew where Redis lost what nobody gives back."""
        while True:
            following = asyncio.create_task(self._follower.run())
            try:
                view = await self._lost_for_good()
            finally:
                await end([following])
            _log.warning("Redis has lost who was online, and no gateway knows it: going on from what it has")
            self._look_at(view)
            self._follower.loaded = True

    async def _lost_for_good(self) -> View:
        """Wait until Redis has lost something that no gateway gives back, and return a view of what it has."""
        while True:
            await asyncio.sleep(LOOK)
            if not (lost := self._follower.lost):
                continue
            await asyncio.sleep(GIVEN_BACK)
            view = View()
            try:
                view.load(await self._store.snapshot())
            except Exception as error:
                _log.warning("there is no snapshot to be had; trying again", error=str(error))
                continue
            if any(view.status(known.tenant, known.user_id).version < known.version for known in lost):
                return view
            if self._follower.lost is lost:
                self._follower.lost = []

    def _look_at(self, view: View) -> None:
        self._follower = Follower(self._store, view, [])
        self._cluster = Cluster(self._bus, self._store, view, None)
        self._reads.look_at(view)
