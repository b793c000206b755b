"""Many nodes on one Redis are one gateway: real processes, real clients, and everything between them broken."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import aiohttp
import pytest
import pytest_asyncio
import socketio
from aiohttp import web
from chaos.proxy import Proxy
from clients import Client, Listener, Packets, Plain, is_timestamp
from conftest import (
    ROOT,
    SERVICE_KEY,
    STEP,
    Process,
    eventually,
    gateway_process,
    make_settings,
    make_token,
    require_program,
)
from redis_servers import RedisServer, fresh_prefix, redis_cluster, redis_sentinel, redis_server

from gateway import Gateway
from gateway.app import create_app
from gateway.client import PresenceClient
from gateway.presence.store import OUTAGE

# Two nodes serve all tests of this file, and so there is one loop for all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE = 2.0
GRACE = 1.0
TIMES = {"NODE_LEASE": str(LEASE), "PRESENCE_OFFLINE_GRACE": str(GRACE)}


class Site:
    """The gateway that a test sees: some nodes, and a tenant that no other test has."""

    def __init__(self, closing: AsyncExitStack, nodes: list[Process], **variables: str) -> None:
        self.nodes = nodes
        self.tenant = f"tenant-{secrets.token_hex(4)}"
        self._closing = closing
        self._variables = variables

    async def add(self, **variables: str) -> Process:
        """Start another node."""
        node = await self._closing.enter_async_context(gateway_process(**(self._variables | variables)))
        self.nodes.append(node)
        return node

    async def add_two(self) -> None:
        await asyncio.gather(self.add(), self.add())

    def token(self, user: str) -> str:
        return make_token(user, tenant=self.tenant)

    async def client(self, node: Process, user: str) -> Client:
        """Connect by Socket.IO."""
        client = await Client.connect(self._closing, node.url, auth={"token": self.token(user)})
        self._closing.push_async_callback(client.io.eio.ws.close)
        return client

    async def ear(self, node: Process, user: str) -> Ear:
        """Connect by plain WebSocket."""
        return await Ear.listen(self._closing, f"{ws(node)}/ws?token={self.token(user)}")

    async def packets(self, node: Process, user: str) -> Packets:
        """Connect by Socket.IO, to see how the WebSocket under it is closed."""
        client = await Packets.start(self._closing, ws(node))
        self._closing.push_async_callback(client.ws.close)
        await client.join(self.token(user))
        return client

    async def watchers(self) -> list[Ear]:
        """A user on each node, who hears of the others; nobody hears of them."""
        ears = [await self.ear(node, "watcher") for node in self.nodes]
        for ear in ears:
            await self.mark(ear)
        return ears

    async def mark(self, *listeners: Listener) -> None:
        """Return when all that was committed until now has come to the listeners."""
        marker = f"marker-{secrets.token_hex(4)}"
        await self.call(self.nodes[0], "POST", "/presence/online", {"userId": marker})
        for listener in listeners:
            await listener.hears("user-online", userId=marker)

    async def call(self, node: Process, method: str, path: str, body: Any = None) -> Any:
        """Call the HTTP API with a service key; return status and body."""
        url = f"{node.url}{path}{'&' if '?' in path else '?'}tenant={self.tenant}"
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as session,
            session.request(method, url, json=body) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def get(self, node: Process, path: str) -> Any:
        status, body = await self.call(node, "GET", path)
        assert status == 200, body
        return body

    async def becomes(self, expected: Any, ask: Callable[[], Any], *, within: float = STEP) -> None:
        """Wait until awaiting what `ask` returns gives what is expected."""
        deadline = time.monotonic() + within
        while (answer := await ask()) != expected:
            assert time.monotonic() < deadline, f"{answer} instead of {expected}"
            await asyncio.sleep(0.02)

    async def is_ready(self, node: Process, ready: bool = True, *, within: float = STEP) -> Any:  # noqa: FBT001, FBT002
        """Wait until a node says that it is ready, or not; return what it says."""
        answer: Any = None

        async def ask() -> bool:
            nonlocal answer
            status, answer = await self.call(node, "GET", "/health/ready")
            return bool(status == 200)

        await self.becomes(ready, ask, within=within)
        return answer


class Ear(Plain):
    """A client of the plain WebSocket door that reads all the time."""

    listening: asyncio.Task[None]

    @classmethod
    async def listen(cls, closing: AsyncExitStack, url: str) -> Self:
        ear = await cls.open(closing, url)
        ear.listening = asyncio.create_task(ear._listen())
        closing.push_async_callback(ear.ws.close)
        await ear.hears("connected")
        return ear

    async def _listen(self) -> None:
        async for message in self.ws:
            self._take(message.data)

    async def closed(self) -> int | None:
        await asyncio.wait_for(asyncio.shield(self.listening), STEP)
        return self.ws.close_code

    async def leave(self) -> None:
        await self.ws.close()


def ws(node: Process) -> str:
    return node.url.replace("http", "ws", 1)


def notified(listener: Listener) -> list[Any]:
    return [data for name, data in listener.heard if name == "notification"]


@pytest_asyncio.fixture(loop_scope="module")
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(redis_url: str) -> AsyncIterator[tuple[dict[str, str], list[Process]]]:
    """Two nodes that every test may use, and none may harm; and the variables that another one joins them with."""
    variables = TIMES | {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix()}
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(gateway_process(**variables)) for _ in range(2)]
        yield variables, list(await asyncio.gather(*starting))


@pytest_asyncio.fixture(loop_scope="module")
async def site(pair: tuple[dict[str, str], list[Process]], closing: AsyncExitStack) -> Site:
    variables, nodes = pair
    return Site(closing, list(nodes), **variables)


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(shared_redis: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy.start(shared_redis.port) as proxy:
        yield proxy


@asynccontextmanager
async def application(site: Site) -> AsyncIterator[Gateway]:
    """A node in this process, as an application attaches one."""
    variables = {name.lower(): value for name, value in site._variables.items()}
    gateway = Gateway(make_settings(**variables))
    runner = web.AppRunner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        yield gateway
    finally:
        await runner.cleanup()


# One gateway


async def test_a_user_s_tabs_on_several_nodes_are_one_user(site: Site) -> None:
    a, b = site.nodes
    watchers = await site.watchers()
    tabs: list[Client | Ear] = [await site.client(a, "alice")]
    tabs += [await site.ear(b, "alice"), await site.client(b, "alice"), await site.ear(a, "alice")]
    await site.mark(*watchers)
    for tab in tabs[:3]:
        await tab.leave()
    await site.mark(*watchers)
    for watcher in watchers:
        assert watcher.presence("alice") == [("user-online", "alice", 1)]
    await tabs[3].leave()
    for watcher in watchers:
        await watcher.hears("user-offline", userId="alice")
    await site.mark(*watchers)
    for watcher in watchers:
        assert watcher.presence("alice") == [("user-online", "alice", 1), ("user-offline", "alice", 2)]


async def test_both_nodes_give_the_same_answers(site: Site) -> None:
    a, b = site.nodes
    for n in range(10):
        await site.ear(site.nodes[n % 2], f"user-{n}")
    gone = await site.ear(a, "gone")
    await gone.leave()
    everybody = [f"user-{n}" for n in range(10)]

    async def both(path: str) -> list[Any]:
        return [await site.get(node, path) for node in (a, b)]

    await site.becomes([[10, everybody]] * 2, lambda: names(both("/api/users/online")))
    for path in (
        "/api/users/online",
        "/api/users/online?limit=3",
        f"/online-status?ids={','.join(everybody)},gone,nobody,7",
    ):
        first, second = await both(path)
        assert first == second
    for user in ("user-0", "user-1", "gone"):
        first, second = await both(f"/api/users/{user}/online-status")
        assert first | {"secondsAgo": 0} == second | {"secondsAgo": 0}
    explained = [await site.get(node, "/api/users/user-1/explain") for node in (a, b)]
    [there], [here] = (each["connections"] for each in explained)
    assert is_timestamp(here["lastActive"])  # which the connection's node knows, and the other asks
    assert there == here
    sessions = [await site.get(node, "/api/users/gone/sessions") for node in (a, b)]
    assert sessions[0] == sessions[1]
    assert [each["reason"] for each in sessions[0]["sessions"]] == ["goodbye"]


async def names(asked: Any) -> list[Any]:
    return [[answer["count"], [user["userId"] for user in answer["users"]]] for answer in await asked]


async def test_a_command_on_one_node_is_seen_on_the_other(site: Site) -> None:
    a, b = site.nodes
    bob = await site.client(b, "bob")
    status, body = await site.call(a, "POST", "/presence/online", {"userId": "alice"})
    assert (status, body["online"]) == (200, True)
    assert (await bob.hears("user-online", userId="alice"))["version"] == 1
    assert (await bob.status("alice"))["version"] == 1
    status, body = await site.call(a, "POST", "/presence/offline", {"userId": "alice"})
    assert (status, body["online"]) == (200, False)
    assert (await bob.hears("user-offline", userId="alice"))["version"] == 2


async def test_who_connects_is_online_in_the_next_answer_of_that_node(site: Site) -> None:
    for n in range(10):
        node, user = site.nodes[n % 2], f"user-{n}"
        client = await site.client(node, user)
        assert (await client.status(user))["online"]
        assert await site.get(node, f"/online-status?ids={user}") == [{"id": user, "online": True}]


async def test_versions_grow_by_one_over_all_nodes(site: Site) -> None:
    watchers = await site.watchers()
    expected = []
    for n in range(6):
        ear = await site.ear(site.nodes[n % 2], "alice")
        expected.append(("user-online", "alice", 2 * n + 1))
        for watcher in watchers:
            await eventually(lambda watcher=watcher: watcher.presence("alice") == expected)  # type: ignore[misc]
        await ear.leave()
        expected.append(("user-offline", "alice", 2 * n + 2))
        for watcher in watchers:
            await eventually(lambda watcher=watcher: watcher.presence("alice") == expected)  # type: ignore[misc]


async def test_a_reload_to_another_node_is_heard_by_nobody(site: Site) -> None:
    a, b = site.nodes
    watchers = await site.watchers()
    page = await site.client(a, "alice")
    page.vanish()
    await a.logged(f"disconnected .*connection={page.socket_id}")
    page = await site.client(b, "alice")
    assert page.of("connected")[0]["reconnect"]
    await asyncio.sleep(GRACE + 0.3)  # in which nothing is to happen
    await site.mark(*watchers)
    for watcher in watchers:
        assert watcher.presence("alice") == [("user-online", "alice", 1)]


async def test_two_prefixes_on_one_redis_are_two_gateways(site: Site) -> None:
    other = await site.add(REDIS_PREFIX=fresh_prefix())
    a, b, _ = site.nodes
    here, there = await site.ear(a, "alice"), await site.ear(other, "bob")
    await site.becomes([1, ["alice"]], lambda: one(site.get(b, "/api/users/online")))
    assert await one(site.get(other, "/api/users/online")) == [1, ["bob"]]
    assert (await site.call(other, "DELETE", "/api/users/alice/connections"))[1] == {"closed": 0}
    async with PresenceClient(site._variables["REDIS_URL"], prefix=site._variables["REDIS_PREFIX"]) as client:
        await client.notify("alice", "notification", "here", tenant=site.tenant)
        assert (await client.notify("bob", "notification", "there", tenant=site.tenant)).method == "queued"
    await eventually(lambda: notified(here) == ["here"])
    assert there.names() == ["connected"]


async def one(asked: Any) -> Any:
    answer = await asked
    return [answer["count"], [user["userId"] for user in answer["users"]]]


async def test_redis_by_host_and_port(site: Site, shared_redis: RedisServer) -> None:
    added = await site.add(REDIS_URL="", REDIS_HOST="127.0.0.1", REDIS_PORT=f"tcp://127.0.0.1:{shared_redis.port}")
    await site.ear(added, "alice")
    await site.becomes([1, ["alice"]], lambda: one(site.get(site.nodes[0], "/api/users/online")))


async def test_redis_over_tls(closing: AsyncExitStack) -> None:
    server = await closing.enter_async_context(redis_server(tls=True, password="secret"))
    await smoke(closing, server.url)


async def test_redis_behind_sentinels(closing: AsyncExitStack) -> None:
    servers = await closing.enter_async_context(redis_sentinel())
    await smoke(closing, servers.url)


async def test_a_redis_cluster(closing: AsyncExitStack) -> None:
    servers = await closing.enter_async_context(redis_cluster())
    await smoke(closing, servers.url)


async def smoke(closing: AsyncExitStack, redis_url: str) -> None:
    """Two nodes know of each other, by all that goes between them."""
    site = Site(closing, [], REDIS_URL=redis_url, **TIMES)
    await site.add_two()
    a, b = site.nodes
    alice, bob = await site.client(a, "alice"), await site.ear(b, "bob")
    await site.becomes([2, ["alice", "bob"]], lambda: one(site.get(a, "/api/users/online")))
    async with PresenceClient(redis_url) as client:
        assert client.presence.online_users(tenant=site.tenant) == ["alice", "bob"]
        for user, listener in (("alice", alice), ("bob", bob)):
            await client.notify(user, "notification", {"to": user}, tenant=site.tenant)
            await eventually(lambda user=user, listener=listener: notified(listener) == [{"to": user}])  # type: ignore[misc]
    assert (await site.call(b, "DELETE", "/api/users/alice/connections"))[1] == {"closed": 1}
    await alice.closed()
    assert (await bob.hears("user-offline", userId="alice"))["version"] == 2
    assert await one(site.get(a, "/api/users/online")) == [1, ["bob"]]
    assert "secret" not in a.log + b.log


# Word to users


async def test_a_kick_closes_every_connection_on_every_node(site: Site) -> None:
    a, b = site.nodes
    watchers = await site.watchers()
    sockets = [await site.packets(node, "alice") for node in (a, b)]
    ears = [await site.ear(node, "alice") for node in (a, b)]
    page = await site.client(b, "alice")
    codes = asyncio.gather(*(client.closed() for client in (*sockets, *ears)))
    assert await site.call(a, "DELETE", "/api/users/alice/connections") == (200, {"closed": 5})
    assert await site.get(a, "/online-status?ids=alice") == [{"id": "alice", "online": False}]
    assert await codes == [4003] * 4
    for client in sockets:
        assert [frame for frame in client.names() if frame.startswith("41")] == ["41/ws/messages,"]
    await page.closed()
    for watcher in watchers:
        await watcher.hears("user-offline", userId="alice")
    assert await site.call(a, "DELETE", "/api/users/alice/connections") == (200, {"closed": 0})
    await site.mark(*watchers)
    for watcher in watchers:
        assert watcher.presence("alice") == [("user-online", "alice", 1), ("user-offline", "alice", 2)]


async def test_a_kick_ends_what_else_keeps_a_user_online(site: Site) -> None:
    a, b = site.nodes
    await site.call(b, "POST", "/presence/online", {"userId": "alice"})
    await site.becomes([1, ["alice"]], lambda: one(site.get(a, "/api/users/online")))
    ear = await site.ear(b, "alice")
    assert await site.call(a, "DELETE", "/api/users/alice/connections") == (200, {"closed": 1})
    assert await ear.closed() == 4003
    for node in (a, b):
        await site.becomes([0, []], lambda node=node: one(site.get(node, "/api/users/online")))  # type: ignore[misc]


async def test_an_application_s_own_node_reaches_users_on_the_others(site: Site) -> None:
    a, b = site.nodes
    async with application(site) as gateway:
        ears = [await site.ear(node, "alice") for node in (a, b)]
        pages = [await site.client(node, "alice") for node in (b, a)]
        await eventually(lambda: gateway.presence.status("alice", tenant=site.tenant).online)
        for n in range(200):
            delivery = await gateway.notify("alice", "notification", {"n": n}, tenant=site.tenant)
            assert (delivery.sent, delivery.method) == (True, "realtime")
        for listener in (*ears, *pages):
            await eventually(lambda listener=listener: len(notified(listener)) >= 200)  # type: ignore[misc]
            assert notified(listener) == [{"n": n} for n in range(200)]
        assert (await gateway.notify("nobody", "notification", {}, tenant=site.tenant)).method == "queued"
        assert await gateway.disconnect("alice", tenant=site.tenant) == 4
        assert not gateway.presence.status("alice", tenant=site.tenant).online
        assert [await ear.closed() for ear in ears] == [4003, 4003]
        for page in pages:
            await page.closed()


async def test_word_waits_for_a_node_that_is_cut_off_from_redis(site: Site, proxy: Proxy) -> None:
    cut = await site.add(REDIS_URL=proxy.url)
    a = site.nodes[0]
    there = [await site.ear(cut, "alice"), await site.client(cut, "alice")]
    here = await site.ear(a, "alice")
    kicked = await site.ear(cut, "bob")
    async with application(site) as gateway:
        await eventually(lambda: gateway.presence.online_count(tenant=site.tenant) == 2)

        async def say(first: int) -> None:
            for n in range(first, first + 100):
                await gateway.notify("alice", "notification", n, tenant=site.tenant)

        await say(0)
        await proxy.cut()
        await say(100)
        await eventually(lambda: len(notified(here)) == 200)
        disconnecting = asyncio.create_task(gateway.disconnect("bob", tenant=site.tenant))
        await site.is_ready(cut, ready=False)
        assert 199 not in notified(there[0])
        assert not kicked.ws.closed
        await proxy.listen()
        await say(200)
        for listener in (here, *there):
            await eventually(lambda listener=listener: len(notified(listener)) >= 300)  # type: ignore[misc]
            assert notified(listener) == [*range(300)]
        assert await disconnecting == 1
        assert await kicked.closed() == 4003
    assert "have been missed" not in cut.log
    assert await metric(cut, "presence_bus_gaps_total") == 0


async def test_a_node_that_was_cut_off_for_too_long_says_so_and_goes_on(
    site: Site, proxy: Proxy, shared_redis: RedisServer
) -> None:
    cut = await site.add(REDIS_URL=proxy.url)
    alice, bob = await site.ear(cut, "alice"), await site.ear(site.nodes[0], "bob")
    await alice.hears("user-online", userId="bob")
    async with application(site) as gateway:
        await eventually(lambda: gateway.presence.online_count(tenant=site.tenant) == 2)
        await proxy.cut()
        for n in range(3):
            await gateway.notify("alice", "notification", n, tenant=site.tenant)
        await gateway._bus.flush(STEP)
        await bob.leave()
        await site.becomes([1, ["alice"]], lambda: one(site.get(site.nodes[0], "/api/users/online")))
        await site.ear(site.nodes[0], "carol")
        for stream in ("bus", "log"):
            await shared_redis.cli("XTRIM", f"{{{site._variables['REDIS_PREFIX']}}}:{stream}", "MAXLEN", 1)
        await proxy.listen()
        await alice.hears("user-offline", userId="bob")
        await alice.hears("user-online", userId="carol")
        await eventually(lambda: notified(alice) == [2])
    await cut.logged("messages of other nodes may have been missed")
    await cut.logged("the log did not go on from where this node was")
    assert await metric(cut, "presence_bus_gaps_total") == 1
    assert await metric(cut, "presence_log_resyncs_total") == 1
    assert await metric(site.nodes[0], "presence_bus_gaps_total") == 0


async def metric(node: Process, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{node.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return float(value)


async def test_a_client_in_a_process_of_its_own(site: Site) -> None:
    a, b = site.nodes
    ears = [await site.ear(node, "alice") for node in (a, b)]
    await site.client(b, "bob")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, site._variables["REDIS_URL"], site._variables["REDIS_PREFIX"], site.tenant),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(2 * STEP):
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output) == {
        "online": ["alice", "bob"],
        "count": 2,
        "statuses": [True, False],
        "sent": ["realtime"] * 20,
        "nobody": "queued",
        "closed": 2,
        "then": ["bob"],
        "listening": [],
    }
    for ear in ears:
        assert await ear.closed() == 4003
        assert notified(ear) == [{"n": n} for n in range(20)]


WORKER = """
import asyncio, json, os, socket, sys
from gateway.client import PresenceClient

