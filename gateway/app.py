"""The wiring: with `parts`, the only file that knows every part."""

from __future__ import annotations

import secrets
import socket
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog
from aiohttp import web

from gateway.access.admission import Admission
from gateway.access.auth import Authenticator
from gateway.access.entrance import Entrance
from gateway.access.origins import Origins
from gateway.channels.inprocess import InProcessChannels
from gateway.channels.message_requests import MessageRequests
from gateway.channels.native import ChannelRequests
from gateway.channels.part import ChannelsPart
from gateway.connections.connections import Connections
from gateway.connections.counts import Counts
from gateway.connections.draining import Departures, Draining
from gateway.connections.privacy import Privacy
from gateway.connections.requests import Requests
from gateway.delivery.inbox import Inbox
from gateway.delivery.queue_memory import MemoryQueues
from gateway.delivery.queue_redis import RedisQueues
from gateway.doors.activity import ActivityMiddleware
from gateway.doors.admin import admin_operations
from gateway.doors.adminui import AdminUIDoor
from gateway.doors.broadcasting import broadcasting_operations
from gateway.doors.channels import channel_operations
from gateway.doors.echo import EchoDoor
from gateway.doors.http import HTTPDoor
from gateway.doors.messages import message_operations
from gateway.doors.metrics import NodeCollector, Sources, metrics_handler
from gateway.doors.openapi import Row, document
from gateway.doors.pages import add_pages, dev_token_handler
from gateway.doors.problems import problems
from gateway.doors.pusher import PusherDoor
from gateway.doors.pusher_api import PusherAPI
from gateway.doors.socketio import NAMESPACE, SocketIODoor
from gateway.doors.webhooks import webhook_operations
from gateway.doors.websocket import WebSocketDoor
from gateway.engine.manager import TOPIC, BusManager, Manager
from gateway.engine.server import Server
from gateway.engine.talk import WebSockets
from gateway.errors import StoreUnavailableError
from gateway.inprocess.hooks import TIMEOUT as HOOK_TIMEOUT
from gateway.inprocess.hooks import Hook, Hooks
from gateway.inprocess.presence import Presence, note_release
from gateway.nodes.cluster import Cluster
from gateway.nodes.duty import LocalLeases
from gateway.operators.nodes import Nodes
from gateway.operators.report import Reporter
from gateway.parts import (
    make_client,
    make_export,
    make_once,
    make_recovery,
    make_store_and_bus,
    make_tallies,
    make_tracing,
    make_visibility,
    make_webhooks,
    signing_secret,
)
from gateway.presence.clock import Clock, SteadyClock
from gateway.presence.fanout import FanOut
from gateway.presence.figures import LogFigures
from gateway.presence.follower import Follower
from gateway.presence.model import DEFAULT_TENANT, to_datetime
from gateway.presence.tracker import Tracker
from gateway.presence.view import View
from gateway.presence.visibility import Sight
from gateway.presence.watching import Watching
from gateway.pusher.codes import Code
from gateway.redis.commands import round_trips_of
from gateway.redis.leases import RedisLeases
from gateway.revocation.register_redis import RevocationRegister
from gateway.revocation.revocations import Revocation
from gateway.revocation.revoker import Revoker
from gateway.runtime.looplag import LoopLag
from gateway.runtime.tasks import end, run
from gateway.runtime.timers import RunningLoop, TimerWheel
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

    from aiohttp.typedefs import Middleware

    from gateway.channels.authorization import ChannelRule
    from gateway.channels.messages import MessageRule
    from gateway.delivery.notifications import Delivery
    from gateway.doors.activity import UserOf
    from gateway.presence.visibility import BatchRule, Rule
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

_HookT = TypeVar("_HookT", bound=Hook)

FLUSH_TIMEOUT = 2.0
"""Seconds that a node which stops takes to tell others what it has still to tell."""


class _Part(Protocol):
    async def run(self) -> None: ...


