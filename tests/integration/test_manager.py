"""python-socketio over many nodes: what it can do with a client of its own, it can do with another node's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from chaos.proxy import Proxy
from clients import NAMESPACE, Client, Plain
from conftest import Running, eventually
from redis_servers import RedisServer, fresh_prefix
from structlog.testing import capture_logs

from gateway.engine import manager as manager_module
from gateway.errors import StoreUnavailableError
from gateway.redis.bus import RedisBus

Serve = Callable[..., Awaitable[Running]]


class Two:
    """Two nodes, with a client each."""

    def __init__(self, a: Running, b: Running, alice: Client, bob: Client) -> None:
        self.a, self.b, self.alice, self.bob = a.gateway._server, b.gateway._server, alice, bob
        self.gateways = a.gateway, b.gateway

    async def settle(self, *clients: Client) -> None:
        """Return when each node, and each client, has heard what was said until now."""
        for server in (self.a, self.b):
            await server.emit("settled", {}, namespace=NAMESPACE)
            for client in clients or (self.alice, self.bob):
                await client.hears("settled")
                client.heard.remove(("settled", {}))


@pytest.fixture
async def two(serve: Serve, redis_url: str, closing: AsyncExitStack) -> Two:
    prefix = fresh_prefix()
    a, b = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    return Two(a, b, await Client.connect(closing, a.url, "alice"), await Client.connect(closing, b.url, "bob"))


@pytest.fixture
async def proxy(shared_redis: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy.start(shared_redis.port) as proxy:
        yield proxy


def said(client: Client, event: str = "said") -> list[Any]:
    return [data for name, data in client.heard if name == event]


async def test_an_emit_to_all_reaches_every_node_once_and_in_order(two: Two) -> None:
    for n in range(50):
        await two.a.emit("said", n, namespace=NAMESPACE)
    await two.settle()
    assert said(two.alice) == said(two.bob) == [*range(50)]


@pytest.mark.parametrize(
    ("data", "heard"),
    [(None, None), ({"a": [1, "é", None]}, {"a": [1, "é", None]}), (b"\x00\xff", b"\x00\xff"), ([], [])],
    ids=["nothing", "json", "bytes", "empty list"],
)
async def test_an_emit_brings_what_was_given(two: Two, data: Any, heard: Any) -> None:
    await two.a.emit("said", data, namespace=NAMESPACE)
    await two.settle()
    assert said(two.alice) == said(two.bob) == [heard]


async def test_an_emit_to_one_client_of_another_node_reaches_that_one(two: Two) -> None:
    await two.a.emit("said", 1, to=two.bob.socket_id, namespace=NAMESPACE)
    await two.b.emit("said", 2, to=two.bob.socket_id, namespace=NAMESPACE)
    await two.b.emit("said", 3, to=two.alice.socket_id, namespace=NAMESPACE)
    await two.b.emit("said", 4, skip_sid=two.bob.socket_id, namespace=NAMESPACE)
    await two.a.emit("said", 5, skip_sid=two.bob.socket_id, namespace=NAMESPACE)
    await two.settle()
    assert sorted(said(two.alice)) == [3, 4, 5]
    assert sorted(said(two.bob)) == [1, 2]


async def test_rooms_hold_clients_of_all_nodes(two: Two) -> None:
    for client in (two.alice, two.bob):
        await two.a.enter_room(client.socket_id, "room", namespace=NAMESPACE)
    await two.a.emit("said", "both", room="room", namespace=NAMESPACE)
    await two.settle()
    await two.b.emit("said", "both again", room=["room", "no such room"], namespace=NAMESPACE)
    await two.settle()
    await two.a.leave_room(two.bob.socket_id, "room", namespace=NAMESPACE)
    await two.a.emit("said", "alice", room="room", namespace=NAMESPACE)
    await two.settle()
    await two.b.close_room("room", namespace=NAMESPACE)
    await two.settle()
    await two.a.emit("said", "nobody", room="room", namespace=NAMESPACE)
    await two.settle()
    assert said(two.alice) == ["both", "both again", "alice"]
    assert said(two.bob) == ["both", "both again"]


async def test_who_is_gone_is_in_no_room(two: Two) -> None:
    managers = two.a.manager, two.b.manager
    for client in (two.alice, two.bob):
        for room in ("one", "two", 3):
            await two.b.enter_room(client.socket_id, room, namespace=NAMESPACE)
    await two.settle()
    assert [3 in manager.rooms[NAMESPACE] for manager in managers] == [True, True]
    await two.a.leave_room(two.bob.socket_id, "two", namespace=NAMESPACE)
    await two.settle()
    assert two.b.manager.get_rooms(two.bob.socket_id, NAMESPACE) == [two.bob.socket_id, "one", 3]
    await two.alice.leave()
    two.bob.vanish()
    for manager in managers:
        await eventually(lambda manager=manager: manager.rooms == {} and manager._entered == {})  # type: ignore[misc]


async def test_a_client_of_another_node_is_disconnected(two: Two) -> None:
    await two.a.disconnect(two.bob.socket_id, namespace=NAMESPACE)
    await two.bob.closed()
    await eventually(lambda: two.b.manager.rooms == {})
    assert two.alice.goodbyes == []
    await two.alice.hears("user-offline", userId="bob")
    with capture_logs() as logs:
        await two.a.disconnect("nobody", namespace=NAMESPACE)
        await two.settle(two.alice)
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize("whose", ["alice", "bob"], ids=["own", "another node's"])
async def test_a_client_acknowledges_to_the_node_that_asked(two: Two, whose: str) -> None:
    client: Client = getattr(two, whose)
    client.io.on("ask", lambda *args: (*args, "and back"), namespace=NAMESPACE)
    answers: list[Any] = []

    async def on_answer(*args: Any) -> None:
        answers.append(args)

    await two.a.emit("ask", {"n": 1}, to=client.socket_id, namespace=NAMESPACE, callback=on_answer)
    await two.a.emit(
        "ask",
        ("two", "arguments"),
        to=client.socket_id,
        namespace=NAMESPACE,
        callback=lambda *args: answers.append(args),
    )
    await eventually(lambda: len(answers) == 2)
    assert answers == [({"n": 1}, "and back"), ("two", "arguments", "and back")]


async def test_what_cannot_be_done_on_another_node_is_logged_and_the_next_is_done(two: Two) -> None:
    with capture_logs() as logs:
        await two.a.enter_room(two.bob.socket_id, ["no", "room"], namespace=NAMESPACE)
        two.gateways[0]._bus.publish(manager_module.TOPIC, {"method": "emit"})
        two.gateways[0]._bus.publish(manager_module.TOPIC, {"no": "method"})
        two.gateways[0]._bus.publish(manager_module.TOPIC, "no message")
        await two.a.emit("said", 1, to=two.bob.socket_id, namespace=NAMESPACE)
        await eventually(lambda: said(two.bob) == [1])
    assert len([line for line in logs if line["log_level"] == "error"]) == 3


async def test_what_is_asked_for_while_a_node_is_cut_off_is_done_later(
    serve: Serve, redis_url: str, proxy: Proxy, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    a = await serve(redis_url=redis_url, redis_prefix=prefix)
    b = await serve(redis_url=proxy.url, redis_prefix=prefix)
    alice, bob, carol = [
        await Client.connect(closing, running.url, user) for running, user in ((a, "alice"), (b, "bob"), (b, "carol"))
    ]
    near, far = a.gateway._server, b.gateway._server
    await proxy.cut()
    for n in range(20):
        await near.emit("said", n, namespace=NAMESPACE)
        await far.emit("said", -n, namespace=NAMESPACE)
    await near.enter_room(bob.socket_id, "room", namespace=NAMESPACE)
    await near.emit("said", "to the room", room="room", namespace=NAMESPACE)
    await near.disconnect(carol.socket_id, namespace=NAMESPACE)
    await eventually(lambda: (said(alice), said(bob)) == ([*range(20)], [-n for n in range(20)]))
    await proxy.listen()
    await eventually(lambda: len(said(alice)) == 40 and len(said(bob)) == 41)
    assert said(alice) == [*range(20), *(-n for n in range(20))]
    assert said(bob) == [*(-n for n in range(20)), *range(20), "to the room"]
    await carol.closed()


async def test_python_socketio_opens_no_connection_of_its_own(two: Two, shared_redis: RedisServer) -> None:
    await two.a.emit("said", 1, namespace=NAMESPACE)
    await eventually(lambda: said(two.bob))
    for server in (two.a, two.b):
        assert (server.manager.connected, server.manager.redis, server.manager.pubsub) == (False, None, None)
    assert await shared_redis.cli("PUBSUB", "CHANNELS") == []


async def test_a_node_without_socketio_clients_hears_other_nodes_all_the_same(
    serve: Serve, redis_url: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    a, b = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    for n in range(manager_module.BACKLOG * 2):
        await a.gateway._server.emit("said", n, namespace=NAMESPACE)
    plain = await Plain.connect(closing, b.ws_url, "bob")
    await eventually(lambda: a.gateway.presence.status("bob").online)
    await a.gateway.notify("bob", "notification", {"n": 1})
    assert (await plain.until("notification"))["data"] == {"n": 1}


async def test_a_node_that_stops_first_says_what_it_has_to_say(
    serve: Serve, redis_url: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    a, b = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    bob = await Client.connect(closing, b.url, "bob")
    await eventually(lambda: a.gateway.presence.status("bob").online)
    for n in range(500):
        await a.gateway.notify("bob", "said", n)
    await a.runner.cleanup()
    await eventually(lambda: len(said(bob)) == 500)
    assert said(bob) == [*range(500)]


async def test_nobody_is_let_in_who_would_miss_what_other_nodes_say(
    serve: Serve, redis_url: str, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = RedisBus.start

    async def away(self: RedisBus) -> None:
        raise StoreUnavailableError("not yet")

    monkeypatch.setattr(RedisBus, "start", away)
    running = await serve(redis_url=redis_url, redis_prefix=fresh_prefix())
    await eventually(lambda: running.gateway._tracker.away is None)
    assert not running.gateway._tracker.ready
    monkeypatch.setattr(RedisBus, "start", starts)
    await eventually(lambda: running.gateway._tracker.ready)
    await Client.connect(closing, running.url)


async def test_nothing_is_left_running_when_a_node_stops(serve: Serve, redis_url: str, closing: AsyncExitStack) -> None:
    before = asyncio.all_tasks()
    running = await serve(redis_url=redis_url, redis_prefix=fresh_prefix())
    client = await Client.connect(closing, running.url)
    await client.leave()
    await client.io.eio.http.close()
    await running.runner.cleanup()

    def left() -> set[str]:
        names = {str(task.get_coro()) for task in asyncio.all_tasks() - before}
        return {name for name in names if "_send_ping" not in name}  # python-engineio's, which end with their interval

    await eventually(lambda: left() == set())
