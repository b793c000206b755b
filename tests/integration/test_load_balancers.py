"""The configurations under deploy/: real nginx and haproxy before two nodes, and the real client behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from balancers import DEPLOY, HAPROXY, KINDS, NGINX, Balancer, Kind, balancing
from clients import Plain, Polling, Raw
from conftest import (
    ROOT,
    SECRET,
    SERVICE_KEY,
    STEP,
    Process,
    Running,
    eventually,
    make_settings,
    make_token,
    require_program,
)
from redis_servers import free_port, redis_server

SCRIPT = ROOT / "tests" / "js" / "balanced.mjs"
TRANSPORTS = [["websocket"], ["polling"], ["polling", "websocket"]]
RECONNECTING = {"reconnectionDelay": 1000, "reconnectionDelayMax": 5000}
"""The client's own defaults, which `client.mjs` shortens."""

Spawn = Callable[..., Awaitable[Process]]
both = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture
async def balance(closing: AsyncExitStack) -> Callable[..., Awaitable[Balancer]]:
    """Start balancers; they end with the test, before its nodes."""

    async def start(kind: Kind, nodes: Sequence[str], **options: Any) -> Balancer:
        directory = Path(closing.enter_context(TemporaryDirectory(prefix="balancer-")))
        return await closing.enter_async_context(balancing(kind, directory, nodes, **options))

    return start


Balance = Callable[..., Awaitable[Balancer]]


@pytest.fixture
async def nodes(spawn: Spawn) -> list[Process]:
    """Two gateways that know nothing of each other, on ports that nobody takes while they are away."""
    return list(await asyncio.gather(*(spawn("--port", str(free_port()), LOG_FORMAT="json") for _ in range(2))))


Answer = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def fake_node(answer: Answer) -> AsyncIterator[str]:
    """A node that is healthy, and otherwise does as told with a request's head and its connection; gives its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "/health/ready" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                await answer(head, reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def urls(nodes: Sequence[Process | Running]) -> list[str]:
    return [node.url for node in nodes]


def entries(node: Process, event: str) -> list[Any]:
    return [entry for line in node.lines if (entry := json.loads(line))["event"] == event]


def users_of(node: Process) -> set[str]:
    """Whom a node has let in."""
    return {entry["user"] for entry in entries(node, "connected")}


# The real client


class Clients:
    """Real clients in one Node process, and what they heard."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._heard: list[tuple[str, str, Any]] = []
        self._asked = 0
        self.names: list[str] = []
        self.reading = asyncio.create_task(self._read())

    def start(self, name: str, transports: Sequence[str], **options: Any) -> None:
        """Start a client of the user of this name; `options` are socket.io-client's, and `source`, its address."""
        self.names.append(name)
        self._tell("start", name, {"transports": transports, "auth": {"token": make_token(name)}, **options})

    async def ask(self, name: str, event: str, payload: Any = None) -> Any:
        """Send a request, and return its acknowledgement."""
        self._asked += 1
        number = self._asked
        self._tell("ask", name, number, event, payload)
        return await self.hears(name, f"answer {number}")

    def of(self, name: str, event: str) -> list[Any]:
        return [payload for heard_by, heard, payload in self._heard if (heard_by, heard) == (name, event)]

    def about(self, name: str, user: str) -> list[str]:
        """The names of the presence events that a client heard about one user, in order."""
        events = {"user-online", "user-offline", "user-status-changed"}
        return [event for by, event, data in self._heard if by == name and event in events and data["userId"] == user]

    async def hears(self, name: str, event: str, *, number: int = 1, within: float = 2 * STEP) -> Any:
        """The payload of the n-th event of a name, as soon as it was heard."""
        try:
            await eventually(lambda: len(self.of(name, event)) >= number, within=within)
        except AssertionError:
            heard = [words for words in self._heard if words[0] == name]
            raise AssertionError(f"{name} did not hear {event} number {number}; this it heard: {heard}") from None
        return self.of(name, event)[number - 1]

    async def all_hear(self, event: str, *, number: int = 1, within: float = 2 * STEP) -> None:
        await asyncio.gather(*(self.hears(name, event, number=number, within=within) for name in self.names))

    def undisturbed(self) -> bool:
        """Whether each has had one connection, and no error."""
        bad = [words for words in self._heard if words[1] in {"disconnect", "connect_error"}]
        assert bad == []
        assert {len(self.of(name, "open")) for name in self.names} <= {1}
        return True

    async def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await asyncio.wait_for(self._process.wait(), 2 * STEP) == 0
        await self.reading

    def _tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._heard.append(tuple(json.loads(line)))


