"""Webhooks in Pusher's form, verified by Pusher's own library."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from clients import Client
from conftest import Running, eventually, make_token
from pusher import Pusher
from redis_servers import fresh_prefix
from test_channels_attacked import Page as EchoPage
from test_idle import figures
from test_pusher_whole import Page

Serve = Callable[..., Awaitable[Running]]
APP = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


class Backend:
    """What takes webhooks as Pusher's documentation says to."""

    def __init__(self) -> None:
        self.url = ""
        self.events: list[dict[str, Any]] = []
        self.refused: list[bytes] = []
        self.failures = 0
        """How often to fail before the first is taken."""
        self._pusher = Pusher(app_id="42", key=APP["pusher_app_key"], secret=APP["pusher_app_secret"])

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        key, signature = request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"]
        webhook = self._pusher.validate_webhook(key=key, signature=signature, body=body.decode())
        if webhook is None or request.content_type != "application/json" or "webhook-signature" in request.headers:
            self.refused.append(body)
            return web.Response(status=401)
        if self.failures:
            self.failures -= 1
            return web.Response(status=500)
        self.events += webhook["events"]
        return web.Response()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = Backend()
    app = web.Application()
    app.router.add_post("/pusher/webhooks", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}/pusher/webhooks"
    yield made
    await runner.cleanup()


def endpoint(backend: Backend, **changes: object) -> dict[str, Any]:
    return {"presence_webhooks": [{"name": "backend", "url": backend.url, "format": "pusher"} | changes]}


async def test_who_comes_into_channels_and_goes_is_told_as_pusher_tells_it(
    serve: Serve, backend: Backend, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **endpoint(backend), **store)
    backend.failures = 1  # and it comes again, signed anew
    alice = await Client.connect(closing, running.url, "alice")
    await alice.ask("join-channel", {"channel": "presence-room-5"})
    await eventually(lambda: len(backend.events) == 2)
    await alice.ask("leave-channel", {"channel": "presence-room-5"})
    await eventually(lambda: len(backend.events) == 4)
    assert not backend.refused
    assert sorted(backend.events, key=str) == sorted(
        [
            {"name": "channel_occupied", "channel": "presence-room-5"},
            {"name": "member_added", "channel": "presence-room-5", "user_id": "alice"},
            {"name": "member_removed", "channel": "presence-room-5", "user_id": "alice"},
            {"name": "channel_vacated", "channel": "presence-room-5"},
        ],
        key=str,
    )
    names = [event["name"] for event in backend.events]
    assert names.index("channel_occupied") < names.index("channel_vacated")
    assert names.index("member_added") < names.index("member_removed")


async def test_only_the_events_it_wants_and_none_of_another_tenant(
    serve: Serve, backend: Backend, closing: AsyncExitStack
) -> None:
    running = await serve(**APP, **endpoint(backend, events=["member.*"]))
    stranger = await Client.connect(closing, running.url, auth={"token": make_token("bob", tenant="acme")})
    await stranger.ask("join-channel", {"channel": "presence-room-6"})
    alice = await Client.connect(closing, running.url, "alice")
    await alice.ask("join-channel", {"channel": "presence-room-5"})
    await eventually(lambda: backend.events)
    assert backend.events == [{"name": "member_added", "channel": "presence-room-5", "user_id": "alice"}]
    [courier] = running.gateway._webhooks.couriers  # type: ignore[union-attr]
    await eventually(lambda: courier.waiting == 0)
    assert len(backend.events) == 1


