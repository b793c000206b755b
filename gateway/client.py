"""`PresenceClient`: who is online, and word to their connections, for a process that is no gateway."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import structlog

from gateway.delivery.inbox import Inbox
from gateway.delivery.queue import Limits
from gateway.delivery.queue_redis import RedisQueues
from gateway.errors import StoreUnavailableError
from gateway.nodes.cluster import Cluster
from gateway.presence.clock import SteadyClock, follow
from gateway.presence.follower import Follower
from gateway.presence.model import DEFAULT_TENANT, Timing, UserStatus, to_datetime
from gateway.presence.reads import StoreReads, check_ids, to_choice
from gateway.presence.store_redis import RedisStore
from gateway.presence.view import View
from gateway.redis.bus import RedisBus
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect
from gateway.revocation.register_redis import RevocationRegister
from gateway.revocation.revocations import TTL, Revocation
from gateway.revocation.revoker import TOPIC, Nudge, full
from gateway.runtime.tasks import end, run

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from gateway.delivery.notifications import Delivery

_log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between looks whether Redis has lost something."""

GIVEN_BACK = 3.0
"""Seconds that gateways have to give it back, which they do as soon as they find out."""

_NO_TIMING = Timing(away_after=0, ttl=0, grace=0, lease=0)
"""How long things last is the gateways' own: the store has it from them."""


class ClientPresence(StoreReads):
    """`StoreReads`, and what else a process that is no gateway says of presence.

    Args:
        store: where it is committed.
        clock: the time, in Unix milliseconds, which is set by the store's.
        follower: what reads the log into the view.
    """

    def __init__(self, store: RedisStore, clock: SteadyClock, follower: Follower) -> None:
        super().__init__(follower.view, store, clock)
        self._follower = follower

    def look_at(self, follower: Follower) -> None:
        """Go on with another's view."""
        self._view, self._follower = follower.view, follower

    async def set_status(
        self,
        user_id: str,
        status: str,
        text: str | None = None,
        expires_in: float | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> UserStatus:
        """Set a user's status by hand; see `gateway.inprocess.presence.Presence.set_status`.

        Raises:
            InvalidPayloadError: an argument is not acceptable.
            StoreUnavailableError: Redis is away; whether the status was set is not known, and it may be set again.
        """
        check_ids(tenant, user_id)
        to_choice(status, text, expires_in, 0)
        await follow(self._clock, self._store.time)
        choice = to_choice(status, text, expires_in, self._clock())
        commit = await self._store.set_status(tenant, user_id, choice, self._clock())
        await self._follower.reach(commit.position)
        return self._view.own_status(tenant, user_id, self._clock())


class PresenceClient:
    """The reads, `set_status`, `notify` and `disconnect` of a `Gateway`, for a worker, a Django or FastAPI application.

    It opens no port, and keeps nobody online: heartbeats come in by a gateway's HTTP. A status can be set by hand.

    It follows presence as a gateway does: reads are plain calls, answered from its own view without I/O. While Redis
    is away they are answered as it was, and what is to be told to users waits::

        async with PresenceClient("redis://127.0.0.1:6379/0") as client:
            client.presence.status("user-1")
            await client.notify("user-1", "notification", {"message": "hi"})

    Args:
        redis_url: the gateways' ``REDIS_URL``.
        prefix: their ``REDIS_PREFIX``.
        limits: their ``NOTIFICATION_…`` settings, where these are not the default.
        revocation_ttl: their ``REVOCATION_TTL``.

    Raises:
        ValueError: the URL is of no known form.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        prefix: str = "presence",
        limits: Limits | None = None,
        revocation_ttl: float = TTL,
    ) -> None:
        client = connect(redis_url, timeout=TIMEOUT)
        self._store = RedisStore(client, prefix, _NO_TIMING)
        self._bus = RedisBus(client, prefix, f"client-{socket.gethostname()}-{secrets.token_hex(4)}")
        self._clock = SteadyClock()
        self._revocation_ttl = revocation_ttl
        self._register = RevocationRegister(client, prefix)
        limits = limits or Limits()
        self._inbox = Inbox(RedisQueues(client, prefix, limits), limits, self._clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._look_at(View())
        self._presence = ClientPresence(self._store, self._clock, self._follower)

    @property
    def presence(self) -> ClientPresence:
        """Who is online, as plain calls, and `set_status`, which is awaited.

        Raises:
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        return self._presence

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
            run(self._follow(), "PresenceClient follows"),
            run(self._bus.run(), "PresenceClient sends"),
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
            await self._inbox.close()
            await self._register.close()
            await self._bus.close()
            await self._store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def notify(
        self,
        user_id: str,
        event: str,
        data: object,
        *,
        tenant: str = DEFAULT_TENANT,
        wait: float | None = None,
    ) -> Delivery:
        """Send an event to every connection of a user; see `Gateway.notify`.

        Raises:
            InvalidPayloadError: an id, the name, the data or the time is not acceptable.
            StoreUnavailableError: it is to be queued, and Redis is away.
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        return await self._cluster.notify(tenant, user_id, event, data, wait=wait)

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

    async def revoke(
        self,
        *,
        jti: str | None = None,
        user_id: str | None = None,
        all_users: bool = False,
        issued_before: datetime | None = None,
        expires_at: datetime | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> datetime:
        """Refuse tokens from now on, and close the connections that came in with them; see `Gateway.revoke`.

        Raises:
            InvalidPayloadError: it names none, or several, or a time is not acceptable.
            UnavailableError: as many revocations are kept as may be.
            StoreUnavailableError: Redis is away. Whether they were revoked is not known, and they may be again.
            RuntimeError: the client is not started, or is closed.
        """
        self._check()
        await follow(self._clock, self._store.time)
        revocation = Revocation.of(
            tenant=tenant,
            now=self._clock(),
            ttl=self._revocation_ttl,
            jti=jti,
            user_id=user_id,
            all_users=all_users,
            issued_before=issued_before,
            expires_at=expires_at,
        )
        if await self._register.put([revocation], self._clock()):
            raise full()
        self._bus.publish(TOPIC, Nudge())
        return to_datetime(revocation.until)

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
            self._presence.look_at(self._follower)
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
        self._cluster = Cluster(self._bus, self._store, view, self._inbox, None)
