"""`PresenceClient`: what a gateway offers in process, from beside it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from chaos.proxy import Proxy
from conftest import ROOT, STEP, Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix, redis_server
from structlog.testing import capture_logs

import gateway
from gateway import client as client_module
from gateway.client import PresenceClient
from gateway.delivery.notifications import Delivery
from gateway.errors import InvalidPayloadError, StoreUnavailableError
from gateway.presence.clock import SteadyClock
from gateway.presence.store_redis import RedisStore
from gateway.redis.bus import RedisBus
from gateway.redis.commands import TIMEOUT

Serve = Callable[..., Awaitable[Running]]
REALTIME = Delivery(sent=True, method="realtime")
QUEUED = Delivery(sent=True, method="queued")


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def proxy(shared_redis: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy.start(shared_redis.port) as proxy:
        yield proxy


class Ear:
    """A plain WebSocket of a user, and every frame that it has heard."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.heard: list[tuple[str, object]] = []
        self.listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, closing: AsyncExitStack, running: Running, user: str, **claims: Any) -> Ear:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        ear = cls(await session.ws_connect(f"{running.ws_url}/ws?token={make_token(user, **claims)}"))
        closing.callback(ear.listening.cancel)
        await eventually(lambda: ear.heard)
        return ear

    async def _listen(self) -> None:
        async for message in self.ws:
            frame = message.json()
            self.heard.append((frame["event"], frame["data"]))

    def of(self, event: str) -> list[object]:
        return [data for name, data in self.heard if name == event]

    async def closed(self) -> int | None:
        await asyncio.wait_for(self.listening, STEP)
        return self.ws.close_code


