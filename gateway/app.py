"""The wiring: the only file that knows every part."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar

import structlog
from aiohttp import web

from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.bus import LocalBus
from gateway.cluster import Cluster
from gateway.connections import Connections
from gateway.counts import Counts
from gateway.doors.http import HTTPDoor, problems
from gateway.doors.metrics import NodeCollector, metrics_handler
from gateway.doors.openapi import document
from gateway.doors.pages import add_pages, dev_token_handler
from gateway.doors.socketio import SocketIODoor
from gateway.doors.websocket import WebSocketDoor
from gateway.engine.manager import TOPIC, BusManager, Manager
from gateway.engine.server import Server
from gateway.errors import StoreUnavailableError
from gateway.hooks import Hook, Hooks
from gateway.inprocess import Presence
from gateway.origins import Origins
from gateway.presence.clock import Clock, SteadyClock
from gateway.presence.fanout import FanOut
from gateway.presence.follower import Follower
from gateway.presence.model import DEFAULT_TENANT
from gateway.presence.store_memory import MemoryStore
from gateway.presence.store_redis import RedisStore
from gateway.presence.tracker import Tracker
from gateway.presence.view import View
from gateway.recovery.offsets import short
from gateway.recovery.recovery import Recovery
from gateway.recovery.sessions import NoRegister, Session
from gateway.redis.bus import RedisBus
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect, describe
from gateway.redis.sessions import RedisRegister
from gateway.requests import Requests
from gateway.tasks import end
from gateway.timers import RunningLoop, TimerWheel
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.bus import Bus
    from gateway.delivery.notifications import Delivery
    from gateway.presence.store import Store
    from gateway.recovery.sessions import Register
    from gateway.redis.connection import Client
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

_HookT = TypeVar("_HookT", bound=Hook)

MIN_SECRET = 32
"""Bytes that a secret for HS256 should have: RFC 7518, section 3.2."""

RETRY_AFTER_DRAIN = 1.0
"""Seconds that clients of a draining node are asked to wait before they connect again."""

FLUSH_TIMEOUT = 2.0
"""Seconds that a node which stops takes to tell others what it has still to tell."""


class Gateway:
    """A presence gateway, to be attached to an aiohttp application.

    Args:
        settings: how it runs.
        clock: the time, in Unix milliseconds, which never goes back; None takes the system's.

    Raises:
        ConfigurationError: the key to verify tokens with cannot be read.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock = SteadyClock() if clock is None else clock
        self._signing_secret = _signing_secret(settings)
        self._authenticator = Authenticator(settings, self._signing_secret)
        self._origins = Origins(settings.cors_allowed_origins, dev=settings.dev)

        node = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._hooks = Hooks()
        client = _client(settings)
        self._store, self._bus = _store_and_bus(settings, node, client)
        self._view = View()
        loop = RunningLoop()
        self._timers = TimerWheel(loop)
        self._counts = Counts()
        self._admission = Admission(settings.connect_rate, loop)
        self._recovery = _recovery(settings, node, clock, self._bus, self._store, self._view, client)
        interval = settings.presence_flush_interval
        if self._recovery is None:
            self._fanout = FanOut(loop, interval)
            listeners = [self._fanout.publish, self._hooks.publish]
        else:
            history = self._recovery.history
            self._fanout = FanOut(loop, interval, lambda: self._view.position, history.pass_over)
            # What is told is there first for those who are away.
            listeners = [history.publish, self._fanout.publish, self._hooks.publish]
        self._follower = Follower(self._store, self._view, listeners)
        self._tracker = Tracker(node, self._store, self._follower, clock, away_after=settings.timing().away_after)
        self._connections = Connections(settings, self._tracker, self._view, self._fanout, self._timers)
        self._cluster = Cluster(self._bus, self._store, self._view, self._connections, self._recovery)

        self._requests = Requests(self._connections, self._tracker, self._view, self._authenticator)
        self._manager = Manager(self._bus) if self._store.near else BusManager(self._bus)
        self._server = Server(settings, self._origins, self._manager, self._timers, self._admission, self._counts)
        door = SocketIODoor(self._connections, self._requests, self._authenticator, self._origins, self._counts)
        self._server.register_namespace(door)
        if self._recovery is not None:
            door.recover_by(self._recovery)
            if isinstance(self._manager, BusManager):
                self._recovery.readers[TOPIC] = self._manager.read

        self.presence = Presence(self._tracker, self._view)
        """Who is online: reads as plain calls, commands awaited."""

    def attach(self, app: web.Application) -> None:
        """Add the gateway's routes to an application; the gateway starts and stops with it.

        The routes are those of the contract: ``/socket.io/``, ``/ws``, ``/online-status``, ``/api/users/…``,
        ``/presence/…``, ``/health/…``, ``/metrics``, ``/openapi.json``, ``/docs``, ``/test-presence.html`` and
        ``/static/``.
        """
        settings = self.settings
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
            self._view,
            self._store,
            self._authenticator,
        )
        self._server.attach(app)
        app.router.add_get("/ws", websocket.handle)
        app.router.add_routes(http.routes())
        collector = NodeCollector(
            self._connections, self._admission, self._counts, self._tracker, self._follower, self._bus
        )
        app.router.add_get("/metrics", metrics_handler(collector))
        add_pages(app, document(http.operations, __version__))
        if settings.dev and self._signing_secret is not None:
            app.router.add_get(
                "/dev/token", dev_token_handler(settings, self._signing_secret, self._origins, self._clock)
            )
        app.cleanup_ctx.append(self._run)
        app.on_shutdown.append(self._on_shutdown)

    def on(self, event: str) -> Callable[[_HookT], _HookT]:
        """Register a hook: an async function called with each `Transition` that makes `event`.

        Args:
            event: ``user-online``, ``user-offline`` or ``user-status-changed``.

        Raises:
            ValueError: there is no such event.
            RuntimeError: the application has started already.
        """

        def register(hook: _HookT) -> _HookT:
            self._hooks.add(event, hook)
            return hook

        return register

    async def notify(self, user_id: str, event: str, data: object, *, tenant: str = DEFAULT_TENANT) -> Delivery:
        """Send an event to every connection of a user.

        Args:
            user_id: to whom.
            event: any name but the gateway's own.
            data: anything that JSON can hold.
            tenant: whose user.

        Raises:
            InvalidPayloadError: the name or the data is not acceptable.
        """
        return self._cluster.notify(tenant, user_id, event, data)

    async def disconnect(self, user_id: str, *, tenant: str = DEFAULT_TENANT) -> int:
        """Close a user's connections, and end what else keeps them online.

        Returns:
            How many connections were closed.
        """
        return await self._cluster.disconnect(tenant, user_id, self._clock())

    async def drain(self) -> None:
        """Let every client go to another node: told, then closed; new ones are refused from now on.

        An application that stops does so by itself. Called before, while it still listens, ``/health/ready`` says
        503 and new clients are refused with ``SERVER_DRAINING``: those of Socket.IO by an HTTP 503, after which they
        connect again by themselves.
        """
        if not self._connections.draining:
            _log.info("draining", connections=len(self._connections))
            self._admission.close()
            self._server.close_nobodys()
            await self._connections.drain(RETRY_AFTER_DRAIN)

    async def _run(self, _app: web.Application) -> AsyncIterator[None]:
        try:
            await self._bus.start()
            await self._tracker.tick()
            await self._follower.start()
        except StoreUnavailableError as error:
            _log.warning("starting without the store; clients are let in when it answers", error=str(error))
        tasks = [asyncio.create_task(self._follow(), name=type(self._follower).__name__)]
        tasks += [
            asyncio.create_task(part.run(), name=type(part).__name__)
            for part in (self._tracker, self._bus, self._manager, self._hooks, self._recovery)
            if part is not None
        ]
        async with AsyncExitStack() as closing:  # each of it, whatever becomes of the others
            closing.push_async_callback(self._store.close)
            closing.push_async_callback(self._bus.close)
            closing.push_async_callback(end, tasks)
            if self._recovery is not None:
                closing.push_async_callback(self._recovery.register.close)
            closing.push_async_callback(self._bus.flush, FLUSH_TIMEOUT)
            closing.push_async_callback(self._server.shutdown)
            yield

    async def _follow(self) -> None:
        await self._bus.started()  # whoever is let in from then on misses nothing of what other nodes say
        await self._follower.run()

    async def _on_shutdown(self, _app: web.Application) -> None:
        await self.drain()


