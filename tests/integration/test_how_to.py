"""docs/how-to for tokens and for Pusher's clients, as it stands there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import jwt
import pytest
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
