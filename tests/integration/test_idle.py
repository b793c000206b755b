"""What a connection costs: no task and no timer of its own while it idles, no more bytes than its bound, and a turn."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import NAMESPACE, Packets, brief_token, client_frame, deaf_websocket
from conftest import ROOT, STEP, Process, Running, eventually, make_token

from gateway.connections.counts import DOORS
from gateway.engine.fast import FastSocket
from gateway.engine.server import CONNECTS
from gateway.engine.takeover import _METHOD, _NO_HEADERS, _RELEASING, _VERSION
from gateway.presence.model import NOBODY

Serve = Callable[..., Awaitable[Running]]
ENGINES = ["fast", "stock"]
CROWD = 20
LIMIT = 65_536


def loop_timers() -> int:
    """How many timers of the loop wait to come."""
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in scheduled)


class Client(asyncio.Protocol):
    """The least that connects: it has no task and no timer of its own either."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.heard = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            + client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token(self.user)})}")
        )

    def data_received(self, data: bytes) -> None:
        self.heard += data


async def crowd(running: Running, closing: AsyncExitStack, first: int = 0) -> list[Client]:
    host, port = running.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    clients = []
    for number in range(first, first + CROWD):
        transport, client = await loop.create_connection(lambda n=number: Client(f"u{n}"), host, int(port))  # type: ignore[misc]
        closing.callback(transport.abort)
        clients.append(client)
    await eventually(lambda: all(b'"connected"' in client.heard for client in clients))
    return clients


async def test_an_idle_connection_has_no_task_and_no_timer_of_its_own(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(gateway_engine="fast")
    await crowd(running, closing)
    # What only connecting takes is over: the log's lines, aiohttp's handlers, the fan-out's interval.
    tasks = await eventually(lambda: settled(asyncio.all_tasks))
    timers = loop_timers()
    await crowd(running, closing, CROWD)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: loop_timers() <= timers)
    assert all(isinstance(socket, FastSocket) for socket in running.gateway._server.eio.sockets.values())
    assert len(running.gateway._connections) == 2 * CROWD


def objects() -> Counter[str]:
    """How many objects there are that the collector looks at, by type."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects())


async def test_an_idle_connection_keeps_nothing_that_only_few_need(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(gateway_engine="fast")
    await crowd(running, closing)
    await eventually(lambda: settled(asyncio.all_tasks))
    before = objects()
    await crowd(running, closing, CROWD)
    await eventually(lambda: settled(asyncio.all_tasks))
    more = objects() - before
    assert more["FastSocket"] == more["LiveConnection"] == CROWD
    # No request, but what it can be read from again. What is counted are its frames and its requests; not its attempts
    # to join, of which there was one.
    assert more["Kept"] == CROWD
    assert not {"Handshake", "RawRequestMessage", "CIMultiDict", "CIMultiDictProxy"} & more.keys()
    assert more["TokenBucket"] == 2 * CROWD
    for socket in running.gateway._server.eio.sockets.values():
        assert not {"session", "connects"} & vars(socket).keys()
        head = socket._listener.wire.request
        assert head.headers is _NO_HEADERS
        assert head.method is _METHOD
        assert head.version is _VERSION
    lives = [live for user in range(2 * CROWD) for live in running.gateway._connections.of_user("default", f"u{user}")]
    assert {id(live.identity.profile) for live in lives} == {id(NOBODY)}
    assert len({id(live.expiry._callback) for live in lives if live.expiry is not None}) == 1
    assert _RELEASING.data_received is _RELEASING.data_received  # which uvloop keeps of each


def settled(tasks: Callable[[], Any]) -> int:
    """How many tasks there are, once none is a connection's any more."""
    # One that is compiled has the name of its type alone.
    running = [task.get_coro() for task in tasks()]
    names = [getattr(each, "__qualname__", type(each).__name__) for each in running]
    return 0 if any(name.startswith("RequestHandler") for name in names) else len(names)


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_timers_of_all_connections_are_on_the_wheel(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, ping_interval=600, handshake_timeout=500)
    wheel = running.gateway._timers

    def waiting() -> int:
        return sum(timer._callback is not None for slot in wheel._slots.values() for timer in slot)

    before = waiting()
    await crowd(running, closing)
    sockets = list(running.gateway._server.eio.sockets.values())
    assert len(sockets) == CROWD
    # Of each: its ping, and its token's expiry; the time that it had to join a namespace is over. The stock engine
    # gives any WebSocket the time of an upgrade, too.
    assert waiting() == before + {"fast": 2, "stock": 3}[engine] * CROWD
    for socket in sockets:
        assert socket.ping._callback == socket._send_ping
        assert socket.late is None
    own = [handle for handle in asyncio.get_running_loop()._scheduled if "TimerWheel" in repr(handle)]  # type: ignore[attr-defined]
    assert sum(not handle.cancelled() for handle in own) == 1


