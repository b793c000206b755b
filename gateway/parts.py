"""What a gateway is put together from, each part as the settings have it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import structlog

from gateway.errors import ConfigurationError
from gateway.export.part import Export
from gateway.inprocess.once import LocalPositions, OnceHooks
from gateway.nodes.bus import LocalBus
from gateway.nodes.duty import Duty
from gateway.presence.store_memory import MemoryStore
from gateway.presence.store_redis import RedisStore
from gateway.presence.visibility import Visibility
from gateway.recovery.offsets import short
from gateway.recovery.recovery import Recovery
from gateway.recovery.sessions import NoDirectory, Session
from gateway.redis.bus import RedisBus
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect, describe
from gateway.redis.directory import RedisDirectory
from gateway.redis.positions import RedisPositions
from gateway.redis.tallies import Tallies
from gateway.webhooks.outbox_memory import MemoryOutbox
from gateway.webhooks.outbox_redis import RedisOutbox
from gateway.webhooks.sender import Webhooks

if TYPE_CHECKING:
    from gateway.connections.connections import Connections
    from gateway.inprocess.hooks import Hooks
    from gateway.nodes.bus import Bus
    from gateway.nodes.duty import Leases
    from gateway.presence.clock import Clock
    from gateway.presence.follower import Follower
    from gateway.presence.store import Store
    from gateway.presence.view import View
    from gateway.presence.visibility import BatchRule, Rule
    from gateway.recovery.sessions import Directory
    from gateway.redis.connection import Client
    from gateway.settings import Settings
    from gateway.tracing import Tracing

_log = structlog.get_logger(__name__)

MIN_SECRET = 32
"""Bytes that a secret for HS256 should have: RFC 7518, section 3.2."""


def make_tracing(settings: Settings, node: str) -> Tracing | None:
    """What traces commands; None where nothing does, and OpenTelemetry is not even imported.

    Raises:
        ConfigurationError: it is not installed.
    """
    if not settings.tracing:
        return None
    try:
        from gateway.tracing import Tracing  # noqa: PLC0415 - the extra's
    except ImportError:
        raise ConfigurationError(
            "TRACING needs OpenTelemetry, which is not installed: pip install 'presence-gateway[otel]'"
        ) from None
    return Tracing(node)


def make_client(settings: Settings) -> Client | None:
    """How to reach Redis; None without it."""
    return None if settings.redis is None else connect(settings.redis, timeout=TIMEOUT)


def make_visibility(settings: Settings, clock: Clock, rule: Rule | None, batch: BatchRule | None) -> Visibility | None:
    """Who may see whom; None where everyone may see everyone."""
    if rule is None and batch is None:
        return None
    ttl, limit = round(settings.visibility_ttl * 1000), settings.visibility_cache
    return Visibility(rule, batch, ttl=ttl, limit=limit, clock=clock)


def make_recovery(
    settings: Settings,
    node: str,
    clock: Clock,
    bus: Bus,
    store: Store,
    view: View,
    client: Client | None,
    visibility: Visibility | None,
) -> Recovery | None:
    """What lets clients go on where they lost their connection; None where it is switched off."""
    if not settings.recovery_window:
        return None
    found = settings.ping_interval + settings.ping_timeout  # until a connection that is silent counts as lost
    directory: Directory = NoDirectory()
    if client is not None:
        prefix, window = settings.redis_prefix, settings.recovery_window
        directory = RedisDirectory(client, prefix, short(node), window, Session)
    return Recovery(
        node,
        window=round(settings.recovery_window * 1000),
        horizon=round((settings.recovery_window + found) * 1000),
        # What a client is told at once must not make it count as too slow.
        buffer=min(settings.recovery_buffer, settings.max_send_buffer // 2),
        hears_everyone=settings.presence_audience == "everyone",
        memory=settings.recovery_memory,
        clock=clock,
        bus=bus,
        store=store,
        view=view,
        directory=directory,
        visibility=visibility,
    )


def make_once(
    settings: Settings, hooks: Hooks, leases: Leases, store: Store, follower: Follower, client: Client | None
) -> OnceHooks:
    """What calls the hooks that one node calls for all."""
    positions = LocalPositions() if client is None else RedisPositions(client, settings.redis_prefix)
    return OnceHooks(hooks, leases, ttl=settings.node_lease, store=store, follower=follower, positions=positions)


def make_tallies(
    settings: Settings, node: str, clock: Clock, client: Client | None, connections: Connections
) -> Tallies | None:
    """What knows of tenants' connections to other nodes; None where nobody asks, or there are none."""
    if client is None or settings.max_connections_per_tenant is None:
        return None

    def count_elsewhere(counts: dict[str, int]) -> None:
        connections.quotas.elsewhere = counts

    return Tallies(
        client,
        settings.redis_prefix,
        node,
        keep=settings.node_lease,
        clock=clock,
        mine=connections.per_tenant,
        on_others=count_elsewhere,
    )


