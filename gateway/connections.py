"""The live connections of this node: opened by a door, heard by the fan-out, ended once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from gateway import wire
from gateway.auth import clean_text
from gateway.buckets import TokenBucket
from gateway.errors import (
    CloseCode,
    ForbiddenError,
    NotReadyError,
    RateLimitedError,
    ServerDrainingError,
    TenantFullError,
    TooManyConnectionsError,
)
from gateway.limits import Rate
from gateway.presence.fanout import Batch, Member
from gateway.presence.model import Beat, Connection, Ending

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from gateway.auth import Identity
    from gateway.presence.fanout import Audience, FanOut
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View
    from gateway.settings import Settings
    from gateway.timers import Timer, TimerWheel

_log = structlog.get_logger(__name__)

EXPIRY_NOTICE = 10.0
"""Seconds between ``token-expired`` and the disconnection."""

DRAIN_NOTICE = 0.25
"""Seconds between ``server-draining`` and the close: in one answer to a poll, a client hears the close first."""

ACTIVITY_RESOLUTION = 1000
"""Milliseconds. A request of a user who was active within them is not recorded as activity again."""

FLOOD_PATIENCE = 10
"""A connection is closed whose requests are refused at more than so many times its rate."""

_CLOSE_CODES = {
    Ending.KICKED: CloseCode.KICKED,
    Ending.TOKEN_EXPIRED: CloseCode.TOKEN_EXPIRED,
    Ending.TOO_SLOW: CloseCode.TOO_SLOW,
    Ending.FLOODED: CloseCode.RATE_LIMITED,
    Ending.DRAINED: CloseCode.GOING_AWAY,
}


class Peer(Member, Protocol):
    """The client at the other end, as its door can reach it."""

    def close(self, code: CloseCode) -> None:
        """Close the connection after what was written, without waiting; a second call changes nothing."""


class Resumption(Protocol):
    """What a client hears first that goes on with its session."""

    missed: Batch | None
    """What it missed, in order; None where that is nothing."""

    def opening(self, event: str, data: object) -> Batch:
        """Encode its first event."""


class LiveConnection:
    """One connection of one user to this node."""

    def __init__(
        self, identity: Identity, connection: Connection, peer: Peer, limiter: TokenBucket, patience: TokenBucket
    ) -> None:
        self.identity = identity
        self.connection = connection
        self.peer = peer
        self.ending: Ending | None = None
        """Why it ended; None while it lives."""
        self.resumed = False
        self.limiter = limiter
        self.patience = patience
        self.flooded = False
        """Whether it is about to be closed for its requests."""
        self.expiry: Timer | None = None
        self.audience: Audience | None = None
        """Whose changes it hears of, from its greeting on."""
        self._early: list[tuple[str, object, Any]] | None = []
        self._begun_at = self.mark

    @property
    def mark(self) -> Any:
        """Up to where its client has been told besides presence; None for one that cannot recover."""
        return getattr(self.peer.codec, "mark", None)

    def emit(self, event: str, data: object, mark: Any = None) -> None:
        """Send one event to this connection, after the greeting.

        Args:
            event: its name.
            data: anything that JSON can hold.
            mark: up to where clients have been told with this event, which whoever misses it hears again; None for an
                event of this connection alone.
        """
        if self._early is None:
            self.peer.write(self._encode(event, data, mark))
        else:
            self._early.append((event, data, mark))

    def begin(self, connected: wire.Connected, resumption: Resumption | None = None) -> None:
        """Tell the client that it is connected, first of all, and what it missed, where it goes on with a session."""
        early, self._early = self._early or [], None
        if resumption is None:
            self.peer.write(self._encode("connected", connected, self._begun_at))
        else:
            self.peer.write(resumption.opening("connected", connected))
            if resumption.missed is not None:
                self.peer.write(resumption.missed)
            early = [each for each in early if each[2] is None]  # the others are among what it missed
        for event, data, mark in early:
            self.peer.write(self._encode(event, data, mark))

    def _encode(self, event: str, data: object, mark: Any) -> Batch:
        codec: Any = self.peer.codec
        if mark is None or self._begun_at is None:
            return codec.encode([(event, data)])
        told = 0 if self.audience is None else self.audience.told(self.peer)
        return codec.encode_at(event, data, told, mark)


class Connections:
    """Opens, keeps and ends connections, by the same rules for every door.

    Args:
        settings: limits and rates.
        tracker: where connections are counted.
        view: what is read before a connection hears of changes.
        fanout: what it hears them from.
        timers: what ends those whose token expires.
    """

    def __init__(self, settings: Settings, tracker: Tracker, view: View, fanout: FanOut, timers: TimerWheel) -> None:
        self.draining = False
        self._settings = settings
        self._tracker = tracker
        self._view = view
        self._fanout = fanout
        self._timers = timers
        self._by_user: dict[tuple[str, str], dict[str, LiveConnection]] = {}
        self._per_tenant: dict[str, int] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(self._per_tenant.values())

    def of_user(self, tenant: str, user_id: str) -> Sequence[LiveConnection]:
        """The user's live connections to this node."""
        return tuple(self._by_user.get((tenant, user_id), {}).values())

    # A connection's life

    async def open(
        self,
        identity: Identity,
        *,
        connection_id: str,
        door: str,
        peer: Peer,
        user_agent: str | None,
        replaces: LiveConnection | None = None,
    ) -> LiveConnection:
        """Let a connection in. The user is online, and this node's view says so, when it returns.

        Args:
            identity: whose it is.
            connection_id: unique over all nodes; the client is told it as its ``socketId``.
            door: by which it comes in.
            peer: how to reach its client.
            user_agent: what its client calls itself.
            replaces: the connection that its client had before and knows to be lost; it ends where it takes the last
                place that there is.

        Raises:
            ServerDrainingError: this node is shutting down.
            NotReadyError: this node is starting.
            TooManyConnectionsError: the user has as many as allowed.
            TenantFullError: the tenant has.
        """
        try:
            self._admit(identity)
        except (TooManyConnectionsError, TenantFullError):
            if replaces is None or replaces.ending is not None:
                raise
            await self.end(replaces, Ending.LOST)
            replaces.peer.close(CloseCode.GOING_AWAY)
            self._admit(identity)
        now = self._tracker.now()
        connection = Connection(
            tenant=identity.tenant,
            user_id=identity.user_id,
            id=connection_id,
            node=self._tracker.node,
            door=door,
            connected_at=now,
            profile=identity.profile,
            user_agent=clean_text(user_agent[:256]) if user_agent else None,
        )
        rate = self._settings.rate_limit_events
        begun = now / 1000
        patience = TokenBucket(Rate(FLOOD_PATIENCE * rate.count, rate.seconds), begun)
        live = LiveConnection(identity, connection, peer, TokenBucket(rate, begun), patience)
        # Counted before the first await, so that a burst cannot pass the limits together.
        self._by_user.setdefault((identity.tenant, identity.user_id), {})[connection.id] = live
        self._per_tenant[identity.tenant] = self._per_tenant.get(identity.tenant, 0) + 1
        try:
            live.resumed = (await self._tracker.connect(connection)).resumed
        except BaseException:
            self._end_soon(live, Ending.LOST)  # whatever the store has of it by now
            raise
        _log.info("connected", user=identity.user_id, tenant=identity.tenant, door=door, connection=connection.id)
        return live

    def greet(self, live: LiveConnection, resumption: Resumption | None = None) -> None:
        """Begin to talk to a connection whose client knows that it is connected, and perhaps goes on with a session."""
        if live.ending is not None:
            return
        live.audience = self._fanout.join(live.identity.tenant, live.peer)
        self._arm_expiry(live)
        live.begin(
            wire.Connected(
                user_id=live.identity.user_id,
                socket_id=live.connection.id,
                timestamp=wire.timestamp(self._tracker.now()),
                reconnect=live.resumed,
            ),
            resumption,
        )

    async def end(self, live: LiveConnection, ending: Ending) -> None:
        """End a connection, once: the first reason given is the one that counts."""
        if live.ending is not None:
            return
        live.ending = ending
        self._remove(live)
        self._fanout.leave(live.identity.tenant, live.peer)
        if live.expiry is not None:
            live.expiry.cancel()
        _log.info(
            "disconnected",
            user=live.identity.user_id,
            tenant=live.identity.tenant,
            door=live.connection.door,
            connection=live.connection.id,
            reason=ending.value,
            duration=round((self._tracker.now() - live.connection.connected_at) / 1000, 3),
        )
        if (code := _CLOSE_CODES.get(ending)) is not None:
            live.peer.close(code)
        await self._tracker.disconnect(live.connection, ending)

    async def end_user(self, tenant: str, user_id: str) -> int:
        """Kick a user: close every connection, and end what else keeps them online.

        Returns:
            How many connections were closed.
        """
        connections = self.of_user(tenant, user_id)
        await asyncio.gather(*(self.end(live, Ending.KICKED) for live in connections))
        await self._tracker.release(tenant, user_id)
        return len(connections)

    def end_user_soon(self, tenant: str, user_id: str, ids: Collection[str], until: int) -> None:
        """Close the connections that another node means: those it names, and those that were opened until then."""
        for live in self.of_user(tenant, user_id):
            if live.connection.id in ids or live.connection.connected_at <= until:
                self._end_soon(live, Ending.KICKED)

    async def release(self, tenant: str, user_id: str) -> None:
        """End what keeps a user online but live connections."""
        await self._tracker.release(tenant, user_id)

    async def drain(self, retry_after: float) -> None:
        """Tell every client that this node shuts down, and close them. New ones are refused from now on."""
        self.draining = True
        leaving = [live for by_id in self._by_user.values() for live in by_id.values()]
        notice = wire.ServerEvent(timestamp=wire.timestamp(self._tracker.now()), retry_after=retry_after)
        for live in leaving:
            # With its mark, so that a client that has long heard nothing says where it is to the next node.
            live.emit("server-draining", notice, live.mark)
        if leaving:
            await asyncio.sleep(DRAIN_NOTICE)
        await asyncio.gather(*(self.end(live, Ending.DRAINED) for live in leaving))

    # What a connection does

    def admit_request(self, live: LiveConnection, now: int) -> None:
        """Count one request, at `now` in milliseconds, against the connection's rate.

        Raises:
            RateLimitedError: it is over its rate. One that goes on all the same is closed.
        """
        if not (wait := live.limiter.take(now / 1000)):
            return
        rate: Rate = self._settings.rate_limit_events
        if live.patience.take(now / 1000) and not live.flooded:
            live.flooded = True
            self._end_soon(live, Ending.FLOODED)
        raise RateLimitedError(f"more than {rate.count} requests in {rate.seconds:g} s on this connection", wait)

    def active(self, identity: Identity, now: int) -> Coroutine[Any, Any, object] | None:
        """Record that a user who is online asked for something, where that is news.

        Returns:
            What is to be awaited before the user is answered; None for nothing.
        """
        status = self._view.status(identity.tenant, identity.user_id)
        if not status.online or (status.active_at is not None and now - status.active_at < ACTIVITY_RESOLUTION):
            return None
        if self._tracker.touch(identity.tenant, identity.user_id, now) is not None:
            return None
        return self._tracker.beat(Beat(tenant=identity.tenant, user_id=identity.user_id, at=now))

    def catch_up(self, live: LiveConnection) -> None:
        """Let a connection hear, before an answer goes to it, whatever the answer already knows."""
        self._fanout.catch_up(live.identity.tenant, live.peer)

    def catch_up_user(self, identity: Identity) -> None:
        """The same for all connections of a user who is answered over HTTP: the page is one, with two ears."""
        for live in self.of_user(identity.tenant, identity.user_id):
            self.catch_up(live)

    def renew_token(self, live: LiveConnection, identity: Identity) -> None:
        """Go on with a newer token of the same user.

        Raises:
            ForbiddenError: it is another user's, or another tenant's.
        """
        if (identity.tenant, identity.user_id) != (live.identity.tenant, live.identity.user_id):
            raise ForbiddenError("the new token must have the same sub and tenant as the connection's")
        live.identity = identity
        self._arm_expiry(live)

    # One step each

    def _admit(self, identity: Identity) -> None:
        if self.draining:
            raise ServerDrainingError("this node is shutting down; connect again")
        if not self._tracker.ready:
            raise NotReadyError("this node is starting, and the store has not answered yet; try again in a moment")
        per_user = self._settings.max_connections_per_user
        if per_user is not None and len(self.of_user(identity.tenant, identity.user_id)) >= per_user:
            raise TooManyConnectionsError(f"a user may have {per_user} connections; close one first")
        per_tenant = self._settings.max_connections_per_tenant
        if per_tenant is not None and self._per_tenant.get(identity.tenant, 0) >= per_tenant:
            raise TenantFullError(f"the tenant may have {per_tenant} connections, and has them; try again later")

    def _remove(self, live: LiveConnection) -> None:
        key = (live.identity.tenant, live.identity.user_id)
        connections = self._by_user[key]
        del connections[live.connection.id]
        if not connections:
            del self._by_user[key]
        self._per_tenant[live.identity.tenant] -= 1
        if not self._per_tenant[live.identity.tenant]:
            del self._per_tenant[live.identity.tenant]

    def _arm_expiry(self, live: LiveConnection) -> None:
        if live.expiry is not None:
            live.expiry.cancel()
            live.expiry = None
        if live.identity.expires_at is not None and live.ending is None:
            left = live.identity.expires_at / 1000 - time.time()  # the clock that let the token in
            live.expiry = self._timers.call_later(max(left, 0), self._expired, live)

    def _expired(self, live: LiveConnection) -> None:
        live.emit("token-expired", wire.ServerEvent(timestamp=wire.timestamp(self._tracker.now())))
        live.expiry = self._timers.call_later(EXPIRY_NOTICE, self._end_soon, live, Ending.TOKEN_EXPIRED)

    def _end_soon(self, live: LiveConnection, ending: Ending) -> None:
        task = asyncio.create_task(self.end(live, ending))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
