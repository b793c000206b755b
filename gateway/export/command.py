"""``python -m gateway export``: the export in a process of its own, beside gateways that share a Redis."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from typing import TYPE_CHECKING

import structlog

from gateway.errors import ConfigurationError, StoreUnavailableError
from gateway.export.part import Export
from gateway.presence.clock import SteadyClock, follow
from gateway.presence.model import Timing
from gateway.presence.store_redis import RedisStore
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect, describe
from gateway.redis.leases import RedisLeases
from gateway.runtime.tasks import end, run

if TYPE_CHECKING:
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

LOOK = 5.0
"""Seconds between looks at Redis's clock."""

_NO_TIMING = Timing(away_after=0, ttl=0, grace=0, lease=0)
"""How long things last is the gateways' own."""


async def export(settings: Settings) -> None:
    """Export until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: there is nothing to export, or nowhere to export it to.
    """
    if settings.export_database_url is None:
        raise ConfigurationError(
            "EXPORT_DATABASE_URL is not set, where presence is exported to: postgresql://… or sqlite:///path/to/file.db"
        )
    if settings.redis is None:
        raise ConfigurationError("REDIS_URL is not set: presence that a gateway keeps to itself, it exports itself")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    client = connect(settings.redis, timeout=TIMEOUT)
    store = RedisStore(client, settings.redis_prefix, _NO_TIMING)
    leases = RedisLeases(client, settings.redis_prefix, f"export-{socket.gethostname()}-{secrets.token_hex(4)}")
    clock = SteadyClock()
    part = Export(
        settings.export_database_url.get_secret_value(),
        settings.redis_prefix,
        store,
        clock,
        leases,
        ttl=settings.node_lease,
    )
    _log.info("exporting", redis=describe(settings.redis), prefix=settings.redis_prefix)
    tasks = [run(part.run(), "Export"), run(_keep_time(clock, store), "clock")]
    try:
        await stopped.wait()
    finally:
        await end(tasks)
        await part.close()
        await leases.close()
        await store.close()
    _log.info("stopped")


async def _keep_time(clock: SteadyClock, store: RedisStore) -> None:
    """Go by Redis's clock, and say when Redis cannot be reached: in this process nothing else does."""
    away = False
    while True:
        try:
            await follow(clock, store.time)
            if away:
                _log.info("Redis is back")
            away = False
        except StoreUnavailableError as error:
            if not away:
                _log.warning("Redis cannot be reached; nothing is exported until it is back", error=str(error))
            away = True
        except Exception:
            _log.exception("Redis's clock cannot be read; trying again")
        await asyncio.sleep(LOOK)
