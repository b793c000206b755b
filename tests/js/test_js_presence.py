"""The client for browsers, `static/presence-client.js`: its units by Vitest, its types, and against a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import ROOT, Process
from redis_servers import fresh_prefix
from test_js_client import GRACE, HERE, TRANSPORTS, node

VITEST = ROOT / "node_modules" / "vitest" / "vitest.mjs"
TSC = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
TESTS = {"client.spec.mjs": 58, "tabs.spec.mjs": 46, "gateway.spec.mjs": 11}
"""How many each file has: an empty run is no success."""

MAX_WATCHED = "12"

Spawn = Callable[..., Awaitable[Process]]


async def vitest(file: str, *, url: str = "", transports: str = "websocket") -> None:
    assert VITEST.is_file(), "vitest is not installed: npm ci"
    arguments = ("run", "--root", str(HERE / "presence"), "--reporter=json", file)
    async with node(
        str(VITEST), *arguments, url=url, transports=transports, MAX_WATCHED_USERS=MAX_WATCHED, CI="true"
    ) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 110)
    report: dict[str, Any] = json.loads(output)
    failed = [
        "\n".join([test["fullName"], *test["failureMessages"]])
        for tests in report["testResults"]
        for test in tests["assertionResults"] or [{"fullName": "none", "failureMessages": [tests["message"]]}]
        if test["status"] != "passed"
    ]
    assert failed == [], "\n".join(failed)
    assert (report["success"], process.returncode) == (True, 0), report
    assert report["numPassedTests"] == report["numTotalTests"] == TESTS[file]


@pytest.mark.parametrize("file", ["client.spec.mjs", "tabs.spec.mjs"])
async def test_the_units_of_the_client_do_what_they_say(file: str) -> None:
    await vitest(file)


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_the_client_and_the_gateway_understand_each_other(spawn: Spawn, transports: str) -> None:
    gateway = await spawn(PRESENCE_OFFLINE_GRACE=str(GRACE), MAX_WATCHED_USERS=MAX_WATCHED)
    await vitest("gateway.spec.mjs", url=gateway.url, transports=transports)
    assert "Traceback" not in gateway.log


async def test_the_client_and_the_gateway_understand_each_other_by_redis(spawn: Spawn, redis_url: str) -> None:
    gateway = await spawn(
        REDIS_URL=redis_url,
        REDIS_PREFIX=fresh_prefix(),
        PRESENCE_OFFLINE_GRACE=str(GRACE),
        MAX_WATCHED_USERS=MAX_WATCHED,
    )
    await vitest("gateway.spec.mjs", url=gateway.url)


async def test_the_types_say_what_a_page_may_write() -> None:
    assert TSC.is_file(), "typescript is not installed: npm ci"
    settings = ("--strict", "--module", "nodenext", "--target", "es2023", "--lib", "es2023,dom")
    async with node(str(TSC), "--noEmit", *settings, "types.check.ts", url="", transports="") as process:
        output, _ = await asyncio.wait_for(process.communicate(), 110)
    assert (process.returncode, output.decode()) == (0, "")
