"""socket.io-client in channels: what was said in them while it was away comes, once, on its node and on another."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest
from conftest import STEP, Process, Running, eventually
from redis_servers import fresh_prefix
from test_js_recovery import Page, page, tenant  # noqa: F401 - the fixture

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]


async def join(page: Page, channel: str) -> None:
    number = len(page.of("answer")) + 1
    page.say("ask", "join-channel", {"channel": channel})
    answer = await page.next("answer", number)
    assert answer["event"] == "joined-channel", answer


def said(page: Page) -> list[object]:
    return [payload[0] for payload in page.of("said")]


async def say(running: Running, tenant: str, *data: object, keep: bool = True) -> None:  # noqa: F811
    for each in data:
        await running.gateway._channels.channels.say(tenant, ["presence-a"], "said", each, keep=keep)


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "redis"])
async def test_a_client_that_comes_back_is_in_its_channels_and_has_what_was_said(
    serve: Serve,
    tenant: str,  # noqa: F811
    redis_url: str,
    *,
    shared: bool,
) -> None:
    prefix = fresh_prefix()
    settings = {"redis_url": redis_url, "redis_prefix": prefix} if shared else {}
    running = await serve(presence_offline_grace=30, **settings)
    other = await serve(**settings) if shared else running
    async with page(running.url, tenant) as alice, page(other.url, tenant, user="bob") as bob:
        await join(bob, "presence-a")
        await join(alice, "presence-a")
        await join(alice, "left")
        alice.say("ask", "leave-channel", {"channel": "left"})
        await alice.next("answer", 3)
        await say(running, tenant, 0)
        await eventually(lambda: said(alice) == said(bob) == [0])
        await alice.cut()
        await say(other, tenant, 1, {"n": 2})
        await say(running, tenant, 3, keep=False)
        await running.gateway._channels.channels.say(tenant, ["left"], "said", "of a channel that was left")
        assert await alice.back()
        await say(other, tenant, 4)
        await eventually(lambda: len(said(alice)) >= 5 and len(said(bob)) >= 5)
        assert said(alice) == said(bob) == [0, 1, {"n": 2}, 3, 4]
        [members] = await eventually(lambda: alice.of("channel-members"))
        assert members[0]["channel"] == "presence-a"
        assert [member["userId"] for member in members[0]["members"]] == ["alice", "bob"]
        # Nobody was told that it was away.
        assert [payload[0]["userId"] for payload in bob.of("member-added")] == ["alice"]
        assert bob.of("member-removed") == []
        if shared:
            await alice.cut()
            await say(running, tenant, 5)
            assert await alice.back(other.url)
            await say(running, tenant, 6)
            await eventually(lambda: len(said(alice)) >= 7)
            assert said(alice) == [0, 1, {"n": 2}, 3, 4, 5, 6]


async def test_a_client_of_a_killed_node_has_what_was_said_from_one_that_had_not_heard_it(
    spawn: Spawn,
    serve: Serve,
    tenant: str,  # noqa: F811
    redis_url: str,
) -> None:
    prefix = fresh_prefix()
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": prefix, "NODE_LEASE": "2"}
    dies = await spawn(**variables)
    host = await serve(redis_url=redis_url, redis_prefix=prefix)
    async with page(dies.url, tenant) as alice:
        await join(alice, "presence-a")
        await say(host, tenant, 0)
        await eventually(lambda: said(alice) == [0])
        await asyncio.sleep(0.3)  # for the rooms to be where others find them
        await dies.stop(signal.SIGKILL)
        await alice.next("disconnect")
        await alice.proxy.cut()
        await say(host, tenant, 1, 2)
        late = await spawn(**variables)
        await say(host, tenant, 3)
        assert await alice.back(late.url)
        await say(host, tenant, 4)
        await eventually(lambda: len(said(alice)) >= 5, within=2 * STEP)
        assert said(alice) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "redis"])
async def test_what_is_said_all_the_time_comes_once_and_in_order_to_one_who_is_lost_and_back(
    serve: Serve,
    tenant: str,  # noqa: F811
    redis_url: str,
    *,
    shared: bool,
) -> None:
    settings = {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if shared else {}
    running = await serve(presence_offline_grace=30, **settings)
    rooms = [f"room-{n}" for n in range(5)]
    count, talks = 0, True

    async def talk() -> None:
        nonlocal count
        while talks:
            await running.gateway._channels.channels.say(tenant, rooms, "said", count)
            count += 1
            await asyncio.sleep(0.0005)

    async with page(running.url, tenant) as alice:
        for room in rooms:
            await join(alice, room)
        talking = asyncio.create_task(talk())
        for _ in range(3):
            await asyncio.sleep(0.1)
            await alice.cut()
            await asyncio.sleep(0.1)
            assert await alice.back()
        await asyncio.sleep(0.1)
        talks = False
        await talking
        await eventually(lambda: len(said(alice)) >= count * len(rooms))
        assert said(alice) == [n for n in range(count) for _ in rooms]
