"""What connections say of themselves, and when users were online: by HTTP, in process, and from beside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client, Plain, is_timestamp
from conftest import SERVICE_KEY, Running, eventually, make_token
from redis_servers import fresh_prefix

from gateway import wire
from gateway.client import PresenceClient
from gateway.errors import InvalidPayloadError
from gateway.nodes.bus import LocalBus

Serve = Callable[..., Awaitable[Running]]

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class API:
    """What one caller is answered over HTTP; a service where no user is named."""

    def __init__(self, session: aiohttp.ClientSession, user: str | None, **claims: Any) -> None:
        self.session = session
        token = None if user is None else make_token(user, **claims)
        self.headers = {"X-API-Key": SERVICE_KEY} if user is None else {"Authorization": f"Bearer {token}"}

    async def call(self, path: str, method: str = "GET", payload: object = None) -> tuple[int, Any]:
        async with self.session.request(method, path, headers=self.headers, json=payload) as response:
            return response.status, await response.json(content_type=None)

    async def sessions(self, user: str, query: str = "") -> list[Any]:
        status, answer = await self.call(f"/api/users/{user}/sessions{query}")
        assert (status, set(answer)) == (200, {"sessions"})
        found: list[Any] = answer["sessions"]
        return found

    async def connections(self, user: str) -> list[Any]:
        status, answer = await self.call(f"/api/users/{user}/explain")
        assert status == 200
        found: list[Any] = answer["connections"]
        return found


async def api(closing: AsyncExitStack, gateway: Running, user: str | None = None, **claims: Any) -> API:
    return API(await closing.enter_async_context(aiohttp.ClientSession(gateway.url)), user, **claims)


async def enter(closing: AsyncExitStack, gateway: Running, meta: object = None, agent: str = BROWSER) -> Client:
    auth = {"token": make_token("alice")} | ({} if meta is None else {"meta": meta})
    return await Client.connect(closing, gateway.url, auth=auth, headers={"User-Agent": agent})


# What connections are


async def test_explain_tells_what_each_connection_is(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await api(closing, gateway)
    page = await enter(closing, gateway, {"page": "inbox", "app": {"build": 7}})
    phone = await Plain.connect(closing, gateway.ws_url, "alice", headers={"User-Agent": "Phone/1"})
    first, second = sorted(await http.connections("alice"), key=lambda each: str(each["door"]))
    assert set(first) == {"id", "node", "door", "connectedAt", "lastActive", "userAgent", "page", "meta"}
    assert (first["id"], first["door"], first["userAgent"]) == (page.socket_id, "socketio", BROWSER)
    assert (first["page"], first["meta"]) == ("inbox", {"page": "inbox", "app": {"build": 7}})
    assert (second["door"], second["userAgent"], second["page"], second["meta"]) == ("websocket", "Phone/1", None, None)
    assert all(is_timestamp(each[name]) for each in (first, second) for name in ("connectedAt", "lastActive"))
    # What each says with a heartbeat is its own, and replaces what it said before.
    await page.ask("heartbeat", {"meta": {"page": ["not", "a", "text"]}})
    await phone.ask("heartbeat", {"meta": {"page": "chat"}}, id=1)
    await page.ask("heartbeat")
    first, second = sorted(await http.connections("alice"), key=lambda each: str(each["door"]))
    assert (first["page"], first["meta"]) == (None, {"page": ["not", "a", "text"]})
    assert (second["page"], second["meta"]) == ("chat", {"page": "chat"})
    in_process = {each.id: each for each in await gateway.gateway.presence.connections("alice")}
    assert set(in_process) == {first["id"], second["id"]}
    assert (in_process[second["id"]].page, in_process[second["id"]].user_agent) == ("chat", "Phone/1")
    assert in_process[first["id"]].meta == {"page": ["not", "a", "text"]}


async def test_a_connection_was_last_active_when_it_last_asked_for_something(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    active, quiet = await enter(closing, gateway), await enter(closing, gateway)

    async def last_active() -> dict[str, int]:
        found = await gateway.gateway.presence.connections("alice")
        assert [each.active_at is not None and each.active_at >= each.connected_at for each in found] == [True] * 2
        return {each.id: each.active_at or 0 for each in found}

    before = await last_active()
    await asyncio.sleep(0.02)
    await active.ask("check-user-status", {"userId": "bob"})
    after = await last_active()
    assert after[active.socket_id] > before[active.socket_id]
    assert after[quiet.socket_id] == before[quiet.socket_id]


async def test_a_user_agent_is_cut_and_has_no_control_characters(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    await enter(closing, gateway, agent="Fire\tfox\x9b " + "x" * 300)
    (connection,) = await gateway.gateway.presence.connections("alice")
    assert connection.user_agent is not None
    assert len(connection.user_agent) == 256
    assert connection.user_agent.startswith("Fire?fox?")
    assert connection.user_agent.isprintable()


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ("inbox", "auth.meta takes an object"),
        ([{}], "auth.meta takes an object"),
        (7, "auth.meta takes an object"),
        ({"page": "x" * 2048}, "auth.meta may have 2048 bytes as JSON; this one has 2059"),
    ],
)
async def test_a_connection_that_says_too_much_of_itself_is_refused_and_hears_why(
    serve: Serve, closing: AsyncExitStack, meta: object, said: str
) -> None:
    gateway = await serve()
    other = await Client.connect(closing, gateway.url, "bob")
    client = Client()
    with pytest.raises(Exception, match=r"refused|INVALID_PAYLOAD|namespaces"):
        await client.try_to_connect(
            closing, gateway.url, auth={"token": make_token("alice"), "meta": meta}, wait_timeout=1
        )
    [error] = client.refusals
    assert error["data"]["code"] == "INVALID_PAYLOAD"
    assert error["message"].startswith(said)
    assert (await other.status("alice"))["version"] == 0
    assert gateway.gateway.presence.online_users() == ["bob"]


async def test_the_largest_meta_is_let_in(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    largest = {"page": "x" * 2037}
    await enter(closing, gateway, largest)
    (connection,) = await gateway.gateway.presence.connections("alice")
    assert connection.meta == largest


async def test_what_a_node_does_not_say_in_time_is_not_known(
    serve: Serve, redis_url: str, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = fresh_prefix()
    nodes = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(3)]
    pages = [await enter(closing, node) for node in nodes]
    first, mute = (node.gateway for node in nodes[:2])
    monkeypatch.setattr(mute._cluster, "_bus", LocalBus())
    found = {each.id: each.active_at is not None for each in await first.presence.connections("alice")}
    assert found == {pages[0].socket_id: True, pages[1].socket_id: False, pages[2].socket_id: True}
    assert not first._cluster._questions


async def test_connections_and_sessions_are_known_on_every_node_and_beside(
    serve: Serve, redis_url: str, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    nodes = [await serve(redis_url=redis_url, redis_prefix=prefix) for _ in range(2)]
    http = await api(closing, nodes[1])
    page = await enter(closing, nodes[0], {"page": "inbox"})
    await page.ask("heartbeat", {"meta": {"page": "chat"}})
    (connection,) = await http.connections("alice")
    (here,) = await nodes[0].gateway.presence.connections("alice")
    assert here.active_at is not None
    assert (connection["page"], connection["lastActive"]) == ("chat", wire.timestamp(here.active_at))
    assert await nodes[1].gateway.presence.connections("alice") == [here]
    async with PresenceClient(redis_url, prefix=prefix) as client:
        (beside,) = await client.presence.connections("alice")
        assert (beside.id, beside.page, beside.active_at) == (page.socket_id, "chat", None)
        (session,) = await client.presence.sessions("alice")
        assert (session.ended_at, session.connections) == (None, 1)
        await page.leave()
        await eventually(lambda: not client.presence.status("alice").online)
        (session,) = await client.presence.sessions("alice")
        assert (session.reason, session.device and session.device.page) == ("goodbye", "inbox")
        assert await client.presence.sessions("nobody") == []
    assert [each["reason"] for each in await http.sessions("alice")] == ["goodbye"]


# When users were online


async def test_a_user_s_sessions_are_told_newest_first(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await api(closing, gateway)
    page = await enter(closing, gateway, {"page": "inbox"})
    await Plain.connect(closing, gateway.ws_url, "alice")
    [lasting] = await http.sessions("alice")
    device = {"door": "socketio", "userAgent": BROWSER, "page": "inbox", "meta": {"page": "inbox"}}
    assert is_timestamp(lasting["from"])
    assert lasting == {"from": lasting["from"], "to": None, "reason": None, "connections": 2, "device": device}
    await http.call("/api/users/alice/connections", "DELETE")
    await page.closed()
    [ended] = await http.sessions("alice")
    assert ended == lasting | {"to": ended["to"], "reason": "kicked"}
    assert lasting["from"] <= ended["to"]
    await http.call("/presence/online", "POST", {"userId": "alice"})
    await http.call("/presence/offline", "POST", {"userId": "alice"})
    backend, again = await http.sessions("alice")
    assert again == ended
    assert (backend["reason"], backend["connections"], backend["device"]) == ("released", 0, None)
    assert await http.sessions("alice", "?limit=1") == [backend]
    in_process = await gateway.gateway.presence.sessions("alice", limit=1)
    assert [(each.reason, each.device) for each in in_process] == [("released", None)]
    with pytest.raises(InvalidPayloadError):
        await gateway.gateway.presence.sessions("alice", limit=0)
    with pytest.raises(InvalidPayloadError):
        await gateway.gateway.presence.sessions("")


@pytest.mark.parametrize("query", ["?limit=0", "?limit=1001", "?limit=many", "?limit=-1"])
async def test_a_limit_that_is_none_is_refused(serve: Serve, closing: AsyncExitStack, query: str) -> None:
    http = await api(closing, await serve())
    status, answer = await http.call(f"/api/users/alice/sessions{query}")
    assert (status, answer["code"]) == (400, "INVALID_PAYLOAD")


async def test_sessions_are_the_user_s_own_and_a_backend_s(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    await enter(closing, gateway)
    alice, bob = await api(closing, gateway, "alice"), await api(closing, gateway, "bob")
    red, admin = await api(closing, gateway, "alice", tenant="red"), await api(closing, gateway, "root", role="admin")
    backend = await api(closing, gateway)
    assert len(await alice.sessions("alice")) == 1
    answers = [await bob.call(f"/api/users/{user}/sessions") for user in ("alice", "nobody")]
    answers.append(await admin.call("/api/users/alice/sessions"))
    assert [(status, answer["code"]) for status, answer in answers] == [(403, "FORBIDDEN")] * 3
    assert answers[0] == answers[1]  # whether there is such a user is not told either
    assert await red.sessions("alice") == await backend.sessions("alice", "?tenant=red") == []
    assert len(await backend.sessions("alice")) == 1
    assert await bob.sessions("bob") == []


async def test_who_is_invisible_and_their_backends_are_told_the_truth_and_nobody_else(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    alice, bob = await api(closing, gateway, "alice"), await api(closing, gateway, "bob")
    await alice.call("/presence/status", "PUT", {"status": "invisible"})
    page = await enter(closing, gateway)
    [lasting] = await alice.sessions("alice")
    assert lasting["to"] is None
    await page.leave()
    await eventually(lambda: len(gateway.gateway._connections) == 0)
    [ended] = await alice.sessions("alice")
    assert (ended["from"], ended["reason"]) == (lasting["from"], "goodbye")
    assert await (await api(closing, gateway)).sessions("alice") == [ended]
    status, _ = await bob.call("/api/users/alice/sessions")
    assert status == 403
    assert (await bob.call("/api/users/alice/online-status"))[1]["lastActive"] is None


async def test_no_history_is_no_session(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(session_history=0)
    await enter(closing, gateway)
    assert await (await api(closing, gateway)).sessions("alice") == []


@pytest.mark.parametrize("far", [False, True], ids=["memory", "redis"])
async def test_whoever_was_last_seen_too_long_ago_is_forgotten_on_every_node(
    serve: Serve, closing: AsyncExitStack, redis_url: str, *, far: bool
) -> None:
    shared: dict[str, Any] = {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if far else {}
    nodes = [await serve(last_seen_ttl=1, **shared) for _ in range(2 if far else 1)]

    async def seen(version: int) -> None:
        await eventually(lambda: {node.gateway.presence.status("alice").version for node in nodes} == {version})

    await (await enter(closing, nodes[0])).leave()
    await seen(2)
    assert nodes[-1].gateway.presence.status("alice").last_active is not None
    await seen(0)
    assert [node.gateway.presence.status("alice").last_active for node in nodes] == [None] * len(nodes)
    assert [node.gateway._view._statuses for node in nodes] == [{}] * len(nodes)
    await enter(closing, nodes[-1])
    await seen(3)
