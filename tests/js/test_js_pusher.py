"""pusher-js and Laravel Echo, as npm has them, against the gateway's Pusher door."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable

import pytest
from conftest import STEP, Process
from test_js_client import Heard, node

TESTS = 11
KEY, PUSHER_SECRET = "the-app-key", "the-app-secret"
APP = {"PUSHER_APP_ID": "1", "PUSHER_APP_KEY": KEY, "PUSHER_APP_SECRET": PUSHER_SECRET}
ENGINES = ["fast", "stock"]

Spawn = Callable[..., Awaitable[Process]]


async def run_tests(*gateways: Process) -> None:
    nodes = ",".join(gateway.url for gateway in gateways)
    variables = {"NODES": nodes, "PUSHER_KEY": KEY, "PUSHER_SECRET": PUSHER_SECRET}
    arguments = ("--test", "--test-reporter=tap", "pusher.test.mjs")
    async with node(*arguments, url=gateways[0].url, transports="websocket", **variables) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 90)
    report = output.decode()
    counted = re.findall(r"^# (tests|pass|skipped|todo) (\d+)$", report, re.MULTILINE)
    counts = {name: int(count) for name, count in counted}
    assert process.returncode == 0, report
    assert counts == {"tests": TESTS, "pass": TESTS, "skipped": 0, "todo": 0}, report
    assert not any("Traceback" in gateway.log for gateway in gateways)


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_clients_find_what_they_found_before(spawn: Spawn, engine: str) -> None:
    await run_tests(await spawn(GATEWAY_ENGINE=engine, PRESENCE_OFFLINE_GRACE="1", **APP))


@pytest.mark.parametrize("engine", ENGINES)
async def test_it_is_the_same_over_two_nodes(spawn: Spawn, engine: str, redis_url: str) -> None:
    options = {"GATEWAY_ENGINE": engine, "REDIS_URL": redis_url, "PRESENCE_OFFLINE_GRACE": "1", **APP}
    await run_tests(await spawn(**options), await spawn(**options))


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_client_whose_node_drains_connects_again_at_once(spawn: Spawn, engine: str) -> None:
    gateway = await spawn(GATEWAY_ENGINE=engine, **APP)
    async with node("pusher-drain.mjs", url=gateway.url, transports="websocket", PUSHER_KEY=KEY) as process:
        heard = Heard(process)
        await heard.next("connected")

        assert await gateway.stop(signal.SIGTERM) == 0
        assert await heard.next("error") == 4200
        await heard.next("connecting", number=2)
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), STEP) == 0
        await heard.reading
