"""Limits on connections, events and watch lists, as clients of every door meet them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import NAMESPACE, Packets, Plain
from conftest import Running, eventually, make_token
from redis_servers import fresh_prefix
from test_idle import figures

Serve = Callable[..., Awaitable[Running]]


async def refusals(running: Running) -> dict[str, float]:
    found = {}
    for name, count in (await figures(running.url)).items():
        if name.startswith("presence_limit_refusals_total") and count:
            found[name.split('"')[1]] = count
    return found


async def opened(closing: AsyncExitStack, running: Running, token: str, **headers: str) -> Plain:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client = await Plain.open(closing, f"{running.ws_url}/ws?token={token}", headers=named)
    assert json.loads(await client.receive())["event"] == "connected"
    return client


async def closed(closing: AsyncExitStack, running: Running, token: str, **headers: str) -> int | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await (await Plain.open(closing, f"{running.ws_url}/ws?token={token}", headers=named)).closed()


async def join(closing: AsyncExitStack, running: Running, token: str) -> Any:
    """What a Socket.IO client hears that tries to connect."""
    packets = await Packets.start(closing, running.ws_url)
    await packets.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': token})}")
    answer = await packets.packet("4")
    return json.loads(answer[answer.index("{") :])


async def test_an_address_has_so_many_connections_by_all_doors(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(max_connections_per_address=2)
    first = await opened(closing, running, make_token("alice"), X_Forwarded_For="1.2.3.4")
    assert "sid" in await join(closing, running, make_token("bob"))
    # What a client says of itself is nothing, where no proxy is trusted.
    assert await closed(closing, running, make_token("carol"), X_Forwarded_For="5.6.7.8") == 4029
    assert (await join(closing, running, make_token("dave")))["data"]["code"] == "TOO_MANY_CONNECTIONS"
    assert await refusals(running) == {"connections_per_address": 2}
    await first.ws.close()
    await eventually(lambda: len(running.gateway._connections) == 1)
    await opened(closing, running, make_token("carol"))


async def test_behind_a_proxy_it_is_the_address_that_the_proxy_saw(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(max_connections_per_address=1, trusted_proxies="127.0.0.0/8, ::1")
    await opened(closing, running, make_token("alice"), X_Forwarded_For="1.2.3.4")
    await opened(closing, running, make_token("bob"), X_Forwarded_For="5.6.7.8")
    assert await closed(closing, running, make_token("carol"), X_Forwarded_For="9.9.9.9, 1.2.3.4") == 4029
    await opened(closing, running, make_token("dave"), X_Forwarded_For="2001:db8::1")
    assert await closed(closing, running, make_token("eve"), X_Forwarded_For="2001:db8::2") == 4029


async def test_a_tenant_s_connections_are_counted_over_all_nodes(
    serve: Serve, redis_url: str, closing: AsyncExitStack
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "max_connections_per_tenant": 2}
    a, b = await serve(**shared), await serve(**shared)
    first = await opened(closing, a, make_token("alice"))
    await opened(closing, a, make_token("bob"))
    await eventually(lambda: b.gateway._connections.quotas.elsewhere == {"default": 2})
    assert await closed(closing, b, make_token("carol")) == 1013
    assert (await join(closing, b, make_token("dave")))["data"]["code"] == "TENANT_FULL"
    await opened(closing, b, make_token("eve", tenant="other"))
    assert await refusals(b) == {"connections_per_tenant": 2}
    await first.ws.close()
    await eventually(lambda: b.gateway._connections.quotas.elsewhere == {"default": 1})
    await opened(closing, b, make_token("carol"))
    await a.runner.cleanup()
    await eventually(lambda: b.gateway._connections.quotas.elsewhere == {})


@pytest.mark.parametrize("kind", ["user", "address", "tenant"])
async def test_events_are_counted_over_connections_and_doors(serve: Serve, closing: AsyncExitStack, kind: str) -> None:
    running = await serve(**{f"rate_limit_events_per_{kind}": "4/h"})
    plain = await opened(closing, running, make_token())
    packets = await Packets.connect(closing, running.ws_url, "alice")
    assert (await plain.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert (await packets.ask("heartbeat", None))["event"] == "heartbeat-ack"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {make_token()}"}) as session,
        session.post(f"{running.url}/presence/heartbeat") as answer,
    ):
        assert answer.status == 200
    assert (await plain.ask("heartbeat"))["event"] == "heartbeat-ack"
    for error in ((await packets.ask("heartbeat", None))["error"], (await plain.ask("check-user-status"))["error"]):
        assert error["code"] == "RATE_LIMITED"
        assert 0 < error["retryAfter"] <= 900
        assert kind in error["message"]
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {make_token()}"}) as session,
        session.get(f"{running.url}/online-status?ids=alice") as answer,
    ):
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 900
    assert await refusals(running) == {f"events_per_{kind}": 3}
    # It costs nobody a connection, who may not be the one that floods.
    await asyncio.gather(*(plain.ask("heartbeat", id=n) for n in [7]))
    assert not plain.ws.closed


async def test_watch_lists_of_a_user_are_bounded_together_and_measured(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(max_watched_users=3, max_watched_users_per_user=4)
    one, other = [await opened(closing, running, make_token()) for _ in range(2)]
    assert (await one.ask("watch-users", {"userIds": ["a", "b", "c"]}))["event"] == "watching"
    error = (await one.ask("watch-users", {"userIds": ["d"]}))["error"]
    assert (error["code"], "a connection may watch 3" in error["message"]) == ("INVALID_PAYLOAD", True)
    error = (await other.ask("watch-users", {"userIds": ["a", "b"]}))["error"]
    assert (error["code"], "a user may watch 4" in error["message"]) == ("INVALID_PAYLOAD", True)
    assert (await other.ask("watch-users", {"userIds": ["a"]}))["event"] == "watching"
    bob = await opened(closing, running, make_token("bob"))
    assert (await bob.ask("watch-users", {"userIds": ["a", "x", "y"]}))["event"] == "watching"
    found = await figures(running.url)
    assert [found[f"presence_{name}"] for name in ("watched_users", "watching_connections", "watch_list_names")] == [
        5,
        3,
        7,
    ]
    assert await refusals(running) == {"watched_per_connection": 1, "watched_per_user": 1}
    await bob.ask("unwatch-users")
    assert (await figures(running.url))["presence_watching_connections"] == 2


async def test_watch_lists_that_are_no_more_make_room(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(max_watched_users_per_tenant=4)
    one, other = [await opened(closing, running, make_token(user)) for user in ("alice", "bob")]
    assert (await one.ask("watch-users", {"userIds": ["a", "b", "c"]}))["event"] == "watching"
    error = (await other.ask("watch-users", {"userIds": ["a", "b"]}))["error"]
    assert (error["code"], "a tenant may watch 4" in error["message"]) == ("INVALID_PAYLOAD", True)
    await one.ask("unwatch-users", {"userIds": ["c"]})
    assert (await other.ask("watch-users", {"userIds": ["a", "b"]}))["event"] == "watching"
    assert "error" in await other.ask("watch-users", {"userIds": ["c"]})
    await one.ws.close()
    await eventually(lambda: not running.gateway._connections.of_user("default", "alice"))
    assert (await other.ask("watch-users", {"userIds": ["c", "d"]}))["event"] == "watching"
    assert "error" in await other.ask("watch-users", {"userIds": ["e"]})
    assert await refusals(running) == {"watched_per_tenant": 3}


async def sign_in(closing: AsyncExitStack, running: Running, password: str, **headers: str) -> Any:
    """What the Admin UI hears that tries a password."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    packets = await Packets.start(closing, running.ws_url, headers=named)
    await packets.ws.send_str(f"40/admin,{json.dumps({'username': 'admin', 'password': password})}")
    answer = await packets.packet("4")
    return json.loads(answer[answer.index("{") :])


async def test_an_address_that_guesses_passwords_is_not_heard_any_more(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(admin_ui_password="a password of the tests", trusted_proxies="127.0.0.0/8, ::1")
    for guess in range(9):
        refused = await sign_in(closing, running, f"guess {guess}", X_Forwarded_For="1.2.3.4")
        assert refused == {"message": "invalid credentials"}
    right = "a password of the tests"
    for _ in range(12):  # whoever knows it may come as often as they like
        assert "sid" in await sign_in(closing, running, right, X_Forwarded_For="1.2.3.4")
    for _ in range(10):
        assert await sign_in(closing, running, "", X_Forwarded_For="1.2.3.4") == {"message": "invalid credentials"}
    late = await sign_in(closing, running, right, X_Forwarded_For="9.9.9.9, 1.2.3.4")
    assert late["data"]["code"] == "RATE_LIMITED"
    assert 4 < late["data"]["retryAfter"] <= 6
    assert late["message"] == "more than 10 passwords in 60 s; try again in 6 s"
    assert "sid" in await sign_in(closing, running, right, X_Forwarded_For="5.6.7.8")
    refused = (await figures(running.url))['presence_connections_refused_total{code="RATE_LIMITED",door="admin-ui"}']
    assert refused == 1
