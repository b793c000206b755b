"""The README, held to what is true: its commands run as they stand there, its tables match the code."""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from conftest import ROOT, Process, make_settings, require_program

from gateway import Gateway, Settings
from gateway.doors.http import HTTPDoor

README = (ROOT / "README.md").read_text()
UNBUILT = {
    "presence_audience",
    "presence_webhook_url",
    "presence_webhook_secret",
    "channel_auth_url",
    "pusher_app_id",
    "pusher_app_key",
    "pusher_app_secret",
}


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


@pytest.mark.parametrize("language", ["html", "jsx", "vue"])
def test_the_pages_take_their_names_from_the_contract(language: str) -> None:
    heading = {"html": "Plain JavaScript", "jsx": "React", "vue": "Vue"}[language]
    code = block(heading, language)
    for name in ("/ws/messages", "user-online", "user-offline", "user-status-changed", "get-online-users", "heartbeat"):
        assert name in code


@pytest.mark.parametrize("document", ["README.md", ".env.example"])
def test_every_variable_is_documented(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in Settings.model_fields.keys() - UNBUILT - {"dev"}:
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
    for operation in HTTPDoor._table(HTTPDoor.__new__(HTTPDoor)):
        path = operation.path.removeprefix("/presence") if operation.path == "/presence/offline" else operation.path
        assert path in README
