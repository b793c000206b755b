"""pusher-js and Laravel Echo, as npm has them, against the gateway's Pusher door."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import STEP, Process, Running, make_token
from pusher import Pusher
from redis_servers import fresh_prefix
from test_js_client import Heard, node

TESTS = 11
KEY, PUSHER_SECRET = "the-app-key", "the-app-secret"
APP = {"PUSHER_APP_ID": "1", "PUSHER_APP_KEY": KEY, "PUSHER_APP_SECRET": PUSHER_SECRET}
ENGINES = ["fast", "stock"]

Spawn = Callable[..., Awaitable[Process]]
Serve = Callable[..., Awaitable[Running]]


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


@pytest.mark.parametrize(("engine", "nodes"), [("fast", 2), ("stock", 2), ("fast", 3)])
async def test_it_is_the_same_over_several_nodes(spawn: Spawn, engine: str, nodes: int, redis_url: str) -> None:
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "PRESENCE_OFFLINE_GRACE": "1"}
    await run_tests(*[await spawn(GATEWAY_ENGINE=engine, **shared, **APP) for _ in range(nodes)])


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


@pytest.mark.parametrize("channel", ["private-encrypted-orders", "private-encrypted-cache-orders"])
async def test_what_a_backend_encrypts_a_client_reads_and_nobody_between(serve: Serve, channel: str) -> None:
    async def rule(_identity: Any, _channel: str) -> bool:
        return True

    master_key = base64.b64encode(bytes(range(32))).decode()
    app = {name.lower(): value for name, value in APP.items()}
    running = await serve(**app, pusher_encryption_master_key_base64=master_key, channel_auth=rule)
    host, _, port = running.url.removeprefix("http://").partition(":")
    backend = Pusher(
        app_id="1",
        key=KEY,
        secret=PUSHER_SECRET,
        ssl=False,
        host=host,
        port=int(port),
        encryption_master_key_base64=master_key,
    )
    variables = {"PUSHER_KEY": KEY, "CHANNEL": channel, "TOKEN": make_token("alice")}
    script = "pusher-encrypted.mjs"
    try:
        async with (
            node(script, url=running.url, transports="websocket", **variables) as process,
            node(script, url=running.url, transports="websocket", **variables) as other,
        ):
            heard, others = Heard(process), Heard(other)
            for each in (heard, others):
                await each.next("pusher:subscription_succeeded")
            await asyncio.to_thread(backend.trigger, channel, "shipped", {"to": "Köln", "secret": 42})
            for each in (heard, others):
                assert await each.next("shipped") == {"to": "Köln", "secret": 42}
            frame = await heard.frame("shipped")
            assert set(frame["data"]) == {"nonce", "ciphertext"}
            assert "Köln" not in json.dumps(frame, ensure_ascii=False)

            assert process.stdin is not None
            process.stdin.write(b"client-typing\n")
            refused = await heard.frame("pusher:error")
            assert "not encrypted" in refused["data"]["message"]
            assert not any(name == "client-typing" for name, _payload in others.lines)
            for each_process in (process, other):
                assert each_process.stdin is not None
                each_process.stdin.close()
                assert await asyncio.wait_for(each_process.wait(), STEP) == 0
            await asyncio.gather(heard.reading, others.reading)
    finally:
        for client in (backend._pusher_client, backend._authentication_client):
            client.http.session.close()