def listening():
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as each:
                if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.append(each.getsockname())
        except OSError:
            pass
    return found

async def main(url, prefix, tenant):
    async with PresenceClient(url, prefix=prefix) as client:
        reads = client.presence
        said = {
            "online": reads.online_users(tenant=tenant),
            "count": reads.online_count(tenant=tenant),
            "statuses": [status.online for status in reads.statuses(["alice", "nobody"], tenant=tenant)],
            "sent": [(await client.notify("alice", "notification", {"n": n}, tenant=tenant)).method for n in range(20)],
            "nobody": (await client.notify("nobody", "notification", {}, tenant=tenant)).method,
            "closed": await client.disconnect("alice", tenant=tenant),
            "then": reads.online_users(tenant=tenant),
            "listening": listening(),
        }
    print(json.dumps(said))

asyncio.run(main(*sys.argv[1:]))
"""


# What breaks


async def test_redis_hangs_and_comes_back_and_dies_and_comes_back_empty(
    closing: AsyncExitStack, server: RedisServer
) -> None:
    site = Site(closing, [], REDIS_URL=server.url, **TIMES)
    await site.add_two()
    a, b = site.nodes
    watchers = await site.watchers()
    alice, bob = await site.client(a, "alice"), await site.ear(b, "bob")
    await site.mark(*watchers)

    await server.pause()
    began = time.monotonic()
    for node in (a, b):
        problem = await site.is_ready(node, ready=False)
        assert (problem["status"], problem["code"]) == (503, "UNAVAILABLE")
        assert "away" in problem["detail"]
    assert (await alice.status("bob"))["online"]
    assert (await site.get(b, "/online-status?ids=alice,bob")) == [
        {"id": "alice", "online": True},
        {"id": "bob", "online": True},
    ]
    status, problem = await site.call(a, "GET", "/api/users/alice/explain")
    assert (status, problem["code"]) == (503, "UNAVAILABLE")
    carol = await site.client(a, "carol")
    assert (await carol.ask("heartbeat"))["event"] == "heartbeat-ack"
    await asyncio.sleep(max(LEASE + GRACE + 0.5 - (time.monotonic() - began), 0))  # in which nothing is to happen
    await server.resume()
    for node in (a, b):
        await site.is_ready(node)
    for watcher in watchers:
        await watcher.hears("user-online", userId="carol")
    await site.mark(*watchers)
    everybody = [("user-online", user, 1) for user in ("alice", "bob", "carol")]
    for watcher in watchers:
        assert [change for change in watcher.presence() if change[1] in {"alice", "bob", "carol"}] == everybody

    heard = [[*listener.heard] for listener in (alice, bob, carol, *watchers)]
    before = await site.get(a, "/api/users/online")
    await server.kill()
    await site.is_ready(a, ready=False)
    await server.start()
    for node in (a, b):
        await site.is_ready(node)
    for listener, known in zip((alice, bob, carol, *watchers), heard, strict=True):
        await site.mark(listener)
        assert {name for name, data in listener.heard[len(known) :] if not data["userId"].startswith("marker")} == set()
    assert (alice.goodbyes, carol.goodbyes, bob.ws.closed) == ([], [], False)

    def versions(answer: Any) -> dict[str, int]:
        return {user["userId"]: user["version"] for user in answer["users"]}

    for node in (a, b):
        assert versions(before).items() <= versions(await site.get(node, "/api/users/online")).items()
    await carol.leave()
    for watcher in watchers:
        assert (await watcher.hears("user-offline", userId="carol"))["version"] == 2


async def test_a_goodbye_on_the_first_node_back_is_none_for_whoever_came_to_another_meanwhile(
    closing: AsyncExitStack, server: RedisServer
) -> None:
    """The other node is held up by a proxy: by how much it comes later is left to nobody's timers."""
    proxy = await closing.enter_async_context(Proxy.start(server.port))
    site = Site(closing, [], REDIS_URL=server.url, **TIMES)
    later, first = await asyncio.gather(site.add(REDIS_URL=proxy.url), site.add())
    watchers = await site.watchers()
    tabs = [await site.ear(first, user) for user in ("alice", "bob")]
    await site.mark(*watchers)

    await server.cli("SAVE")  # it loses nothing: what is given back would hold everyone anyway
    await asyncio.gather(server.kill(), proxy.cut())
    for node in (later, first):
        await site.is_ready(node, ready=False)
    other = await site.ear(later, "alice")
    await asyncio.sleep(OUTAGE / 1000)
    await server.start()
    await site.is_ready(first)
    for tab in tabs:
        await tab.leave()
    await asyncio.sleep(0.3)
    await proxy.listen()
    await site.is_ready(later)
    for watcher in watchers:
        assert (await watcher.hears("user-offline", userId="bob"))["version"] == 2
        assert [change for change in watcher.presence() if change[1] == "alice"] == [("user-online", "alice", 1)]
    await other.leave()
    for watcher in watchers:
        assert (await watcher.hears("user-offline", userId="alice"))["version"] == 2