class Gateway:
    """A presence gateway, to be attached to an aiohttp application.

    Args:
        settings: how it runs.
        clock: the time, in Unix milliseconds, which never goes back; None takes the system's.
        visibility: ``visibility(viewer, user) -> bool``: whether the one may see the other, both by id. Whoever may not
            sees somebody who was never there. It is a plain function that decides by what is at hand, in microseconds;
            one that has a parameter ``tenant`` is told it. Where it raises, nobody is seen. None lets everyone of a
            tenant see everyone.
        visibility_of: ``visibility_of(viewer, users)``: the same for many users at once, in place of the other; returns
            those whom the viewer may see.
        channel_auth: ``channel_auth(identity, channel)``: who may be in a channel; it may be async. True lets in, False
            refuses, None leaves it to ``CHANNEL_AUTH_URL`` or to what is built in; a mapping lets into a presence
            channel, and is what other members are told of them. None is the same as one that always returns None.
        can_message: ``can_message(sender, recipient) -> bool``, both ids: who may write to whom; it may be async, and
            one that has a parameter ``tenant`` is told it. Where it raises, nobody is written to. None lets everyone
            write to whom they may see, and who may see them.

    Raises:
        ValueError: both rules were given.
        TypeError: a rule is an async function.
        ConfigurationError: the key to verify tokens with cannot be read.
    """

    def __init__(  # noqa: PLR0915 - it puts every part together
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        visibility: Rule | None = None,
        visibility_of: BatchRule | None = None,
        channel_auth: ChannelRule | None = None,
        can_message: MessageRule | None = None,
    ) -> None:
        self.settings = settings
        self._clock = clock = SteadyClock() if clock is None else clock
        self._signing_secret = signing_secret(settings)
        self._origins = Origins(settings.cors_allowed_origins, dev=settings.dev)

        node = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._tracing = tracing = make_tracing(settings, node)
        self._hooks = Hooks()
        self._client = client = make_client(settings)
        self._store, self._bus, outbox = make_store_and_bus(settings, node, client, clock)
        self._leases = LocalLeases() if client is None else RedisLeases(client, settings.redis_prefix, node)
        register = None if client is None else RevocationRegister(client, settings.redis_prefix)
        self._revoker = Revoker(register, self._bus, clock)
        self._authenticator = Authenticator(settings, self._signing_secret, self._revoker.check)
        self._view = View()
        loop = RunningLoop()
        self._timers = TimerWheel(loop)
        self._counts = Counts(self._hooks.outcomes)
        self._loop_lag = LoopLag()
        self._admission = Admission(settings.connect_rate, loop)
        rules = make_visibility(settings, clock, visibility, visibility_of)
        self._recovery = make_recovery(settings, node, clock, self._bus, self._store, self._view, client, rules)
        interval = settings.presence_flush_interval
        if self._recovery is None:
            self._fanout = FanOut(loop, interval)
            self._watching = Watching(loop, interval, lambda: self._view.position, visibility=rules)
            listeners = []
        else:
            history = self._recovery.history
            self._fanout = FanOut(loop, interval, lambda: self._view.position, history.pass_over)
            self._watching = Watching(
                loop, interval, lambda: self._view.position, history.pass_over_of, visibility=rules
            )
            listeners = [history.publish]  # what is told is there first for those who are away
        everyone = [self._fanout.publish, self._watching.publish]
        self._privacy = Privacy(self._view, clock, self._bus, rules, everyone)
        self._webhooks = make_webhooks(settings, clock, self._leases, outbox)
        self._channels = ChannelsPart(
            settings,
            node,
            clock,
            loop,
            client,
            self._bus,
            presence=self._view,
            visibility=rules,
            recovery=self._recovery,
            rule=channel_auth,
            message_rule=can_message,
            namespaces=[NAMESPACE],
            listeners=[
                self._hooks.publish_channels,
                *([] if self._webhooks is None else [self._webhooks.publish]),
            ],
            outbox=outbox,
            notes=None if self._webhooks is None else self._webhooks.notes,
            tracing=tracing,
        )
        listeners += [self._privacy.publish, self._hooks.publish, self._channels.channels.publish]
        listeners.append(self._channels.statuses.publish)
        if self._webhooks is not None:
            listeners.append(self._webhooks.publish)
        self._log_figures = LogFigures(clock, settings.timing(), near=self._store.near)
        listeners.append(self._log_figures.publish)
        if tracing is not None:
            listeners.append(tracing.publish)
            self._fanout.on_flush = self._watching.on_flush = tracing.flushed
            tracing.add_to(self._store, self._bus, self._webhooks)
        self._follower = Follower(self._store, self._view, listeners)
        self._once = make_once(settings, self._hooks, self._leases, self._store, self._follower, client)
        tracker = Tracker if tracing is None else tracing.tracker
        self._tracker = tracker(node, self._store, self._follower, clock, away_after=settings.timing().away_after)
        self._connections = Connections(
            settings,
            self._tracker,
            self._view,
            self._fanout,
            self._watching,
            self._timers,
            rules=rules is not None,
        )
        self._privacy.connections = self._connections
        self._tallies = make_tallies(settings, node, clock, client, self._connections)
        limits = settings.queue_limits()
        queues = MemoryQueues(limits) if client is None else RedisQueues(client, settings.redis_prefix, limits)
        self._inbox = Inbox(queues, limits, self._tracker.now, node, self._connections.of_user)
        self._connections.inbox = self._inbox
        self._tracker.found_queued = lambda known: self._inbox.look_soon(known.tenant, known.user_id)
        cluster = Cluster if tracing is None else tracing.cluster
        self._cluster = cluster(self._bus, self._store, self._view, self._inbox, self._connections, self._recovery)

        self._sight = Sight(self._view, rules)
        self._requests = Requests(self._connections, self._tracker, self._view, self._authenticator, rules)
        self._manager = Manager(self._bus) if self._store.near else BusManager(self._bus)
        self._server = Server(settings, self._origins, self._manager, self._timers, self._admission, self._counts)
        door = SocketIODoor(self._connections, self._requests, self._authenticator, self._origins, self._counts)
        self._server.register_namespace(door)
        if self._recovery is not None:
            door.recover_by(self._recovery)
            if isinstance(self._manager, BusManager):
                self._recovery.readers[TOPIC] = self._manager.read

        requests = ChannelRequests(self._channels.channels, self._channels.authorizer)
        requests.add_to(self._requests)
        self._connections.on_end, door.refused, door.rejoin = requests.end, requests.refused, requests.rejoin
        requests.refresh = self._channels.messages.with_marks
        self._channels.channels.of_user, rooms = self._connections.of_user, self._channels.channels.rooms
        rooms.on_change, rooms.settling = door.put, door.settling
        self._connections.settling = door.settling
        MessageRequests(self._channels.messages, self._connections.quotas).add_to(self._requests)
        entrance = Entrance(
            settings,
            self._origins,
            self._admission,
            self._authenticator,
            self._connections,
            self._counts,
            self._timers,
            clock,
        )
        echo = EchoDoor(entrance, self._channels.channels, self._channels.authorizer)
        self._server.register_namespace(echo)

        self._pusher: PusherDoor | None = None
        if (signer := settings.pusher_signer()) is not None:
            sockets = WebSockets(settings, self._timers, flood_code=Code.OVER_CAPACITY)
            self._pusher = PusherDoor(
                entrance, signer, sockets, self._channels.channels, self._channels.authorizer, self._sight
            )
            self._channels.subscriptions.listeners.append(self._pusher.tell_count)
        report = Reporter(self._tracker, self._connections, self._server, settings, self._webhooks)
        departures = Departures(settings.drain_rate, settings.shutdown_timeout / 2)
        self._draining = Draining(self._connections, self._admission, departures, [self._server, self._pusher])
        self._nodes = Nodes(node, self._bus, self._store, self._follower, report, self._draining)
        self._admin_ui = None
        if settings.admin_ui_password is not None:
            self._admin_ui = AdminUIDoor(settings, self._origins, self._nodes, self._counts, clock)
            self._server.register_namespace(self._admin_ui)
        self._connections.check, revoked = self._revoker.check, self._revoker.known.cover
        self._revoker.on_news = partial(self._connections.end_revoked, revoked)
        if self._recovery is not None:
            self._recovery.is_revoked = revoked
        self._export = make_export(settings, self._store, clock, self._leases)
        self._resources: set[web.AbstractResource] = set()
        self.presence = Presence(self._tracker, self._view, self._store, self._cluster, self._privacy)
        """Who is online: reads as plain calls, commands awaited."""
        self.channels = InProcessChannels(self._channels.channels, self._channels.messages, self._view)
        """What is said in channels, and who is there: likewise."""

    def attach(self, app: web.Application) -> None:
        """Add the gateway's routes to an application; the gateway starts and stops with it.

        The routes are those of the contract: ``/socket.io/``, ``/ws``, ``/online-status``, ``/api/users/…``,
        ``/presence/…``, ``/health/…``, ``/metrics``, ``/openapi.json``, ``/asyncapi.json``, ``/docs``, ``/admin``,
        ``/static/`` and ``/test-presence.html``; where there is a Pusher application also ``/app/…``, ``/apps/…``,
        ``/broadcasting/…`` and ``/users/{id}/terminate_connections``.
        """
        settings = self.settings
        theirs = set(app.router.resources())
        websocket = WebSocketDoor(
            settings,
            self._origins,
            self._admission,
            self._counts,
            self._connections,
            self._requests,
            self._authenticator,
        )
        http = HTTPDoor(
            settings,
            self._origins,
            self._connections,
            self._cluster,
            self._tracker,
            self._sight,
            self._store,
            self._authenticator,
            revoker=self._revoker,
        )
        http.warnings = self._nodes.warnings
        http.around = None if self._tracing is None else self._tracing.around
        http.add(webhook_operations(self._webhooks))
        http.add(admin_operations(self._nodes, self._view, self._clock))
        http.add(channel_operations(self.channels))
        messages, quotas = self._channels.messages, self._connections.quotas
        http.add(message_operations(messages, quotas, self._tracker, self.channels.person))
        described: list[Row] = []
        if self._pusher is not None:
            signer = self._pusher.signer
            http.add(broadcasting_operations(signer, self._channels.authorizer))
            api = PusherAPI(settings, signer, self._channels.channels, self._cluster, self._clock)
            api.around = http.around
            app.router.add_routes(api.routes())
            described += api.operations
            app.router.add_get("/app/{key}", self._pusher.handle)
        self._server.attach(app)
        app.router.add_get("/ws", websocket.handle)
        app.router.add_routes(http.routes())
        sources = Sources(
            connections=self._connections,
            admission=self._admission,
            counts=self._counts,
            http=http,
            tracker=self._tracker,
            follower=self._follower,
            log=self._log_figures,
            fanout=self._fanout,
            watching=self._watching,
            channels=self._channels,
            hooks=self._hooks,
            bus=self._bus,
            inbox=self._inbox,
            loop=self._loop_lag,
            redis=None if self._client is None else round_trips_of(self._client),
            tenants=settings.metrics_tenants,
            exporter=None if self._export is None else self._export.exporter,
            webhooks=self._webhooks,
            pusher=self._pusher,
        )
        app.router.add_get("/metrics", metrics_handler(NodeCollector(sources)))
        add_pages(app, document([*http.operations, *described], __version__), admin=settings.admin_page)
        if settings.dev and self._signing_secret is not None:
            app.router.add_get(
                "/dev/token", dev_token_handler(settings, self._signing_secret, self._origins, self._clock)
            )
        self._resources.update(set(app.router.resources()) - theirs)
        app.cleanup_ctx.append(self._run)
        app.on_shutdown.append(self._on_shutdown)

    def runner(self, app: web.Application, **options: Any) -> web.AppRunner:
        """What runs an application that is nothing but this gateway, with aiohttp's `options`."""
        return self._server.runner(app, **options)

    def activity_middleware(self, user_of: UserOf | None = None, *, every: float | None = None) -> Middleware:
        """A middleware for the application: requests of its users are heartbeats, as ``POST /presence/heartbeat``.

        It decides nothing about a request: none is refused, waits or fails by it. It looks when the request has been
        answered; one in which `Presence.set_offline` or `disconnect` was called is no activity of that user.

        Args:
            user_of: called with a request, returns the id of its user, or ``(id, tenant)``; None for nobody. Without
                it the user is that of the token, looked for where the gateway's own calls have it.
            every: seconds in which a user is recorded once by this process; None for a quarter of ``PRESENCE_TTL`` or
                ``PRESENCE_AWAY_AFTER``, whichever is shorter.

        Raises:
            ValueError: `every` is longer than these: users who are active would turn away, or go.
        """
        shorter = min(self.settings.presence_ttl, self.settings.presence_away_after)
        every = shorter / 4 if every is None else every
        if not 0 < every < shorter:
            raise ValueError(f"every is more than 0 and less than {shorter:g}: PRESENCE_TTL, or PRESENCE_AWAY_AFTER")
        return ActivityMiddleware(
            self._tracker, self._authenticator, self._origins, self._resources, user_of=user_of, every=every
        ).middleware()

    def on(
        self, event: str, *, once: bool = False, timeout: float | None = HOOK_TIMEOUT, name: str | None = None
    ) -> Callable[[_HookT], _HookT]:
        """Register a hook: an async function called with each `Transition` that makes `event`, one after the other.

        One that raises is logged, and called with the next. It is called on every node, from when that node starts; or
        `once` in the cluster, by one node at a time, which goes on where the last one had come: none is left
        out, and one whose node crashed in its middle is made again.

        Args:
            event: ``user-online``, ``user-offline`` or ``user-status-changed``; or ``member-added``,
                ``member-removed``, ``channel-occupied`` or ``channel-vacated``, which call it with a `ChannelChange`.
            once: whether one node calls it for all.
            timeout: seconds for one transition, after which it is cancelled; None for as long as it takes.
            name: with `once`, what it is known by on every node, and after a restart; None for its module's and its
                own.

        Raises:
            ValueError: there is no such event, or two hooks have one name.
            TypeError: the hook is no async function.
            RuntimeError: the application has started already.
        """

        def register(hook: _HookT) -> _HookT:
            self._hooks.add(event, hook, once=once, timeout=timeout, name=name)
            return hook

        return register

    async def notify(
        self,
        user_id: str,
        event: str,
        data: object,
        *,
        tenant: str = DEFAULT_TENANT,
        wait: float | None = None,
    ) -> Delivery:
        """Send an event to every connection of a user, or queue it until they come online.

        Args:
            user_id: to whom.
            event: any name but the gateway's own.
            data: anything that JSON can hold; ``MAX_PAYLOAD`` bytes where it has to wait.
            tenant: whose user.
            wait: seconds to wait for one of the user's clients, on any node, to acknowledge it; what none has
                acknowledged by then stays in the queue. None waits for nobody.

        Raises:
            InvalidPayloadError: an id, the name, the data or the time is not acceptable.
            StoreUnavailableError: it is to be queued, and Redis is away: nothing has become of it, or it is queued.
        """
        return await self._cluster.notify(tenant, user_id, event, data, wait=wait)

    async def disconnect(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> int:
        """Close a user's connections, and end what else keeps them online.

        Returns:
            How many connections were closed.
        """
        note_release(tenant, user_id)
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
        """Refuse tokens from now on, on every node, and close the connections that came in with them.

        Name them by one of `jti`, `user_id` and `all_users`.

        Args:
            jti: the one token of this id.
            user_id: all tokens of this user that were issued before `issued_before`.
            all_users: the same of everyone of the tenant.
            issued_before: now, where it is None. ``iat`` has whole seconds mostly: a token of the same second counts
                as before. So does one that does not say when it was issued.
            expires_at: when the last of them expires; None for ``REVOCATION_TTL`` from now.
            tenant: whose tokens.

        Returns:
            Until when the tokens are refused; they should have expired by then.

        Raises:
            InvalidPayloadError: it names none, or several, or a time is not acceptable.
            UnavailableError: as many revocations are kept as may be.
            StoreUnavailableError: Redis is away. This node refuses the tokens, and lets others know when Redis is back.
        """
        revocation = Revocation.of(
            tenant=tenant,
            now=self._clock(),
            ttl=self.settings.revocation_ttl,
            jti=jti,
            user_id=user_id,
            all_users=all_users,
            issued_before=issued_before,
            expires_at=expires_at,
        )
        await self._revoker.revoke(revocation)
        return to_datetime(revocation.until)

    def leave(self) -> None:
        """Let balancers send no new clients here: ``/health/ready`` says 503 from now on, and all else goes on."""
        self._draining.leave()

    async def drain(self) -> None:
        """Let every client go to another node: told, then closed, in batches; new ones are refused from now on.

        It takes as long as ``DRAIN_RATE`` says, and half of ``SHUTDOWN_TIMEOUT`` at the most.

        An application that stops does so by itself. Called before, while it still listens, ``/health/ready`` says 503
        and new clients are refused with ``SERVER_DRAINING``: of Socket.IO by HTTP 503, and these connect again.
        """
        await self._draining.begin()

    def undrain(self) -> bool:
        """Let clients in again after `drain`. A node that stops, or was told to `leave`, does not, and says False."""
        return self._draining.end()

    async def _run(self, _app: web.Application) -> AsyncIterator[None]:
        try:
            await self._bus.start()
            await self._revoker.load()
            await self._tracker.tick()
            await self._follower.start()
            await self._once.begin()
            await self._channels.start()
        except StoreUnavailableError as error:
            _log.warning("starting without the store; clients are let in when it answers", error=str(error))
        tasks = [run(self._follow(), type(self._follower).__name__)]
        tasks += [run(part.run(), type(part).__name__) for part in self._parts()]
        async with AsyncExitStack() as closing:  # each of it, whatever becomes of the others

            def closes(part: Any, *arguments: float) -> None:
                if part is not None:
                    closing.push_async_callback(part.close, *arguments)

            closes(self._tracing, FLUSH_TIMEOUT)
            closing.push_async_callback(self._server.end)  # last: until then clients may read why
            if self._pusher is not None:
                closing.callback(self._pusher.cut_off)
            closes(self._store)
            closes(self._channels)
            closes(self._bus)
            closes(self._once)
            closes(self._inbox)
            closes(self._cluster, FLUSH_TIMEOUT)
            closes(self._nodes)
            closes(self._admin_ui)
            closes(self._webhooks)
            closes(self._leases)
            closes(self._export)
            closes(self._tallies)  # when its `run` has ended, which would tell anew what is counted here
            closing.push_async_callback(end, tasks)
            closes(None if self._recovery is None else self._recovery.directory)
            closing.push_async_callback(self._bus.flush, FLUSH_TIMEOUT)
            closes(self._revoker)
            closing.push_async_callback(self._once.finish, FLUSH_TIMEOUT)
            closing.push_async_callback(self._server.shutdown)
            closes(self._pusher, FLUSH_TIMEOUT)
            yield

    def _parts(self) -> Sequence[_Part]:
        """What runs while the gateway does, besides the follower."""
        own = (self._tracker, self._bus, self._manager, self._channels, self._nodes)
        parts = (*own, self._hooks, self._once, self._inbox, self._revoker, self._loop_lag)
        others = (self._recovery, self._tallies, self._export, self._webhooks)
        return (*parts, *(each for each in others if each is not None))

    async def _follow(self) -> None:
        await self._revoker.loaded()
        await self._bus.started()  # whoever is let in from then on misses nothing of what other nodes say
        await self._follower.run()

    async def _on_shutdown(self, _app: web.Application) -> None:
        self.leave()
        await self.drain()


def create_app(gateway: Gateway) -> web.Application:
    """An application that is nothing but a gateway."""

    async def home(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/test-presence.html")

    app = web.Application(middlewares=[problems])
    app.router.add_get("/", home)
    gateway.attach(app)
    return app
