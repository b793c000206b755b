"""What users have been sent and have read: what every adapter of the port does, by the port alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from conftest import STEP
from redis_servers import fresh_prefix, redis_server

from gateway.channels.receipts import Receipts, Unread
from gateway.channels.receipts_memory import MemoryReceipts
from gateway.channels.receipts_redis import RedisReceipts
from gateway.errors import StoreUnavailableError
from gateway.redis.connection import connect

T, TTL, MOST = 1_700_000_000_000, 60_000, 3
BOB = ("acme", "bob")


@pytest.fixture(params=["memory", "redis"])
async def receipts(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Receipts]:
    if request.param == "memory":
        yield MemoryReceipts(TTL, MOST)
        return
    async with AsyncExitStack() as stack:
        client = connect(redis_url, timeout=STEP)
        stack.push_async_callback(client.aclose)
        kept = RedisReceipts(client, fresh_prefix(), TTL, MOST)
        stack.push_async_callback(kept.close)
        yield kept


async def add(receipts: Receipts, *ids: str, sender: str = "alice", at: int = T, to: tuple[str, str] = BOB) -> None:
    for message_id in ids:
        await receipts.add(*to, Unread(message_id, sender), at)


async def of(receipts: Receipts, sender: str = "alice", at: int = T, to: tuple[str, str] = BOB) -> list[str]:
    return [each.id for each in await receipts.unread(*to, at, sender=sender)]


async def test_what_was_sent_is_unread_in_its_order_until_it_is_marked_once(receipts: Receipts) -> None:
    await add(receipts, "b", "a")
    await add(receipts, "c", sender="carol with a name")
    assert await of(receipts) == ["b", "a"]
    assert await receipts.unread(*BOB, T, message_id="c") == [Unread("c", "carol with a name")]
    assert await receipts.mark(*BOB, ["a", "nothing", "c"], T) == ["a", "c"]
    assert await receipts.mark(*BOB, ["a", "c"], T) == []
    assert await of(receipts) == ["b"]
    assert await receipts.unread(*BOB, T, message_id="a") == []
    assert set(await receipts.read(*BOB, ["a", "b", "c", "nothing"], T)) == {"a", "c"}
    assert await receipts.mark(*BOB, [], T) == []
    assert not await receipts.read(*BOB, [], T)


async def test_one_that_is_told_again_stays_as_it_is(receipts: Receipts) -> None:
    assert [await receipts.add(*BOB, Unread(each, "alice"), T) for each in "ab"] == [True, True]
    assert await receipts.add(*BOB, Unread("a", "mallory"), T + 5) is False
    assert await of(receipts) == ["a", "b"]
    await receipts.mark(*BOB, ["a"], T)
    await add(receipts, "a", at=T + 5)
    assert await of(receipts) == ["b"], "one that was read is"


async def test_each_user_of_each_tenant_has_their_own(receipts: Receipts) -> None:
    await add(receipts, "a")
    for other in (("acme", "alice"), ("red", "bob")):
        assert await receipts.unread(*other, T, message_id="a") == []
        assert await receipts.mark(*other, ["a"], T) == []
        assert not await receipts.read(*other, ["a"], T)
        await receipts.forget(*other, "a")
    assert await of(receipts) == ["a"]


async def test_what_was_not_said_is_taken_back(receipts: Receipts) -> None:
    await add(receipts, "a", "b")
    await receipts.forget(*BOB, "a")
    await receipts.forget(*BOB, "a")
    assert await of(receipts) == ["b"]


async def test_past_the_bound_the_oldest_go(receipts: Receipts) -> None:
    await add(receipts, "a", "b")
    await receipts.mark(*BOB, ["a"], T)
    await add(receipts, "c", "d", "e")
    assert await of(receipts) == ["c", "d", "e"]
    assert not await receipts.read(*BOB, ["a", "b"], T)


async def test_past_their_time_they_are_not_known(receipts: Receipts) -> None:
    await add(receipts, "a", "b")
    await add(receipts, "c", at=T + 1)
    assert await of(receipts, at=T + TTL - 1) == ["a", "b", "c"]
    assert await of(receipts, at=T + TTL) == ["c"]
    assert await receipts.mark(*BOB, ["a", "c"], T + TTL) == ["c"]
    assert not await receipts.read(*BOB, ["a", "c"], T + TTL + 1)


async def test_two_who_mark_at_once_have_marked_it_once(receipts: Receipts) -> None:
    await add(receipts, "a", "b")
    marked = await asyncio.gather(*(receipts.mark(*BOB, ["a", "b"], T) for _ in range(5)))
    assert sorted(each for ids in marked for each in ids) == ["a", "b"]


async def test_the_memory_forgets_users_who_were_sent_nothing_for_long() -> None:
    receipts = MemoryReceipts(TTL, MOST)
    for number in range(100):
        await add(receipts, "a", to=("acme", str(number)), at=T + number)
    await add(receipts, "a", at=T + TTL + 50)
    assert len(receipts) == 50


async def test_a_redis_that_is_away_is_said_to_be() -> None:
    async with redis_server() as server:
        client = connect(server.url, timeout=0.5)
        receipts = RedisReceipts(client, fresh_prefix(), TTL)
        await add(receipts, "a")
        await server.kill()
        for call in (
            receipts.add(*BOB, Unread("b", "alice"), T),
            receipts.unread(*BOB, T, sender="alice"),
            receipts.mark(*BOB, ["a"], T),
            receipts.read(*BOB, ["a"], T),
            receipts.forget(*BOB, "a"),
        ):
            with pytest.raises(StoreUnavailableError):
                await call
        await receipts.close()
        await client.aclose()


async def test_of_whom_all_was_taken_back_nothing_is_left_in_memory() -> None:
    receipts = MemoryReceipts(TTL, MOST)
    for n in range(100):
        await receipts.add("acme", f"invented-{n}", Unread("a", "mallory"), T)
        await receipts.forget("acme", f"invented-{n}", "a")
    assert len(receipts) == 0