def _client(settings: Settings) -> Client | None:
    """How to reach Redis; None without it."""
    return None if settings.redis is None else connect(settings.redis, timeout=TIMEOUT)


def _recovery(
    settings: Settings, node: str, clock: Clock, bus: Bus, store: Store, view: View, client: Client | None
) -> Recovery | None:
    """What lets clients go on where they lost their connection; None where it is switched off."""
    if not settings.recovery_window:
        return None
    found = settings.ping_interval + settings.ping_timeout  # until a connection that is silent counts as lost
    register: Register = NoRegister()
    if client is not None:
        prefix, window = settings.redis_prefix, settings.recovery_window
        register = RedisRegister(client, prefix, short(node), window, Session)
    return Recovery(
        node,
        window=round(settings.recovery_window * 1000),
        horizon=round((settings.recovery_window + found) * 1000),
        # What a client is told at once must not make it count as too slow.
        buffer=min(settings.recovery_buffer, settings.max_send_buffer // 2),
        memory=settings.recovery_memory,
        clock=clock,
        bus=bus,
        store=store,
        view=view,
        register=register,
    )


def _store_and_bus(settings: Settings, node: str, client: Client | None) -> tuple[Store, Bus]:
    """Where nodes meet: in Redis, or nowhere, as there is one."""
    url = settings.redis
    if url is None or client is None:
        _log.info("presence is kept in this process; REDIS_URL would share it among several")
        return MemoryStore(settings.timing()), LocalBus()
    _log.info("presence is shared in Redis", redis=describe(url), prefix=settings.redis_prefix, node=node)
    store = RedisStore(client, settings.redis_prefix, settings.timing())
    return store, RedisBus(client, settings.redis_prefix, node)


def _signing_secret(settings: Settings) -> str | None:
    """The secret that development tokens are signed with; None where tokens are another's to sign."""
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value()
        if len(secret.encode()) < MIN_SECRET:
            _log.warning("JWT_SECRET can be guessed: it has fewer than 32 bytes; openssl rand -hex 32 makes one")
        return secret
    if settings.jwt_public_key is not None or settings.jwt_jwks_url is not None:
        return None
    return secrets.token_urlsafe(32)


def create_app(gateway: Gateway) -> web.Application:
    """An application that is nothing but a gateway."""

    async def home(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/test-presence.html")

    app = web.Application(middlewares=[problems])
    app.router.add_get("/", home)
    gateway.attach(app)
    return app
