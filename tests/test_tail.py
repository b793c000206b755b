"""A log that is read on and on, whatever becomes of the store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from conftest import TIMING, Clock

from gateway.errors import LogTrimmedError, StoreUnavailableError
from gateway.presence import tail as tail_module
from gateway.presence.model import Beat, Entry
from gateway.presence.store_memory import MemoryStore
from gateway.presence.tail import Tail


class Store(MemoryStore):
    """A store that counts how often its log is read, and can be away."""

    reads = 0
    away = False

    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        self.reads += 1
        return await super().read(after, wait=wait)

    async def position(self) -> int:
        if self.away:
            raise StoreUnavailableError("away")
        return await super().position()

    async def comes(self, user: str, clock: Clock) -> None:
        await self.renew("n", clock())
        await self.beat("n", [Beat(tenant="acme", user_id=user, at=clock(), holds=True)])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "WATCH", 0.01)


async def test_it_goes_on_waiting_where_nothing_comes(clock: Clock) -> None:
    store = Store(TIMING)
    tail = Tail(store)
    assert await tail.read(0) == await tail.read(0) == ()
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await tail.read(0)
    await store.comes("alice", clock)
    entries = await tail.read(0)
    assert entries
    assert store.reads == 1
    store.away = False
    assert await tail.read(entries[-1].position) == ()
    tail.stop()


async def test_a_log_that_ends_before_what_was_read_is_another(clock: Clock) -> None:
    store = Store(TIMING)
    await store.comes("alice", clock)
    tail = Tail(store)
    with pytest.raises(LogTrimmedError, match="ends before"):
        await tail.read(10**9)
    assert await tail.read(0)
    assert store.reads == 2
