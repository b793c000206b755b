"""The examples, run as their reader would run them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import socketio
from conftest import ROOT, SECRET, SERVICE_KEY, STEP, Running, eventually, make_token
from example_apps import example
from redis_servers import free_port, fresh_prefix


@pytest.fixture
async def shop() -> AsyncIterator[str]:
    async with example("notifications") as url:
        yield url


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


async def test_pages_without_a_socket_are_seen_by_their_requests() -> None:
    async with (
        example("activity", presence_ttl=1) as url,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as alice,
    ):

        async def ask(method: str, path: str, **options: Any) -> tuple[int, Any]:
            async with alice.request(method, f"{url}{path}", **options) as response:
                return response.status, await response.json() if response.ok else None

        async def is_online() -> bool:
            answer = await ask("GET", "/online-status?ids=alice", headers={"X-API-Key": SERVICE_KEY})
            return bool(answer[1][0]["online"])

        async def becomes(*, online: bool) -> None:
            async with asyncio.timeout(STEP):
                while await is_online() is not online:  # noqa: ASYNC110 - it is asked over HTTP
                    await asyncio.sleep(0.02)

        assert await ask("GET", "/who") == (401, None)
        assert await ask("POST", "/login", data={"name": "alice"}) == (200, {"hello": "alice"})
        assert await ask("GET", "/who") == (200, {"users": ["alice"]})
        await becomes(online=False)  # she reads, and asks for nothing
        assert (await ask("GET", "/who"))[0] == 200
        await becomes(online=True)
        assert await ask("POST", "/logout") == (200, {})
        assert not await is_online()
        assert await ask("GET", "/who") == (401, None)
        assert not await is_online()


@asynccontextmanager
async def example_process(name: str, **variables: str) -> AsyncIterator[str]:
    """Run one as its reader would, and give its address."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", str(ROOT / "examples" / f"{name}.py")),
        env={**os.environ, "PORT": str(port), "JWT_SECRET": SECRET} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while line := await process.stdout.readline():
                if f"http://127.0.0.1:{port}".encode() in line:
                    break
        assert line
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("name", ["chat/chat", "team/team", "activity", "notifications"])
async def test_an_example_takes_another_port(name: str) -> None:
    async with example_process(name):
        pass


async def asked(http: aiohttp.ClientSession, method: str, url: str) -> Any:
    async with http.request(method, url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


@pytest.mark.parametrize("name", ["in_fastapi", "in_django"])
async def test_an_application_of_another_framework_knows_who_is_there(
    serve: Callable[..., Awaitable[Running]], redis_url: str, name: str
) -> None:
    prefix = fresh_prefix()
    gateway = await serve(redis_url=redis_url, redis_prefix=prefix)
    async with (
        aiohttp.ClientSession() as http,
        example_process(name, REDIS_URL=redis_url, REDIS_PREFIX=prefix) as url,
        socketio.AsyncSimpleClient() as alice,
    ):
        assert await asked(http, "GET", f"{url}/who") == {"users": []}
        await alice.connect(gateway.url, namespace="/ws/messages", auth={"token": make_token("alice")})
        async with asyncio.timeout(STEP):
            while await asked(http, "GET", f"{url}/who") != {"users": ["alice"]}:  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(0.02)
        if name == "in_django":
            status = await asked(http, "GET", f"{url}/users/alice")
            assert (status["online"], status["status"]) == (True, "online")
            return
        assert await asked(http, "POST", f"{url}/orders/42/shipped?user=alice") == {"sentBy": "page"}
        assert await asked(http, "POST", f"{url}/orders/42/shipped?user=bob") == {"sentBy": "mail"}
        async with asyncio.timeout(STEP):
            while (await alice.receive())[0] != "notification":
                pass
