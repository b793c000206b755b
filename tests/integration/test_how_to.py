"""docs/how-to for tokens and for Pusher's clients, as it stands there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import jwt
import pytest
from aiohttp import web
from conftest import ROOT, SECRET, Running, make_settings, require_program
from documents import block, blocks
from programs import shell
from redis_servers import free_port

PAGE = ROOT / "docs" / "how-to" / "tokens.md"


async def test_a_token_that_a_backend_signs_so_is_taken(
    serve: Callable[..., Awaitable[Running]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    (code,) = (each.text for each in blocks(PAGE) if each.language == "python")
    names: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    token = names["presence_token"]("alice", "Alice")  # type: ignore[operator]
    running = await serve()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{running.url}/online-status?ids=alice") as answer,
    ):
        assert (answer.status, await answer.json()) == (200, [{"id": "alice", "online": False}])
    assert jwt.decode(token, SECRET, ["HS256"])["name"] == "Alice"


def test_what_is_set_for_a_provider_is_taken() -> None:
    (code,) = (each.text for each in blocks(PAGE) if each.language == "sh" and "JWKS" in each.text)
    values = {name.lower(): value for name, value in re.findall(r"^export ([A-Z_]+)=(.+)$", code, re.MULTILINE)}
    settings = make_settings(jwt_secret=None, **values)
    assert str(settings.jwt_jwks_url) == values["jwt_jwks_url"]
    assert settings.jwt_issuer == "https://TENANT.auth0.com/"


@pytest.mark.parametrize("page", ["from-pusher.md", "from-laravel-echo.md"])
async def test_pusher_js_and_echo_find_the_gateway_where_the_page_says(tmp_path: Path, page: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    start = block(f"docs/how-to/{page}", language="sh")
    code = block("docs/how-to/from-pusher.md", mark="page", language="js")
    assert "wsPort: 3000" in code
    code = code.replace("http://127.0.0.1:3000", url).replace("wsPort: 3000", f"wsPort: {port}")
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    (tmp_path / "page.mjs").write_text(code)
    async with shell(start, tmp_path, PORT=str(port)) as gateway:
        await gateway.serves(url)
        client = await asyncio.create_subprocess_exec(
            *(require_program("node"), "page.mjs"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert client.stdout is not None
            lines = [(await asyncio.wait_for(client.stdout.readline(), 30)).decode() for _ in range(2)]
            assert sorted(lines) == ["echo [ { name: 'Alice' } ]\n", "pusher { alice: { name: 'Alice' } }\n"]
        finally:
            client.kill()
            await client.wait()


async def test_what_laravel_echo_server_is_replaced_by_asks_laravel_who_may_be_in_a_channel(
    tmp_path: Path, closing: AsyncExitStack
) -> None:
    """Echo's page as docs/reference/echo.md has it, and an application that knows its user by its own token."""
    asked: list[tuple[str, str | None]] = []

    async def auth(request: web.Request) -> web.Response:
        form = await request.post()
        asked.append((str(form["channel_name"]), request.headers.get("Authorization")))
        return web.json_response({"channel_data": {"user_id": 7, "user_info": {"name": "Alice"}}})

    laravel = web.Application()
    laravel.router.add_post("/broadcasting/auth", auth)
    runner = web.AppRunner(laravel, access_log=None, shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    its_port, port = runner.addresses[0][1], free_port()
    url = f"http://127.0.0.1:{port}"
    start = block("docs/how-to/from-laravel-echo-server.md", language="sh")
    assert "https://app.example/" in start
    page = """
        import Echo from 'laravel-echo';
        import { io } from 'socket.io-client';
        const token = 'of Laravel', show = (members) => console.log(JSON.stringify(members));
        const add = show, remove = show, note = show, read = show;
    """
    code = block("docs/reference/echo.md", language="js")
    assert "https://presence.example" in code
    (tmp_path / "page.mjs").write_text(page + code.replace("https://presence.example", url))
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    lines = start.replace("https://app.example/", f"http://127.0.0.1:{its_port}/")
    async with shell(lines, tmp_path, PORT=str(port)) as gateway:
        await gateway.serves(url)
        client = await asyncio.create_subprocess_exec(
            *(require_program("node"), "page.mjs"), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert client.stdout is not None
            said = (await asyncio.wait_for(client.stdout.readline(), 30)).decode()
            assert "Alice" in said
        finally:
            client.kill()
            await client.wait()
    assert asked[0] == ("presence-room.1", "Bearer of Laravel")