@pytest.mark.parametrize("engine", ENGINES)
async def test_ping_expiry_and_handshake_come_by_the_wheel(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine, ping_interval=0.3, ping_timeout=0.3, handshake_timeout=0.4)
    stranger = await Packets.start(closing, running.ws_url)
    assert await stranger.packet("2") == "2"
    assert await stranger.closed() == 4001
    late = await Packets.start(closing, running.ws_url)
    await late.join(brief_token("bob"))
    assert "token-expired" in await late.packet('42/ws/messages,["token-expired"')
    silent = await Packets.connect(closing, running.ws_url, "carol")
    await silent.closed()  # which reads its ping, and does not answer it


@pytest.mark.parametrize("engine", ENGINES)
async def test_with_the_wheel_stopped_none_of_it_comes(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine, ping_interval=0.2, ping_timeout=60, handshake_timeout=0.2)
    client = await Packets.start(closing, running.ws_url)
    await client.join(brief_token("bob"))
    running.gateway._timers.close()
    with pytest.raises(TimeoutError):
        await client.ws.receive(timeout=1.5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("door", ["socketio", "websocket"])
async def test_a_megabyte_a_second_to_one_who_reads_nothing_never_holds_more_than_the_bound(
    serve: Serve, closing: AsyncExitStack, engine: str, door: str
) -> None:
    running = await serve(gateway_engine=engine, max_send_buffer=LIMIT)
    gateway = running.gateway
    if door == "websocket":
        raw = await deaf_websocket(closing, running.url, f"/ws?token={make_token('deaf')}")
    else:
        raw = await deaf_websocket(closing, running.url, "/socket.io/?EIO=4&transport=websocket")
        join = client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token('deaf')})}")
        await asyncio.get_running_loop().sock_sendall(raw, join)
    await eventually(lambda: gateway.presence.status("deaf").online and gateway._connections.of_user("default", "deaf"))
    [live] = gateway._connections.of_user("default", "deaf")
    text = "x" * 10_000
    peak, began, sent = 0, time.monotonic(), 0
    while gateway._connections.of_user("default", "deaf"):
        await gateway.notify("deaf", "bulk", text)
        sent += len(text)
        peak = max(peak, held(gateway, live.peer, raw))
        assert sent < 20_000_000, "never closed"
        await asyncio.sleep(max(0.0, began + sent / 1_000_000 - time.monotonic()))
    over = 0 if engine == "fast" and door == "socketio" else len(text) + 1000  # the last that is put into a queue
    assert LIMIT - 2 * len(text) < peak <= LIMIT + over
    assert gateway._counts.too_slow == dict.fromkeys(DOORS, 0) | {door: 1}
    # It reads again: all that was sent, and at the end why it was closed.
    read = b""
    async with asyncio.timeout(STEP):
        while data := await asyncio.get_running_loop().sock_recv(raw, 1_000_000):
            read = (read + data)[-100:]
    assert b"\x0f\xa8" in read[-12:], "4008 in the close frame"


def held(gateway: Any, peer: Any, raw: Any) -> int:
    """Bytes that this process holds for one client."""
    if hasattr(peer, "_queue"):
        return int(peer._queue.waiting_bytes)
    socket = gateway._server.eio.sockets.get(peer._eio_sid)
    if isinstance(socket, FastSocket):
        return int(socket._transport.get_write_buffer_size()) + int(socket.stream._out_bytes)
    return 0 if socket is None else int(socket.queue.waiting_bytes)


WITHOUT_PICOWS = """
import sys
sys.modules["picows"] = None  # as where it has no wheel
from gateway import Gateway, Settings
from gateway.errors import ConfigurationError
try:
    gateway = Gateway(Settings(_env_file=None))
except ConfigurationError as error:
    print("refused:", error)
else:
    print("begin_upgrade" , gateway._server.eio.begin_upgrade)
"""


@pytest.mark.parametrize(
    ("engine", "said"),
    [("fast", "refused: GATEWAY_ENGINE"), ("stock", "begin_upgrade None"), (None, "begin_upgrade None")],
)
def test_without_picows_the_fast_engine_is_refused_where_it_was_asked_for(engine: str | None, said: str) -> None:
    variables = {"JWT_SECRET": "x" * 40, "PYTHONPATH": str(ROOT)} | ({"GATEWAY_ENGINE": engine} if engine else {})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PICOWS], env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith(("refused", "begin"))]
    assert line.startswith(said)
    if engine == "fast":
        assert "picows" in line
        assert "stock" in line


# What /metrics tells of it


