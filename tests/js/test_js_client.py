"""socket.io-client, as npm has it, against the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SECRET, SERVICE_KEY, STEP, Process, eventually, require_program
from redis_servers import free_port, fresh_prefix

HERE = Path(__file__).resolve().parent
TRANSPORTS = ["websocket", "polling", "polling,websocket"]
GRACE = 1.5
TESTS = {
    "socketio.test.mjs": 22,
    "lost.test.mjs": 2,
    "queue.test.mjs": 3,
    "echo.test.mjs": 4,
    "messages.test.mjs": 5,
    "react.test.mjs": 11,
    "vue.test.mjs": 14,
    "server.test.mjs": 5,
    "how-to.test.mjs": 1,
    "reference.test.mjs": 7,
}
"""How many each file has: an empty run is no success."""


Spawn = Callable[..., Awaitable[Process]]


@asynccontextmanager
async def node(
    *arguments: str, url: str, transports: str, **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Node with what the scripts here read from the environment; it is gone when the block ends."""
    program = require_program("node")
    if not (ROOT / "node_modules" / "socket.io-client").is_dir():
        message = "socket.io-client is not installed: npm ci"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        cwd=HERE,
        env={
            "PATH": os.environ["PATH"],
            "GATEWAY_URL": url,
            "JWT_SECRET": SECRET,
            "SERVICE_API_KEY": SERVICE_KEY,
            "GRACE": str(GRACE),
            "TRANSPORTS": transports,
            **variables,
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run_tests(gateway: Process, file: str, transports: str, **variables: str) -> None:
    arguments = ("--test", "--test-reporter=tap", file)
    async with node(*arguments, url=gateway.url, transports=transports, **variables) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    report = output.decode()
    counted = re.findall(r"^# (tests|pass|skipped|todo) (\d+)$", report, re.MULTILINE)
    counts = {name: int(count) for name, count in counted}
    assert process.returncode == 0, report
    assert counts == {"tests": TESTS[file], "pass": TESTS[file], "skipped": 0, "todo": 0}, report
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_the_client_finds_everything_as_the_contract_says(spawn: Spawn, transports: str) -> None:
    await run_tests(await spawn(PRESENCE_OFFLINE_GRACE=str(GRACE)), "socketio.test.mjs", transports)


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_a_connection_that_is_lost_has_its_grace(spawn: Spawn, transports: str) -> None:
    await run_tests(await spawn(PRESENCE_OFFLINE_GRACE=str(GRACE)), "lost.test.mjs", transports)


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_what_waited_is_handed_over_until_it_is_acknowledged(spawn: Spawn, engine: str, transports: str) -> None:
    await run_tests(await spawn(GATEWAY_ENGINE=engine), "queue.test.mjs", transports)


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_laravel_echo_finds_what_it_found_before(spawn: Spawn, engine: str, transports: str) -> None:
    await run_tests(await spawn(GATEWAY_ENGINE=engine), "echo.test.mjs", transports)


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("engine", ["fast", "stock"])
async def test_two_people_have_a_conversation(spawn: Spawn, engine: str, transports: str) -> None:
    await run_tests(await spawn(GATEWAY_ENGINE=engine), "messages.test.mjs", transports)


async def test_two_people_have_a_conversation_by_redis(spawn: Spawn, redis_url: str) -> None:
    gateway = await spawn(REDIS_URL=redis_url, REDIS_PREFIX=fresh_prefix())
    await run_tests(gateway, "messages.test.mjs", "websocket")


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_a_client_is_told_that_the_gateway_drains_and_comes_back_to_the_next_one(
    spawn: Spawn, transports: str
) -> None:
    port = free_port()  # which nobody takes meanwhile
    gateway = await spawn("--port", str(port))
    async with node("drain.mjs", url=gateway.url, transports=transports) as process:
        heard = Heard(process)
        await heard.next("upgrade" if "," in transports else "connected")

        assert await gateway.stop(signal.SIGTERM) == 0
        assert (await heard.next("server-draining"))["retryAfter"] >= 0
        left = await heard.next("disconnect")
        assert left["reason"] != "io server disconnect"
        assert left["active"], "the client comes back by itself"

        await spawn("--port", str(port))
        assert (await heard.next("connected", number=2))["userId"] == "alice"

        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), STEP) == 0
        await heard.reading


class Heard:
    """What a script says that it heard, as it says it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self.lines: list[tuple[str, Any]] = []
        self.reading = asyncio.create_task(self._read(process.stdout))

    async def next(self, event: str, *, number: int = 1) -> Any:
        """The payload of the n-th event of a name, as soon as it was heard."""

        def found() -> list[Any]:
            return [(payload,) for name, payload in self.lines if name == event][number - 1 : number]

        try:
            [(payload,)] = await eventually(found)
        except AssertionError:
            raise AssertionError(f"{event} number {number} was not heard; this was: {self.lines}") from None
        return payload

    async def frame(self, event: str) -> Any:
        """The first frame of an event that a client of Pusher's said it got."""

        def found() -> list[Any]:
            return [payload for name, payload in self.lines if name == "frame" and payload["event"] == event]

        return (await eventually(found))[0]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            name, payload = json.loads(line)
            self.lines.append((name, payload))