async def test_what_clients_tell_each_other_is_told_to_the_backend(
    serve: Serve, backend: Backend, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    settings = APP | endpoint(backend, events=["client.event"]) | store
    here = await serve(**settings)
    there = await serve(**settings) if store else here
    ada, bob = await Page.open(closing, here, "ada"), await Page.open(closing, there, "bob")
    for page in (ada, bob):
        for channel in ("presence-room-5", "private-conversation.ada-bob"):
            await page.subscribe(channel)
    await ada.whisper("presence-room-5", "client-typing", {"on": True})
    await ada.whisper("private-conversation.ada-bob", "client-said", "no JSON in it")
    await ada._ws.send_json({"event": "client-typing", "channel": "presence-elsewhere", "data": 1})  # refused
    await bob.whisper("presence-room-5", "client-last", [1, None])
    for name in ("client-typing", "client-said"):
        await bob.text_of(name)
    await eventually(lambda: len(backend.events) == 3)
    said = {"name": "client_event", "socket_id": ada.socket_id}
    assert [event for event in backend.events if event["socket_id"] == ada.socket_id] == [
        said | {"channel": "presence-room-5", "event": "client-typing", "data": '{"on":true}', "user_id": "ada"},
        said | {"channel": "private-conversation.ada-bob", "event": "client-said", "data": "no JSON in it"},
    ]
    [last] = [event for event in backend.events if event["socket_id"] == bob.socket_id]
    assert (last["event"], last["data"], last["user_id"]) == ("client-last", "[1,null]", "bob")
    assert not backend.refused


async def test_a_whisper_of_laravel_echo_is_a_client_event_too(
    serve: Serve, backend: Backend, closing: AsyncExitStack
) -> None:
    running = await serve(**APP, **endpoint(backend, events=["client.event"]))
    page = await EchoPage.open(closing, running, make_token("alice"))
    for channel in ("presence-room-5", "private-user.alice"):
        await page.subscribe(channel)
    assert (await page.event())[0] == "presence:subscribed"
    for channel in ("presence-room-5", "private-user.alice", "presence-elsewhere"):
        await page.say("client event", channel=channel, event="client-typing", data={"on": True})
    await eventually(lambda: len(backend.events) == 2)
    told = {"name": "client_event", "event": "client-typing", "data": '{"on":true}'}
    [in_room, alone] = sorted(backend.events, key=lambda event: str(event["channel"]))
    assert in_room == told | {
        "channel": "presence-room-5",
        "user_id": "alice",
        "socket_id": in_room["socket_id"],
    }
    assert alone == told | {"channel": "private-user.alice", "socket_id": in_room["socket_id"]}


async def test_a_cache_that_was_missed_can_be_filled(
    serve: Serve, backend: Backend, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **endpoint(backend, events=["channel.cache_miss"]), **store)
    ada, bob = [await Page.open(closing, running, user) for user in ("ada", "bob")]
    await ada.subscribe("cache-orders")
    assert (await ada.next("pusher:cache_miss"))["channel"] == "cache-orders"
    await eventually(lambda: backend.events)
    await running.gateway.channels.say("cache-orders", "shipped", {"id": 1})
    await bob.subscribe("cache-orders")
    assert await bob.until("shipped") == {"id": 1}
    await ada.subscribe("orders")
    await ada.subscribe("cache-other")
    await eventually(lambda: len(backend.events) == 2)
    assert backend.events == [{"name": "cache_miss", "channel": name} for name in ("cache-orders", "cache-other")]


async def test_how_many_are_in_a_channel_is_told_once_over_all_nodes(
    serve: Serve, backend: Backend, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    settings = APP | endpoint(backend, events=["channel.subscription_count", "channel.vacated"]) | store
    here = await serve(**settings)
    await eventually(lambda: here.gateway._webhooks is not None and here.gateway._webhooks.couriers)
    there = await serve(**settings) if store else here
    ada, bob = await Page.open(closing, here, "ada"), await Page.open(closing, there, "bob")
    for page in (ada, bob):
        for channel in ("presence-room-5", "orders"):
            await page.subscribe(channel)
    told = {"name": "subscription_count", "channel": "orders"}
    await eventually(lambda: backend.events and backend.events[-1] == told | {"subscription_count": 2})
    for page in (bob, ada):
        await page._ws.send_json({"event": "pusher:unsubscribe", "data": {"channel": "orders"}})
    await eventually(lambda: len([each for each in backend.events if each["name"] == "channel_vacated"]) == 1)
    await eventually(lambda: told | {"subscription_count": 0} in backend.events)
    counts = [event["subscription_count"] for event in backend.events if event["name"] == "subscription_count"]
    assert all(one != other for one, other in itertools.pairwise(counts)), "each change once"
    assert {event["channel"] for event in backend.events} == {"orders"}


async def test_an_endpoint_that_names_none_of_them_hears_none(
    serve: Serve, backend: Backend, closing: AsyncExitStack
) -> None:
    running = await serve(**APP, **endpoint(backend))
    ada, bob = [await Page.open(closing, running, user) for user in ("ada", "bob")]
    for page in (ada, bob):
        await page.subscribe("presence-cache-room")
    await ada.whisper("presence-cache-room", "client-typing", 1)
    await bob.until("client-typing")
    await ada._ws.send_json({"event": "pusher:unsubscribe", "data": {"channel": "presence-cache-room"}})
    await eventually(lambda: any(event["name"] == "member_removed" for event in backend.events))
    assert {event["name"] for event in backend.events} == {"channel_occupied", "member_added", "member_removed"}


async def test_what_more_came_than_could_be_written_is_counted(serve: Serve, backend: Backend) -> None:
    running = await serve(**APP, **endpoint(backend))
    assert running.gateway._webhooks is not None
    running.gateway._webhooks.notes.lost = 3
    assert (await figures(running.url))["presence_webhooks_lost_total"] == 3