async def test_started_without_redis_it_lets_nobody_in_until_redis_answers(
    closing: AsyncExitStack, server: RedisServer
) -> None:
    await server.kill()
    site = Site(closing, [], REDIS_URL=server.url, **TIMES)
    node = await site.add()
    client = Client()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.try_to_connect(closing, node.url, auth={"token": site.token("alice")})
    assert [refusal["data"]["code"] for refusal in client.refusals] == ["UNAVAILABLE"]
    plain = await Plain.open(closing, f"{ws(node)}/ws?token={site.token('alice')}")
    assert await plain.closed() == 1013
    status, problem = await site.call(node, "GET", "/online-status?ids=alice")
    assert (status, problem["code"]) == (503, "UNAVAILABLE")
    await site.is_ready(node, ready=False)
    assert (await site.call(node, "GET", "/health/live"))[0] == 200
    await server.start()
    await site.is_ready(node)
    alice = await site.client(node, "alice")
    assert (await alice.status("alice"))["version"] == 1


async def test_a_node_that_sleeps_for_longer_than_its_lease(site: Site) -> None:
    watchers = await site.watchers()
    node = await site.add()
    alice, bob = await site.client(node, "alice"), await site.ear(node, "bob")
    await site.mark(*watchers)
    node.process.send_signal(signal.SIGSTOP)
    for watcher in watchers:
        for user in ("alice", "bob"):
            await eventually(
                lambda user=user, watcher=watcher: watcher.of("user-offline", userId=user),  # type: ignore[misc]
                within=LEASE + GRACE + STEP,
            )
    node.process.send_signal(signal.SIGCONT)
    for watcher in watchers:
        for user in ("alice", "bob"):
            await watcher.hears("user-online", userId=user, version=3)
    await site.mark(*watchers, alice, bob)
    for watcher in watchers:
        for user in ("alice", "bob"):
            story = [("user-online", user, 1), ("user-offline", user, 2), ("user-online", user, 3)]
            assert watcher.presence(user) == story
    assert (alice.goodbyes, bob.ws.closed) == ([], False)
    assert (await alice.status("alice"))["online"]


