"""README.md, run as it stands there; its pages are run by tests/browser/test_readme_pages.py."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from clients import Client
from conftest import ROOT, SECRET, Process, require_program
from documents import block
from programs import shell
from redis_servers import free_port, fresh_prefix

GATEWAY = "http://127.0.0.1:3000"


def of_readme(language: str, *, under: str, **replaced: str) -> str:
    """A block, with some of its text replaced, which has to be there."""
    code = block("README.md", mark="run by tests/integration/test_readme.py", under=under, language=language)
    for text, by in replaced.items():
        assert text in code
        code = code.replace(text, by)
    return code


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


async def dev_token(url: str, user: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/dev/token?user={user}") as answer:
        return str((await answer.json())["token"])


async def test_the_two_commands(tmp_path: Path) -> None:
    make_run, make_test = of_readme("sh", under="Presence gateway").splitlines()
    port = free_port()
    async with shell(make_run, tmp_path, PORT=str(port)) as running:
        url = f"http://127.0.0.1:{port}"
        await running.serves(url)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/test-presence.html?user=alice") as page:
            assert page.status == 200
        assert await dev_token(url, "alice")
    make, target = make_test.partition("#")[0].split()
    assert "-m pytest" in await run(make, "--directory", str(ROOT), "--dry-run", target)  # it is what runs this


async def test_the_curl_lines_answer_what_they_promise(dev: Process) -> None:
    require_program("curl")
    output = await run("bash", "-euc", of_readme("sh", under="curl", **{GATEWAY: dev.url}))
    heartbeat, ids, online, status = map(json.loads, output.splitlines())
    assert heartbeat["status"] == "online"
    assert ids == [{"id": "carol", "online": True}, {"id": "dave", "online": False}, {"id": 7, "online": False}]
    assert [user["userId"] for user in online["users"]] == ["carol"]
    assert status["online"] is True


async def test_the_python_script_hears_who_comes_and_goes(
    dev: Process, tmp_path: Path, closing: AsyncExitStack
) -> None:
    path = tmp_path / "script.py"
    path.write_text(of_readme("python", under="A Python script", **{GATEWAY: dev.url}))
    script = await asyncio.create_subprocess_exec(sys.executable, "-u", str(path), stdout=asyncio.subprocess.PIPE)
    try:
        assert script.stdout is not None
        first = (await asyncio.wait_for(script.stdout.readline(), 30)).decode()
        assert "'userId': 'robot'" in first
        alice = await Client.connect(closing, dev.url, auth={"token": await dev_token(dev.url, "alice")})
        assert await asyncio.wait_for(script.stdout.readline(), 30) == b"user-online alice\n"
        await alice.leave()
        assert await asyncio.wait_for(script.stdout.readline(), 30) == b"user-offline alice\n"
    finally:
        script.kill()
        await script.wait()


async def test_the_application_greets_who_comes(tmp_path: Path, closing: AsyncExitStack) -> None:
    port = free_port()
    code = of_readme("python", under="In your own aiohttp application", **{"port=3000": f"port={port}"})
    (tmp_path / "app.py").write_text(code)
    async with shell("python app.py", tmp_path, JWT_SECRET=SECRET) as running:
        await running.serves(f"http://127.0.0.1:{port}")
        alice = await Client.connect(closing, f"http://127.0.0.1:{port}")
        assert await alice.hears("notification") == {"message": "hi"}


async def test_what_runs_it_makes_a_token_that_it_takes(tmp_path: Path) -> None:
    port = free_port()
    lines = of_readme("sh", under="Running it", **{"0.0.0.0": "127.0.0.1", "3000": str(port)})
    async with shell(lines, tmp_path) as running:
        await running.serves(f"http://127.0.0.1:{port}")
        headers = {"Authorization": f"Bearer {running.lines[0]}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"http://127.0.0.1:{port}/online-status?ids=alice") as answer,
        ):
            assert (answer.status, await answer.json()) == (200, [{"id": "alice", "online": False}])


async def test_two_nodes_are_one_gateway(tmp_path: Path, redis_url: str, closing: AsyncExitStack) -> None:
    here, there = (free_port(), free_port())
    lines = of_readme(
        "sh",
        under="Many nodes",
        **{"redis://127.0.0.1:6379/0": redis_url, "--port 3001": f"--port {here}", "--port 3002": f"--port {there}"},
    )
    async with shell(lines, tmp_path, REDIS_PREFIX=fresh_prefix()) as running:
        urls = [f"http://127.0.0.1:{port}" for port in (here, there)]
        for url in urls:
            await running.serves(url)
        alice, bob = [
            await Client.connect(closing, url, auth={"token": await dev_token(url, user)})
            for user, url in zip(("alice", "bob"), urls, strict=True)
        ]
        await alice.hears("user-online", userId="bob")
        assert (await bob.status("alice"))["online"] is True
