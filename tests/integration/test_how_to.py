"""how-to/tokens.md, as it stands there."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import aiohttp
import jwt
import pytest
from conftest import ROOT, SECRET, Running, make_settings
from documents import blocks

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