async def test_a_node_that_is_killed(site: Site) -> None:
    watchers = await site.watchers()
    node = await site.add()
    await site.client(node, "alice")
    await site.ear(node, "bob")
    elsewhere = await site.ear(site.nodes[0], "bob")
    await site.mark(*watchers)
    began = time.monotonic()
    await node.stop(signal.SIGKILL)
    for watcher in watchers:
        await eventually(
            lambda watcher=watcher: watcher.of("user-offline", userId="alice"),  # type: ignore[misc]
            within=LEASE + GRACE + STEP,
        )
    assert time.monotonic() - began < LEASE + GRACE + 2
    await site.mark(*watchers)
    for watcher in watchers:
        assert watcher.presence("alice") == [("user-online", "alice", 1), ("user-offline", "alice", 2)]
        assert watcher.presence("bob") == [("user-online", "bob", 1)]
    assert not elsewhere.ws.closed
    kept = [(await site.get(site.nodes[0], f"/api/users/{user}/sessions"))["sessions"] for user in ("alice", "bob")]
    assert [[(each["reason"], each["connections"]) for each in sessions] for sessions in kept] == [
        [("node died", 1)],
        [(None, 2)],
    ]


async def test_nodes_whose_clocks_are_off(site: Site) -> None:
    ahead, behind = await asyncio.gather(site.add(**clock_off("+5s")), site.add(**clock_off("-5s")))
    a = site.nodes[0]
    watchers = await site.watchers()
    for node, word in ((ahead, "ahead"), (behind, "behind")):
        [warning] = (await site.is_ready(node))["warnings"]
        assert "5.0 s" in warning or "4.9 s" in warning
        assert word in warning
    assert "warnings" not in await site.is_ready(a)
    users = [("from-a", a), ("from-ahead", ahead), ("from-behind", behind)]
    for user, node in users:
        page = await site.client(node, user)
        page.vanish()
        await node.logged(f"disconnected .*connection={page.socket_id}")
        await asyncio.sleep(GRACE / 2)  # in which no node is to find that the grace is over
        page = await site.client(node, user)
        assert page.of("connected")[0]["reconnect"]
    await site.mark(*watchers)
    for watcher in watchers:
        assert [watcher.presence(user) for user, _ in users] == [[("user-online", user, 1)] for user, _ in users]


def clock_off(by: str) -> dict[str, str]:
    """The variables under which a process has a wall clock that is off."""
    command = [require_program("faketime"), "-f", by, "env"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: variables[name] for name in ("LD_PRELOAD", "FAKETIME")} | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
