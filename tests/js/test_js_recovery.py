"""socket.io-client, as npm has it, loses its connection and goes on where it was: on its node, and on another."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from chaos.proxy import Proxy
from conftest import SERVICE_KEY, STEP, Process, Running, eventually
from redis_servers import RedisServer, fresh_prefix
from test_js_client import TRANSPORTS, node

from gateway.client import PresenceClient
from gateway.delivery.inbox import Inbox

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]

NAMESPACE = "/ws/messages"
ENGINES = ["fast", "stock"]

pytestmark = pytest.mark.parametrize("engine", ENGINES)


class Page:
    """A page, what it has heard, and the network before it."""

    def __init__(self, process: asyncio.subprocess.Process, proxy: Proxy) -> None:
        assert process.stdout is not None
        self.proxy = proxy
        self.lines: list[tuple[str, Any]] = []
        self._process = process
        self.reading = asyncio.create_task(self._read(process.stdout))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            name, payload = json.loads(line)
            self.lines.append((name, payload))

    def of(self, name: str) -> list[Any]:
        return [payload for each, payload in self.lines if each == name]

    async def next(self, name: str, number: int = 1) -> Any:
        try:
            return (await eventually(lambda: self.of(name)[number - 1 : number], within=2 * STEP))[0]
        except AssertionError:
            raise AssertionError(f"{name} number {number} was not heard; this was: {self.lines}") from None

    def say(self, *command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    def heard(self, *, after: int = 0) -> list[Any]:
        """Events heard, as name and what tells them apart, from the n-th ``connect`` on."""
        begin = 0 if not after else [at for at, line in enumerate(self.lines) if line[0] == "connect"][after - 1] + 1
        found: list[Any] = []
        for name, payload in self.lines[begin:]:
            if name.startswith("user-"):
                found.append((name, payload[0]["userId"], payload[0]["version"]))
            elif isinstance(payload, list):
                found.append((name, payload[0]) if name not in {"connected", "server-draining"} else (name, None))
        return found

    async def cut(self) -> None:
        """Lose the network."""
        lost = len(self.of("disconnect"))
        while len(self.of("disconnect")) == lost:  # a poll that is just being taken escapes the first cut
            await self.proxy.cut()
            await asyncio.sleep(0.05)

    async def back(self, url: str | None = None) -> bool:
        """Have the network back, perhaps to another node; whether the client recovered."""
        number = len(self.of("connect")) + 1
        if url is not None:
            self.proxy._upstream = urlsplit(url).port or 0
        await self.proxy.listen()
        connect = await self.next("connect", number)
        await self.next("connected", number)
        return bool(connect["recovered"])


@asynccontextmanager
async def page(url: str, tenant: str, transports: str = "websocket", user: str = "alice") -> AsyncIterator[Page]:
    async with (
        Proxy.start(urlsplit(url).port or 0) as proxy,
        node(
            "recover.mjs",
            url=f"http://127.0.0.1:{proxy.port}",
            transports=transports,
            RECOVERY_USER=user,
            RECOVERY_TENANT=tenant,
        ) as process,
    ):
        opened = Page(process, proxy)
        await opened.next("connected")
        yield opened
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), STEP)
        await opened.reading


@pytest.fixture
def tenant() -> str:
    return f"tenant-{secrets.token_hex(4)}"


async def online(url: str, tenant: str, *users: str, event: str = "online") -> None:
    """Say as a backend that users come, or go."""
    async with aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as session:
        for user in users:
            async with session.post(f"{url}/presence/{event}?tenant={tenant}", json={"userId": user}) as response:
                assert response.status == 200, await response.text()


async def at_rest(running: Running, transports: str) -> None:
    """Wait until the only client's end would be noticed: its WebSocket is there, or its poll waits for news.

    Between two polls there is nothing that it could vanish from: the server finds it by its ping then, as Node's does.
    """

    def rests() -> bool:
        [socket] = running.gateway._server.eio.sockets.values()
        if transports != "polling":
            return bool(socket.upgraded)
        return socket.queue.empty() and any(not getter.done() for getter in socket.queue._getters)

    await eventually(rests)


async def acknowledged(inbox: Inbox) -> None:
    """Wait until nothing waits for clients: one that is cut off before it has said what it has is given it again."""
    async with asyncio.timeout(STEP):
        while await inbox._queues.depth():  # noqa: ASYNC110 - the queue may be another process's
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_a_client_that_lost_its_transport_has_all_it_missed_once_and_in_order(
    serve: Serve, tenant: str, engine: str, transports: str
) -> None:
    running = await serve(gateway_engine=engine, presence_offline_grace=30)
    async with page(running.url, tenant, transports) as alice:
        await online(running.url, tenant, "bob")
        await running.gateway.notify("alice", "notification", {"n": 0}, tenant=tenant)
        await alice.next("notification")
        await alice.next("user-online")  # so that nothing more is on its way to end the poll
        first = await alice.next("connect")
        await at_rest(running, transports)
        await alice.cut()
        await eventually(lambda: not running.gateway._connections.of_user(tenant, "alice"))
        await online(running.url, tenant, "carol")
        await running.gateway.notify("alice", "notification", {"n": 1}, tenant=tenant)
        await online(running.url, tenant, "bob", event="offline")
        await running.gateway.notify("alice", "notification", "a text", tenant=tenant)
        await online(running.url, tenant, "carol", event="offline")
        assert await alice.back()
        again = await alice.next("connect", 2)
        assert again["pid"] == first["pid"]
        await running.gateway.notify("alice", "notification", {"n": 2}, tenant=tenant)
        await alice.next("notification", 4)
        assert alice.heard(after=2) == [
            ("connected", None),
            ("user-online", "carol", 1),
            ("user-offline", "bob", 2),
            ("user-offline", "carol", 2),
            ("notification", {"n": 1}),
            ("notification", "a text"),
            ("notification", {"n": 2}),
        ]
        # Lost once more, and again: nothing comes twice.
        await acknowledged(running.gateway._inbox)
        for number in (3, 4):
            await alice.cut()
            assert await alice.back()
            assert alice.heard(after=number) == [("connected", None)]


async def test_a_client_that_closes_its_engine_recovers(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    async with page(running.url, tenant) as alice:
        alice.say("lose")
        assert (await alice.next("connect", 2))["recovered"]


async def test_rooms_are_entered_again_and_what_was_said_in_them_comes(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    server = running.gateway._server
    async with page(running.url, tenant) as alice, page(running.url, tenant, user="bob") as bob:
        sids = [(await each.next("connect"))["id"] for each in (alice, bob)]
        await server.enter_room(sids[0], "room", namespace=NAMESPACE)
        await server.enter_room(sids[0], "left", namespace=NAMESPACE)
        await server.leave_room(sids[0], "left", namespace=NAMESPACE)
        await server.emit("said", 0, room="room", namespace=NAMESPACE)
        await alice.next("said")
        await alice.cut()
        await server.emit("said", 1, room="room", namespace=NAMESPACE)
        await server.emit("said", 2, room="left", namespace=NAMESPACE)
        await server.emit("said", 3, namespace=NAMESPACE)
        await server.emit("said", 4, to=sids[0], namespace=NAMESPACE)
        await server.emit("said", 5, namespace=NAMESPACE, skip_sid=sids[0])
        await server.emit("said", ("six", 6), room=["room", "other"], namespace=NAMESPACE)
        assert await alice.back()
        await server.emit("said", 7, room="room", namespace=NAMESPACE)
        await alice.next("said", 6)
        await bob.next("said", 2)
        assert [payload[:-1] for payload in alice.of("said")] == [[0], [1], [3], [4], ["six", 6], [7]]
        assert [payload[:-1] for payload in bob.of("said")] == [[3], [5]]


async def test_what_ends_a_session_leaves_nothing_to_recover(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    async with page(running.url, tenant) as alice:
        alice.say("disconnect")
        await alice.next("disconnect")
        await eventually(lambda: len(running.gateway._recovery.sessions) == 0)  # type: ignore[union-attr]
        alice.say("connect")
        assert not (await alice.next("connect", 2))["recovered"]
        await alice.next("connected", 2)
        await running.gateway.disconnect("alice", tenant=tenant)
        await alice.next("disconnect", 2)
        assert len(running.gateway._recovery.sessions) == 0  # type: ignore[union-attr]
        alice.say("connect")
        assert not (await alice.next("connect", 3))["recovered"]


async def test_a_session_is_its_owner_s(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    async with page(running.url, tenant) as alice, page(running.url, tenant, user="mallory") as mallory:
        pid = (await alice.next("connect"))["pid"]
        await alice.cut()
        await running.gateway.notify("alice", "notification", "for alice", tenant=tenant)
        for claimed, number in ((pid, 2), ("no such session", 3), ("", 4)):
            mallory.say("claim", claimed)
            mallory.say("lose")
            again = await mallory.next("connect", number)
            await mallory.next("connected", number)
            assert not again["recovered"]
            assert again["pid"] not in {pid, claimed}
        assert await alice.back()
        await alice.next("notification")
        assert mallory.of("notification") == []
        # Nor has its owner it for another user's token.
        alice.say("become", "bob")
        alice.say("lose")
        assert not (await alice.next("connect", 3))["recovered"]


async def test_a_window_that_is_over_and_a_restart_are_told(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine, recovery_window=0.2)
    other = await serve(gateway_engine=engine)
    async with page(running.url, tenant) as alice:
        await alice.cut()
        await asyncio.sleep(0.4)
        assert not await alice.back()
        await alice.cut()
        assert not await alice.back(other.url)  # as good as a restart: it keeps nothing of the one before
        assert alice.heard(after=3) == [("connected", None)]


async def test_without_a_window_there_are_neither_ids_nor_offsets(serve: Serve, tenant: str, engine: str) -> None:
    running = await serve(gateway_engine=engine, recovery_window=0)
    async with page(running.url, tenant) as alice:
        await online(running.url, tenant, "bob")
        await running.gateway.notify("alice", "notification", 1, tenant=tenant)
        await running.gateway._server.emit("said", 1, namespace=NAMESPACE)
        await alice.next("said")
        assert (await alice.next("connect"))["pid"] is None
        assert {len(payload) for name, payload in alice.lines if isinstance(payload, list)} == {1}
        await alice.cut()
        assert not await alice.back()


@pytest.mark.parametrize("bound", ["recovery_buffer", "recovery_memory"])
async def test_more_than_may_be_kept_is_a_new_beginning(serve: Serve, tenant: str, engine: str, bound: str) -> None:
    running = await serve(gateway_engine=engine, **{bound: 1024 if bound == "recovery_buffer" else 65536})
    async with page(running.url, tenant) as alice:
        await alice.cut()
        for n in range(100):
            await running.gateway._server.emit("said", {"n": n, "text": "x" * 100}, namespace=NAMESPACE)
        assert not await alice.back()
        assert alice.heard(after=2) == [("connected", None)]
        await running.gateway.notify("alice", "notification", "new", tenant=tenant)
        await alice.cut()
        assert await alice.back()
        assert (await alice.next("notification"))[0] == "new"


# Many nodes


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_a_client_of_a_node_that_was_killed_recovers_on_another(
    spawn: Spawn, serve: Serve, redis_url: str, tenant: str, engine: str, transports: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": prefix, "GATEWAY_ENGINE": engine}
    dies, other = await asyncio.gather(spawn(**shared), spawn(**shared))
    # A node of an application, which has rooms.
    host = (await serve(redis_url=redis_url, redis_prefix=prefix)).gateway
    client = await closing.enter_async_context(PresenceClient(redis_url, prefix=prefix))
    async with page(dies.url, tenant, transports) as alice:
        await host._server.enter_room((await alice.next("connect"))["id"], "room", namespace=NAMESPACE)
        await online(other.url, tenant, "bob")
        await eventually(lambda: client.presence.status("alice", tenant=tenant).online)
        await client.notify("alice", "notification", 0, tenant=tenant)
        await alice.next("notification")
        await host._server.emit("said", 0, room="room", namespace=NAMESPACE)
        await alice.next("said")
        await alice.next("user-online")
        await asyncio.sleep(0.2)  # for the rooms to be where others find them
        await dies.stop(signal.SIGKILL)
        await alice.next("disconnect")
        await alice.proxy.cut()
        await online(other.url, tenant, "carol")
        await client.notify("alice", "notification", 1, tenant=tenant)
        await host._server.emit("said", 1, room="room", namespace=NAMESPACE)
        await online(other.url, tenant, "bob", event="offline")
        assert await alice.back(other.url)
        await alice.next("user-offline")
        await client.notify("alice", "notification", 2, tenant=tenant)
        await alice.next("notification", 3)
        await host._server.emit("said", 2, room="room", namespace=NAMESPACE)
        await alice.next("said", 3)
        heard = alice.heard(after=2)
        assert heard[0] == ("connected", None)
        assert [each for each in heard if each[0].startswith("user-")] == [
            ("user-online", "carol", 1),
            ("user-offline", "bob", 2),
        ]
        assert [each for each in heard if each[0] == "notification"] == [("notification", 1), ("notification", 2)]
        assert [each for each in heard if each[0] == "said"] == [("said", 1), ("said", 2)]
        # And from there to a third, which has heard nothing yet of what it was told.
        third = await spawn(**shared)
        await acknowledged(client._inbox)
        await alice.cut()
        await client.notify("alice", "notification", 3, tenant=tenant)
        await online(other.url, tenant, "dave")
        assert await alice.back(third.url)
        await alice.next("user-online", 3)
        await alice.next("notification", 4)
        assert alice.heard(after=3)[0] == ("connected", None)
        assert sorted(map(str, alice.heard(after=3)[1:])) == sorted(
            map(str, [("user-online", "dave", 1), ("notification", 3)])
        )


async def test_a_client_of_a_node_that_drains_recovers_on_one_that_starts_after_it(
    spawn: Spawn, redis_url: str, tenant: str, engine: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": prefix, "GATEWAY_ENGINE": engine}
    first = await spawn(**shared)
    client = await closing.enter_async_context(PresenceClient(redis_url, prefix=prefix))
    async with page(first.url, tenant) as alice:
        await first.stop()
        await alice.next("server-draining")
        await alice.next("disconnect")
        await alice.proxy.cut()
        await client.notify("alice", "notification", 1, tenant=tenant)
        second = await spawn(**shared)
        await online(second.url, tenant, "bob")
        assert await alice.back(second.url)
        await alice.next("notification")
        await alice.next("user-online")
        assert sorted(map(str, alice.heard(after=2))) == sorted(
            map(str, [("connected", None), ("notification", 1), ("user-online", "bob", 1)])
        )


async def test_a_notification_for_one_who_is_offline_already_comes_with_the_return(
    serve: Serve, redis_url: str, tenant: str, engine: str
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "presence_offline_grace": 0.1}
    first, second = [await serve(gateway_engine=engine, **shared) for _ in range(2)]
    async with page(first.url, tenant) as alice:
        await eventually(lambda: second.gateway.presence.status("alice", tenant=tenant).online)
        await alice.cut()
        await eventually(lambda: not second.gateway.presence.status("alice", tenant=tenant).online)
        delivery = await second.gateway.notify("alice", "notification", 1, tenant=tenant)
        assert delivery.method == "queued"
        assert await alice.back()
        await alice.next("user-online")
        await alice.next("notification")
        assert alice.heard(after=2) == [
            ("connected", None),
            ("user-offline", "alice", 2),
            ("user-online", "alice", 3),
            ("notification", 1),
        ]


# Watch lists


@pytest.mark.parametrize("audience", ["everyone", "watchers"])
@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_a_client_that_recovers_watches_whom_it_watched(
    serve: Serve, tenant: str, engine: str, transports: str, audience: str
) -> None:
    running = await serve(gateway_engine=engine, presence_offline_grace=30, presence_audience=audience)
    async with page(running.url, tenant, transports) as alice:
        alice.say("ask", "watch-users", {"userIds": ["bob", "carol"]})
        answer = await alice.next("answer")
        assert [status["version"] for status in answer["data"]["statuses"]] == [0, 0]
        await online(running.url, tenant, "eve", "bob")
        await alice.next("user-online")
        await alice.cut()
        await online(running.url, tenant, "dave", "carol")
        await online(running.url, tenant, "bob", "eve", event="offline")
        assert await alice.back()
        await online(running.url, tenant, "frank", "bob")
        await alice.next("user-online", 3)
        assert alice.heard(after=2) == [
            ("connected", None),
            ("user-online", "carol", 1),
            ("user-offline", "bob", 2),
            ("user-online", "bob", 3),
        ]
        alice.say("ask", "unwatch-users", None)
        assert (await alice.next("answer", 2))["data"] == {"count": 2}


async def test_a_client_whose_node_was_killed_watches_on_another_whom_it_watched(
    spawn: Spawn, redis_url: str, tenant: str, engine: str
) -> None:
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "GATEWAY_ENGINE": engine}
    dies, other = await asyncio.gather(spawn(**shared), spawn(**shared))
    async with page(dies.url, tenant) as alice:
        alice.say("ask", "watch-users", {"userIds": ["bob", "carol"]})
        await alice.next("answer")
        await online(other.url, tenant, "bob")
        await alice.next("user-online")
        await asyncio.sleep(0.2)  # for the list to be where others find it
        await dies.stop(signal.SIGKILL)
        await alice.next("disconnect")
        await alice.proxy.cut()
        await online(other.url, tenant, "eve", "carol")
        await online(other.url, tenant, "bob", event="offline")
        assert await alice.back(other.url)
        await online(other.url, tenant, "frank", "bob")
        await alice.next("user-online", 3)
        assert alice.heard(after=2) == [
            ("connected", None),
            ("user-online", "carol", 1),
            ("user-offline", "bob", 2),
            ("user-online", "bob", 3),
        ]


@pytest.mark.parametrize("channels", [[], ["private-conversation.alice-bob"], ["private-user.alice"]])
async def test_a_message_that_was_missed_is_heard_once_on_another_node(
    serve: Serve, redis_url: str, tenant: str, engine: str, channels: list[str]
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "gateway_engine": engine}
    one, two = await serve(**shared), await serve(**shared)

    async def send(content: str) -> None:
        await two.gateway.channels.send_message("bob", content, recipient="alice", tenant=tenant)

    async with page(one.url, tenant) as alice:
        for number, channel in enumerate(channels, 1):
            alice.say("ask", "join-channel", {"channel": channel})
            assert (await alice.next("answer", number))["event"] == "joined-channel"
        await send("before")
        await alice.next("new-message")
        await asyncio.sleep(0.2)  # for the session to be where the other node finds it
        await alice.cut()
        await send("meanwhile")
        assert await alice.back(two.url)
        await send("after")
        await alice.next("new-message", 3)
        alice.say("heartbeat")
        await alice.next("answer", len(channels) + 1)
        heard = [payload[0]["content"] for payload in alice.of("new-message")]
        assert heard == ["before", "meanwhile", "after"]
        await eventually(lambda: [each.channel for each in two.gateway.channels.occupied(tenant=tenant)] == channels)


# Far from Redis


@asynccontextmanager
async def far_and_near(
    serve: Serve, redis: RedisServer, engine: str, **settings: Any
) -> AsyncIterator[tuple[Running, Running, Proxy]]:
    """Two nodes, of which the first has a proxy before Redis."""
    async with Proxy.start(redis.port) as link:
        prefix = fresh_prefix()
        far = await serve(redis_url=link.url, redis_prefix=prefix, gateway_engine=engine, **settings)
        near = await serve(redis_url=redis.url, redis_prefix=prefix, gateway_engine=engine, **settings)
        yield far, near, link


async def ask(page: Page, request: str, payload: object) -> Any:
    """What a page is answered, at once when it is."""
    number = len(page.of("answer")) + 1
    page.say("ask", request, payload)
    return await page.next("answer", number)


@pytest.mark.parametrize("does", ["join", "leave"])
async def test_where_a_client_goes_on_it_is_in_the_channels_that_it_was_told_it_is_in(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str, does: str
) -> None:
    async with (
        far_and_near(serve, shared_redis, engine) as (far, near, link),
        page(far.url, tenant) as alice,
        page(far.url, tenant, user="bob") as bob,
    ):
        for channel in ("stays", "changes"):  # so that the store of channels need not be told of alice
            await ask(bob, "join-channel", {"channel": channel})
        await ask(alice, "join-channel", {"channel": "stays"})
        if does == "leave":
            await ask(alice, "join-channel", {"channel": "changes"})
        link.slow(0.3)
        answer = await ask(alice, f"{does}-channel", {"channel": "changes"})
        assert answer["event"] == {"join": "joined-channel", "leave": "left-channel"}[does]
        await alice.cut()
        assert await alice.back(near.url)
        link.slow()
        for channel in ("changes", "stays"):
            await near.gateway.channels.say(channel, "said", {"in": channel}, tenant=tenant)
        await alice.next("said", 2 if does == "join" else 1)
        heard = [payload[0]["in"] for payload in alice.of("said")]
        assert heard == (["changes", "stays"] if does == "join" else ["stays"])


async def test_where_a_client_goes_on_it_watches_whom_it_was_told_it_watches(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    async with far_and_near(serve, shared_redis, engine) as (far, near, link), page(far.url, tenant) as alice:
        await ask(alice, "watch-users", {"userIds": ["bob"]})
        link.slow(0.3)
        answer = await ask(alice, "watch-users", {"userIds": ["carol"]})
        assert [status["userId"] for status in answer["data"]["statuses"]] == ["carol"]
        assert (await ask(alice, "unwatch-users", {"userIds": ["bob"]}))["data"] == {"count": 1}
        await alice.cut()
        assert await alice.back(near.url)
        link.slow()
        await online(near.url, tenant, "bob", "carol")
        await alice.next("user-online")
        await online(near.url, tenant, "bob", "carol", event="offline")
        await alice.next("user-offline")
        assert {payload[0]["userId"] for payload in alice.of("user-online") + alice.of("user-offline")} == {"carol"}


async def test_where_a_client_goes_on_it_is_in_the_rooms_that_its_node_has_put_it_into(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    async with far_and_near(serve, shared_redis, engine) as (far, near, link), page(far.url, tenant) as alice:
        sid, server = (await alice.next("connect"))["id"], far.gateway._server
        await server.enter_room(sid, "left", namespace=NAMESPACE)
        link.slow(0.3)
        await server.enter_room(sid, "room", namespace=NAMESPACE)
        await server.leave_room(sid, "left", namespace=NAMESPACE)
        await alice.cut()
        assert await alice.back(near.url)
        link.slow()
        for room in ("left", "room"):
            await near.gateway._server.emit("said", room, room=room, namespace=NAMESPACE)
        await alice.next("said")
        assert [payload[0] for payload in alice.of("said")] == ["room"]


async def test_a_client_is_not_told_that_it_came_or_went_where_others_cannot_know(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    """Its node is cut off, so that it can be asked for nothing: whoever takes the client over has what was written."""
    async with far_and_near(serve, shared_redis, engine) as (far, near, link):
        async with page(far.url, tenant) as alice:
            await ask(alice, "join-channel", {"channel": "stays"})
            await link.cut()
            for request, payload in (
                ("join-channel", {"channel": "comes"}),
                ("leave-channel", {"channel": "stays"}),
                ("watch-users", {"userIds": ["bob"]}),
            ):
                assert (await ask(alice, request, payload))["error"]["code"] == "UNAVAILABLE"
            await alice.cut()
            assert await alice.back(near.url)
            for channel in ("comes", "stays"):
                await near.gateway.channels.say(channel, "said", {"in": channel}, tenant=tenant)
            await alice.next("said")
            assert [payload[0]["in"] for payload in alice.of("said")] == ["stays"]
        # Of a client that came meanwhile others know nothing that could be wrong.
        async with page(far.url, tenant, user="bob") as bob:
            assert (await ask(bob, "join-channel", {"channel": "comes"}))["event"] == "joined-channel"
            assert (await ask(bob, "watch-users", {"userIds": ["alice"]}))["event"] == "watching"
            await bob.cut()
            assert not await bob.back(near.url)
        await link.listen()


async def test_a_client_that_came_back_to_a_node_is_not_found_there_as_it_was_before(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    async with far_and_near(serve, shared_redis, engine) as (far, near, link), page(far.url, tenant) as alice:
        prefix = far.gateway.settings.redis_prefix
        third = await serve(redis_url=shared_redis.url, redis_prefix=prefix, gateway_engine=engine)
        link.slow(0.3)
        await alice.cut()
        assert await alice.back(near.url)
        # By now the first node has told of its loss, too: it is listed there as it was.
        directory: Any = far.gateway._recovery.directory  # type: ignore[union-attr]
        await eventually(lambda: not directory._changed and not directory._writing)
        await ask(alice, "join-channel", {"channel": "comes"})
        await alice.cut()
        assert await alice.back(far.url)
        await alice.cut()
        recovered = await alice.back(third.url)
        link.slow()
        await third.gateway.channels.say("comes", "said", {}, tenant=tenant)
        await ask(alice, "get-online-users", None)
        assert len(alice.of("said")) == recovered


async def test_where_a_client_goes_on_it_is_not_where_it_was_told_that_it_is_not_any_more(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    banned: set[str] = set()

    async def rule(identity: Any, _channel: str) -> bool:
        return identity.user_id not in banned

    async with (
        far_and_near(serve, shared_redis, engine, channel_auth=rule) as (far, near, link),
        page(far.url, tenant) as alice,
        page(far.url, tenant, user="bob") as bob,
    ):
        await ask(bob, "join-channel", {"channel": "private-club"})
        for channel in ("private-club", "stays"):
            await ask(alice, "join-channel", {"channel": channel})
        link.slow(0.3)
        banned.add("alice")
        await far.gateway.channels.reauthorize("alice", tenant=tenant)
        await alice.next("channel-left")
        banned.clear()
        await alice.cut()
        assert await alice.back(near.url)
        link.slow()
        for channel in ("private-club", "stays"):
            await near.gateway.channels.say(channel, "said", {"in": channel}, tenant=tenant)
        await alice.next("said")
        assert [payload[0]["in"] for payload in alice.of("said")] == ["stays"]


async def test_a_client_that_comes_back_to_a_node_that_is_cut_off_is_where_it_was(
    serve: Serve, shared_redis: RedisServer, tenant: str, engine: str
) -> None:
    async with far_and_near(serve, shared_redis, engine) as (far, _near, link), page(far.url, tenant) as alice:
        await ask(alice, "join-channel", {"channel": "presence-club"})
        await link.cut()
        await alice.cut()
        assert await alice.back()
        await alice.next("channel-members")
        assert alice.of("channel-left") == []
        await link.listen()