@asynccontextmanager
async def real_clients(url: str, *, ca: Path | None = None) -> AsyncIterator[Clients]:
    """Node, ready to start clients; they are gone when the block ends."""
    program = require_program("node")
    if not (ROOT / "node_modules" / "socket.io-client").is_dir():
        message = "socket.io-client is not installed: npm ci"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    variables = {"GATEWAY_URL": url, "TRANSPORTS": "", "JWT_SECRET": SECRET, "SERVICE_API_KEY": SERVICE_KEY}
    if ca is not None:
        variables["NODE_EXTRA_CA_CERTS"] = str(ca)
    process = await asyncio.create_subprocess_exec(
        program,
        str(SCRIPT),
        env={"PATH": os.environ["PATH"]} | variables,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    clients = Clients(process)
    try:
        yield clients
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await clients.reading


@pytest.fixture
async def real(closing: AsyncExitStack) -> Callable[..., Awaitable[Clients]]:
    async def start(url: str, **options: Any) -> Clients:
        return await closing.enter_async_context(real_clients(url, **options))

    return start


Real = Callable[..., Awaitable[Clients]]


def source(number: int) -> str:
    """A client's own address. All of 127.0.0.0/8 is this machine's."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


async def work(clients: Clients, name: str, *, rounds: int = 5) -> None:
    """Ask about oneself, several times over: on polling each answer comes with a poll of its own."""
    for _ in range(rounds):
        answer = await clients.ask(name, "check-user-status", {"userId": name})
        assert answer["event"] == "user-status", answer
        assert answer["data"]["online"] is True


async def everyone_works(clients: Clients, *, rounds: int = 5) -> None:
    await asyncio.gather(*(work(clients, name, rounds=rounds) for name in clients.names))


# The files


@both
async def test_the_file_is_valid_as_it_is_shipped(kind: Kind, balance: Balance) -> None:
    if os.geteuid() == 0 and _has_ipv6():  # nginx -t opens its ports and its logs
        await check(kind, DEPLOY / kind.file)
    balancer = await balance(kind, ["http://127.0.0.1:1", "http://127.0.0.1:2"], tls=True)
    await check(kind, balancer.directory / kind.file)


async def check(kind: Kind, config: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *kind.check(config), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 2 * STEP)
    said = [line for line in output.decode().splitlines() if "open file resource limit" not in line]
    assert process.returncode == 0, said
    assert [line for line in said if "warn" in line.lower()] == []


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _seconds(text: str, pattern: str) -> set[int]:
    found = {int(value) for value in re.findall(pattern, text)}
    assert found, pattern
    return found


def test_the_times_and_sizes_fit_the_gateways() -> None:
    gateway = make_settings()
    silence = gateway.ping_interval + gateway.ping_timeout
    nginx, haproxy = ((DEPLOY / kind.file).read_text() for kind in KINDS)
    assert min(_seconds(nginx, r"proxy_(?:read|send)_timeout (\d+)s")) > silence
    assert min(_seconds(haproxy, r"timeout (?:client|server|tunnel) (\d+)s")) > silence
    upstream = nginx[nginx.index("upstream presence") :]
    assert max(_seconds(upstream, r"keepalive_timeout (\d+)s")) < gateway.keepalive_timeout
    assert min(_seconds(nginx, r"client_max_body_size (\d+)k")) * 1024 > gateway.max_payload


# Sticky sessions


@both
@pytest.mark.parametrize("transports", TRANSPORTS, ids="+".join)
async def test_the_real_client_works(
    kind: Kind, transports: list[str], nodes: list[Process], balance: Balance, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(6):
        clients.start(f"user-{number}", transports, source=source(number))
    await clients.all_hear("connected")
    if len(transports) > 1:
        await clients.all_hear("upgrade")
    await everyone_works(clients)
    clients.undisturbed()
    await clients.leave()
    await eventually(lambda: sum(len(entries(node, "disconnected")) for node in nodes) == 6)
    assert {entry["reason"] for node in nodes for entry in entries(node, "disconnected")} == {"goodbye"}


@both
async def test_many_polling_clients_stay_on_their_nodes(
    kind: Kind, nodes: list[Process], balance: Balance, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(30):
        clients.start(f"user-{number}", ["polling"], source=source(number))
    await clients.all_hear("connected")
    await everyone_works(clients)
    clients.undisturbed()
    first, second = map(users_of, nodes)
    assert len(first | second) == 30
    assert not first & second
    assert first
    assert second
    # Each opens, joins, polls for what it heard, and sends five requests.
    statuses = balancer.statuses("/socket.io/")
    assert len(statuses) > 30 * 12
    assert {status for _method, status in statuses} == {200}


@both
async def test_clients_of_one_address_spread(kind: Kind, nodes: list[Process], balance: Balance, real: Real) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(20):
        query = {"affinity": f"key-{number}"} if kind.name == "nginx" else {}
        clients.start(f"polling-{number}", ["polling"], query=query)
        clients.start(f"websocket-{number}", ["websocket"])
    await clients.all_hear("connected")
    await everyone_works(clients)
    clients.undisturbed()
    for node in nodes:
        assert {name.partition("-")[0] for name in users_of(node)} == {"polling", "websocket"}


@both
async def test_without_a_key_clients_of_one_address_are_served_too(
    kind: Kind, nodes: list[Process], balance: Balance, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(8):
        clients.start(f"user-{number}", ["polling", "websocket"])
    await clients.all_hear("upgrade")
    await everyone_works(clients)
    clients.undisturbed()


async def test_haproxy_learns_the_id_of_a_session_from_an_answer_in_pieces(
    balance: Balance, closing: AsyncExitStack
) -> None:
    served: list[tuple[int, str]] = []

    async def answer(node: int, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append((node, head.split()[1]))
        body = json.dumps({"upgrades": [], "sid": f"of-node-{node}"})
        for piece in (f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 1}\r\n\r\n", "0", body[:20], body[20:]):
            writer.write(piece.encode())
            await asyncio.sleep(0.05)

    fakes = [await closing.enter_async_context(fake_node(partial(answer, node))) for node in range(2)]
    balancer = await balance(HAPROXY, fakes)
    for _ in range(4):
        _status, body = await _get(balancer, "/socket.io/?EIO=4&transport=polling")
        sid = json.loads(body[1:])["sid"]
        for _ in range(3):
            await _get(balancer, f"/socket.io/?EIO=4&transport=polling&sid={sid}")
    polls = [(node, target) for node, target in served if "sid=" in target]
    assert len(polls) == 12
    assert {node for node, _target in polls} == {0, 1}
    assert all(target.endswith(f"sid=of-node-{node}") for node, target in polls)


@both
async def test_a_reload_ends_no_session(kind: Kind, nodes: list[Process], balance: Balance, real: Real) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(10):
        clients.start(f"polling-{number}", ["polling"], source=source(number))
        clients.start(f"websocket-{number}", ["websocket"], source=source(number))
    await clients.all_hear("connected")
    for _ in range(2):
        await reload(balancer)
        await everyone_works(clients)
    clients.undisturbed()


async def reload(balancer: Balancer) -> None:
    """Reload, and return when the new processes have taken over."""
    old = _children(balancer.process.pid)
    if balancer.kind is NGINX:
        balancer.process.send_signal(balancer.kind.reload)
        await eventually(lambda: _children(balancer.process.pid) - old and all(map(_is_leaving, old)))
        return
    # After a start, it waits for 10 s for others to tell it what they know, and has nothing to tell itself.
    await said(balancer, "show peers", r"resync_timeout=<PAST>")
    known = (await said(balancer, "show table presence", r"used:\d+"))[0]
    balancer.process.send_signal(balancer.kind.reload)
    [new] = await eventually(lambda: _children(balancer.process.pid) - old)
    await said(balancer, "show info", rf"Pid: {new}\n")
    await said(balancer, "show table presence", known)


async def said(balancer: Balancer, command: str, pattern: str) -> re.Match[str]:
    """Ask HAProxy until it says what matches."""
    for _ in range(200):
        with contextlib.suppress(ConnectionError):
            if (found := re.search(pattern, await balancer.admin(command))) is not None:
                return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"{command} did not say {pattern}")


def _is_leaving(worker: int) -> bool:
    try:
        return "shutting down" in Path(f"/proc/{worker}/cmdline").read_text()
    except OSError:
        return True


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


# The other doors


@both
async def test_plain_websocket_and_http_work(
    kind: Kind, nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    balancer = await balance(kind, urls(nodes))
    session = await closing.enter_async_context(aiohttp.ClientSession(balancer.url))
    for number in range(10):
        plain = await Plain.connect(closing, balancer.ws_url, f"plain-{number}")
        answer = await plain.ask("check-user-status", {"userId": f"plain-{number}"})
        assert answer["data"]["online"] is True
    assert all(users_of(node) for node in nodes)
    for number in range(10):
        # A node of its own knows only what it was told itself: a caller's requests reach the same one.
        headers = {"Authorization": f"Bearer {make_token(f'caller-{number}')}", "Connection": "close"}
        async with session.post("/presence/heartbeat", headers=headers) as response:
            assert response.status == 200
        async with session.get(f"/online-status?ids=caller-{number},7", headers=headers) as response:
            assert await response.json() == [{"id": f"caller-{number}", "online": True}, {"id": 7, "online": False}]
        async with session.get(f"/api/users/caller-{number}/online-status", headers=headers) as response:
            assert (await response.json())["status"] == "online"


@both
async def test_what_is_not_for_the_public_is_not_there(
    kind: Kind, nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    balancer = await balance(kind, urls(nodes))
    for path in (
        *(
            "/metrics",
            "/health/live",
            "/health/ready",
            "/openapi.json",
            "/asyncapi.json",
            "/docs",
            "/dev/token",
            "/test-presence.html",
            "/",
        ),
        *("/%6detrics", "/%68ealth/ready", "//health/ready", "/./health/ready", "/socket.io/../health/ready"),
        *("/api/%2e%2e/health/ready", "/api/..%2fhealth/ready", "/ws/../health/ready", "/presence/../%68ealth/ready"),
        *("http://127.0.0.1/health/ready", "/ws/x", "/online-status/x"),
    ):
        status, body = await _get(balancer, path)
        assert status in {400, 404}, path
        assert b"ok" not in body, path
        assert b'"openapi"' not in body, path
        assert b'"asyncapi"' not in body, path


async def _get(balancer: Balancer, target: str) -> tuple[int, bytes]:
    """Send a request target as it is: clients put it in order first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(balancer.url).port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), STEP)
    writer.close()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@both