async def test_it_reads_what_a_gateway_reads(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    await Ear.open(closing, running, "alice")
    await Ear.open(closing, running, "alice", tenant="red")
    async with PresenceClient(redis_url, prefix=prefix) as client:
        reads, theirs = client.presence, running.gateway.presence
        assert reads.status("alice") == theirs.status("alice")
        assert reads.status("alice", tenant="red").tenant == "red"
        bob = await Ear.open(closing, running, "bob")
        await eventually(lambda: reads.online_count() == 2)
        assert reads.online_users() == theirs.online_users() == ["alice", "bob"]
        assert [status.online for status in reads.statuses(["bob", "nobody"])] == [True, False]
        assert (reads.online_count(tenant="red"), reads.online_count(tenant="blue")) == (1, 0)
        await bob.ws.close()
        await eventually(lambda: not reads.status("bob").online)
        assert reads.status("bob") == theirs.status("bob")


async def test_word_to_a_user_reaches_every_connection_in_order(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack
) -> None:
    nodes = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    ears = [await Ear.open(closing, node, "alice") for node in nodes for _ in range(2)]
    other = await Ear.open(closing, nodes[0], "alice", tenant="red")
    async with PresenceClient(redis_url, prefix=prefix) as client:
        for n in range(100):
            assert await client.notify("alice", "notification", {"n": n}) == REALTIME
        assert await client.notify("nobody", "notification", {}) == QUEUED
        for ear in ears:
            await eventually(lambda ear=ear: len(ear.of("notification")) >= 100)  # type: ignore[misc]
            assert ear.of("notification") == [{"n": n} for n in range(100)]
        assert await client.notify("alice", "notification", "red", tenant="red") == REALTIME
        await eventually(lambda: other.of("notification") == ["red"])
        with pytest.raises(InvalidPayloadError):
            await client.notify("alice", "user-online", {})
        with pytest.raises(InvalidPayloadError):
            await client.notify("alice", "notification", "x" * 2_000_000)


async def test_a_user_is_disconnected_everywhere(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack
) -> None:
    nodes = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    ears = [await Ear.open(closing, node, "alice") for node in (*nodes, nodes[0])]
    watcher = await Ear.open(closing, nodes[0], "bob")
    await nodes[1].gateway.presence.heartbeat("alice")  # which alone would keep her for two minutes
    async with PresenceClient(redis_url, prefix=prefix) as client:
        assert await client.disconnect("alice") == 3
        assert not client.presence.status("alice").online
        assert [await ear.closed() for ear in ears] == [4003, 4003, 4003]
        await eventually(lambda: watcher.of("user-offline"))
        await nodes[0].gateway.presence.heartbeat("carol")
        await eventually(lambda: client.presence.status("carol").online)
        assert await client.disconnect("carol") == 0
        assert not client.presence.status("carol").online
        assert await client.disconnect("nobody") == 0
        for node in nodes:
            await eventually(lambda node=node: node.gateway.presence.online_users() == ["bob"])  # type: ignore[misc]
        assert client.presence.status("alice").version == 2


async def test_who_is_back_after_the_kick_stays(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack, proxy: Proxy
) -> None:
    near = await serve(redis_url=redis_url, redis_prefix=prefix)
    far = await serve(redis_url=proxy.url, redis_prefix=prefix)
    async with PresenceClient(redis_url, prefix=prefix) as client:
        old = await Ear.open(closing, far, "alice")
        await eventually(lambda: client.presence.status("alice").online)
        await proxy.cut()
        unknown = await Ear.open(closing, far, "alice")
        await asyncio.sleep(0.3)  # longer than clocks differ
        disconnecting = asyncio.create_task(client.disconnect("alice"))
        await asyncio.sleep(0.3)
        new = [await Ear.open(closing, far, "alice"), await Ear.open(closing, near, "alice")]
        await near.gateway.presence.heartbeat("alice")
        await proxy.listen()
        assert await disconnecting == 1
        assert [await ear.closed() for ear in (old, unknown)] == [4003, 4003]
        await client.notify("alice", "notification", 1)
        for ear in new:
            await eventually(lambda ear=ear: ear.of("notification") == [1])  # type: ignore[misc]
        await asyncio.gather(*(ear.ws.close() for ear in new))
        await eventually(lambda: far.gateway.presence.status("alice").ttl_until)
        assert client.presence.status("alice").online, "the heartbeat came after the kick"


async def test_a_login_after_the_kick_counts_however_late_the_kick_is_heard(
    serve: Serve, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    await running.gateway.presence.heartbeat("alice")
    claim, claiming, going_on = RedisBus.claim, asyncio.Event(), asyncio.Event()

    async def late(self: RedisBus, name: str) -> bool:
        claiming.set()
        await going_on.wait()
        return await claim(self, name)

    monkeypatch.setattr(RedisBus, "claim", late)
    async with PresenceClient(redis_url, prefix=prefix) as client:
        disconnecting = asyncio.create_task(client.disconnect("alice"))
        await claiming.wait()
        await asyncio.sleep(0.3)  # longer than clocks differ
        status = await running.gateway.presence.heartbeat("alice")
        going_on.set()
        await disconnecting
        await running.gateway.presence.heartbeat("bob")
        await eventually(lambda: client.presence.status("bob").online)
        assert client.presence.status("alice") == status


@pytest.mark.parametrize("seconds", [-5, 5])
async def test_a_clock_of_its_own_that_is_off_makes_no_difference(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack, seconds: int
) -> None:
    node = await serve(redis_url=redis_url, redis_prefix=prefix)
    client = PresenceClient(redis_url, prefix=prefix)
    client._clock = SteadyClock(lambda: time.time_ns() + seconds * 1_000_000_000)
    async with client:
        ear = await Ear.open(closing, node, "alice")
        await node.gateway.presence.heartbeat("bob")
        assert await client.disconnect("alice") == 1
        assert await ear.closed() == 4003
        await client.disconnect("bob")
        assert client.presence.online_count() == 0


# Its life


async def test_it_is_used_between_start_and_close_only(redis_url: str, prefix: str) -> None:
    client = PresenceClient(redis_url, prefix=prefix)

    async def is_refused() -> None:
        with pytest.raises(RuntimeError):
            _ = client.presence
        with pytest.raises(RuntimeError):
            await client.notify("alice", "notification", {})
        with pytest.raises(RuntimeError):
            await client.disconnect("alice")

    await is_refused()
    await client.start()
    with pytest.raises(RuntimeError):
        await client.start()
    assert client.presence.online_users() == []
    await client.close()
    await client.close()
    await is_refused()
    with pytest.raises(RuntimeError):
        await client.start()
    await PresenceClient(redis_url, prefix=prefix).close()


def test_a_url_of_no_known_form_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="redis://"):
        PresenceClient("http://127.0.0.1:6379")


async def test_without_redis_it_does_not_start_and_holds_nothing_and_later_it_does(server: RedisServer) -> None:
    await server.kill()
    tasks = asyncio.all_tasks()
    client = PresenceClient(server.url)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await client.start()
    assert asyncio.all_tasks() == tasks
    with pytest.raises(RuntimeError):
        _ = client.presence
    await server.start()
    async with client:
        assert client.presence.online_count() == 0


async def nobody_but_us(server: RedisServer) -> None:
    """Wait until the server has no connection but the one that asks."""
    deadline = time.monotonic() + STEP
    while len((await server.cli("CLIENT", "LIST")).splitlines()) > 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_start_that_fails_halfway_leaves_nothing(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_snapshot(self: RedisStore) -> None:
        raise StoreUnavailableError("no snapshot")

    monkeypatch.setattr(RedisStore, "snapshot", no_snapshot)
    client = PresenceClient(server.url)
    with pytest.raises(StoreUnavailableError):
        await client.start()
    await nobody_but_us(server)
    monkeypatch.undo()
    async with client:
        assert client.presence.online_count() == 0


async def test_nothing_is_left_after_it(server: RedisServer) -> None:
    tasks = asyncio.all_tasks()
    async with PresenceClient(server.url) as client:
        await client.notify("alice", "notification", {})
        assert len((await server.cli("CLIENT", "LIST")).splitlines()) > 1
    assert asyncio.all_tasks() == tasks
    await nobody_but_us(server)


async def test_what_waits_is_sent_before_it_closes(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    ear = await Ear.open(closing, running, "alice")
    async with PresenceClient(redis_url, prefix=prefix) as client:
        for n in range(500):
            await client.notify("alice", "notification", n)
    await eventually(lambda: len(ear.of("notification")) == 500)
    assert ear.of("notification") == [*range(500)]


async def test_it_closes_while_redis_is_away(
    serve: Serve, prefix: str, closing: AsyncExitStack, proxy: Proxy, redis_url: str
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    await Ear.open(closing, running, "alice")
    with capture_logs() as logs:
        async with PresenceClient(proxy.url, prefix=prefix) as client:
            await proxy.cut()
            await client.notify("alice", "notification", 1)
            began = time.monotonic()
        assert time.monotonic() - began < TIMEOUT + STEP
    assert [line["waiting"] for line in logs if "not left" in line["event"]] == [1]


# Redis


async def test_while_redis_is_away_reads_go_on_and_the_rest_waits(
    serve: Serve, redis_url: str, prefix: str, closing: AsyncExitStack, proxy: Proxy
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    alice, bob = [await Ear.open(closing, running, user) for user in ("alice", "bob")]
    async with PresenceClient(proxy.url, prefix=prefix) as client:
        await proxy.cut()
        assert await client.notify("alice", "notification", 1) == REALTIME
        assert await client.disconnect("bob") == 0
        assert client.presence.online_users() == ["alice", "bob"]
        assert (alice.of("notification"), bob.ws.closed) == ([], False)
        await proxy.listen()
        await eventually(lambda: alice.of("notification") == [1])
        assert await bob.closed() == 4003
        await eventually(lambda: client.presence.online_users() == ["alice"])


async def test_redis_comes_back_empty_and_a_gateway_knows(
    serve: Serve, server: RedisServer, closing: AsyncExitStack
) -> None:
    running = await serve(redis_url=server.url, node_lease=1)
    ear = await Ear.open(closing, running, "alice")
    async with PresenceClient(server.url) as client:
        await server.kill()
        await server.start()
        await eventually(lambda: client._follower.resyncs)
        assert await client.notify("alice", "notification", 1) == REALTIME
        await eventually(lambda: ear.of("notification") == [1])
        assert client.presence.status("alice").version == 1


async def test_redis_comes_back_empty_and_nobody_knows(
    serve: Serve, server: RedisServer, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK", 0.05)
    monkeypatch.setattr(client_module, "GIVEN_BACK", 0.2)
    running = await serve(redis_url=server.url, node_lease=1)
    await Ear.open(closing, running, "alice")
    ear = await Ear.open(closing, running, "bob")
    for _ in range(3):  # versions that bob will not have again for long
        await ear.ws.close()
        ear = await Ear.open(closing, running, "bob")
    async with PresenceClient(server.url) as client:
        reads = client.presence
        assert reads.online_users() == ["alice", "bob"]
        await closing.aclose()
        await server.kill()
        await running.runner.cleanup()
        await server.start()
        again = await serve(redis_url=server.url, node_lease=1)
        ear = await Ear.open(closing, again, "bob")
        await eventually(lambda: reads.online_users() == ["bob"])
        assert reads.status("bob").version == 1
        assert await client.notify("bob", "notification", 1) == REALTIME
        await eventually(lambda: ear.of("notification") == [1])
        assert await client.disconnect("bob") == 1
        await eventually(lambda: reads.online_users() == [])


def test_importing_it_brings_none_of_the_server() -> None:
    code = "import sys; from gateway.client import PresenceClient; print(*sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    modules = set(output.split())
    strangers = {
        "aiohttp",
        "socketio",
        "engineio",
        "pydantic",
        "prometheus_client",
        "gateway.app",
        "gateway.access.auth",
    }
    assert strangers & modules == set()
    assert "redis" in modules


def test_the_public_names_are_there_all_the_same() -> None:
    assert [name for name in gateway.__all__ if getattr(gateway, name, None) is None] == []
    with pytest.raises(AttributeError):
        _ = gateway.no_such_name
