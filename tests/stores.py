"""Every adapter of the store's port, for the suites that each must pass. A new adapter is added here, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from conftest import STEP
from redis_servers import fresh_prefix

from gateway.presence.model import Timing
from gateway.presence.store import Store
from gateway.presence.store_memory import MemoryStore
from gateway.presence.store_redis import RedisStore
from gateway.redis.connection import connect

MakeStore = Callable[[Timing, int, str], AbstractAsyncContextManager[Store]]
"""Takes the durations, the length of the log, and a Redis to use; the store is new and empty, and closed at the end."""


@asynccontextmanager
async def memory(timing: Timing, log_length: int, _redis_url: str) -> AsyncIterator[Store]:
    store = MemoryStore(timing, log_length=log_length)
    yield store
    await store.close()


@asynccontextmanager
async def redis(timing: Timing, log_length: int, redis_url: str) -> AsyncIterator[Store]:
    client = connect(redis_url, timeout=STEP)
    store = RedisStore(client, fresh_prefix(), timing, log_length=log_length)
    yield store
    await store.close()


STORES: dict[str, MakeStore] = {"memory": memory, "redis": redis}