async def test_the_gateway_words_the_refusal_of_a_large_body(
    kind: Kind, nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    balancer = await balance(kind, urls(nodes))
    session = await closing.enter_async_context(aiohttp.ClientSession(balancer.url))
    headers = {"Authorization": f"Bearer {make_token()}"}
    body = json.dumps({"meta": {"filler": "x" * 65_536}})
    async with session.post("/presence/heartbeat", headers=headers, data=body) as response:
        assert response.status == 413
        assert (await response.json())["code"] == "INVALID_PAYLOAD"
    polling = await Polling.connect(closing, balancer.url)
    assert await polling.post("4" + "x" * 60_000) == 200


# Origins, and TLS


@both
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_page_of_the_balancers_own_origin_is_let_in(
    kind: Kind, scheme: str, nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    tls = scheme == "https"
    balancer = await balance(kind, urls(nodes), tls=tls)
    url = balancer.tls_url if tls else balancer.url
    trust: Any = ssl.create_default_context(cafile=str(balancer.directory / "ca.crt")) if tls else True
    session = await closing.enter_async_context(aiohttp.ClientSession(url))
    ws = f"{url.replace('http', 'ws', 1)}/ws?token={make_token()}"
    opening = "/socket.io/?EIO=4&transport=polling"
    other = "http" if tls else "https"
    lies = {"X-Forwarded-Host": "other.example", "X-Forwarded-Proto": other, "Forwarded": "host=other.example"}

    async with session.get(opening, headers={"Origin": url}, ssl=trust) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == url
    async with session.ws_connect(ws, origin=url, ssl=trust) as connected:
        assert (await connected.receive_json())["event"] == "connected"
    strangers = ["http://other.example", "https://other.example"]
    if not tls:
        strangers.append(url.replace("http", "https"))
    for origin in strangers:
        async with session.get(opening, headers={"Origin": origin} | lies, ssl=trust) as response:
            assert response.status == 400
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(ws, origin=origin, headers=lies, ssl=trust)
        assert refused.value.status == 403


@both
async def test_the_lines_for_tls_work(
    kind: Kind, nodes: list[Process], balance: Balance, real: Real, closing: AsyncExitStack
) -> None:
    balancer = await balance(kind, urls(nodes), tls=True)
    clients = await real(balancer.tls_url, ca=balancer.directory / "ca.crt")
    for number in range(4):
        for transports in TRANSPORTS:
            clients.start(f"{'+'.join(transports)}-{number}", transports, source=source(number))
    await clients.all_hear("connected")
    await everyone_works(clients)
    clients.undisturbed()
    session = await closing.enter_async_context(aiohttp.ClientSession(balancer.url))
    async with session.post("/socket.io/?EIO=4", allow_redirects=False) as response:
        assert response.status == 308
        assert response.headers["Location"].startswith("https://127.0.0.1")


# Logs


@both
async def test_no_token_is_in_any_log(
    kind: Kind, nodes: list[Process], balance: Balance, closing: AsyncExitStack, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    session = await closing.enter_async_context(aiohttp.ClientSession(balancer.url))
    token = make_token("alice", ttl=3599)
    clients = await real(balancer.url)
    for transports in TRANSPORTS:
        clients.start("+".join(transports), transports, query={"token": token})
    await clients.all_hear("connected")
    await everyone_works(clients, rounds=1)
    polling = await Polling.start(closing, balancer.url)
    plain = await Plain.open(closing, f"{balancer.ws_url}/ws?token={token}")
    await plain.until("connected")
    plain.vanish()

    async def ask_everything() -> None:
        for method, path in (
            ("GET", "/online-status"),
            ("POST", "/presence/heartbeat"),
            ("GET", "/ws"),
            ("GET", "/no"),
        ):
            with contextlib.suppress(aiohttp.ClientError):
                headers = {"Referer": f"{balancer.url}/?token={token}", "Authorization": f"Bearer {token}"}
                async with session.request(method, f"{path}?token={token}&ids=1", headers=headers) as response:
                    await response.read()
        with contextlib.suppress(aiohttp.ClientError):
            await Raw.open(closing, f"{balancer.ws_url}/ws?token={token}")
        for request in (
            f"GET /ws?token={token} HTTP/9.9\r\n\r\n",
            f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nBad Header: {token}\r\n\r\n",
            f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nX-Long: {token * 400}\r\n\r\n",
            f"GET /ws?token={token}&{'x' * 40_000} HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GET /%zz?token={token} HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GET http://x/ws?token={token} HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n",
            f"POST /presence/heartbeat?token={token} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n",
            f"POST /presence/heartbeat?token={token} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",  # and no body
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(balancer.url).port)
            with contextlib.suppress(ConnectionError, TimeoutError):
                writer.write(request.encode())
                await asyncio.wait_for(reader.read(), 0.5)
            writer.transport.abort()

    await ask_everything()
    poll = asyncio.create_task(polling.poll())
    for node in nodes:
        await node.stop(signal.SIGKILL)
    with contextlib.suppress(aiohttp.ClientError, AssertionError):
        await poll
    await ask_everything()
    await clients.leave()
    await session.close()
    balancer.process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(balancer.process.wait(), STEP)

    assert re.findall(r"eyJ[\w-]+", balancer.logs) == []
    assert token.split(".")[2] not in balancer.logs
    assert "token" not in balancer.logs
    for path in ("/ws", "/socket.io/", "/online-status", "/presence/heartbeat"):
        assert balancer.statuses(path), path
    assert {502, 503} & {status for _method, status in balancer.statuses("/online-status")}


async def test_no_token_is_in_the_log_of_an_nginx_that_has_no_connections_left(
    nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    statuses = []
    for limit in (16, 17):  # one of them ends with a connection for a client, and none to a node
        few = {"worker_connections 50000": f"worker_connections {limit}"}
        balancer = await balance(NGINX, urls(nodes), others=few)
        for _ in range(64):
            with contextlib.suppress(aiohttp.ClientError):
                await Raw.open(closing, f"{balancer.ws_url}/ws?token={make_token()}")
        statuses += balancer.statuses("/ws")
        assert re.findall(r"eyJ[\w-]+", balancer.logs) == []
    assert ("GET", 500) in statuses


# Nodes that go


@both
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
async def test_the_clients_of_a_node_that_ends_come_to_the_other(
    kind: Kind, sent: signal.Signals, nodes: list[Process], balance: Balance, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(8):
        for transports in TRANSPORTS:
            clients.start(f"{'+'.join(transports)}-{number}", transports, source=source(number), **RECONNECTING)
    await clients.all_hear("connected")
    await everyone_works(clients, rounds=1)
    # Which node whose clients come to is chance; the one that has more has some by each transport.
    ending, staying = sorted(nodes, key=lambda node: len(users_of(node)), reverse=True)
    moving = users_of(ending)
    assert {name.partition("-")[0] for name in moving} == {"+".join(transports) for transports in TRANSPORTS}

    assert await ending.stop(sent) == (0 if sent is signal.SIGTERM else -sent)
    for name in moving:
        await clients.hears(name, "connected", number=2, within=4 * STEP)
        if sent is signal.SIGTERM:
            assert clients.of(name, "server-draining")
    await everyone_works(clients, rounds=3)
    assert users_of(staying) == set(clients.names)
    for name in set(clients.names) - moving:
        assert not clients.of(name, "disconnect")
    clients.start("new", ["polling", "websocket"])
    await clients.hears("new", "upgrade")


@both
async def test_a_node_that_comes_back_is_used_again(
    kind: Kind, nodes: list[Process], spawn: Spawn, balance: Balance, closing: AsyncExitStack
) -> None:
    balancer = await balance(
        kind, urls(nodes), others={"fail_timeout=10s": "fail_timeout=2s"} if kind.name == "nginx" else {}
    )
    assert await nodes[0].stop(signal.SIGKILL) == -signal.SIGKILL
    for number in range(10):
        await Plain.connect(closing, balancer.ws_url, f"early-{number}")
    assert len(users_of(nodes[1])) == 10
    again = await spawn("--port", str(urlsplit(nodes[0].url).port), LOG_FORMAT="json")
    async with asyncio.timeout(4 * STEP):
        while not users_of(again):
            plain = await Plain.connect(closing, balancer.ws_url, "late")
            await plain.ws.close()
            await asyncio.sleep(0.05)


async def test_haproxy_lets_the_sessions_of_a_node_go_on_that_takes_no_new_ones(
    serve: Callable[..., Awaitable[Running]], balance: Balance, real: Real
) -> None:
    first, second = await serve(), await serve()
    balancer = await balance(HAPROXY, urls([first, second]))
    clients = await real(balancer.url)
    for number in range(4):
        clients.start(f"polling-{number}", ["polling"])
        clients.start(f"websocket-{number}", ["websocket"])
    await clients.all_hear("connected")
    before = len(first.gateway._connections), len(second.gateway._connections)
    assert all(before)

    first.gateway.leave()  # and nobody is asked to do so yet
    await eventually(lambda: "Server presence/node1 is DOWN" in balancer.logs)
    for number in range(6):
        clients.start(f"new-{number}", ["polling"])
    await clients.all_hear("connected")
    await everyone_works(clients)
    clients.undisturbed()
    assert len(first.gateway._connections) == before[0]
    assert len(second.gateway._connections) == before[1] + 6


@both
async def test_nobody_is_refused_by_a_node_that_was_taken_out_before_it_ends(
    kind: Kind, nodes: list[Process], balance: Balance, real: Real
) -> None:
    balancer = await balance(kind, urls(nodes))
    clients = await real(balancer.url)
    for number in range(10):
        clients.start(f"polling-{number}", ["polling"], source=source(number), **RECONNECTING)
        clients.start(f"websocket-{number}", ["websocket"], source=source(number), **RECONNECTING)
    await clients.all_hear("connected")
    ending, staying = nodes
    leaving = users_of(ending)
    await take_out(balancer, ending)
    for number in range(10):
        clients.start(f"between-{number}", ["polling", "websocket"], source=source(number), **RECONNECTING)
    await clients.all_hear("connected")
    moved = {name for name in clients.names if clients.of(name, "disconnect")}
    # HAProxy knows each session. nginx moves an address, and with it the polling sessions that come from there.
    assert moved <= {name for name in leaving if kind.name == "nginx" and name.startswith("polling")}
    assert users_of(ending) == leaving

    stopping = asyncio.create_task(ending.stop())
    for number in range(20):
        clients.start(f"late-{number}", ["websocket"], **RECONNECTING)
        await asyncio.sleep(0.02)
    assert await stopping == 0
    await clients.all_hear("connected")
    for name in leaving:
        await clients.hears(name, "connected", number=2)
    assert [name for name in clients.names if clients.of(name, "connect_error")] == []
    assert users_of(staying) == set(clients.names)


async def take_out(balancer: Balancer, node: Process) -> None:
    """Let a node have no new clients, as README.md says."""
    if balancer.kind.name == "haproxy":
        assert (await balancer.admin("set server presence/node1 state drain")).strip() == ""
        return
    config = balancer.directory / balancer.kind.file
    address = urlsplit(node.url).netloc
    config.write_text(config.read_text().replace(f"server {address}", f"server {address} down"))
    await reload(balancer)


@both
async def test_a_request_that_was_sent_is_sent_once(kind: Kind, balance: Balance, closing: AsyncExitStack) -> None:
    taken: list[bytes] = []

    async def take_and_die(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.readexactly(4))
        writer.transport.abort()

    fakes = [await closing.enter_async_context(fake_node(take_and_die)) for _ in range(2)]
    balancer = await balance(kind, fakes)
    session = await closing.enter_async_context(aiohttp.ClientSession(balancer.url))
    for path in ("/socket.io/?EIO=4&transport=polling&sid=x", "/presence/heartbeat"):
        taken.clear()
        async with session.post(path, data=b"body", headers={"Connection": "close"}) as response:
            assert response.status in {502, 503}
        assert len(taken) == 1


@both
async def test_a_client_that_vanishes_from_its_poll_is_missed_soon(
    kind: Kind, nodes: list[Process], balance: Balance, closing: AsyncExitStack
) -> None:
    balancer = await balance(kind, urls(nodes))
    polling = await Polling.connect(closing, balancer.url, "polling")
    poll = asyncio.create_task(polling.poll())
    await asyncio.sleep(0.3)  # until it waits
    poll.cancel()
    with pytest.raises(asyncio.CancelledError):
        await poll

    def lost() -> dict[str, str]:
        return {entry["user"]: entry["reason"] for node in nodes for entry in entries(node, "disconnected")}

    await eventually(lambda: lost() == {"polling": "connection lost"})
    plain = await Plain.connect(closing, balancer.ws_url, "plain")
    plain.vanish()
    await eventually(lambda: lost() == {"polling": "connection lost", "plain": "connection lost"})


@both
async def test_who_never_finishes_a_request_is_cut_off(kind: Kind, nodes: list[Process], balance: Balance) -> None:
    slow = {
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 10s": "client_body_timeout 1s",
    }
    if kind.name == "haproxy":
        slow = {"timeout http-request 10s": "timeout http-request 1s"}
    balancer = await balance(kind, urls(nodes), others=slow)
    for start in (b"GET /ws", b"POST /presence/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"):
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(balancer.url).port)
        writer.write(start)
        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), STEP)
            assert answer[9:12] in {b"", b"408"}
        writer.close()
    assert all(node.lines for node in nodes)


# Two nodes that are one


@both
@pytest.mark.parametrize("transports", TRANSPORTS, ids="+".join)
async def test_a_client_on_one_node_sees_a_client_on_the_other_come_and_go(
    kind: Kind, transports: list[str], spawn: Spawn, balance: Balance, real: Real, closing: AsyncExitStack
) -> None:
    redis = await closing.enter_async_context(redis_server())
    nodes = await asyncio.gather(*(spawn(LOG_FORMAT="json", REDIS_URL=redis.url) for _ in range(2)))
    balancer = await balance(kind, urls(nodes))
    watching = await real(balancer.url)
    watching.start("watcher", transports, source=source(0))
    await watching.hears("watcher", "connected")
    [there] = [node for node in nodes if "watcher" in users_of(node)]
    [elsewhere] = [node for node in nodes if node is not there]
    seen = 0
    for number in range(1, 40):  # which node nginx takes is chance
        name = f"user-{number}"
        coming = await real(balancer.url)
        coming.start(name, transports, source=source(number))
        await coming.hears(name, "connected")
        await watching.hears("watcher", "user-online", number=number)
        assert watching.about("watcher", name) == ["user-online"]
        assert (await coming.ask(name, "check-user-status", {"userId": "watcher"}))["data"]["online"] is True
        assert (await watching.ask("watcher", "check-user-status", {"userId": name}))["data"]["online"] is True
        await coming.leave()
        await watching.hears("watcher", "user-offline", number=number)
        assert watching.about("watcher", name) == ["user-online", "user-offline"]
        seen += name in users_of(elsewhere)
        if seen == 2:
            break
    assert seen == 2
    watching.undisturbed()
