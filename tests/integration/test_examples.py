"""The examples, run as their reader would run them."""

import importlib.util
from collections.abc import AsyncIterator

import aiohttp
import pytest
import socketio
from aiohttp import web
from conftest import ROOT, SERVICE_KEY, eventually, make_settings, make_token


@pytest.fixture
async def shop() -> AsyncIterator[str]:
    spec = importlib.util.spec_from_file_location("notifications", ROOT / "examples" / "notifications.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runner = web.AppRunner(module.create_app(make_settings()), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def test_a_notification_reaches_the_page_of_who_is_there_and_mails_who_is_not(shop: str) -> None:
    async with aiohttp.ClientSession() as http:

        async def ship(user: str) -> object:
            async with http.post(f"{shop}/orders/42/shipped", json={"userId": user}) as response:
                return await response.json()

        assert await ship("alice") == {"sentBy": "mail"}

        heard: list[object] = []
        async with socketio.AsyncSimpleClient() as client:
            await client.connect(shop, namespace="/ws/messages", auth={"token": make_token("alice")})
            client.client.on("notification", heard.append, namespace="/ws/messages")
            assert await ship("alice") == {"sentBy": "page"}
            await eventually(lambda: heard)
            assert heard == [{"title": "Order 42 is on its way"}]

            async with http.get(f"{shop}/who") as response:
                assert await response.json() == {"count": 1, "users": ["alice"]}

        # Said over HTTP, alice is online but has no page: the mail goes out all the same.
        headers = {"X-API-Key": SERVICE_KEY}
        async with http.post(f"{shop}/presence/online", json={"userId": "alice"}, headers=headers) as response:
            assert (await response.json())["online"] is True
        assert await ship("alice") == {"sentBy": "mail"}
