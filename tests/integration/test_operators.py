"""The commands that ask a gateway how it is, and the HTTP API under them: two real nodes on one Redis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from clients import Client
from conftest import ROOT, SERVICE_KEY, STEP, Process, gateway_process, make_token
from redis_servers import free_port, fresh_prefix, redis_server

# Two nodes serve the tests that leave them as they are, and so there is one loop for all of them.
pytestmark = [pytest.mark.xdist_group("operators"), pytest.mark.asyncio(loop_scope="module")]

READING_KEY = "a-key-of-the-tests-that-only-reads"
WITHIN = 12 * STEP
"""Seconds that a process may take, on a machine that does much else."""


async def run(*arguments: str, directory: Path, **variables: str) -> tuple[int, str, str]:
    """Run ``python -m gateway`` to its end; return its exit status, output and errors."""
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=directory,
        env=inherited | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WITHIN):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def until(ask: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as it is to be, and return it."""
    deadline = time.monotonic() + WITHIN
    while not is_so(answer := await ask()):
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.05)
    return answer


class Site:
    """Two nodes of one gateway."""

    def __init__(self, nodes: list[Process], directory: Path) -> None:
        self.nodes = nodes
        self.directory = directory

    async def ask(self, *arguments: str, key: str = SERVICE_KEY, node: int = 0) -> tuple[int, str, str]:
        """Run a command that asks the first node, or another."""
        return await run(*arguments, directory=self.directory, GATEWAY_URL=self.nodes[node].url, GATEWAY_API_KEY=key)

    async def call(self, method: str, path: str, *, key: str = SERVICE_KEY, node: int = 0) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(self.nodes[node].url, headers={"X-API-Key": key}) as session,
            session.request(method, path) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def all_there(self) -> list[Any]:
        """What is known of both nodes, when both answer."""

        async def look() -> Any:
            return (await self.call("GET", "/api/admin/nodes"))[1].get("nodes", [])

        def complete(nodes: Any) -> bool:
            return len(nodes) == len(self.nodes) and all(node["report"] is not None for node in nodes)

        found: list[Any] = await until(look, complete)
        return found

    async def name_of(self, index: int) -> str:
        """What a node is called."""
        status, said = await self.call("GET", "/api/admin/nodes", node=index)
        assert status == 200
        return next(str(node["id"]) for node in said["nodes"] if node["here"])