async def figures(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.mark.parametrize(
    ("path", "door"), [("/ws?token=nonsense", "websocket"), ("/socket.io/?EIO=4&transport=websocket", "socketio")]
)
async def test_who_is_refused_is_counted_by_door_and_code(serve: Serve, path: str, door: str) -> None:
    running = await serve()
    name = f'presence_connections_refused_total{{code="TOKEN_INVALID",door="{door}"}}'
    assert (await figures(running.url))[name] == 0
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{running.ws_url}{path}") as ws:
        if door == "socketio":
            await ws.send_str(f'40{NAMESPACE},{{"token":"nonsense"}}')
            while "44" not in await ws.receive_str(timeout=STEP):
                pass
        else:
            await ws.receive(timeout=STEP)
    after = await figures(running.url)
    assert after[name] == 1
    assert sum(value for name, value in after.items() if name.startswith("presence_connections_refused_total")) == 1


async def test_one_connection_that_joins_again_and_again_pays_for_it(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(connect_rate="2/min")
    client = await Packets.start(closing, running.ws_url)
    answers = []
    for _ in range(4):
        await client.ws.send_str(f'40{NAMESPACE},{{"token":"nonsense"}}')
        answers.append(json.loads((await client.packet("44")).removeprefix(f"44{NAMESPACE},")))
    codes = [answer["data"]["code"] for answer in answers]
    assert codes == ["TOKEN_INVALID"] * 3 + [
        "RATE_LIMITED"
    ]  # two of them its handshake has paid for: there are two namespaces
    assert 0 < answers[3]["data"]["retryAfter"] < 120
    assert answers[3]["message"] == answers[3]["data"]["message"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_connection_may_try_to_join_so_often(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine)
    client = await Packets.start(closing, running.ws_url)
    for _ in range(CONNECTS.count):
        await client.ws.send_str("40/nowhere,")
        assert "Invalid namespace" in await client.packet("44")
    await client.ws.send_str("40/nowhere,")
    assert await client.closed() == 4029


async def test_who_has_no_room_in_the_queue_is_refused_by_http_with_a_time(serve: Serve) -> None:
    running = await serve(connect_rate="1/min")
    async with aiohttp.ClientSession() as http:
        address = f"{running.url}/socket.io/?EIO=4&transport=polling"
        async with http.get(address) as response:
            assert response.status == 200
        held_back = asyncio.create_task(http.get(address))
        await eventually(lambda: running.gateway._admission.waiting == 1)
        async with http.get(address) as response:
            assert response.status == 503
            told = await response.json()
            assert int(response.headers["Retry-After"]) >= told["retryAfter"] > 0
            assert told["code"] == "RATE_LIMITED"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(f"{running.ws_url}/ws?token={make_token()}")
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert int(refused.value.headers["Retry-After"]) > 0
        # Wrong before its turn: these are not even asked whose turn it is.
        for query in ("EIO=3&transport=polling", "EIO=4&transport=nonsense"):
            async with http.get(f"{running.url}/socket.io/?{query}") as response:
                assert response.status == 400
        after = await figures(running.url)
        assert after["presence_admission_waiting"] == 1
        assert after["presence_admission_refusals_total"] == 2
        assert after['presence_connections_refused_total{code="RATE_LIMITED",door="websocket"}'] == 1
        running.gateway._admission.close()
        async with await held_back as response:
            assert (response.status, (await response.json())["code"]) == (503, "SERVER_DRAINING")


async def test_who_leaves_while_waiting_is_counted_and_takes_no_turn(serve: Serve) -> None:
    running = await serve(connect_rate="60/min")
    async with aiohttp.ClientSession() as http:
        address = f"{running.url}/socket.io/?EIO=4&transport=polling"
        for _ in range(60):
            async with http.get(address) as response:
                assert response.status == 200
        with pytest.raises(TimeoutError):
            await http.get(address, timeout=aiohttp.ClientTimeout(0.2))
        began = time.monotonic()
        async with http.get(address) as response:
            assert response.status == 200
        assert time.monotonic() - began < 1.5
    after = await figures(running.url)
    assert after["presence_admission_departures_total"] == 1
    assert after["presence_admission_wait_seconds_count"] == 1
    assert 0 < after["presence_admission_wait_seconds_sum"] < 1.5


Spawn = Callable[..., Awaitable[Process]]


@pytest.mark.parametrize("obedient", [False, True], ids=["by back-off", "by retryAfter"])
async def test_a_storm_settles_without_a_time_out_and_others_are_answered_meanwhile(
    spawn: Spawn, *, obedient: bool
) -> None:
    storm_module = pytest.importorskip("benchmarks.storm")
    count, rate, patience, longest_backoff = 1500, 150, 3.0, 7.5
    process = await spawn(CONNECT_RATE=f"{rate}/s", LOG_LEVEL="info")
    port = int(process.url.rpartition(":")[2])
    bearers = [make_token(f"u{n}", tenant=f"t{n % 30}") for n in range(count)]
    storm, took = await storm_module.blow(port, bearers, make_token("bystander"), limit=60, obedient=obedient)
    try:
        assert (len(storm.settled), storm.timeouts, storm.failures) == (count, 0, 0)
        queue = (count - rate) / rate
        assert queue * 0.9 <= took <= queue + patience + longest_backoff + STEP
        assert storm.longest_handshake <= patience + 2 * STEP  # the wait, and what a busy machine adds
        assert storm.refusals > 0
        assert len(storm.answers) > 20
        assert max(storm.answers) < STEP
        after = await figures(process.url)
        assert after['presence_connections{door="socketio"}'] >= count
        assert after["presence_admission_wait_seconds_count"] >= rate
        assert after["presence_admission_refusals_total"] == storm.refusals
        assert after["presence_admission_wait_seconds_sum"] / count <= patience + 1
    finally:
        storm_module.disperse(storm)
