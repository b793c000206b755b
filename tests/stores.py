"""Every adapter of the store's port, for the suites that each must pass. A new adapter is added here, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from gateway.presence.model import Timing
from gateway.presence.store import Store
from gateway.presence.store_memory import MemoryStore

MakeStore = Callable[[Timing, int], AbstractAsyncContextManager[Store]]
"""Takes the durations and the length of the log; the store is new and empty, and closed at the end."""


@asynccontextmanager
async def memory(timing: Timing, log_length: int) -> AsyncIterator[Store]:
    store = MemoryStore(timing, log_length=log_length)
    yield store
    await store.close()


STORES: dict[str, MakeStore] = {"memory": memory}