@asynccontextmanager
async def two_nodes(redis: str, directory: Path) -> AsyncIterator[Site]:
    variables = {
        "REDIS_URL": redis,
        "REDIS_PREFIX": fresh_prefix(),
        "SERVICE_API_KEYS_READONLY": READING_KEY,
        "NODE_LEASE": "3",
    }
    async with gateway_process(**variables) as one, gateway_process(**variables) as other:
        site = Site([one, other], directory)
        await site.all_there()
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Two nodes for all tests."""
    async with two_nodes(redis_url, tmp_path_factory.mktemp("operators")) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def own_site(redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """Two nodes for a test that ends or drains one."""
    async with two_nodes(redis_url, tmp_path) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_nodes_shows_each_with_its_lease_and_its_connections(site: Site, closing: AsyncExitStack) -> None:
    await Client.connect(closing, site.nodes[0].url, auth={"token": make_token("alice")})
    await Client.connect(closing, site.nodes[1].url, auth={"token": make_token("bob")})
    status, output, errors = await site.ask("nodes")
    assert (status, errors) == (0, "")
    heads, *rows = output.splitlines()
    assert heads.split()[:5] == ["NODE", "STATE", "CONNECTIONS", "USERS", "LEASE"]
    assert [row.split()[1] for row in rows] == ["serving", "serving"]
    assert all(int(row.split()[2]) >= 1 <= int(row.split()[3]) for row in rows)

    status, output, errors = await site.ask("nodes", "--json")
    nodes = json.loads(output)["nodes"]
    assert status == 0
    assert [node["here"] for node in nodes].count(True) == 1
    for node in nodes:
        assert node["leaseUntil"] is not None
        assert node["report"]["connections"] >= 1
        assert node["report"]["sockets"]["/ws/messages"] >= 1
        assert node["report"]["logLag"] >= 0
        assert node["report"]["draining"] is False


async def test_a_node_that_died_is_shown_until_its_lease_is_over(own_site: Site) -> None:
    died = await own_site.name_of(1)
    own_site.nodes[1].process.kill()
    await own_site.nodes[1].process.wait()
    status, output, _ = await own_site.ask("nodes", "--json")
    assert status == 0
    by_name = {node["id"]: node for node in json.loads(output)["nodes"]}
    if died in by_name:  # its lease may be over by now
        assert by_name[died]["report"] is None

    async def names() -> list[str]:
        return [node["id"] for node in (await own_site.call("GET", "/api/admin/nodes"))[1]["nodes"]]

    await until(names, lambda found: died not in found)


async def test_explain_says_why(site: Site, closing: AsyncExitStack) -> None:
    client = await Client.connect(
        closing, site.nodes[1].url, auth={"token": make_token("carol"), "meta": {"page": "\x1b[31mred\u202e"}}
    )
    status, output, errors = await site.ask("explain", "carol")
    assert (status, errors) == (0, "")
    assert "carol: online" in output
    assert "1 live connection (socketio)" in output
    assert client.of("connected")[0]["socketId"] in output
    assert await site.name_of(1) in output
    assert "?[31mred?" in output  # and nothing that moves the terminal
    assert "\x1b" not in output
    status, output, _ = await site.ask("explain", "nobody", "--json")
    assert status == 0
    assert json.loads(output)["because"] == "never seen"


async def test_explain_takes_ids_that_no_path_has(site: Site) -> None:
    status, output, _ = await site.ask("explain", "a/b?c=d#e é", "--json")
    assert status == 0
    assert json.loads(output)["status"]["userId"] == "a/b?c=d#e é"


async def test_kick_closes_the_connections_on_every_node(site: Site, closing: AsyncExitStack) -> None:
    clients = [await Client.connect(closing, node.url, auth={"token": make_token("dave")}) for node in site.nodes]
    status, output, errors = await site.ask("kick", "dave")
    assert (status, output, errors) == (0, "closed 2 connections of dave\n", "")

    async def connected() -> list[bool]:
        return [client.io.connected for client in clients]

    await until(connected, lambda found: not any(found))
    assert await site.ask("kick", "dave") == (0, "dave had no connection\n", "")


async def test_kick_is_of_one_tenant(site: Site, closing: AsyncExitStack) -> None:
    client = await Client.connect(closing, site.nodes[0].url, auth={"token": make_token("erin", tenant="acme")})
    assert (await site.ask("kick", "erin"))[1] == "erin had no connection\n"
    assert client.io.connected
    assert (await site.ask("kick", "erin", "--tenant", "acme"))[1] == "closed 1 connection of erin\n"


async def test_drain_moves_the_clients_of_another_node_and_lets_no_more_in(
    own_site: Site, closing: AsyncExitStack
) -> None:
    client = await Client.connect(closing, own_site.nodes[1].url, auth={"token": make_token("frank")})
    stays = await Client.connect(closing, own_site.nodes[0].url, auth={"token": make_token("grace")})
    node = await own_site.name_of(1)
    status, output, errors = await own_site.ask("drain", node, "--wait", str(WITHIN))
    assert (status, errors) == (0, "")
    assert f"{node} is drained" in output
    await client.hears("server-draining")
    assert stays.io.connected
    async with aiohttp.ClientSession(own_site.nodes[1].url) as session:
        async with session.get("/health/ready") as response:
            assert response.status == 503
        async with session.get("/socket.io/?EIO=4&transport=polling") as response:
            assert response.status == 503
            assert (await response.json())["code"] == "SERVER_DRAINING"
    by_name = {each["id"]: each["report"] for each in await own_site.all_there()}
    assert (by_name[node]["draining"], by_name[node]["connections"]) == (True, 0)
    assert own_site.nodes[1].process.returncode is None  # it waits to be stopped
    assert "draining" in (await own_site.ask("nodes"))[1]


async def ready(site: Site, node: int) -> int:
    return (await site.call("GET", "/health/ready", node=node))[0]


async def test_a_node_drains_that_is_asked_itself(own_site: Site) -> None:
    node = await own_site.name_of(0)
    status, output, _ = await own_site.ask("drain", node, "--json")
    assert status == 0
    assert json.loads(output) == {"node": node, "draining": True, "connections": 0}
    await until(lambda: ready(own_site, 0), lambda status: status == 503)


async def test_the_last_that_takes_clients_is_not_drained_unless_forced(
    own_site: Site, closing: AsyncExitStack
) -> None:
    names = [await own_site.name_of(index) for index in range(2)]
    assert (await own_site.ask("drain", names[1]))[0] == 0
    client = await Client.connect(closing, own_site.nodes[0].url, auth={"token": make_token("judy")})
    for asked in (0, 1):  # whether it is asked itself, or the other is
        status, output, errors = await own_site.ask("drain", names[0], node=asked)
        assert (status, output) == (1, "")
        assert f"no other node takes clients, and those of {names[0]} would have nowhere to go" in errors
        assert "--force" in errors
        assert (await own_site.call("POST", f"/api/admin/nodes/{names[0]}/drain", node=asked))[0] == 409
    assert client.io.connected
    assert await ready(own_site, 0) == 200
    assert (await own_site.ask("drain", names[1]))[0] == 0, "one that drains may be told so again"
    status, output, errors = await own_site.ask("drain", names[0], "--force", "--wait", str(WITHIN), node=1)
    assert (status, errors) == (0, "")
    assert f"{names[0]} is drained" in output
    await client.hears("server-draining")


async def test_a_node_whose_other_died_is_the_last(own_site: Site) -> None:
    own_site.nodes[1].process.kill()
    await own_site.nodes[1].process.wait()
    status, _, errors = await own_site.ask("drain", await own_site.name_of(0))  # its lease is not over yet
    assert status == 1
    assert "no other node takes clients" in errors


async def test_undrain_lets_a_node_take_clients_again(own_site: Site, closing: AsyncExitStack) -> None:
    names = [await own_site.name_of(index) for index in range(2)]
    for asked, index in ((0, 1), (0, 0)):  # by way of the other node, and asked itself
        before = await Client.connect(closing, own_site.nodes[index].url, auth={"token": make_token("kim")})
        assert (await own_site.ask("drain", names[index], "--wait", str(WITHIN), node=asked))[0] == 0
        await before.hears("server-draining")
        assert await ready(own_site, index) == 503
        status, output, errors = await own_site.ask("undrain", names[index], node=asked)
        assert (status, errors) == (0, "")
        assert output == f"{names[index]} takes clients, and has 0 connections\n"
        assert await ready(own_site, index) == 200
        again = await Client.connect(closing, own_site.nodes[index].url, auth={"token": make_token("kim")})
        assert again.io.connected
        async with aiohttp.ClientSession() as session:  # and by the other doors
            token = make_token("liz")
            address = own_site.nodes[index].url.replace("http", "ws", 1)
            async with session.ws_connect(f"{address}/ws?token={token}") as websocket:
                assert (await websocket.receive_json(timeout=STEP))["event"] == "connected"
        by_name = {each["id"]: each["report"] for each in await own_site.all_there()}
        assert by_name[names[index]]["draining"] is False
        status, said = await own_site.call("POST", f"/api/admin/nodes/{names[index]}/undrain", node=asked)
        assert (status, said["draining"]) == (200, False), "one that takes clients may be told so again"


async def test_those_stay_who_were_not_told_to_go_when_a_node_is_undrained(
    redis_url: str, tmp_path: Path, closing: AsyncExitStack
) -> None:
    variables = {
        "REDIS_URL": redis_url,
        "REDIS_PREFIX": fresh_prefix(),
        "DRAIN_RATE": "60/min",
        "SHUTDOWN_TIMEOUT": "30",
    }
    process = await closing.enter_async_context(gateway_process(**variables))
    await closing.enter_async_context(gateway_process(**variables))
    site = Site([process], tmp_path)
    node = await site.name_of(0)
    await until(lambda: site.call("GET", "/api/admin/nodes"), lambda said: len(said[1]["nodes"]) == 2)
    users = [f"user-{number}" for number in range(8)]
    clients = [await Client.connect(closing, process.url, auth={"token": make_token(user)}) for user in users]
    status, said = await site.call("POST", f"/api/admin/nodes/{node}/drain")
    assert (status, said["connections"]) == (200, 8)
    assert (await site.call("POST", f"/api/admin/nodes/{node}/undrain"))[0] == 200
    await asyncio.sleep(4)  # in which four would have been told
    left = [client for client in clients if not client.io.connected]
    assert len(left) <= 1
    assert len(left) == sum(bool(client.of("server-draining")) for client in clients)


async def test_a_node_that_stops_is_not_undrained(redis_url: str, tmp_path: Path, closing: AsyncExitStack) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "DRAIN_DELAY": "30"}
    stops = await closing.enter_async_context(gateway_process(**variables))
    stays = await closing.enter_async_context(gateway_process(**variables))
    site = Site([stops, stays], tmp_path)
    await site.all_there()
    node = await site.name_of(0)
    stops.process.terminate()
    await until(lambda: ready(site, 0), lambda status: status == 503)
    for asked in (0, 1):
        status, output, errors = await site.ask("undrain", node, node=asked)
        assert (status, output) == (1, "")
        assert f"{node} stops" in errors
    assert await ready(site, 0) == 503
    status, _, errors = await site.ask("drain", await site.name_of(1))
    assert (status, "no other node takes clients" in errors) == (1, True), "the one that stops takes none"


async def test_a_node_that_is_not_there_is_named_with_those_that_are(site: Site) -> None:
    for command in ("drain", "undrain"):
        status, output, errors = await site.ask(command, "nowhere")
        assert (status, output) == (1, "")
        assert "there is no node nowhere" in errors
        assert await site.name_of(0) in errors


async def test_a_wrong_key_is_said_with_what_to_set(site: Site) -> None:
    for command in (["nodes"], ["drain", "x"]):
        status, output, errors = await site.ask(*command, key="wrong")
        assert (status, output) == (1, "")
        assert "GATEWAY_API_KEY" in errors
        assert len(errors.splitlines()) == 1


async def test_a_key_that_reads_changes_nothing(site: Site, closing: AsyncExitStack) -> None:
    client = await Client.connect(closing, site.nodes[0].url, auth={"token": make_token("heidi")})
    assert (await site.ask("explain", "heidi", key=READING_KEY))[0] == 0
    for command in (["kick", "heidi"], ["drain", await site.name_of(0)], ["undrain", await site.name_of(0)]):
        status, output, errors = await site.ask(*command, key=READING_KEY)
        assert (status, output) == (1, "")
        assert "SERVICE_API_KEYS_READONLY" in errors
    assert client.io.connected
    assert (await site.call("GET", "/health/ready"))[0] == 200


async def test_the_overview_says_who_is_there_and_what_the_key_may_do(site: Site, closing: AsyncExitStack) -> None:
    await Client.connect(closing, site.nodes[0].url, auth={"token": make_token("ivan", tenant="acme")})
    for key, access in ((SERVICE_KEY, "full"), (READING_KEY, "read")):
        status, said = await site.call("GET", "/api/admin/overview?tenant=acme", key=key, node=1)
        assert status == 200
        assert (said["access"], said["tenant"], len(said["nodes"])) == (access, "acme", 2)

    async def online() -> int:
        return int((await site.call("GET", "/api/admin/overview?tenant=acme", node=1))[1]["online"])

    await until(online, lambda count: count == 1)


async def test_while_redis_is_away_the_node_that_is_asked_shows_itself(tmp_path: Path) -> None:
    async with redis_server() as redis, gateway_process(REDIS_URL=redis.url) as process:
        site = Site([process], tmp_path)
        await site.all_there()
        await redis.kill()

        async def look() -> Any:
            return (await site.call("GET", "/api/admin/nodes"))[1]["nodes"]

        [node] = await until(look, lambda nodes: nodes[0]["leaseUntil"] is None)
        assert node["here"]
        [node] = await until(look, lambda nodes: nodes[0]["report"]["storeAway"] is not None)
        status, output, _ = await site.ask("nodes")
        assert (status, "store away" in output) == (0, True)
        assert (await site.ask("drain", "another"))[0] == 1
        await redis.start()
        await until(look, lambda nodes: any(each["leaseUntil"] is not None for each in nodes))


async def test_nodes_with_other_settings_say_so_and_tell_no_key(
    redis_url: str, tmp_path: Path, closing: AsyncExitStack
) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "PRESENCE_OFFLINE_GRACE": "5"}
    one = await closing.enter_async_context(gateway_process(**variables))
    other = variables | {"JWT_SECRET": "another-secret-of-the-tests-that-is-long", "PRESENCE_OFFLINE_GRACE": "6"}
    two = await closing.enter_async_context(gateway_process(**other))
    site = Site([one, two], tmp_path)
    await site.all_there()
    names = [await site.name_of(index) for index in range(2)]
    status, output, errors = await site.ask("nodes")
    assert (status, errors) == (0, "")
    differ = "JWT_SECRET, PRESENCE_OFFLINE_GRACE"
    assert output.splitlines()[-1] == f"{names[1]} has other settings than {names[0]}: {differ}; set them alike"
    await two.logged("another node has other settings", within=WITHIN)
    assert "another-secret" not in two.log

    async def warnings() -> list[str]:
        return list((await site.call("GET", "/health/ready", node=1))[1].get("warnings") or [])

    [warning] = await until(warnings, bool)
    assert warning == f"{names[0]} has other settings than this node: {differ}; set them alike"


# What no gateway answers


async def test_without_a_key_it_says_which_variable_to_set(tmp_path: Path) -> None:
    status, output, errors = await run("nodes", directory=tmp_path)
    assert (status, output) == (2, "")
    assert "GATEWAY_API_KEY is not set" in errors


async def test_the_key_of_the_gateway_s_own_machine_is_taken(site: Site, tmp_path: Path) -> None:
    process = site.nodes[0]
    (tmp_path / ".env").write_text(f"SERVICE_API_KEYS={SERVICE_KEY}\nPORT={process.url.rpartition(':')[2]}\n")
    status, output, errors = await run("nodes", directory=tmp_path)
    assert (status, errors) == (0, "")
    assert len(output.splitlines()) == 3


async def test_a_gateway_that_is_not_there_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    status, output, errors = await run("nodes", "--url", url, directory=tmp_path, GATEWAY_API_KEY="key")
    assert (status, output) == (1, "")
    assert url in errors
    assert "GATEWAY_URL" in errors
    assert "Traceback" not in errors


async def test_what_is_no_gateway_is_said_to_be_none(tmp_path: Path, closing: AsyncExitStack) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    status, _, errors = await run("nodes", "--url", url, directory=tmp_path, GATEWAY_API_KEY="key")
    assert status == 1
    assert "is no gateway" in errors
