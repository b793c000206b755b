"""Webhooks from real gateways to a real receiver: signed, in order, at least once, whoever is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from clients import Client
from conftest import ROOT, SERVICE_KEY, STEP, Process, Running, eventually
from receivers import HOOK_SECRET, Call, Receiver, receiver
from redis_servers import RedisServer, fresh_prefix
from structlog.testing import capture_logs

from gateway.redis.connection import connect
from gateway.webhooks.outbox import Bounds
from gateway.webhooks.outbox_redis import RedisOutbox

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]
KEY = {"X-API-Key": SERVICE_KEY}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def call(running: Running, method: str, path: str, body: object = None) -> Any:
    async with (
        aiohttp.ClientSession(headers=KEY) as session,
        session.request(method, running.url + path, json=body) as response,
    ):
        return response.status, await response.json()


async def metric(running: Running, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name)))


async def command(*arguments: str, **variables: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "webhooks", *arguments),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode()


async def hears_of(hook: Receiver, user: str) -> None:
    await eventually(lambda: user in {each.user for each in hook.calls}, within=2 * STEP)


async def test_who_comes_changes_and_goes_is_told_signed_and_in_order(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    alice = await Client.connect(closing, running.url, "alice")
    await running.gateway.presence.set_status("alice", "dnd", text="in a meeting")
    await running.gateway.presence.set_status("alice", "invisible", text="nobody knows")
    await running.gateway.presence.set_status("alice", "online")
    await alice.leave()
    await eventually(lambda: len(hook.calls) == 5)
    assert hook.taken() == [
        ("user.online", "alice", 1),
        ("user.status_changed", "alice", 2),
        ("user.offline", "alice", 3),
        ("user.online", "alice", 4),
        ("user.offline", "alice", 5),
    ]
    assert hook.violations() == []
    assert {each.data["tenant"] for each in hook.calls} == {"default"}
    assert (hook.calls[1].data["status"], hook.calls[1].data["statusText"]) == ("dnd", "in a meeting")
    assert "nobody knows" not in str(hook.calls)
    await eventually(
        lambda: running.gateway._webhooks is not None and not running.gateway._webhooks.couriers[0].waiting
    )
    assert await metric(running, 'presence_webhooks_sent_total{endpoint="default"}') == 5
    assert await metric(running, 'presence_webhooks_lag_seconds{endpoint="default"}') == 0


async def test_each_of_several_endpoints_has_its_own_filter_and_pace(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    stuck = asyncio.Event()

    async def hang(_call: Call) -> None:
        await stuck.wait()

    async with receiver() as slow:
        slow.answers = hang
        running = await serve(
            presence_webhooks=[
                {"name": "comings", "url": hook.url, "secret": HOOK_SECRET, "events": ["user.online"]},
                {"name": "slow", "url": slow.url, "secret": HOOK_SECRET},
            ],
            webhook_concurrency=2,
            **store,
        )
        for number in range(5):
            client = await Client.connect(closing, running.url, f"user-{number}")
            await client.leave()
        await eventually(lambda: len(hook.calls) == 5)
        assert {kind for kind, _user, _version in hook.taken()} == {"user.online"}
        assert len(slow.calls) == 2
        stuck.set()
        await eventually(lambda: len(slow.taken()) == 10)
        assert slow.violations() == hook.violations() == []


async def test_what_an_endpoint_refuses_comes_again_under_the_same_id(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    refusals = iter([web.Response(status=500), web.HTTPFound("/elsewhere"), web.Response(status=429)])

    async def refuse(each: Call) -> web.Response | None:
        return next(refusals, None) if each.user == "alice" else None

    hook.answers = refuse
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    for user in ("alice", "bob"):
        await (await Client.connect(closing, running.url, user)).leave()
    await eventually(lambda: len(hook.taken()) == 4, within=10 * STEP)
    assert [each.version for each in hook.calls if each.user == "alice"] == [1, 1, 1, 1, 2]
    assert hook.violations() == []


async def test_an_endpoint_that_is_gone_waits_until_an_operator_resumes_it(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    async def gone(_call: Call) -> web.Response:
        return web.Response(status=410)

    hook.answers = gone
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    await Client.connect(closing, running.url, "alice")
    await eventually(lambda: len(hook.calls) == 1)

    async def stopped() -> Any:
        return (await call(running, "GET", "/api/webhooks"))[1]["endpoints"]

    async with asyncio.timeout(STEP):
        while (found := await stopped())[0]["stopped"] is None:  # noqa: ASYNC110 - it is the store's
            await asyncio.sleep(0.01)
    assert found == [{"name": "default", "waiting": 1, "dead": 0, "stopped": "it answered 410", "configured": True}]
    await Client.connect(closing, running.url, "bob")
    hook.answers = Receiver().answers
    assert await call(running, "POST", "/api/webhooks/resume", {"endpoint": "default"}) == (200, {"resumed": True})
    await eventually(lambda: len(hook.taken()) == 2)
    assert (await call(running, "POST", "/api/webhooks/resume", {"endpoint": "x"}))[0] == 404


async def test_dead_letters_are_listed_and_sent_again_by_http(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    async def fail(_call: Call) -> web.Response:
        return web.Response(status=500)

    hook.answers = fail
    running = await serve(
        presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, webhook_queue_size=1, **store
    )
    for user in ("alice", "bob"):
        await Client.connect(closing, running.url, user)
        await hears_of(hook, user)
    status, found = await call(running, "GET", "/api/webhooks/dead-letters")
    [letter] = found["letters"]
    assert (status, found["count"], letter["endpoint"], letter["reason"]) == (200, 1, "default", "the queue was full")
    assert (letter["body"]["data"]["userId"], letter["body"]["id"]) == ("alice", letter["id"])
    hook.answers = Receiver().answers
    await eventually(lambda: "bob" in {user for _type, user, _version in hook.taken()})
    assert (await call(running, "POST", "/api/webhooks/replay", {}))[0] == 400
    replayed = {"replayed": [{"endpoint": "default", "id": letter["id"]}], "count": 1}
    assert await call(running, "POST", "/api/webhooks/replay", {"ids": [letter["id"]]}) == (200, replayed)
    await eventually(lambda: letter["id"] in {each.id for each in hook.calls if each.taken})
    assert (await call(running, "GET", "/api/webhooks/dead-letters"))[1] == {"letters": [], "count": 0}


async def test_an_event_that_nobody_can_read_holds_up_no_other(
    serve: Serve, hook: Receiver, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    prefix = fresh_prefix()
    await shared_redis.cli("XADD", f"{{{prefix}}}:outbox:queue:default", "*", "message", "what is this")
    store = {"redis_url": shared_redis.url, "redis_prefix": prefix}
    with capture_logs() as logs:
        running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
        await Client.connect(closing, running.url, "alice")
        await hears_of(hook, "alice")
        await eventually(lambda: running.gateway._webhooks is not None and running.gateway._webhooks.unreadable)
    assert [each["count"] for each in logs if each["log_level"] == "error"] == [1]
    assert await metric(running, "presence_webhooks_unreadable_total") == 1
    assert (await call(running, "GET", "/api/webhooks"))[1]["endpoints"][0]["dead"] == 1
    assert (await call(running, "GET", "/api/webhooks/dead-letters"))[1] == {"letters": [], "count": 0}


async def test_an_endpoint_that_is_configured_no_more_is_listed_as_that_and_can_be_forgotten(
    serve: Serve, hook: Receiver, store: dict[str, Any]
) -> None:
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, **store)
    assert running.gateway._webhooks is not None
    await running.gateway._webhooks._outbox.register(["crm"])

    async def known() -> dict[str, bool]:
        endpoints = (await call(running, "GET", "/api/webhooks"))[1]["endpoints"]
        return {each["name"]: each["configured"] for each in endpoints}

    async def forget(name: str) -> Any:
        return await call(running, "POST", "/api/webhooks/forget", {"endpoint": name})

    assert await known() == {"crm": False, "default": True}
    status, body = await forget("default")
    assert (status, body["code"]) == (400, "INVALID_PAYLOAD")
    assert "'default' is configured: take it out of the settings of every node" in body["detail"]
    assert await forget("crm") == (200, {"waiting": 0, "dead": 0})
    assert await known() == {"default": True}
    assert (await forget("crm"))[0] == 404


async def test_the_command_line_forgets_an_endpoint_that_is_configured_no_more(redis_url: str) -> None:
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix()}
    crm = {"PRESENCE_WEBHOOKS": json.dumps([{"name": "crm", "url": "http://127.0.0.1:1", "secret": HOOK_SECRET}])}
    client = connect(redis_url, timeout=STEP)
    outbox = RedisOutbox(client, shared["REDIS_PREFIX"], Bounds())
    await outbox.register(["crm", "erp", "old"])
    status, output = await command("list", **shared, **crm)
    gone = "; configured no more: webhooks forget lets go of it"
    lines = [
        f"{name}: 0 dead letters; 0 events wait{note}" for name, note in (("crm", ""), ("erp", gone), ("old", gone))
    ]
    assert (status, output.splitlines()) == (0, lines)
    status, output = await command("forget", "--endpoint", "crm", **shared, **crm)
    assert (status, "'crm' is configured: take it out of the settings" in output) == (2, True)
    done = (0, "erp is forgotten, with 0 dead letters; 0 events waited for it\n")
    assert await command("forget", "--endpoint", "erp", **shared, **crm) == done
    status, output = await command("forget", "--endpoint", "erp", **shared, **crm)
    assert (status, "there is no webhook endpoint 'erp'; there are crm, old" in output) == (2, True)
    # Where nothing is configured, nothing says which are in use.
    status, output = await command("forget", "--endpoint", "old", **shared)
    assert (status, "or --force where they have none either" in output) == (2, True)
    assert (await command("forget", "--endpoint", "old", "--force", **shared))[0] == 0
    assert list(await outbox.states()) == ["crm"]
    await outbox.close()
    await client.aclose()


async def test_without_an_endpoint_the_calls_say_so(serve: Serve) -> None:
    running = await serve()
    status, body = await call(running, "GET", "/api/webhooks/dead-letters")
    assert (status, body["code"]) == (404, "NOT_FOUND")
    assert "PRESENCE_WEBHOOK_URL" in body["detail"]


async def test_the_command_line_lists_and_sends_again(
    spawn: Spawn, hook: Receiver, closing: AsyncExitStack, redis_url: str
) -> None:
    async def fail(_call: Call) -> web.Response:
        return web.Response(status=500)

    hook.answers = fail
    shared = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix()}
    node = await spawn(
        **shared, PRESENCE_WEBHOOK_URL=hook.url, PRESENCE_WEBHOOK_SECRET=HOOK_SECRET, WEBHOOK_QUEUE_SIZE="1"
    )
    for user in ("alice", "bob", "carol"):
        await Client.connect(closing, node.url, user)
        await hears_of(hook, user)
    status, output = await command("list", **shared)
    assert status == 0
    lines = output.splitlines()
    ids = [line.split()[0] for line in lines[:2]]
    assert [name.startswith("msg_") for name in ids] == [True, True]
    assert "default  user.online" in lines[0]
    assert lines[2] == "default: 2 dead letters; 1 events wait"
    assert (await command("replay", **shared))[0] == 2
    status, output = await command("replay", "msg_nobody's", **shared)
    assert (status, "there is no dead letter msg_nobody's" in output) == (2, True)
    hook.answers = Receiver().answers
    await eventually(lambda: "carol" in {user for _type, user, _version in hook.taken()}, within=3 * STEP)
    assert await command("replay", ids[0], **shared) == (0, "1 are sent again\n")
    await eventually(lambda: ids[0] in {each.id for each in hook.calls if each.taken}, within=2 * STEP)
    assert await command("replay", "--all", "--endpoint", "default", **shared) == (0, "1 are sent again\n")
    await eventually(lambda: len(hook.taken()) == 3, within=2 * STEP)
    assert await command("resume", **shared) == (0, "no endpoint was stopped\n")
    assert HOOK_SECRET not in node.log


async def test_without_redis_the_command_line_says_whom_to_ask() -> None:
    status, output = await command("list")
    assert status == 2
    assert "dead letters live in the process that serves" in output
    assert "/api/webhooks/dead-letters" in output


async def test_a_sender_killed_in_the_middle_loses_nothing_and_repeats_only_by_the_same_id(
    spawn: Spawn, hook: Receiver, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    prefix = fresh_prefix()
    shared = {
        "REDIS_URL": shared_redis.url,
        "REDIS_PREFIX": prefix,
        "NODE_LEASE": "2",
        "PRESENCE_OFFLINE_GRACE": "0.3",
        "PRESENCE_WEBHOOK_URL": hook.url,
        "PRESENCE_WEBHOOK_SECRET": HOOK_SECRET,
    }
    begun = asyncio.Semaphore(0)

    async def slowly(_call: Call) -> None:
        begun.release()
        await asyncio.sleep(0.02)

    hook.answers = slowly
    first = await spawn(**shared)
    await first.logged("a duty is this node's now")
    other = await spawn(**shared)
    users = [f"user-{number}" for number in range(30)]
    clients = [await Client.connect(closing, other.url, user) for user in users]
    for client in clients:
        await client.ask("set-status", {"status": "busy"})
    for _ in range(20):
        await asyncio.wait_for(begun.acquire(), STEP)
    await first.stop(signal.SIGKILL)
    for client in clients:
        await client.ask("set-status", {"status": "dnd"})
    await other.logged("a duty is this node's now", within=4 * STEP)
    for client in clients:
        await client.leave()
    await eventually(lambda: not any(hook.missing(user, 4) for user in users), within=4 * STEP)
    assert hook.violations() == []
    assert len(hook.taken()) == 4 * len(users)
    waiting = await shared_redis.cli("XLEN", f"{{{prefix}}}:outbox")
    assert json.loads(str(waiting)) == 0