def make_export(settings: Settings, store: Store, clock: Clock, leases: Leases) -> Export | None:
    """What writes presence to a database; None where none is named."""
    if settings.export_database_url is None:
        return None
    url = settings.export_database_url.get_secret_value()
    return Export(url, settings.redis_prefix, store, clock, leases, ttl=settings.node_lease)


def make_outbox(settings: Settings, client: Client | None) -> MemoryOutbox | RedisOutbox | None:
    """Where what webhooks tell waits; None where none are sent."""
    if not settings.webhook_endpoints():
        return None
    bounds = settings.webhook_bounds()
    return MemoryOutbox(bounds) if client is None else RedisOutbox(client, settings.redis_prefix, bounds)


def make_webhooks(
    settings: Settings, clock: Clock, leases: Leases, outbox: MemoryOutbox | RedisOutbox | None
) -> Webhooks | None:
    """What sends them, on one node at a time; None where none are sent."""
    if outbox is None:
        return None
    duty = Duty("webhooks", leases, ttl=settings.node_lease)
    return Webhooks(outbox, settings.webhook_endpoints(), settings.webhook_policy(), clock, duty)


def make_store_and_bus(
    settings: Settings, node: str, client: Client | None, clock: Clock
) -> tuple[Store, Bus, MemoryOutbox | RedisOutbox | None]:
    """Where nodes meet: in Redis, or nowhere, as there is one; and the outbox that the store writes, if any."""
    outbox = make_outbox(settings, client)
    url = settings.redis
    if url is None or client is None:
        _log.info("presence is kept in this process; REDIS_URL would share it among several")
        keep = outbox.keep if isinstance(outbox, MemoryOutbox) else None
        # Positions grow from start to start, as those of Redis do: an export remembers one.
        return MemoryStore(settings.timing(), begin=clock() << 20, keep=keep), LocalBus(), outbox
    _log.info("presence is shared in Redis", redis=describe(url), prefix=settings.redis_prefix, node=node)
    length = 0 if outbox is None else settings.webhook_queue_size
    store = RedisStore(client, settings.redis_prefix, settings.timing(), outbox_length=length)
    return store, RedisBus(client, settings.redis_prefix, node), outbox


def weakness_of(secret: str) -> str | None:
    """What is to be said of a secret that is too short; None of one that is long enough."""
    if len(secret.encode()) >= MIN_SECRET:
        return None
    return f"JWT_SECRET can be guessed: it has fewer than {MIN_SECRET} bytes; openssl rand -hex 32 makes one"


def signing_secret(settings: Settings) -> str | None:
    """The secret that development tokens are signed with; None where tokens are another's to sign."""
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value()
        if warning := weakness_of(secret):
            _log.warning(warning)
        return secret
    if settings.jwt_public_key is not None or settings.jwt_jwks_url is not None:
        return None
    return secrets.token_urlsafe(32)
