"""A Pusher client, whose places the gateway signs, and a backend with Pusher's own library: one application, whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client
from conftest import STEP, Running, eventually, make_token
from pusher import Pusher
from redis_servers import fresh_prefix
from test_idle import figures

Serve = Callable[..., Awaitable[Running]]
APP = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


class Page:
    """A page with a client of the Pusher protocol, and a user's token for its backend."""

    def __init__(self, running: Running, user: str) -> None:
        self._url = running.url
        self._headers = {"Authorization": f"Bearer {make_token(user, name=user.title())}"}
        self._session: aiohttp.ClientSession
        self._ws: aiohttp.ClientWebSocketResponse
        self.socket_id = ""

    @classmethod
    async def open(cls, closing: AsyncExitStack, running: Running, user: str) -> Page:
        page = cls(running, user)
        page._session = await closing.enter_async_context(aiohttp.ClientSession())
        ws = page._session.ws_connect(f"{running.ws_url}/app/app-key?protocol=7&client=test")
        page._ws = await closing.enter_async_context(ws)
        page.socket_id = (await page.until("pusher:connection_established"))["socket_id"]
        return page

    async def until(self, event: str, channel: str | None = None) -> Any:
        """Read up to an event, and return its data, decoded."""
        return json.loads(await self.text_of(event, channel))

    async def text_of(self, event: str, channel: str | None = None) -> str:
        """The same as the text that it came as."""
        return str((await self.next(event, channel))["data"])

    async def next(self, event: str, channel: str | None = None) -> dict[str, Any]:
        """Read up to an event, and return it whole."""
        while True:
            frame: dict[str, Any] = await self._ws.receive_json(timeout=STEP)
            assert frame["event"] not in {"pusher:error", "pusher:subscription_error"} or event == frame["event"], frame
            if frame["event"] == event and channel in {None, frame.get("channel")}:
                return frame

    async def refused(self, channel: str) -> Any:
        """Read up to the frame that takes it out of a channel."""
        while (frame := await self._ws.receive_json(timeout=STEP))["event"] != "pusher:subscription_error":
            assert frame.get("channel") != channel or not frame["event"].endswith("error"), frame
        return frame["data"] if isinstance(frame["data"], dict) else json.loads(frame["data"])

    async def sign(self, path: str, **form: str) -> Any:
        form["socket_id"] = self.socket_id
        async with self._session.post(self._url + path, data=form, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def subscribe(self, channel: str) -> Any:
        data = {"channel": channel}
        if channel.startswith(("private-", "presence-")):
            data |= await self.sign("/broadcasting/auth", channel_name=channel)
        await self._ws.send_json({"event": "pusher:subscribe", "data": data})
        return await self.until("pusher_internal:subscription_succeeded", channel)

    async def whisper(self, channel: str, event: str, data: Any) -> None:
        await self._ws.send_str(json.dumps({"event": event, "channel": channel, "data": data}, separators=(",", ":")))

    async def sign_in(self) -> Any:
        data = await self.sign("/broadcasting/user-auth")
        await self._ws.send_json({"event": "pusher:signin", "data": data})
        return await self.until("pusher:signin_success")

    async def closed(self) -> Any:
        """Read up to the close frame, and return its code."""
        async with asyncio.timeout(STEP):
            while (message := await self._ws.receive()).type is not aiohttp.WSMsgType.CLOSE:
                assert message.type is aiohttp.WSMsgType.TEXT, message
        return message.data


@pytest.fixture
def backend(closing: AsyncExitStack) -> Callable[..., Awaitable[Any]]:
    async def call(running: Running, name: str, *args: Any, **options: Any) -> Any:
        host, _, port = running.url.removeprefix("http://").partition(":")
        pusher = Pusher(
            app_id="42",
            key=APP["pusher_app_key"],
            secret=APP["pusher_app_secret"],
            ssl=False,
            host=host,
            port=int(port),
        )
        try:
            return await asyncio.to_thread(getattr(pusher, name), *args, **options)
        finally:
            for client in (pusher._pusher_client, pusher._authentication_client):
                client.http.session.close()

    return call


async def test_a_backend_and_its_pages(
    serve: Serve, backend: Callable[..., Awaitable[Any]], closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    ada = await Page.open(closing, running, "ada")
    bob = await Page.open(closing, running, "bob")
    carol = await Client.connect(closing, running.url, "carol")  # of the gateway's own events
    assert (await carol.ask("join-channel", {"channel": "presence-room-5"}))["event"] == "joined-channel"
    found = (await ada.subscribe("presence-room-5"))["presence"]
    assert (found["ids"], found["hash"]["ada"]) == (["ada", "carol"], {"name": "Ada"})
    await bob.subscribe("presence-room-5")
    assert (await ada.until("pusher_internal:member_added"))["user_id"] == "bob"
    await ada.subscribe("private-user.ada")

    known = await backend(running, "channel_info", "presence-room-5", ["user_count", "subscription_count"])
    assert (known["occupied"], known["user_count"]) == (True, 3)
    users = await backend(running, "users_info", "presence-room-5")
    assert users == {"users": [{"id": user} for user in ("ada", "bob", "carol")]}

    text = '{"b":  1, "a": [1.50, "\\u00e9"]}'
    await backend(running, "trigger", "presence-room-5", "shipped", text, ada.socket_id)
    assert await bob.text_of("shipped", "presence-room-5") == text  # to the byte
    await backend(running, "trigger", ["presence-room-5", "private-user.ada"], "App\\Events\\Said", "no JSON")
    await eventually(lambda: ("App\\Events\\Said", "no JSON") in carol.heard)
    assert ("shipped", {"b": 1, "a": [1.5, "é"]}) in carol.heard
    for channel in ("presence-room-5", "private-user.ada"):  # and not what she had sent herself, before it
        frame = await ada._ws.receive_json(timeout=STEP)
        assert frame["event"] == "App\\Events\\Said", channel
        assert frame["data"] == "no JSON"


async def test_one_users_pages(
    serve: Serve, backend: Callable[..., Awaitable[Any]], closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    ada = await Page.open(closing, running, "ada")
    assert json.loads((await ada.sign_in())["user_data"])["id"] == "ada"
    await eventually(lambda: running.gateway.presence.online_users() == ["ada"])
    await backend(running, "send_to_user", "ada", "greeting", {"text": "hello"})
    assert await ada.until("greeting", "#server-to-user-ada") == {"text": "hello"}
    await backend(running, "terminate_user_connections", "ada")
    assert await ada.closed() == 4009
    await eventually(lambda: running.gateway.presence.online_users() == [])


async def test_what_one_user_may_join_another_cannot_join_by(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP)
    ada, bob = [await Page.open(closing, running, user) for user in ("ada", "bob")]
    signed = await ada.sign("/broadcasting/auth", channel_name="private-user.ada")
    data = {"channel": "private-user.ada", **signed}
    await bob._ws.send_json({"event": "pusher:subscribe", "data": data})  # on a connection that it is not for
    refused = await bob.text_of("pusher:subscription_error")
    assert json.loads(refused)["status"] == 401


async def test_how_many_are_in_a_channel_is_told_over_all_nodes_but_for_one_with_members(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    here = await serve(**APP, **store)
    there = await serve(**APP, **store) if store else here
    ada = await Page.open(closing, here, "ada")
    await ada.subscribe("presence-club")
    await ada.subscribe("news")
    bob = await Page.open(closing, there, "bob")
    await bob.subscribe("presence-club")
    await bob.subscribe("news")
    while True:
        told = await ada.next("pusher_internal:subscription_count")
        assert told["channel"] == "news"
        if json.loads(told["data"]) == {"subscription_count": 2}:
            break


async def test_a_member_by_a_signature_is_taken_out_by_the_id_that_is_signed(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**APP, **store)
    ada = await Page.open(closing, running, "ada")
    await ada.subscribe("presence-club")
    await running.gateway.channels.remove("presence-club", "ada")
    assert (await ada.refused("presence-club"))["status"] == 403
    await eventually(lambda: running.gateway.channels.members("presence-club") == [])


async def test_metrics_say_who_is_nobody_and_what_channels_were_refused(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(**APP, max_channels_per_connection=2)
    refused = 'presence_limit_refusals_total{limit="channels_per_connection"}'
    found = await figures(running.url)
    assert (found["presence_pusher_anonymous"], found[refused]) == (0, 0)
    ada, bob = [await Page.open(closing, running, user) for user in ("ada", "bob")]
    assert (await figures(running.url))["presence_pusher_anonymous"] == 2
    await ada.subscribe("presence-room-5")  # which says whose it is
    found = await figures(running.url)
    assert (found["presence_pusher_anonymous"], found['presence_connections{door="pusher"}']) == (1, 1)
    for number in range(2):
        await bob.subscribe(f"news-{number}")
    for number in range(2, 5):
        await bob._ws.send_json({"event": "pusher:subscribe", "data": {"channel": f"news-{number}"}})
        assert (await bob.refused(f"news-{number}"))["status"] == 403
    assert (await figures(running.url))[refused] == 3
    await bob._ws.close()
    await eventually(lambda: running.gateway._pusher is not None and running.gateway._pusher.anonymous == 0)


async def test_without_an_application_there_are_no_clients_of_it_to_count(serve: Serve) -> None:
    found = await figures((await serve()).url)
    assert "presence_pusher_anonymous" not in found
    assert found['presence_limit_refusals_total{limit="channels_per_connection"}'] == 0
