"""docs/reference and operations/running.md: their code runs as it stands there, and their tables match the code."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from clients import Client
from conftest import ROOT, SECRET, SERVICE_KEY, Process, Running, eventually, make_settings, make_token
from documents import block
from programs import shell
from redis_servers import free_port, fresh_prefix

from gateway import Gateway, Settings
from gateway.app import create_app
from gateway.doors.admin import admin_operations
from gateway.doors.http import HTTPDoor
from gateway.doors.messages import message_operations
from gateway.doors.webhooks import webhook_operations

REFERENCE = "docs/reference"
BACKEND = {"X-API-Key": SERVICE_KEY}

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]


def of(page: str, *, replaced: dict[str, str] | None = None) -> str:
    """The Python of a page, with some of its text replaced, which has to be there."""
    code = block(f"{REFERENCE}/{page}", mark="run by tests/integration/test_reference.py", language="python")
    for text, by in (replaced or {}).items():
        assert text in code
        code = code.replace(text, by)
    return code


def execute(code: str, **names: Any) -> dict[str, Any]:
    """Run a page's code with these names; what it has defined."""
    names["__name__"] = "page"
    exec(compile(code, "a page", "exec"), names)
    return names


async def started(closing: AsyncExitStack, app: web.Application) -> str:
    """Serve an application until the test is over; its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


# Their code


async def test_a_token_that_is_signed_so_is_taken(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    user = SimpleNamespace(id="alice", name="Alice")
    token = execute(f"token = {of('tokens.md')}", jwt=jwt, os=os, time=time, user=user)["token"]
    running = await serve()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{running.url}/online-status?ids=alice") as answer,
    ):
        assert answer.status == 200


async def test_a_rule_hides_those_whom_it_names(monkeypatch: pytest.MonkeyPatch, closing: AsyncExitStack) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    before, after = of("visibility.md").split("blocked.add")
    names = execute(before, Gateway=Gateway, Settings=make_settings)
    gateway = names["gateway"]
    url = await started(closing, create_app(gateway))
    alice, mallory, bob = [await Client.connect(closing, url, user) for user in ("alice", "mallory", "bob")]
    assert (await mallory.status("alice"))["online"] is False
    assert (await alice.status("mallory"))["online"] is True
    assert (await bob.status("alice"))["online"] is True
    execute(f"blocked.add{after}", **names)
    await bob.hears("user-offline", userId="alice", version=0)


@pytest.mark.parametrize(("which", "credentials"), [(0, {"Authorization"}), (1, {"X-User"})])
async def test_a_request_of_a_page_is_a_heartbeat(closing: AsyncExitStack, which: int, credentials: set[str]) -> None:
    def user_of(request: web.Request) -> str | None:
        return request.headers.get("X-User")

    made: list[web.Application] = []

    def application(**options: Any) -> web.Application:
        made.append(web.Application(**options))
        return made[-1]

    gateway = Gateway(make_settings())
    execute(of("http.md"), gateway=gateway, web=SimpleNamespace(Application=application), user_of=user_of)
    assert len(made) == 2

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = made[which]
    app.router.add_get("/page", page)
    gateway.attach(app)
    url = f"{await started(closing, app)}/page"
    headers = {"Authorization": f"Bearer {make_token('alice')}", "X-User": "alice"}
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert answer.status == 200
        assert not gateway.presence.status("alice").online
        async with session.get(url, headers={name: headers[name] for name in credentials}) as answer:
            assert answer.status == 200
    await eventually(lambda: gateway.presence.status("alice").online)


async def test_a_backend_with_pushers_library_changes_the_host(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(pusher_app_id="1", pusher_app_key="app-key", pusher_app_secret="secret")
    alice = await Client.connect(closing, running.url)
    await alice.ask("join-channel", {"channel": "presence-room-5"})
    port = running.url.rpartition(":")[2]
    code = of("pusher-backends.md", replaced={"port=3000": f"port={port}", 'secret="…"': 'secret="secret"'})
    names = await asyncio.to_thread(execute, code)
    for client in (names["app"]._pusher_client, names["app"]._authentication_client):
        closing.callback(client.http.session.close)
    assert await alice.hears("order.shipped") == {"id": 7}


async def test_a_worker_reads_and_reaches_users(redis_url: str, serve: Serve, closing: AsyncExitStack) -> None:
    prefix = fresh_prefix()
    running = await serve(redis_url=redis_url, redis_prefix=prefix)
    user = await Client.connect(closing, running.url, "user-1")
    client = f'PresenceClient("{redis_url}", prefix="{prefix}")'
    names = execute(of("in-process.md", replaced={'PresenceClient("redis://127.0.0.1:6379/0")': client}))
    await names["work"]()
    assert await user.hears("notification") == {"message": "hi"}
    assert (await user.hears("user-status-changed"))["statusText"] == "in a call"
    await user.closed()


async def test_hooks_are_called(closing: AsyncExitStack) -> None:
    called: list[tuple[str, str]] = []
    note = {
        "greet(change): ...": "greet(change): called.append(('came', change.user_id))",
        "note_the_visit(change): ...": "note_the_visit(change): called.append(('went', change.user_id))",
    }
    gateway = Gateway(make_settings())
    execute(of("hooks.md", replaced=note), gateway=gateway, called=called)
    alice = await Client.connect(closing, await started(closing, create_app(gateway)))
    await eventually(lambda: called == [("came", "alice")])
    await alice.leave()
    await eventually(lambda: called == [("came", "alice"), ("went", "alice")])


@pytest.mark.parametrize(
    ("secret", "of_the_receiver"),
    [("whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ="), ("any-text", "YW55LXRleHQ=")],
)
async def test_the_webhook_endpoint_verifies_what_it_is_sent(
    spawn: Spawn, tmp_path: Path, secret: str, of_the_receiver: str
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/presence"
    path = tmp_path / "endpoint.py"
    path.write_text(of("webhooks.md", replaced={"port=8000": f"port={port}"}))
    endpoint = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", str(path)),
        env={**os.environ, "PRESENCE_WEBHOOK_SECRET": of_the_receiver},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert endpoint.stdout is not None
        await asyncio.wait_for(endpoint.stdout.readline(), 30)
        dev = await spawn("--dev", PRESENCE_WEBHOOK_URL=url, PRESENCE_WEBHOOK_SECRET=secret)
        async with aiohttp.ClientSession(headers=BACKEND) as session:
            async with session.post(url, data="{}") as forged:
                assert forged.status == 400
            async with session.post(f"{dev.url}/presence/online", json={"userId": "kim"}) as online:
                assert online.status == 200
        lines = [line async for line in _until(endpoint.stdout, "user.online")]
        assert "'userId': 'kim'" in lines[-1]
    finally:
        endpoint.kill()
        await endpoint.wait()


async def _until(stream: asyncio.StreamReader, word: str) -> AsyncIterator[str]:
    while line := (await asyncio.wait_for(stream.readline(), 30)).decode():
        yield line
        if word in line:
            return


async def test_what_runs_it_makes_a_token_that_it_takes(tmp_path: Path) -> None:
    port = free_port()
    lines = block("docs/operations/running.md", language="sh").replace("0.0.0.0", "127.0.0.1")
    assert "3000" in lines
    async with shell(lines.replace("3000", str(port)), tmp_path) as running:
        await running.serves(f"http://127.0.0.1:{port}")
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {running.lines[0]}"}) as session,
            session.get(f"http://127.0.0.1:{port}/online-status?ids=alice") as answer,
        ):
            assert answer.status == 200


async def test_presence_is_exported_to_a_file(tmp_path: Path, closing: AsyncExitStack) -> None:
    install, serve = block("docs/reference/export.md", language="sh").splitlines()
    assert install.startswith("pip install 'presence-gateway[sql]' ")  # what the suite itself is installed with
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        shell(serve, tmp_path, PORT=str(port), SERVICE_API_KEYS=SERVICE_KEY) as running,
        aiohttp.ClientSession(headers=BACKEND) as session,
    ):
        await running.serves(url)
        database = sqlite3.connect(tmp_path / "presence.db")
        closing.callback(database.close)

        def rows(question: str) -> list[Any]:
            return database.execute(question).fetchall()

        await eventually(lambda: rows("SELECT 1 FROM sqlite_master WHERE name = 'presence_sessions'"))
        async with session.post(f"{url}/presence/online", json={"userId": "kim"}) as online:
            assert online.status == 200
        found = await eventually(lambda: rows("SELECT user_id, ended_at FROM presence_sessions"))
        assert found == [("kim", None)]


# Their tables


@pytest.mark.parametrize("document", ["docs/reference/settings.md", ".env.example"])
def test_every_variable_is_documented(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in Settings.model_fields.keys() - {"dev"}:
        assert re.search(rf"\b{name.upper()}\b", text), name


def test_the_defaults_of_the_table_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_ENGINE", raising=False)
    text = (ROOT / "docs/reference/settings.md").read_text()
    told = dict[str, str]()
    for names, values in re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|`]+) \|", text, re.MULTILINE):
        variables, defaults = re.findall(r"[A-Z_]+", names), values.split(", ")
        told |= zip(variables, defaults if len(defaults) > 1 else defaults * len(variables), strict=True)
    words = {"unlimited", "none", "for ever", "by the key", "same origin"}
    given = {name.lower(): value for name, value in told.items() if value not in words}
    assert len(given) > 50
    del given["redis_port"]  # it says something with REDIS_HOST only
    assert make_settings(**{"presence_offline_grace": 5, **given}) == make_settings(presence_offline_grace=5)


def test_the_defaults_of_the_example_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_ENGINE", raising=False)
    lines = re.findall(r"^#? ?([A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    values = {name.lower(): value for name, value in lines}
    for name in ("jwt_public_key", "jwt_jwks_url", "cors_allowed_origins", "jwt_algorithms"):
        del values[name]  # examples, where there is no default
    assert make_settings(presence_offline_grace=5, service_api_keys="") == make_settings(service_api_keys="", **values)


def test_every_request_and_call_is_in_the_reference() -> None:
    requests = (ROOT / REFERENCE / "socketio.md").read_text()
    for name in Gateway(make_settings())._requests._table:
        assert f"| `{name}` |" in requests
    calls = "".join((ROOT / REFERENCE / page).read_text() for page in ("http.md", "webhooks.md"))
    for operation in (
        *HTTPDoor._table(HTTPDoor.__new__(HTTPDoor)),
        *webhook_operations(None),
        *admin_operations(None, None, None),  # type: ignore[arg-type]  # likewise
        *message_operations(None, None, None, None),  # type: ignore[arg-type]  # nothing of it is called
    ):
        path = operation.path.removeprefix("/presence") if operation.path == "/presence/offline" else operation.path
        assert path in calls
