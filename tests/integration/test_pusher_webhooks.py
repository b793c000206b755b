"""Webhooks in Pusher's form, verified by Pusher's own library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from clients import Client
from conftest import Running, eventually, make_token
from pusher import Pusher
from redis_servers import fresh_prefix

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
