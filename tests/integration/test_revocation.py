"""A revoked token opens nothing any more, on any node, through any door."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from chaos.proxy import Proxy
from clients import NAMESPACE, Packets, Plain
from conftest import SERVICE_KEY, STEP, Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix
from test_sessions import Tab

from gateway.client import PresenceClient
from gateway.errors import InvalidPayloadError, StoreUnavailableError

Serve = Callable[..., Awaitable[Running]]
NOW = int(time.time())


async def call(running: Running, body: Any, *, tenant: str | None = None, key: str = SERVICE_KEY) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": key}) as session,
        session.post(
            f"{running.url}/api/tokens/revoke{'' if tenant is None else f'?tenant={tenant}'}", json=body
        ) as response,
    ):
        return response.status, await response.json(content_type=None)


async def asks(running: Running, token: str) -> tuple[int, Any]:
    """What a user's token is answered over HTTP."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{running.url}/online-status?ids=alice") as response,
    ):
        return response.status, (await response.json(content_type=None))


async def plain(closing: AsyncExitStack, running: Running, token: str) -> Plain:
    client = await Plain.open(closing, f"{running.ws_url}/ws?token={token}")
    assert json.loads(await client.receive())["event"] == "connected"
    return client


async def refused(closing: AsyncExitStack, running: Running, token: str) -> None:
    """Neither HTTP nor a WebSocket nor Socket.IO takes the token, as soon as the node has heard of it."""
    deadline = time.monotonic() + STEP
    body: Any = None
    status = 200
    while status == 200 and time.monotonic() < deadline:
        status, body = await asks(running, token)
    assert (status, body["code"]) == (401, "TOKEN_INVALID")
    assert "revoked" in body["detail"]
    assert await (await Plain.open(closing, f"{running.ws_url}/ws?token={token}")).closed() == 4001
    packets = await Packets.open(closing, f"{running.ws_url}/socket.io/?EIO=4&transport=websocket")
    await packets.receive()
    await packets.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': token})}")
    answer = await packets.packet("4")
    assert json.loads(answer[answer.index("{") :])["data"]["code"] == "TOKEN_INVALID"


@pytest.fixture(params=["memory", "redis"])
async def nodes(request: pytest.FixtureRequest, serve: Serve, redis_url: str) -> list[Running]:
    """One node, or two."""
    if request.param == "memory":
        return [await serve()]
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    return [await serve(**shared), await serve(**shared)]


