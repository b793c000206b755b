"""Socket.IO's Admin UI: what it speaks, by socket.io-client, against gateways that have it switched on, or off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import Process, make_settings, make_token
from redis_servers import fresh_prefix
from test_js_client import TRANSPORTS, node
from told import Told

PASSWORD = "a password of the tests, which is long"
UI = "https://admin.socket.io"

Spawn = Callable[..., Awaitable[Process]]


@asynccontextmanager
async def admin(process: Process, transports: str = "websocket", **variables: str) -> AsyncIterator[Told]:
    async with node("adminui.mjs", url=process.url, transports=transports, **variables) as ui:
        assert ui.stdout is not None
        yield Told(ui.stdout)


KNOWN = {"ADMIN_USER": "admin", "ADMIN_PASSWORD": PASSWORD}


async def test_it_is_off_unless_a_password_is_set(spawn: Spawn) -> None:
    process = await spawn()
    async with admin(process, **KNOWN) as ui:
        assert await ui.hears("connect_error") == ["Invalid namespace"]


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_it_connects_with_the_password_and_hears_how_the_server_is(
    spawn: Spawn, transports: str, engine: str
) -> None:
    process = await spawn(ADMIN_UI_PASSWORD=PASSWORD, GATEWAY_ENGINE=engine)
    async with admin(process, transports, **KNOWN) as ui:
        await ui.hears("connect")
        assert await ui.hears("config") == [{"supportedFeatures": ["AGGREGATED_EVENTS"]}]
        [stats] = await ui.hears("server_stats")
        assert stats["clientsCount"] == 1
        assert stats["pollingClientsCount"] == (1 if transports == "polling" else stats["pollingClientsCount"])
        assert {"name": "/admin", "socketsCount": 1} in stats["namespaces"]
        assert stats["pid"] == process.process.pid
        assert stats["uptime"] >= 0


async def test_it_sees_clients_come_and_can_do_nothing_to_them(spawn: Spawn) -> None:
    process = await spawn(ADMIN_UI_PASSWORD=PASSWORD, ADMIN_UI_USER="olga")
    token = make_token("alice")
    async with admin(process, ADMIN_USER="olga", ADMIN_PASSWORD=PASSWORD) as ui:
        await ui.hears("server_stats")
        async with node("seen.mjs", url=process.url, transports="websocket", TOKEN=token) as client:
            assert client.stdout is not None
            seen = Told(client.stdout)
            await seen.hears("connected")
            joined = {"name": "/ws/messages", "socketsCount": 1}
            [stats] = await ui.hears("server_stats", lambda args: joined in args[0]["namespaces"])
            assert [event["count"] for event in stats["aggregatedEvents"] if event["type"] == "rawConnection"] == [1]
            async with admin(
                process, ADMIN_USER="olga", ADMIN_PASSWORD=PASSWORD
            ) as other:  # which says _disconnect, too
                [answer] = await other.hears("answer")
                assert answer["error"]["code"] == "FORBIDDEN"
            assert not [line for line in process.lines if "disconnected" in line and "user=alice" in line]
            assert await seen.hears("status") == ["online"]
        [stats] = await ui.hears("server_stats", lambda args: joined not in args[0]["namespaces"])


@pytest.mark.parametrize(
    "given",
    [
        {"ADMIN_USER": "admin", "ADMIN_PASSWORD": "wrong"},
        {"ADMIN_USER": "root", "ADMIN_PASSWORD": PASSWORD},
        {},
        {"ADMIN_USER": "admin", "ADMIN_PASSWORD": ""},
    ],
)
async def test_a_wrong_password_is_refused(spawn: Spawn, given: dict[str, str]) -> None:
    process = await spawn(ADMIN_UI_PASSWORD=PASSWORD)
    async with admin(process, **given) as ui:
        assert await ui.hears("connect_error") == ["invalid credentials"]
    assert PASSWORD not in process.log


async def test_a_page_that_is_loaded_anew_needs_no_password_on_any_node(spawn: Spawn, redis_url: str) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "ADMIN_UI_PASSWORD": PASSWORD}
    one, two = await spawn(**variables), await spawn(**variables)
    async with admin(one, **KNOWN) as ui:
        [session] = await ui.hears("session")
    for process in (one, two):
        async with admin(process, ADMIN_SESSION=session) as ui:
            await ui.hears("config")
            assert [event for event, *_ in ui.heard if event == "session"] == []  # it does not last for ever
    async with admin(one, ADMIN_SESSION=f"1{session}") as ui:
        assert await ui.hears("connect_error") == ["invalid credentials"]


async def test_what_is_disconnected_is_one_client_that_is_listed(spawn: Spawn) -> None:
    process = await spawn(ADMIN_UI_PASSWORD=PASSWORD, ADMIN_UI_MODE="development")
    async with (
        node("seen.mjs", url=process.url, transports="websocket", TOKEN=make_token("alice")) as client,
        admin(process, **KNOWN) as ui,
    ):
        assert await ui.hears("config") == [{"supportedFeatures": ["AGGREGATED_EVENTS", "ALL_EVENTS", "DISCONNECT"]}]
        [sockets] = await ui.hears("all_sockets")
        assert {socket["nsp"] for socket in sockets} <= {"/ws/messages", "/admin"}
        assert client.stdout is not None
        seen = Told(client.stdout)
        await seen.hears("connected")
        assert await seen.hears("status") == ["online"]  # a `_disconnect` of all has been there


async def test_the_page_comes_from_where_it_may_only(spawn: Spawn) -> None:
    process = await spawn(ADMIN_UI_PASSWORD=PASSWORD, ADMIN_UI_ORIGIN=f"{UI}/")
    async with admin(process, ADMIN_ORIGIN=UI, **KNOWN) as ui:
        await ui.hears("connect")
    async with admin(process, ADMIN_ORIGIN="https://elsewhere.example", **KNOWN) as ui:
        await ui.hears("connect_error")
        assert ["connect"] not in ui.heard


async def test_it_hears_of_every_node(spawn: Spawn, redis_url: str) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "ADMIN_UI_PASSWORD": PASSWORD}
    one, two = await spawn(**variables), await spawn(**variables)
    pids: set[int] = set()

    def all_there(args: list[Any]) -> bool:
        pids.add(args[0]["pid"])
        return pids >= {one.process.pid, two.process.pid}

    async with admin(one, **KNOWN) as ui:
        await ui.hears("server_stats", all_there)


def test_a_bad_origin_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="takes an origin such as"):
        make_settings(admin_ui_origin="admin.socket.io")
