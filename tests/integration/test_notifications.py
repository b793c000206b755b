"""What waits for users who are not there, by every door, on both engines, on one node and on many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from clients import NAMESPACE, Client, Packets, Plain, Polling
from conftest import SERVICE_KEY, STEP, Process, Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix, redis_server

from gateway.client import PresenceClient
from gateway.delivery.notifications import Delivery
from gateway.delivery.queue import Limits
from gateway.errors import InvalidPayloadError, StoreUnavailableError

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]

REALTIME, QUEUED = Delivery(sent=True, method="realtime"), Delivery(sent=True, method="queued")


@pytest.fixture(params=["fast", "stock"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


@pytest.fixture
def shared(redis_url: str) -> dict[str, Any]:
    return {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


async def waiting(running: Running, user: str = "alice", tenant: str = "default") -> list[Any]:
    """The data of all that waits for a user."""
    found = await running.gateway._inbox.fetch(tenant, user)
    return [json.loads(bytes(each.data)) for each in found]


async def is_empty(running: Running, user: str = "alice") -> None:
    await become(running, 0, user)


async def become(running: Running, count: int, user: str = "alice") -> None:
    """Return when so many wait."""
    async with asyncio.timeout(STEP):
        while len(await waiting(running, user)) != count:  # noqa: ASYNC110 - it is Redis's, which tells nobody
            await asyncio.sleep(0.01)


async def events(packets: Packets, count: int) -> list[tuple[str, list[Any]]]:
    """The next events, each with the number of its acknowledgement."""
    found = []
    for _ in range(count):
        packet = (await packets.packet(f"42{NAMESPACE},")).removeprefix(f"42{NAMESPACE},")
        begin = packet.index("[")
        found.append((packet[:begin], json.loads(packet[begin:])))
    return found


async def test_what_is_said_to_who_is_away_waits_and_comes_in_order_and_first(
    serve: Serve, closing: AsyncExitStack, engine: str, store: dict[str, Any]
) -> None:
    running = await serve(gateway_engine=engine, **store)
    for n in range(3):
        assert await running.gateway.notify("alice", "notification", {"n": n}) == QUEUED
    assert await running.gateway.notify("alice", "notification", "red", tenant="red") == QUEUED
    packets = await Packets.connect(closing, running.ws_url, "alice")
    assert await running.gateway.notify("alice", "notification", {"n": 3}) == REALTIME
    heard = await events(packets, 4)
    assert [event[:2] for _number, event in heard] == [["notification", {"n": n}] for n in range(4)]
    assert [bool(number) for number, _event in heard] == [True, True, True, False]
    ids = [event[2] for _number, event in heard[:3]]
    assert len(set(ids)) == 3
    assert heard[3][1][2:] == [], "what is realtime is as it always was"
    # One is acknowledged, and leaves; the others stay.
    await packets.ws.send_str(f"43{NAMESPACE},{heard[1][0]}[]")
    await eventually(lambda: running.gateway._inbox.acknowledged == 1)
    assert await waiting(running) == [{"n": 0}, {"n": 2}]
    await packets.ws.close()
    again = await Packets.connect(closing, running.ws_url, "alice")
    heard = await events(again, 2)
    assert [event for _number, event in heard] == [
        ["notification", {"n": 0}, ids[0]],
        ["notification", {"n": 2}, ids[2]],
    ]
    for number, _event in heard:
        await again.ws.send_str(f"43{NAMESPACE},{number}[]")
    await is_empty(running)
    assert await waiting(running, tenant="red") == ["red"]
    third = await Packets.connect(closing, running.ws_url, "alice")
    assert await third.ask("heartbeat", None)
    await running.gateway.notify("alice", "notification", "last")
    assert [event for _number, event in await events(third, 1)] == [["notification", "last"]]


@pytest.mark.parametrize("depth", [100, 200, 965])
async def test_what_is_nested_shuts_nobody_out(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any], depth: int
) -> None:
    running = await serve(**store)
    body = '{"userId": "alice", "event": "said", "data": ' + "[" * depth + "]" * depth + "}"
    headers = {"X-API-Key": SERVICE_KEY, "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{running.url}/api/notifications", data=body) as response,
    ):
        assert response.status == (200 if depth == 100 else 400)
    ear = await Plain.connect(closing, running.ws_url, "alice")
    assert (await ear.ask("heartbeat"))["event"] == "heartbeat-ack"


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_python_s_client_acknowledges_by_itself(
    serve: Serve, closing: AsyncExitStack, engine: str, store: dict[str, Any], transport: str
) -> None:
    running = await serve(gateway_engine=engine, **store)
    for n in range(20):
        await running.gateway.notify("alice", "notification", n)
    alice = await Client.connect(closing, running.url, transports=[transport])
    await eventually(lambda: len(alice.queued) == 20)
    assert [data for _id, data in alice.queued] == [*range(20)]
    await is_empty(running)
    await alice.leave()
    again = await Client.connect(closing, running.url, transports=[transport])
    await again.ask("heartbeat")
    assert again.queued == []


async def test_a_plain_websocket_acknowledges_by_a_request(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**store)
    for n in range(2):
        await running.gateway.notify("alice", "order-shipped", {"n": n})
    alice = await Plain.connect(closing, running.ws_url)
    frames = [await alice.frame() for _ in range(2)]
    assert [{**frame, "id": None} for frame in frames] == [
        {"event": "order-shipped", "data": {"n": n}, "id": None} for n in range(2)
    ]
    first = frames[0]["id"]
    assert await alice.ask("ack", {"id": first}, id=7) == {"event": "acknowledged", "data": {"count": 1}, "id": 7}
    await eventually(lambda: running.gateway._inbox.acknowledged == 1)
    assert await waiting(running) == [{"n": 1}]
    await alice.ws.close()
    again = await Plain.connect(closing, running.ws_url)
    assert await again.frame() == frames[1]
    await again.ws.send_json({"event": "ack", "data": {"id": frames[1]["id"]}})
    await is_empty(running)
    await running.gateway.notify("alice", "order-shipped", "realtime")
    assert (await again.frame())["event"] == "acknowledged"
    assert await again.frame() == {"event": "order-shipped", "data": "realtime"}


@pytest.mark.parametrize(
    "data",
    [None, {}, {"id": 5}, {"id": ""}, {"id": None}, {"id": "x" * 65}, {"ids": []}, {"ids": ["x"] * 1001}, "id", []],
)
async def test_an_acknowledgement_of_another_form_is_refused(
    serve: Serve, closing: AsyncExitStack, data: object
) -> None:
    running = await serve()
    alice = await Plain.connect(closing, running.ws_url)
    assert (await alice.ask("ack", data))["error"]["code"] == "INVALID_PAYLOAD"


async def test_many_are_acknowledged_by_one_request(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(rate_limit_events="5/h", **store)
    for n in range(100):
        await running.gateway.notify("alice", "notification", n)
    alice = await Plain.connect(closing, running.ws_url)
    ids = [(await alice.frame())["id"] for _ in range(100)]
    assert (await alice.ask("ack", {"id": ids[0], "ids": ids[2:]}))["data"] == {"count": 99}
    await become(running, 1)
    assert await waiting(running) == [1]


async def test_nobody_acknowledges_for_another(serve: Serve, closing: AsyncExitStack, store: dict[str, Any]) -> None:
    running = await serve(**store)
    await running.gateway.notify("alice", "notification", 1)
    [item] = await running.gateway._inbox.fetch("default", "alice")
    mallory = await Plain.connect(closing, running.ws_url, "mallory")
    assert (await mallory.ask("ack", {"id": item.id}))["event"] == "acknowledged"
    assert (await mallory.ask("ack", {"id": "no such thing"}))["event"] == "acknowledged"
    await eventually(lambda: not running.gateway._inbox._untold)
    await asyncio.sleep(0.05)
    assert await waiting(running) == [1]


@pytest.mark.parametrize("number", ["0", "1", "999", "99999999999999"])
@pytest.mark.parametrize("body", ["[]", "[1,2,3]", '[{"a":1}]'])
async def test_an_acknowledgement_of_nothing_costs_only_its_sender(
    serve: Serve, closing: AsyncExitStack, engine: str, number: str, body: str
) -> None:
    running = await serve(gateway_engine=engine)
    await running.gateway.notify("mallory", "notification", 1)
    bystander = await Client.connect(closing, running.url, "bob")
    mallory = await Packets.connect(closing, running.ws_url)
    [(expected, _event)] = await events(mallory, 1)
    await mallory.ws.send_str(f"43{NAMESPACE},{number}{body}")
    await bystander.ask("heartbeat")
    if number == expected:
        await is_empty(running, "mallory")
    else:
        assert await waiting(running, "mallory") == [1]
    assert (await bystander.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_each_of_two_connections_may_have_it_and_one_acknowledgement_is_enough(
    serve: Serve, closing: AsyncExitStack, engine: str, store: dict[str, Any]
) -> None:
    running = await serve(gateway_engine=engine, **store)
    await running.gateway.notify("alice", "notification", 1)
    tabs = await asyncio.gather(*(Packets.connect(closing, running.ws_url, "alice") for _ in range(2)))
    heard = [(await events(tab, 1))[0] for tab in tabs]
    assert heard[0][1] == heard[1][1]
    for tab, (number, _event) in zip(tabs, heard, strict=True):
        await tab.ws.send_str(f"43{NAMESPACE},{number}[]")
    await is_empty(running)
    assert running.gateway._inbox.acknowledged == 1


async def test_a_kick_and_a_goodbye_lose_nothing(serve: Serve, closing: AsyncExitStack, store: dict[str, Any]) -> None:
    running = await serve(**store)
    await running.gateway.notify("alice", "notification", 1)
    tab = await Plain.connect(closing, running.ws_url)
    frame = await tab.frame()
    closed = asyncio.create_task(tab.closed())
    assert await running.gateway.disconnect("alice") == 1
    assert await closed == 4003
    assert await running.gateway.notify("alice", "notification", 2) == QUEUED
    again = await Plain.connect(closing, running.ws_url)
    assert await again.frame() == frame
    assert (await again.frame())["data"] == 2


async def test_who_is_online_by_heartbeat_alone_has_no_connection_to_send_to(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**store)
    await running.gateway.presence.set_online("alice")
    assert await running.gateway.notify("alice", "notification", 1) == QUEUED
    alice = await Plain.connect(closing, running.ws_url)
    assert (await alice.frame())["data"] == 1


async def test_within_a_grace_it_waits_and_comes_with_the_return(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(presence_offline_grace=60, **store)
    alice = await Plain.connect(closing, running.ws_url)
    alice.vanish()
    await eventually(lambda: not len(running.gateway._connections))
    assert await running.gateway.notify("alice", "notification", 1) == QUEUED
    again = await Plain.connect(closing, running.ws_url)
    assert (await again.frame())["data"] == 1


async def test_what_comes_while_users_come_is_heard_by_all(
    serve: Serve, closing: AsyncExitStack, engine: str, shared: dict[str, Any]
) -> None:
    """However a connection and a notification race: nothing sits in a queue unseen, and each hears it in order."""
    nodes = [await serve(gateway_engine=engine, **shared) for _ in range(2)]
    users = [f"user-{n}" for n in range(20)]

    async def say(user: str) -> None:
        for n in range(10):
            await nodes[0].gateway.notify(user, "notification", n)
            await asyncio.sleep(0.002)

    async def listen(number: int, user: str) -> list[int]:
        await asyncio.sleep(0.001 * number)
        alice = await Plain.connect(closing, nodes[number % 2].ws_url, user)
        heard: list[int] = []
        async with asyncio.timeout(10):
            while len(heard) < 10:
                frame = await alice.frame()
                if frame["event"] == "notification":
                    heard.append(frame["data"])
                    if "id" in frame:
                        await alice.ws.send_json({"event": "ack", "data": {"id": frame["id"]}})
        return heard

    heard = await asyncio.gather(*map(listen, range(20), users), *map(say, users))
    assert heard[:20] == [[*range(10)]] * 20
    for user in users:
        await is_empty(nodes[0], user)


# Waiting for an acknowledgement


async def test_an_acknowledgement_is_waited_for(
    serve: Serve, closing: AsyncExitStack, engine: str, store: dict[str, Any]
) -> None:
    running = await serve(gateway_engine=engine, **store)
    tabs = [await Packets.connect(closing, running.ws_url, "alice") for _ in range(2)]
    saying = asyncio.create_task(running.gateway.notify("alice", "notification", {"n": 1}, wait=5))
    heard = [(await events(tab, 1))[0] for tab in tabs]
    assert heard[0][1] == heard[1][1]
    assert heard[0][1][:2] == ["notification", {"n": 1}]
    assert not saying.done()
    await tabs[1].ws.send_str(f"43{NAMESPACE},{heard[1][0]}[]")
    assert await saying == Delivery(sent=True, method="realtime", acknowledged=True)
    await is_empty(running)


async def test_what_nobody_acknowledges_in_time_stays(
    serve: Serve, closing: AsyncExitStack, engine: str, store: dict[str, Any]
) -> None:
    running = await serve(gateway_engine=engine, **store)
    tab = await Packets.connect(closing, running.ws_url, "alice")
    assert await running.gateway.notify("alice", "notification", 1, wait=0.1) == REALTIME
    assert await running.gateway.notify("alice", "notification", 2, wait=0) == REALTIME
    heard = [event for _number, event in await events(tab, 2)]
    assert [event[1] for event in heard] == [1, 2], "each once, whatever waits besides"
    again = await Packets.connect(closing, running.ws_url, "alice")
    assert [event for _number, event in await events(again, 2)] == heard, "and with the same ids"


async def test_who_comes_within_the_time_may_acknowledge(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    saying = asyncio.create_task(running.gateway.notify("alice", "notification", 1, wait=5))
    await asyncio.sleep(0.05)
    await Client.connect(closing, running.url)
    assert await saying == Delivery(sent=True, method="queued", acknowledged=True)


async def test_an_acknowledgement_comes_from_another_node(
    serve: Serve, closing: AsyncExitStack, engine: str, shared: dict[str, Any]
) -> None:
    nodes = [await serve(gateway_engine=engine, **shared) for _ in range(2)]
    alice = await Client.connect(closing, nodes[1].url)
    delivery = await nodes[0].gateway.notify("alice", "notification", "there", wait=5)
    assert delivery == Delivery(sent=True, method="realtime", acknowledged=True)
    assert [data for _id, data in alice.queued] == ["there"]
    plain = await Plain.connect(closing, nodes[1].ws_url, "bob")
    assert await nodes[0].gateway.notify("bob", "notification", "lost?", wait=0.1) == REALTIME
    assert (await plain.until("notification"))["data"] == "lost?"
    assert await waiting(nodes[0], "bob") == ["lost?"]


# Many nodes


async def test_a_queue_is_every_node_s(
    serve: Serve, closing: AsyncExitStack, engine: str, shared: dict[str, Any]
) -> None:
    nodes = [await serve(gateway_engine=engine, **shared) for _ in range(2)]
    for n in range(6):
        assert await nodes[n % 2].gateway.notify("alice", "notification", n) == QUEUED
    alice = await Client.connect(closing, nodes[1].url)
    await eventually(lambda: len(alice.queued) == 6)
    assert [data for _id, data in alice.queued] == [*range(6)]
    await is_empty(nodes[0])
    assert await nodes[0].gateway.notify("alice", "notification", "now") == REALTIME
    await eventually(lambda: alice.heard[-1] == ("notification", "now"))


async def test_what_is_said_after_what_is_waited_for_is_heard_after_it(
    serve: Serve, closing: AsyncExitStack, shared: dict[str, Any]
) -> None:
    here, there = [await serve(**shared) for _ in range(2)]
    plain = await Plain.connect(closing, there.ws_url)
    await Plain.connect(closing, here.ws_url, "bob")
    for n in range(0, 40, 2):
        published = here.gateway._bus.last
        waited = asyncio.create_task(here.gateway.notify("alice", "notification", n, wait=0.05))
        await eventually(lambda published=published: here.gateway._bus.last > published)  # type: ignore[misc]
        assert await here.gateway.notify("alice", "notification", n + 1) == REALTIME
        heard = [(await plain.until("notification"))["data"] for _ in range(2)]
        assert heard == [n, n + 1]
        await waited


async def test_what_comes_to_a_node_whose_connection_has_just_ended_waits(
    serve: Serve, closing: AsyncExitStack, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = [await serve(recovery_window=0, **shared) for _ in range(2)]
    plain = await Plain.connect(closing, there.ws_url)
    told = asyncio.Event()
    disconnect = there.gateway._store.disconnect

    async def later(*args: Any, **options: Any) -> Any:
        await told.wait()
        return await disconnect(*args, **options)

    monkeypatch.setattr(there.gateway._store, "disconnect", later)
    await plain.ws.close()
    await eventually(lambda: not len(there.gateway._connections))
    assert await here.gateway.notify("alice", "notification", 1) == REALTIME, "as far as the store knows"
    await become(here, 1)
    told.set()
    again = await Plain.connect(closing, here.ws_url)
    assert (await again.frame())["data"] == 1


async def test_a_node_killed_before_the_acknowledgement_loses_nothing(
    spawn: Spawn, serve: Serve, closing: AsyncExitStack, engine: str, shared: dict[str, Any]
) -> None:
    variables = {"REDIS_URL": shared["redis_url"], "REDIS_PREFIX": shared["redis_prefix"], "GATEWAY_ENGINE": engine}
    doomed = await spawn(NODE_LEASE="1", **variables)
    running = await serve(gateway_engine=engine, node_lease=1, **shared)
    for n in range(5):
        assert await running.gateway.notify("alice", "notification", n) == QUEUED
    tab = await Packets.connect(closing, doomed.url.replace("http", "ws"), "alice")
    heard = await events(tab, 5)
    await tab.ws.send_str(f"43{NAMESPACE},{heard[0][0]}[]")
    await become(running, 4)
    doomed.process.kill()
    await doomed.process.wait()
    # What is waited for does not count on a connection that only seems to live.
    delivery = await running.gateway.notify("alice", "notification", 5, wait=0.05)
    assert (delivery.sent, delivery.acknowledged) == (True, False)
    again = await Packets.connect(closing, running.ws_url, "alice")
    after = await events(again, 5)
    assert [event for _number, event in after[:4]] == [event for _number, event in heard[1:]], "the same ids"
    assert after[4][1][1] == 5
    for number, _event in after:
        await again.ws.send_str(f"43{NAMESPACE},{number}[]")
    await is_empty(running)


async def test_a_client_in_another_process_queues_and_waits(
    serve: Serve, closing: AsyncExitStack, engine: str, shared: dict[str, Any]
) -> None:
    running = await serve(gateway_engine=engine, **shared)
    url, prefix = shared["redis_url"], shared["redis_prefix"]
    async with PresenceClient(url, prefix=prefix, limits=Limits(size=2)) as client:
        for n in range(3):
            assert await client.notify("alice", "notification", n) == QUEUED
        alice = await Client.connect(closing, running.url)
        await eventually(lambda: len(alice.queued) == 2)
        assert [data for _id, data in alice.queued] == [1, 2]
        assert await client.notify("alice", "notification", 3) == REALTIME
        delivery = await client.notify("alice", "notification", 4, wait=5)
        assert delivery == Delivery(sent=True, method="realtime", acknowledged=True)
        assert await client.notify("bob", "notification", 4, wait=0.05) == QUEUED
        with pytest.raises(InvalidPayloadError):
            await client.notify("bob", "notification", "x" * 70_000)
        with pytest.raises(InvalidPayloadError):
            await client.notify("", "notification", 1)


@asynccontextmanager
async def without_redis(server: RedisServer) -> AsyncIterator[None]:
    await server.kill()
    try:
        yield
    finally:
        await server.start()


async def test_while_redis_is_away(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    async with redis_server(save=True) as server:
        running = await serve(gateway_engine=engine, redis_url=server.url, redis_prefix="gateway")
        other = await serve(gateway_engine=engine, redis_url=server.url, redis_prefix="gateway")
        await running.gateway.notify("alice", "notification", 1)
        await running.gateway.notify("carol", "notification", "kept")
        carol = await Packets.connect(closing, running.ws_url, "carol")
        [(number, _event)] = await events(carol, 1)
        bob = await Plain.connect(closing, other.ws_url, "bob")
        await eventually(lambda: running.gateway.presence.status("bob").online)
        async with without_redis(server):
            with pytest.raises(StoreUnavailableError):
                await running.gateway.notify("nobody", "notification", 1)
            assert await running.gateway.notify("bob", "notification", "later") == REALTIME
            await carol.ws.send_str(f"43{NAMESPACE},{number}[]")
            alice = await Plain.connect(closing, running.ws_url)
        # Who came meanwhile is handed what waited, and what was acknowledged meanwhile is gone.
        assert (await alice.until("notification"))["data"] == 1
        assert (await bob.until("notification"))["data"] == "later"
        await is_empty(running, "carol")


# Over HTTP


class Backend:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(self, body: Any, *, query: str = "", **options: Any) -> tuple[int, Any]:
        async with self.session.post(f"/api/notifications{query}", **({"json": body} | options)) as response:
            return response.status, await response.json(content_type=None)


async def backend_of(closing: AsyncExitStack, running: Running) -> Backend:
    session = aiohttp.ClientSession(running.url, headers={"X-API-Key": SERVICE_KEY})
    return Backend(await closing.enter_async_context(session))


async def test_a_backend_notifies_over_http(serve: Serve, closing: AsyncExitStack, store: dict[str, Any]) -> None:
    running = await serve(**store)
    backend = await backend_of(closing, running)
    body = {"userId": "alice", "event": "order-shipped", "data": {"order": [42, None, "ä"]}}
    assert await backend(body) == (200, {"sent": True, "method": "queued"})
    alice = await Plain.connect(closing, running.ws_url)
    frame = await alice.frame()
    assert (frame["event"], frame["data"]) == ("order-shipped", body["data"])
    assert await backend(body) == (200, {"sent": True, "method": "realtime"})
    assert await alice.frame() == {"event": "order-shipped", "data": body["data"]}
    assert await backend({"userId": "alice", "event": "bare"}) == (200, {"sent": True, "method": "realtime"})
    assert await alice.frame() == {"event": "bare", "data": None}
    # A tenant that nobody has heard of yet is one like any other.
    assert await backend(body, query="?tenant=red") == (200, {"sent": True, "method": "queued"})
    assert await waiting(running, tenant="red") == [body["data"]]


BAD = [
    {},
    [],
    {"event": "e", "data": 1},
    {"userId": "alice", "data": 1},
    {"userId": "", "event": "e"},
    {"userId": "a\x00", "event": "e"},
    {"userId": 5, "event": "e"},
    {"userId": "x" * 129, "event": "e"},
    {"userId": "alice", "event": ""},
    {"userId": "alice", "event": "x" * 257},
    {"userId": "alice", "event": 5},
    {"userId": "alice", "event": "user-online"},
    {"userId": "alice", "event": "connect"},
    {"userId": "alice", "event": "token-expired"},
]


async def test_bad_notifications_are_refused_and_leave_nothing(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(max_payload=2048)
    backend = await backend_of(closing, running)
    for body in BAD:
        status, problem = await backend(body)
        assert (status, problem["code"]) == (400, "INVALID_PAYLOAD"), body
    status, problem = await backend({"userId": "alice", "event": "e", "data": "x" * 2048})
    assert (status, problem["code"]) == (413, "INVALID_PAYLOAD")
    status, problem = await backend(None, data=b"{", json=None)
    assert (status, problem["code"]) == (400, "INVALID_PAYLOAD")
    status, problem = await backend({"userId": "alice", "event": "e"}, query="?tenant=%0a")
    assert (status, problem["code"]) == (400, "INVALID_PAYLOAD")
    assert (await backend({"userId": "alice", "event": "e"}, headers={"X-API-Key": "wrong"}))[0] == 401
    headers = {"Authorization": f"Bearer {make_token()}"}
    async with (
        aiohttp.ClientSession(running.url, headers=headers) as user,
        user.post("/api/notifications", json={"userId": "alice", "event": "e"}) as response,
    ):
        assert (response.status, (await response.json())["code"]) == (403, "FORBIDDEN")
    assert await running.gateway._inbox._queues.depth() == 0


async def test_in_process_what_is_too_large_to_wait_is_refused_and_goes_to_who_is_there(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(max_payload=2048, **store)
    with pytest.raises(InvalidPayloadError, match="2048 bytes"):
        await running.gateway.notify("alice", "bulk", "x" * 2048)
    alice = await Plain.connect(closing, running.ws_url)
    assert await running.gateway.notify("alice", "bulk", "x" * 2048) == REALTIME
    assert (await alice.frame())["data"] == "x" * 2048
    with pytest.raises(InvalidPayloadError, match="seconds"):
        await running.gateway.notify("alice", "bulk", 1, wait=-1)


# Bounds


async def test_a_full_queue_comes_at_once_and_closes_nobody_as_too_slow(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, max_send_buffer=65536, notification_queue_size=1000)
    for n in range(1200):
        await running.gateway.notify("alice", "notification", {"n": n, "text": "x" * n})
    expected = [each["n"] for each in await waiting(running)]
    assert len(expected) > 10
    assert expected[-1] == 1199
    polling = await Polling.connect(closing, running.url, "alice")
    packets = await Packets.connect(closing, running.ws_url, "alice")
    assert [event[1]["n"] for _number, event in await events(packets, len(expected))] == expected
    assert await polling.post(f'42{NAMESPACE},["heartbeat"]') == 200
    plain = await Plain.connect(closing, running.ws_url)
    assert [(await plain.frame())["data"]["n"] for _ in expected] == expected


async def test_a_client_that_never_acknowledges_is_sent_each_once_and_holds_no_more_than_its_bound(
    serve: Serve, closing: AsyncExitStack, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engine.namespace.EXPECTED", 5)
    running = await serve(gateway_engine=engine, notification_queue_size=3)
    packets = await Packets.connect(closing, running.ws_url, "alice")
    for n in range(12):
        await running.gateway.notify("alice", "notification", n, wait=0)
        [(number, event)] = await events(packets, 1)
        assert (number, event[1]) == (str(n + 1), n)
    [callbacks] = running.gateway._manager.callbacks.values()
    assert len(callbacks) == 5 + 1  # and what counts them
    assert await waiting(running) == [9, 10, 11]
    await packets.ws.send_str(f"43{NAMESPACE},12[]")
    await eventually(lambda: running.gateway._inbox.acknowledged == 1)
    assert await waiting(running) == [9, 10]
    await packets.ws.close()
    await eventually(lambda: not running.gateway._manager.callbacks)


async def test_what_is_over_its_time_does_not_come(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(notification_ttl=0.2, **store)
    await running.gateway.notify("alice", "notification", "old")
    await asyncio.sleep(0.25)
    await running.gateway.notify("alice", "notification", "new")
    alice = await Plain.connect(closing, running.ws_url)
    assert (await alice.frame())["data"] == "new"


async def test_figures(serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.delivery.inbox.SWEEP_INTERVAL", 0.02)
    running = await serve(notification_queue_size=2)

    async def figures() -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as response:
            lines = [line.split() for line in (await response.text()).splitlines()]
        prefix = "presence_notifications_"
        return {words[0].removeprefix(prefix): float(words[1]) for words in lines if words[0].startswith(prefix)}

    assert await figures() == {
        "waiting": 0,
        "queued_total": 0,
        "dropped_total": 0,
        "expired_total": 0,
        "acknowledged_total": 0,
        "unreadable_total": 0,
    }
    for n in range(3):
        await running.gateway.notify("alice", "notification", n)
    await eventually(lambda: running.gateway._inbox.depth == 2)
    assert (await figures())["waiting"] == 2
    await Client.connect(closing, running.url)
    await eventually(lambda: running.gateway._inbox.depth == 0)
    told = await figures()
    assert [told[f"{name}_total"] for name in ("queued", "dropped", "expired", "acknowledged")] == [3, 1, 0, 2]