async def test_a_token_is_revoked_by_its_id(nodes: list[Running], closing: AsyncExitStack) -> None:
    revoked, other = make_token(jti="phone"), make_token(jti="desktop")
    ears = [await plain(closing, node, revoked) for node in nodes]
    tabs = [await Tab.open(closing, node, token=revoked) for node in nodes]
    kept = [await plain(closing, node, other) for node in nodes]
    expires = datetime.now(UTC) + timedelta(hours=1)
    closed = asyncio.gather(*(each.closed() for each in (*ears, *(tab.packets for tab in tabs))))
    status, body = await call(nodes[0], {"jti": "phone", "expiresAt": expires.isoformat()})
    assert (status, body["revoked"]) == (200, True)
    assert datetime.fromisoformat(body["expiresAt"]) == expires.replace(microsecond=expires.microsecond // 1000 * 1000)
    assert set(await closed) == {4001}
    for node, device in zip(nodes, kept, strict=True):
        await refused(closing, node, revoked)
        assert (await asks(node, other))[0] == 200
        assert (await device.ask("heartbeat"))["event"] == "heartbeat-ack"
        answer = await device.ask("refresh-token", {"token": revoked})
        assert answer["error"]["code"] == "INVALID_PAYLOAD"
        assert "TOKEN_INVALID" in answer["error"]["message"]
        assert (await device.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_all_of_a_user_s_older_tokens_are_revoked(nodes: list[Running], closing: AsyncExitStack) -> None:
    old, new = make_token(iat=NOW - 100), make_token(iat=NOW - 10)
    unsaid, others = make_token(), make_token("bob", iat=NOW - 100)
    ears = [[await plain(closing, node, token) for token in (old, unsaid, new, others)] for node in nodes]
    before = datetime.fromtimestamp(NOW - 10, UTC).isoformat()
    closed = asyncio.gather(*(ear.closed() for of_node in ears for ear in of_node[:2]))
    assert (await call(nodes[-1], {"userId": "alice", "issuedBefore": before}))[0] == 200
    assert set(await closed) == {4001}
    for node, of_node in zip(nodes, ears, strict=True):
        await refused(closing, node, old)
        await refused(closing, node, unsaid)
        for ear, token in zip(of_node[2:], (new, others), strict=True):
            assert (await ear.ask("heartbeat"))["event"] == "heartbeat-ack"
            assert (await asks(node, token))[0] == 200


async def test_all_of_a_tenant_and_of_no_other(nodes: list[Running], closing: AsyncExitStack) -> None:
    token, other = make_token(tenant="acme", iat=NOW - 5), make_token(iat=NOW - 5)
    ear, kept = await plain(closing, nodes[-1], token), await plain(closing, nodes[-1], other)
    assert (await call(nodes[0], {"allUsers": True}, tenant="acme"))[0] == 200
    assert await ear.closed() == 4001
    assert (await kept.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert (await asks(nodes[0], make_token(tenant="acme", iat=NOW + 1000)))[0] == 200


async def test_the_user_is_offline_at_once(nodes: list[Running], closing: AsyncExitStack) -> None:
    watcher = await plain(closing, nodes[0], make_token("watcher"))
    await plain(closing, nodes[-1], make_token(jti="a"))
    await watcher.until("user-online")
    await nodes[0].gateway.revoke(jti="a")
    assert (await watcher.until("user-offline"))["data"]["userId"] == "alice"
    explained = await nodes[0].gateway._store.explain("default", "alice")
    assert [each.reason for each in explained.transitions] == ["connected", "token revoked"]


async def test_a_lost_session_of_a_revoked_token_is_gone_on_with_by_nobody(
    nodes: list[Running], closing: AsyncExitStack
) -> None:
    revoked, good = make_token(jti="a"), make_token(jti="b")
    tabs = [await Tab.open(closing, nodes[0], token=token) for token in (revoked, good, revoked, good)]
    for tab, newer in zip(tabs[2:], (good, revoked), strict=True):  # it is the newer one that counts
        answer = await tab.packets.ask("refresh-token", {"token": newer})
        assert answer["event"] == "token-refreshed"
    for tab in tabs:
        tab.packets.vanish()
    await eventually(lambda: len(nodes[0].gateway._connections) == 0)
    await nodes[-1].gateway.revoke(jti="a")
    for tab, goes_on in zip(tabs, (False, True, True, False), strict=True):
        again = await tab.back(closing, nodes[-1], token=make_token(jti="new"))
        assert (again.pid == tab.pid) is goes_on


async def test_only_a_service_may_and_what_it_sends_is_checked(serve: Serve) -> None:
    running = await serve()
    assert (await call(running, {"jti": "a"}, key="wrong"))[0] == 401
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {make_token()}"}) as session,
        session.post(f"{running.url}/api/tokens/revoke", json={"userId": "alice"}) as response,
    ):
        assert response.status == 403
    for wrong in ({}, {"jti": 5}, {"jti": ""}, {"userId": "a", "jti": "b"}, {"userId": "a", "issuedBefore": "now"}):
        status, body = await call(running, wrong)
        assert (status, body["code"]) == (400, "INVALID_PAYLOAD")
    with pytest.raises(InvalidPayloadError, match="by one of"):
        await running.gateway.revoke()


async def test_it_outlasts_a_restart(serve: Serve, redis_url: str, closing: AsyncExitStack) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    first = await serve(**shared)
    await first.gateway.revoke(user_id="alice")
    await first.runner.cleanup()
    await refused(closing, await serve(**shared), make_token(iat=NOW - 5))


async def test_a_client_process_revokes_too(serve: Serve, redis_url: str, closing: AsyncExitStack) -> None:
    prefix = fresh_prefix()
    node = await serve(redis_url=redis_url, redis_prefix=prefix)
    token = make_token(jti="a")
    ear = await plain(closing, node, token)
    async with PresenceClient(redis_url, prefix=prefix) as client:
        until = await client.revoke(jti="a")
        assert until > datetime.now(UTC) + timedelta(days=29)
        with pytest.raises(InvalidPayloadError):
            await client.revoke()
    assert await ear.closed() == 4001
    await refused(closing, node, token)


async def test_with_redis_away_each_node_goes_on_refusing_and_the_others_hear_of_it_later(
    serve: Serve, shared_redis: RedisServer, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    known, late = make_token(jti="known"), make_token(jti="late")
    async with Proxy.start(shared_redis.port) as proxy:
        cut = await serve(redis_url=proxy.url, redis_prefix=prefix)
        other = await serve(redis_url=shared_redis.url, redis_prefix=prefix)
        await other.gateway.revoke(jti="known")
        await refused(closing, cut, known)
        ear = await plain(closing, cut, late)
        await proxy.cut()
        with pytest.raises(StoreUnavailableError):
            await cut.gateway.revoke(jti="late")
        assert await ear.closed() == 4001
        status, body = await call(cut, {"jti": "late"})
        assert (status, body["code"]) == (503, "UNAVAILABLE")
        for token in (known, late):
            await refused(closing, cut, token)
        assert (await asks(other, late))[0] == 200  # it cannot know yet
        await proxy.listen()
        await eventually(lambda: len(other.gateway._revoker.known) == 2)
        await refused(closing, other, late)


async def test_a_node_that_starts_with_redis_away_lets_nobody_in_until_it_knows(
    serve: Serve, shared_redis: RedisServer, closing: AsyncExitStack
) -> None:
    prefix = fresh_prefix()
    token, good = make_token(jti="a"), make_token(jti="b")
    other = await serve(redis_url=shared_redis.url, redis_prefix=prefix)
    await other.gateway.revoke(jti="a")
    async with Proxy.start(shared_redis.port) as proxy:
        await proxy.cut()
        fresh = await serve(redis_url=proxy.url, redis_prefix=prefix)
        for each in (token, good):
            assert (await asks(fresh, each))[0] == 503
            assert await (await Plain.open(closing, f"{fresh.ws_url}/ws?token={each}")).closed() == 1013
        await proxy.listen()
        await eventually(lambda: fresh.gateway._tracker.ready)
        await refused(closing, fresh, token)
        assert (await asks(fresh, good))[0] == 200
