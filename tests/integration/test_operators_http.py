"""What operators ask over HTTP of one node, and what a key may not that only reads."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from conftest import SERVICE_KEY, Running, make_settings, make_token

from gateway.__main__ import main

READING_KEY = "a-key-of-the-tests-that-only-reads"


async def test_the_only_node_knows_itself(serve: Callable[..., Awaitable[Running]]) -> None:
    running = await serve()
    async with aiohttp.ClientSession(running.url, headers={"X-API-Key": SERVICE_KEY}) as session:
        async with session.get("/api/admin/nodes") as response:
            (node,) = (await response.json())["nodes"]
        assert (node["here"], node["report"]["pid"]) == (True, os.getpid())
        for what in ("drain", "undrain"):
            async with session.post(f"/api/admin/nodes/other/{what}") as response:
                assert response.status == 404
                assert node["id"] in (await response.json())["detail"]
        async with session.post(f"/api/admin/nodes/{node['id']}/drain") as response:
            assert response.status == 409
        async with session.post(f"/api/admin/nodes/{node['id']}/drain?force=maybe") as response:
            assert response.status == 400


async def test_operators_calls_are_for_service_keys(serve: Callable[..., Awaitable[Running]]) -> None:
    running = await serve()
    async with aiohttp.ClientSession(
        running.url, headers={"Authorization": f"Bearer {make_token('mallory', role='admin')}"}
    ) as session:
        for method, path in (
            ("GET", "nodes"),
            ("GET", "overview"),
            ("POST", "nodes/x/drain"),
            ("POST", "nodes/x/undrain"),
        ):
            async with session.request(method, f"/api/admin/{path}") as response:
                assert response.status == 403
    async with aiohttp.ClientSession(running.url) as session, session.get("/api/admin/overview") as response:
        assert response.status == 401


async def test_every_write_is_refused_to_a_key_that_reads(serve: Callable[..., Awaitable[Running]]) -> None:
    running = await serve(service_api_keys_readonly=READING_KEY)
    async with aiohttp.ClientSession(running.url, headers={"X-API-Key": READING_KEY}) as session:
        async with session.get("/openapi.json") as response:
            paths = (await response.json())["paths"]
        asked = 0
        for path, methods in paths.items():
            for method in methods:
                if path.startswith("/health"):
                    continue
                async with session.request(method, re.sub("{[^}]*}", "x", path), json={}) as answer:
                    said = await answer.json()
                if method == "get":
                    assert answer.status != 403 or "user's token" in said["detail"], path
                else:
                    assert answer.status == 403, (method, path, said)
                    asked += 1
        assert asked > 10
        async with session.get("/api/users/online") as response:
            assert response.status == 200


def test_one_key_cannot_be_both() -> None:
    with pytest.raises(ValueError, match="SERVICE_API_KEYS_READONLY has a key of SERVICE_API_KEYS"):
        make_settings(service_api_keys="a,b", service_api_keys_readonly="b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nodes", "--url", "somewhere"], "GATEWAY_URL, takes an address"),
        (["explain", "a\nb"], "USER takes 1 to 128"),
        (["kick", "x" * 129], "USER takes 1 to 128"),
        (["kick", "x", "--tenant", ""], "--tenant takes 1 to 128"),
        (["drain", "x", "--wait", "-1"], "--wait takes a number"),
    ],
)
def test_a_bad_argument_is_said_in_a_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_API_KEY", "key")
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert words in errors
    assert len(errors.splitlines()) == 1
