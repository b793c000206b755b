"""The live connections of this node: opened by a door, heard by the fan-out, ended once."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway import wire
from gateway.access.auth import clean_text
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.access.quotas import Quotas
from gateway.connections.counts import DOORS
from gateway.connections.live import LiveConnection, Peer, Resumption
from gateway.errors import (
    CloseCode,
    ForbiddenError,
    NotReadyError,
    RateLimitedError,
    ServerDrainingError,
    TenantFullError,
    TooManyConnectionsError,
)
from gateway.presence.model import Beat, Connection, Ending
from gateway.presence.watching import WatchList

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence

    from gateway.access.auth import Identity
    from gateway.connections.draining import Departures
    from gateway.delivery.inbox import Inbox
    from gateway.presence.fanout import FanOut
    from gateway.presence.tracker import Tracker
    from gateway.presence.view import View
    from gateway.presence.watching import Watcher, Watching
    from gateway.revocation.revocations import Revocation
    from gateway.runtime.timers import TimerWheel
    from gateway.settings import Settings

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
    Ending.REVOKED: CloseCode.TOKEN_REFUSED,
    Ending.TOO_SLOW: CloseCode.TOO_SLOW,
    Ending.FLOODED: CloseCode.RATE_LIMITED,
    Ending.DRAINED: CloseCode.GOING_AWAY,
}


class Connections:
    """Opens, keeps and ends connections, by the same rules for every door.

    Args:
        settings: limits and rates.
        tracker: where connections are counted.
        view: what is read before a connection hears of changes.
        fanout: what it hears them from.
        watching: what it hears them from that hears only of those it watches.
        timers: what ends those whose token expires.
        rules: whether there is a rule about who may see whom.
    """

    def __init__(
        self,
        settings: Settings,
        tracker: Tracker,
        view: View,
        fanout: FanOut,
        watching: Watching,
        timers: TimerWheel,
        *,
        rules: bool = False,
    ) -> None:
        self.draining = False
        """Whether new ones are refused, and all are asked to go."""
        self.leaving = False
        """Whether balancers are to send nobody here any more; whoever comes is let in all the same."""
        self._drains = 0
        """How often it has begun or ceased to drain: a batch of one that has ceased stays."""
        self.inbox: Inbox | None = None
        """What waits for users who come online; None where nothing does."""
        self.on_watch: Callable[[str, WatchList], None] | None = None
        """Called with a connection's id when its watch list has changed; None for nobody to be told."""
        self.on_token: Callable[[str], None] | None = None
        """Called with a connection's id when it goes on with a newer token; None for nobody to be told."""
        self.settling: Callable[[str], Awaitable[None] | None] = lambda _connection_id: None
        """Called with such an id; what it returns is done when the client has its watch list wherever it goes on."""
        self.on_end: Callable[[LiveConnection, Ending], Coroutine[Any, Any, None]] | None = None
        """Called with a connection that is in channels, when it ends; None for nobody to be told."""
        self.keeps_tokens = settings.channel_auth_url is not None
        """Whether doors keep the token that a connection came in with, in `LiveConnection.token`."""
        self.max_watched: int = settings.max_watched_users
        self.quotas = Quotas(settings)
        """What its user, its address and its tenant may take."""
        self.check: Callable[[Identity], None] | None = None
        """Called with whom a connection is of that had to wait to be let in; raises where its token is revoked."""
        self._settings = settings
        self._tracker = tracker
        self._touches = tracker.touches
        self._view = view
        self._fanout = fanout
        self._watching = watching
        self._hears_everyone = settings.presence_audience == "everyone"
        self._timers = timers
        self._when_expired = self._expired  # one for all connections
        self._rules = rules
        self._by_user: dict[tuple[str, str], dict[str, LiveConnection]] = {}
        self._per_tenant: dict[str, int] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self.opened: dict[str, int] = dict.fromkeys(DOORS, 0)
        """How many connections were opened, by door."""
        self.ended: dict[str, dict[Ending, int]] = {door: {} for door in DOORS}
        """How many of them have ended, by door and how."""

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
        address: str | None = None,
        meta_json: bytes | None = None,
        replaces: LiveConnection | None = None,
    ) -> LiveConnection:
        """Let a connection in. The user is online, and this node's view says so, when it returns.

        Args:
            identity: whose it is.
            connection_id: unique over all nodes; the client is told it as its ``socketId``.
            door: by which it comes in.
            peer: how to reach its client.
            user_agent: what its client calls itself.
            address: from where it comes, as `Quotas.address_of` has it.
            meta_json: what its client says of itself, as `requests.encode_meta` has it; None for nothing.
            replaces: the connection that its client had before and knows to be lost; it ends where it takes the last
                place that there is.

        Raises:
            ServerDrainingError: this node is shutting down.
            NotReadyError: this node is starting.
            TooManyConnectionsError: the user has as many as allowed, or the address has.
            TenantFullError: the tenant has.
        """
        try:
            self._admit(identity, address)
        except (TooManyConnectionsError, TenantFullError):
            if replaces is None or replaces.ending is not None:
                raise
            await self.end(replaces, Ending.LOST)
            replaces.peer.close(CloseCode.GOING_AWAY)
            if self.check is not None:
                self.check(identity)
            self._admit(identity, address)
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
            meta_json=meta_json,
        )
        rate = self._settings.rate_limit_events
        begun = now / 1000
        live = LiveConnection(identity, connection, peer, TokenBucket(rate, begun))
        live.address, live.shares = address, self.quotas.shares(identity, address, begun)
        self.quotas.opened(address)
        # Counted before the first await, so that a burst cannot pass the limits together.
        tenant, user_id = identity.tenant, identity.user_id
        self._by_user.setdefault((tenant, user_id), {})[connection.id] = live
        self._per_tenant[tenant] = self._per_tenant.get(tenant, 0) + 1
        self.opened[door] = self.opened.get(door, 0) + 1
        try:
            commit = await self._tracker.connect(connection)
            live.resumed = commit.resumed
            inbox = self.inbox
            if inbox is not None and commit.queued is not False and inbox.waits(tenant, user_id, queued=commit.queued):
                await inbox.hand_to(tenant, user_id, live)
        except BaseException:
            self._end_soon(live, Ending.LOST)  # whatever the store has of it by now
            raise
        _log.info("connected", user=identity.user_id, tenant=identity.tenant, door=door, connection=connection.id)
        return live

    def greet(self, live: LiveConnection, resumption: Resumption | None = None, *, hears: bool = True) -> None:
        """Begin to talk to a connection whose client knows that it is connected, and perhaps goes on with a session.

        Args:
            live: the connection.
            resumption: what it goes on with; None for one that begins anew.
            hears: whether its client hears of who is online.
        """
        if live.ending is not None:
            return
        if hears:
            self._hear(live, None if resumption is None else resumption.watched)
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

    def _hear(self, live: LiveConnection, watched: WatchList | None) -> None:
        """Let a connection hear of who is online: of everyone, or of those it watches."""
        identity = live.identity
        if watched is None and not self._hears_everyone:
            watched = WatchList()
        if watched is None and not self._rules:
            live.audience = self._fanout.join(identity.tenant, live.peer)
        else:
            live.watcher = self._watching.join(identity.tenant, live.peer, watched, identity.user_id)
            self.quotas.count_watched(identity, live.address, len(live.watcher.watched.users))

    async def end(self, live: LiveConnection, ending: Ending) -> None:
        """End a connection, once: the first reason given is the one that counts."""
        if live.ending is not None:
            return
        live.ending = ending
        self._remove(live)
        ended = self.ended.setdefault(live.connection.door, {})
        ended[ending] = ended.get(ending, 0) + 1
        self._hear_no_more(live)
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
        leaving = None if live.subscriber is None or self.on_end is None else self.on_end(live, ending)
        if leaving is None:
            await self._tracker.disconnect(live.connection, ending)
        else:
            await asyncio.gather(self._tracker.disconnect(live.connection, ending), leaving)

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

    def end_revoked(self, covers: Callable[[Identity], bool], news: Sequence[Revocation]) -> None:
        """Close the connections whose token is revoked: one look at all, or at one user's.

        Args:
            covers: whether one is.
            news: what has just been revoked.
        """
        one = news[0] if len(news) == 1 else None
        if one is None or one.user_id is None:
            users = list(self._by_user.values())
        else:
            users = [self._by_user.get((one.tenant, one.user_id), {})]
        for by_id in users:
            for live in by_id.values():
                if live.ending is None and covers(live.identity):
                    self._end_soon(live, Ending.REVOKED)

    async def release(self, tenant: str, user_id: str) -> None:
        """End what keeps a user online but live connections."""
        await self._tracker.release(tenant, user_id)

    async def drain(self, departures: Departures) -> None:
        """Tell every client that this node shuts down, and close it, batch by batch. New ones are refused at once."""
        self.leaving = self.draining = True
        self._drains += 1
        everyone = [live for by_id in self._by_user.values() for live in by_id.values()]
        random.shuffle(everyone)
        clients = iter(everyone)
        await asyncio.gather(
            *(
                self._drain(list(islice(clients, batch.size)), batch.at, departures)
                for batch in departures.batches(len(everyone))
            )
        )

    def stay(self) -> None:
        """Drain no more: new clients are let in, and those stay who have not been told to go."""
        self.leaving = self.draining = False
        self._drains += 1

    # What a connection does

    def admit_request(self, live: LiveConnection, now: int) -> None:
        """Count one request, at `now` in milliseconds, against the connection's rate.

        Raises:
            RateLimitedError: it is over its rate, or one that it shares. One that goes on all the same over its own is
                closed.
        """
        if not (wait := live.limiter.take(now / 1000)):
            if live.shares is not None:
                self.quotas.take(live.shares, now / 1000)
            return
        self.quotas.refuse("events_per_connection")
        rate: Rate = self._settings.rate_limit_events
        if live.patience is None:
            live.patience = TokenBucket(Rate(FLOOD_PATIENCE * rate.count, rate.seconds), now / 1000)
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
        if not status.online:
            hidden = self._view.hidden.get((identity.tenant, identity.user_id))
            if hidden is None or not hidden.online:
                return None
            status = hidden
        if status.active_at is not None and now - status.active_at < ACTIVITY_RESOLUTION:
            return None
        if self._touches.touch(identity.tenant, identity.user_id, now) is not None:
            return None
        return self._tracker.beat(Beat(tenant=identity.tenant, user_id=identity.user_id, at=now))

    async def describe(self, live: LiveConnection, meta_json: bytes) -> None:
        """Keep what a client says of itself now, where that is something else."""
        known = live.connection
        if known.meta_json != meta_json and live.ending is None:
            live.connection = msgspec.structs.replace(known, meta_json=meta_json)
            await self._tracker.describe(live.connection)

    def with_activity(self, connections: Sequence[Connection]) -> list[Connection]:
        """Add to connections of one user when their clients last asked for something, where they are this node's."""
        if not connections:
            return []
        live = self._by_user.get((connections[0].tenant, connections[0].user_id), {})
        return [
            msgspec.structs.replace(known, active_at=round(live[known.id].limiter.at * 1000))
            if known.id in live
            else known
            for known in connections
        ]

    def catch_up(self, live: LiveConnection) -> None:
        """Let a connection hear, before an answer goes to it, whatever the answer already knows."""
        if live.watcher is None:
            self._fanout.catch_up(live.identity.tenant, live.peer)
        else:
            live.watcher.catch_up()

    def catch_up_user(self, identity: Identity) -> None:
        """The same for all connections of a user who is answered over HTTP: the page is one, with two ears."""
        for live in self.of_user(identity.tenant, identity.user_id):
            self.catch_up(live)

    def acknowledge(self, live: LiveConnection, item_id: str) -> None:
        """A client has acknowledged what waited for its user; what it was not sent changes nothing."""
        if self.inbox is not None and live.was_handed(item_id):
            self.inbox.acknowledge(live.identity.tenant, live.identity.user_id, item_id)

    def watch(self, live: LiveConnection, user_ids: Sequence[str]) -> None:
        """Let a connection hear of some users, and of nobody but those it watches. What is pending is told before.

        Raises:
            InvalidPayloadError: it would watch more than it may, or its user would; it goes on as it was.
        """
        watched = {} if live.watcher is None else live.watcher.watched.users
        more = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in watched]
        self.quotas.admit_watched(live.identity, live.address, len(watched), len(more))
        if live.ending is not None:  # while what was asked waited for the store
            return
        watcher = live.watcher
        if watcher is None or watcher.everyone:
            identity = live.identity
            self.catch_up(live)
            self._hear_no_more(live)
            live.audience = None
            narrowed = WatchList(narrowed=self._view.position)
            watcher = live.watcher = self._watching.join(identity.tenant, live.peer, narrowed, identity.user_id)
        watcher.watch(more)
        self.quotas.count_watched(live.identity, live.address, len(more))
        self._tell_watched(live, watcher)

    def unwatch(self, live: LiveConnection, user_ids: Sequence[str] | None) -> int:
        """Let a connection hear no more of some users, or of all that it watches; one that never watched hears on.

        Returns:
            How many are no longer watched.
        """
        watcher = live.watcher
        if watcher is None or watcher.everyone:
            return 0
        removed = watcher.unwatch(user_ids)
        if removed:
            self.quotas.count_watched(live.identity, live.address, -removed)
            self._tell_watched(live, watcher)
        return removed

    def renew_token(self, live: LiveConnection, identity: Identity) -> None:
        """Go on with a newer token of the same user.

        Raises:
            ForbiddenError: it is another user's, or another tenant's.
        """
        if (identity.tenant, identity.user_id) != (live.identity.tenant, live.identity.user_id):
            raise ForbiddenError("the new token must have the same sub and tenant as the connection's")
        live.identity = identity
        self._arm_expiry(live)
        if self.on_token is not None and live.ending is None:
            self.on_token(live.connection.id)

    # One step each

    async def _drain(self, leaving: Sequence[LiveConnection], at: float, departures: Departures) -> None:
        """Tell some clients, and close them; those who have left by themselves meanwhile are not spoken to."""
        drain = self._drains
        if at:
            await asyncio.sleep(at)
        if drain != self._drains:
            return
        leaving = [live for live in leaving if live.ending is None]
        timestamp = wire.timestamp(self._tracker.now())
        for live in leaving:
            # With its mark, so that a client that has long heard nothing says where it is to the next node.
            notice = wire.ServerEvent(timestamp=timestamp, retry_after=departures.retry_after())
            live.emit("server-draining", notice, live.mark)
        if leaving:
            await asyncio.sleep(DRAIN_NOTICE)
        await asyncio.gather(*(self.end(live, Ending.DRAINED) for live in leaving))

    def _hear_no_more(self, live: LiveConnection) -> None:
        if live.watcher is None:
            self._fanout.leave(live.identity.tenant, live.peer)
        else:
            live.watcher.leave()
            self.quotas.count_watched(live.identity, live.address, -len(live.watcher.watched.users))

    def _tell_watched(self, live: LiveConnection, watcher: Watcher) -> None:
        if self.on_watch is not None and live.ending is None:
            self.on_watch(live.connection.id, watcher.watched)

    def watch_sizes(self) -> tuple[int, int, int]:
        """How many users are watched now, by how many connections, and how many names are on these lists together."""
        return self._watching.sizes()

    def users(self) -> int:
        """How many users have connections to this node."""
        return len(self._by_user)

    def per_tenant(self) -> dict[str, int]:
        """How many connections each tenant has to this node."""
        return self._per_tenant

    def _admit(self, identity: Identity, address: str | None) -> None:
        if self.draining:
            raise ServerDrainingError("this node is shutting down; connect again")
        if not self._tracker.ready:
            raise NotReadyError("this node is starting, and the store has not answered yet; try again in a moment")
        of_user = self._by_user.get((identity.tenant, identity.user_id))
        of_tenant = self._per_tenant.get(identity.tenant, 0)
        self.quotas.admit(identity, address, 0 if of_user is None else len(of_user), of_tenant)

    def _remove(self, live: LiveConnection) -> None:
        key = (live.identity.tenant, live.identity.user_id)
        connections = self._by_user[key]
        del connections[live.connection.id]
        self.quotas.closed(live.address)
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
            live.expiry = self._timers.call_later(max(left, 0), self._when_expired, live)

    def _expired(self, live: LiveConnection) -> None:
        live.emit("token-expired", wire.ServerEvent(timestamp=wire.timestamp(self._tracker.now())))
        live.expiry = self._timers.call_later(EXPIRY_NOTICE, self._end_soon, live, Ending.TOKEN_EXPIRED)

    def _end_soon(self, live: LiveConnection, ending: Ending) -> None:
        task = asyncio.create_task(self.end(live, ending))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
