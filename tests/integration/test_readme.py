"""The README, held to what is true: its commands run as they stand there, its tables match the code."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from conftest import ROOT, Process, make_settings, require_program
from redis_servers import free_port

from gateway import Gateway, Settings
from gateway.doors.admin import admin_operations
from gateway.doors.http import HTTPDoor
from gateway.doors.messages import message_operations
from gateway.doors.webhooks import webhook_operations

README = (ROOT / "README.md").read_text()


def block(heading: str, language: str) -> str:
    section = README.split(f"### {heading}\n", 1)[1]
    return section.split(f"```{language}\n", 1)[1].split("\n```", 1)[0]


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture
async def dev(spawn: Callable[..., Awaitable[Process]]) -> Process:
    return await spawn("--dev")


async def test_the_curl_lines_answer_what_they_promise(dev: Process) -> None:
    require_program("curl")
    lines = block("curl", "sh").replace("http://127.0.0.1:3000", dev.url)
    output = await run("bash", "-euc", lines)
    heartbeat, ids, online, status = map(json.loads, output.splitlines())
    assert heartbeat["status"] == "online"
    assert ids == [{"id": "carol", "online": True}, {"id": "dave", "online": False}, {"id": 7, "online": False}]
    assert [user["userId"] for user in online["users"]] == ["carol"]
    assert status["online"] is True


async def test_the_python_script_runs(dev: Process, tmp_path: Path) -> None:
    script = (
        block("A Python script", "python").replace("http://127.0.0.1:3000", dev.url).replace("sleep(60)", "sleep(0)")
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    assert "'userId': 'robot'" in await run(sys.executable, str(path))


async def test_pusher_js_and_echo_find_the_gateway_where_the_page_says(
    spawn: Callable[..., Awaitable[Process]], tmp_path: Path
) -> None:
    node = require_program("node")
    application = {"PUSHER_APP_ID": "1", "PUSHER_APP_KEY": "app-key", "PUSHER_APP_SECRET": "secret"}
    dev = await spawn("--dev", **application)
    code = block("Coming from Laravel Echo, Pusher or Socket.IO", "js")
    assert "wsPort: 3000" in code
    code = code.replace("http://127.0.0.1:3000", dev.url).replace(
        "wsPort: 3000", f"wsPort: {dev.url.rsplit(':', 1)[1]}"
    )
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    (tmp_path / "page.mjs").write_text(code)
    page = await asyncio.create_subprocess_exec(
        node, "page.mjs", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert page.stdout is not None
        lines = [(await asyncio.wait_for(page.stdout.readline(), 30)).decode() for _ in range(2)]
        assert sorted(lines) == ["echo [ { name: 'Alice' } ]\n", "pusher { alice: { name: 'Alice' } }\n"]
    finally:
        page.kill()
        await page.wait()


def test_every_link_to_a_place_on_the_page_leads_there() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    places = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - places == set()


@pytest.mark.parametrize(
    ("secret", "of_the_receiver"),
    [("whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ="), ("any-text", "YW55LXRleHQ=")],
)
async def test_the_webhook_endpoint_verifies_what_it_is_sent(
    spawn: Callable[..., Awaitable[Process]], tmp_path: Path, secret: str, of_the_receiver: str
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/presence"
    path = tmp_path / "endpoint.py"
    path.write_text(block("Webhooks", "python").replace("port=8000", f"port={port}"))
    endpoint = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", str(path)),
        env={**os.environ, "PRESENCE_WEBHOOK_SECRET": of_the_receiver},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert endpoint.stdout is not None
        await asyncio.wait_for(endpoint.stdout.readline(), 30)
        key = {"X-API-Key": "key"}
        dev = await spawn(
            "--dev", PRESENCE_WEBHOOK_URL=url, PRESENCE_WEBHOOK_SECRET=secret, SERVICE_API_KEYS=key["X-API-Key"]
        )
        async with aiohttp.ClientSession(headers=key) as session:
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


@pytest.mark.parametrize("language", ["html", "jsx", "vue"])
def test_the_pages_take_their_names_from_the_contract(language: str) -> None:
    heading = {"html": "Plain JavaScript", "jsx": "React", "vue": "Vue"}[language]
    code = block(heading, language)
    for name in ("/ws/messages", "user-online", "user-offline", "user-status-changed", "get-online-users", "heartbeat"):
        assert name in code


@pytest.mark.parametrize("document", ["README.md", ".env.example"])
def test_every_variable_is_documented(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in Settings.model_fields.keys() - {"dev"}:
        assert re.search(rf"\b{name.upper()}\b", text), name


def test_the_defaults_of_the_example_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_ENGINE", raising=False)
    lines = re.findall(r"^#? ?([A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    values = {name.lower(): value for name, value in lines}
    for name in ("jwt_public_key", "jwt_jwks_url", "cors_allowed_origins", "jwt_algorithms"):
        del values[name]  # examples, where there is no default
    assert make_settings(presence_offline_grace=5, service_api_keys="") == make_settings(service_api_keys="", **values)


def test_every_request_and_call_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Gateway(make_settings())._requests._table
    for name in table:
        assert f"| `{name}` |" in README
    for operation in (
        *HTTPDoor._table(HTTPDoor.__new__(HTTPDoor)),
        *webhook_operations(None),
        *admin_operations(None, None, None),  # type: ignore[arg-type]  # likewise
        *message_operations(None, None, None, None),  # type: ignore[arg-type]  # nothing of it is called
    ):
        path = operation.path.removeprefix("/presence") if operation.path == "/presence/offline" else operation.path
        assert path in README
