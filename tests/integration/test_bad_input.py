"""Bad input costs only its sender: a good client beside every bad one goes on being answered and told."""

import asyncio
import contextlib
import gc
import io
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from clients import NAMESPACE, Client, Packets, Plain, Polling, client_frame, deaf_websocket
from conftest import SERVICE_KEY, STEP, Process, Running, eventually, make_token

from gateway.engine.fast import FastSocket

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]


class Bystander:
    """A good client that never stops asking and listening, on a gateway that somebody treats badly."""

    def __init__(self, gateway: Running, client: Client, pace: float) -> None:
        self.gateway = gateway
        self.pace = pace
        self.client = client
        self.answers = 0
        self.asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            answer = await self.client.ask("check-users-status", {"userIds": ["good"]})
            assert answer["data"]["statuses"][0]["online"] is True
            self.answers += 1
            await asyncio.sleep(self.pace)

    async def unharmed(self) -> None:
        """Check that the client is answered and told as before."""
        before = self.answers
        await eventually(lambda: self.answers > before + 1 or self.asking.done())
        if self.asking.done():
            self.asking.result()
        self.asking.cancel()
        await self.gateway.gateway.presence.set_online("marker")
        await self.client.hears("user-online", userId="marker")
        assert self.client.goodbyes == []


Beside = Callable[..., Awaitable[Bystander]]


@pytest.fixture
async def beside(serve: Serve, closing: AsyncExitStack, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Beside]:
    """Start a gateway with a bystander; after the test the bystander is unharmed and the log has no failure."""
    bystanders: list[Bystander] = []

    async def start(*, pace: float = 0.02, **settings: Any) -> Bystander:
        gateway = await serve(**settings)
        bystanders.append(Bystander(gateway, await Client.connect(closing, gateway.url, "good"), pace))
        return bystanders[-1]

    with structlog.testing.capture_logs() as entries, caplog.at_level(logging.WARNING):
        yield start
        for bystander in bystanders:
            await bystander.unharmed()
        gc.collect()  # so that asyncio logs the failures that nobody waited for
        await asyncio.sleep(0)
    failures = [entry for entry in entries if entry["log_level"] in {"error", "critical"} or entry.get("exc_info")]
    assert failures == []
    records = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert [record.getMessage() for record in records] == []


async def outcome(client: Packets) -> str:
    """What became of a client: ``answered``, where its next request is, or ``closed``."""
    try:
        await client.ask("heartbeat", {}, ack=77)
    except (AssertionError, ConnectionError):
        assert client.ws.closed or client.ws.close_code is not None
        return "closed"
    return "answered"


EVENT = f"42{NAMESPACE},"
DEEP = "[" * 20_000 + "]" * 20_000
PLACEHOLDER = '{"_placeholder":true,"num":0}'

ANSWERED: dict[str, str] = {
    "no such request": EVENT + '5["no-such-request",{}]',
    "no such request, no ack": EVENT + '["no-such-request"]',
    "payload a number": EVENT + '5["check-user-status",5]',
    "payload null": EVENT + '5["check-user-status",null]',
    "payload a list": EVENT + '5["check-users-status",["a"]]',
    "ids of other types": EVENT + '5["check-users-status",{"userIds":[1,null,{},[]]}]',
    "1,001 ids": EVENT + '5["check-users-status",{"userIds":[' + ",".join(['"a"'] * 1001) + "]}]",
    "many arguments": EVENT + '5["heartbeat",{},{},{},{}]',
    "ack id of 99 digits": EVENT + "9" * 99 + '["heartbeat"]',
    "control characters": EVENT + '5["check-user-status",{"userId":"\\u0000"}]',
    "long event name": EVENT + '5["' + "x" * 50_000 + '"]',
    "magic event name": EVENT + '5["__init__"]',
    "handler's event name": EVENT + '5["on_connect"]',
    "dots and stars": EVENT + '5["*"]',
    "placeholder in an event": EVENT + f'5["check-user-status",{PLACEHOLDER}]',
    "ack never asked for": f"43{NAMESPACE},5[]",
    "event to a namespace not joined": '42["heartbeat"]',
    "event to a namespace that is not there": '42/elsewhere,["heartbeat"]',
    "leaving a namespace not joined": "41/elsewhere,",
    "joining one that is not there": "40/elsewhere,",
    "pong out of turn": "3",
    "unicode line separators": EVENT + '5["check-user-status",{"userId":"\u2028\u2029\ufeff"}]',
    "number too large for a float": EVENT + '5["heartbeat",{"meta":{"n":1e308}}]',
}

REFUSED: dict[str, str] = {
    "event without a payload": EVENT,
    "event without its namespace's comma": f"42{NAMESPACE}",
    "event cut off": EVENT + "[",
    "event cut off in its payload": EVENT + '["check-user-status",{"userId":',
    "event no list": EVENT + "{}",
    "event a number": EVENT + "5",
    "event a string": EVENT + '"heartbeat"',
    "event null": EVENT + "null",
    "event empty": EVENT + "[]",
    "name a number": EVENT + "[5]",
    "name null": EVENT + "5[null]",
    "name a list": EVENT + '[["heartbeat"]]',
    "reserved connect": EVENT + '["connect"]',
    "reserved connect with ack": EVENT + '5["connect",{"token":"x"}]',
    "reserved disconnect": EVENT + '["disconnect"]',
    "reserved disconnect with ack": EVENT + '5["disconnect","client disconnect"]',
    "reserved connect_error": EVENT + '["connect_error",{}]',
    "reserved disconnecting": EVENT + '["disconnecting"]',
    "deeply nested": EVENT + f'["heartbeat",{DEEP}]',
    "deeply nested, ack": EVENT + f"5{DEEP}",
    "lone surrogate in the name": EVENT + '5["\\ud800"]',
    "lone surrogate in an id": EVENT + '5["check-user-status",{"userId":"\\udc00"}]',
    "ack id of 101 digits": EVENT + "9" * 101 + '["heartbeat"]',
    "ack id of other digits": EVENT + '\u0663\u00b2["heartbeat"]',
    "connect error from a client": f"44{NAMESPACE},{{}}",
    "packet type 7": f"47{NAMESPACE},[]",
    "packet type 9": "49",
    "no packet type": "4",
    "packet type a letter": "4x",
    "packet type another digit": "4\u00b2",
    "engine.io type 7": "7",
    "engine.io type a letter": "xyz",
    "engine.io nothing": "",
    "attachments without a count": f"45-{NAMESPACE},[]",
    "attachments beyond counting": f"459999999999999-{NAMESPACE},[]",
    "infinity": EVENT + '5["heartbeat",{"meta":{"n":Infinity}}]',
    "not a number": EVENT + "[NaN]",
}


@pytest.mark.parametrize("name", ANSWERED)
async def test_a_bad_request_costs_its_sender_an_error(beside: Beside, closing: AsyncExitStack, name: str) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(ANSWERED[name])
    assert await outcome(bad) == "answered"


@pytest.mark.parametrize("name", REFUSED)
async def test_a_malformed_packet_costs_its_sender_the_connection_at_the_most(
    beside: Beside, closing: AsyncExitStack, name: str
) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(REFUSED[name])
    if await outcome(bad) == "closed":
        await eventually(lambda: len(good.gateway.gateway._connections) == 1)
        await eventually(lambda: len(good.gateway.gateway._server.eio.sockets) == 1)
        await eventually(lambda: not good.gateway.gateway.presence.status("mallory").online)
    else:
        assert len(good.gateway.gateway._connections) == 2


async def test_before_it_has_joined_a_client_gets_nowhere_with_anything(
    beside: Beside, closing: AsyncExitStack
) -> None:
    good = await beside(handshake_timeout=0.3)

    async def visit(packet: str) -> None:
        bad = await Packets.start(closing, good.gateway.ws_url)
        await bad.ws.send_str(packet)
        await bad.closed()

    await asyncio.gather(*map(visit, (ANSWERED | REFUSED).values()))
    assert [entry[1] for entry in good.client.presence()] == []
    assert len(good.gateway.gateway._connections) == 1
    await eventually(lambda: len(good.gateway.gateway._server.eio.sockets) == 1)


ATTACHED: dict[str, list[str | bytes]] = {
    "well-formed": [f'451-{NAMESPACE},5["heartbeat",{{"meta":{{"a":{PLACEHOLDER}}}}}]', b"attached"],
    "as the payload": [f'451-{NAMESPACE},5["check-user-status",{PLACEHOLDER}]', b"attached"],
    "as the name": [f"451-{NAMESPACE},5[{PLACEHOLDER}]", b"heartbeat"],
    "as the token": [f'451-{NAMESPACE},5["refresh-token",{{"token":{PLACEHOLDER}}}]', b"attached"],
    "empty": [f'451-{NAMESPACE},5["check-user-status",{PLACEHOLDER}]', b""],
    "number out of range": [f'451-{NAMESPACE},5["heartbeat",{{"_placeholder":true,"num":5}}]', b"attached"],
    "number negative": [f'451-{NAMESPACE},5["heartbeat",{{"_placeholder":true,"num":-2}}]', b"attached"],
    "number a string": [f'451-{NAMESPACE},5["heartbeat",{{"_placeholder":true,"num":"0"}}]', b"attached"],
    "number null": [f'451-{NAMESPACE},5["heartbeat",{{"_placeholder":true,"num":null}}]', b"attached"],
    "number a fraction": [f'451-{NAMESPACE},5["heartbeat",{{"_placeholder":true,"num":0.5}}]', b"attached"],
    "too few": [f'452-{NAMESPACE},5["heartbeat",{PLACEHOLDER}]', b"attached"],
    "too many": [f'451-{NAMESPACE},5["heartbeat",{PLACEHOLDER}]', b"attached", b"attached"],
    "none": [f'450-{NAMESPACE},5["heartbeat"]'],
    "none, but sent": [f'450-{NAMESPACE},5["heartbeat"]', b"attached"],
    "text where one is due": [f'451-{NAMESPACE},5["heartbeat",{PLACEHOLDER}]', EVENT + '["heartbeat"]'],
    "one nobody announced": [b"attached"],
    "one nobody announced, empty": [b""],
    "one that reads like a packet": [b"2/ws/messages,[]"],
    "to an acknowledgement": [f"461-{NAMESPACE},5[{PLACEHOLDER}]", b"attached"],
    "to another namespace": [f"451-/elsewhere,[{PLACEHOLDER}]", b"attached"],
    "to what is no list": [f"451-{NAMESPACE},{PLACEHOLDER}", b"attached"],
    "deeply nested": [f'451-{NAMESPACE},["heartbeat",{DEEP}]', b"attached"],
    "nested": [f'451-{NAMESPACE},5["heartbeat",{"[" * 900}{"]" * 900}]', b"attached"],
}


@pytest.mark.parametrize("name", ATTACHED)
async def test_attachments_cost_their_sender_the_connection_at_the_most(
    beside: Beside, closing: AsyncExitStack, name: str
) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    with contextlib.suppress(ConnectionError):
        for frame in ATTACHED[name]:
            await (bad.ws.send_bytes(frame) if isinstance(frame, bytes) else bad.ws.send_str(frame))
    result = await outcome(bad)
    if name in {"well-formed", "as the payload", "as the token", "empty"}:
        assert result == "answered"
    await eventually(lambda: len(good.gateway.gateway._connections) == (2 if result == "answered" else 1))


async def test_attachments_that_never_end_are_not_collected(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(f'451000000-{NAMESPACE},["heartbeat",{PLACEHOLDER}]')
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            await bad.ws.send_bytes(b"x" * 60_000)
            assert sum(map(len, _attachments(good.gateway))) <= 1_000_000
            await asyncio.sleep(0)
    await bad.closed()


def _attachments(gateway: Running) -> list[bytes]:
    return [part for packet in gateway.gateway._server._binary_packet.values() for part in packet.attachments]


@pytest.mark.parametrize("door", ["socketio", "plain", "before joining"])
async def test_a_frame_of_ten_megabytes_is_closed(beside: Beside, closing: AsyncExitStack, door: str) -> None:
    good = await beside()
    bad: Packets | Plain
    if door == "plain":
        bad = await Plain.connect(closing, good.gateway.ws_url, "mallory")
    elif door == "socketio":
        bad = await Packets.connect(closing, good.gateway.ws_url)
    else:
        bad = await Packets.start(closing, good.gateway.ws_url)
    with contextlib.suppress(ConnectionError):
        await bad.ws.send_str(EVENT + '["heartbeat","' + "x" * 10_000_000 + '"]')
    assert await bad.closed() in {1009, 1006, None}
    await eventually(lambda: len(good.gateway.gateway._connections) == 1)


@pytest.mark.parametrize(
    "frame",
    [
        EVENT + '["heartbeat",{"meta":"' + "x" * 65_600 + '"}]',
        "4" * 65_537,
    ],
)
async def test_a_frame_just_too_large_is_closed(beside: Beside, closing: AsyncExitStack, frame: str) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(frame)
    assert await outcome(bad) == "closed"


@pytest.mark.parametrize("second", ["mallory", "eve"])
async def test_joining_twice_on_one_connection_is_no_second_connection(
    beside: Beside, closing: AsyncExitStack, second: str
) -> None:
    good = await beside()
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': make_token(second)})}")
    result = await outcome(bad)
    gateway = good.gateway.gateway
    assert len(gateway._connections) <= 2
    assert gateway.presence.status("eve").online is False
    if result == "answered":
        await bad.ws.close(code=1000)
    await eventually(lambda: len(gateway._connections) == 1)
    await eventually(lambda: not gateway.presence.status("mallory").online)
    assert len(gateway._server.eio.sockets) == 1


async def test_joining_twice_at_once_over_polling_leaves_no_ghost(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(ping_interval=0.3, ping_timeout=1)
    gateway = good.gateway.gateway
    bad = await Polling.start(closing, good.gateway.url)
    joins = [f"40{NAMESPACE},{json.dumps({'token': make_token(user)})}" for user in ("mallory", "eve", "mallory")]
    await asyncio.gather(*map(bad.post, joins))
    await bad.post("1")
    await eventually(lambda: len(gateway._connections) == 1)
    await eventually(lambda: not gateway.presence.status("mallory").online)
    assert gateway.presence.status("eve").online is False


async def test_leaving_and_joining_again_on_one_connection_works(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside()
    client = await Packets.connect(closing, good.gateway.ws_url, "alice")
    await client.ws.send_str(f"41{NAMESPACE},")
    await good.client.hears("user-offline", userId="alice")
    await client.join(make_token("alice"))
    await good.client.hears("user-online", userId="alice", version=3)
    assert await outcome(client) == "answered"


# Long-polling


PAYLOADS: dict[str, str | bytes] = {
    "nothing": "",
    "separators": "\x1e\x1e\x1e",
    "no packet": "xyz",
    "type 7": "7",
    "open from a client": '0{"sid":"x"}',
    "ping from a client": "2",
    "upgrade from a client": "5",
    "noop from a client": "6",
    "malformed packet": "4" + "x",
    "malformed event": EVENT + "{",
    "malformed, then well-formed": f'4x\x1e{EVENT}1["heartbeat"]\x1e4x',
    "malformed, then a ping": "4x\x1e40/elsewhere,\x1e2",
    "goodbye, then an event": f'1\x1e{EVENT}1["heartbeat"]',
    "goodbye, then a ping": f"1\x1e40{NAMESPACE},\x1e2",
    "base64 that is none": "b####",
    "base64 cut off": "bAAA",
    "base64 nobody announced": "bAAAA",
    "jsonp without data": "d=",
    "jsonp of something": "d=4x",
    "not utf-8": b"\xff\xfe\xfd",
    "half a surrogate pair": b"4\xed\xa0\x80",
    "100 packets": "\x1e".join([EVENT + '["no-such-request"]'] * 100),
    "deeply nested": EVENT + f'["heartbeat",{DEEP}]',
    "ten megabytes": "4" * 10_000_000,
    "a little too much": b"4" * 65_537,
}


async def post_badly(client: Polling, payload: str | bytes) -> set[int]:
    """Post a body three times; return what was answered."""
    statuses = set()
    for _ in range(3):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            body = io.BytesIO(payload.encode() if isinstance(payload, str) else payload)
            statuses.add(await client.post(body))
    return statuses


@pytest.mark.parametrize("name", PAYLOADS)
async def test_a_bad_polling_request_costs_its_sender_the_connection_at_the_most(
    beside: Beside, closing: AsyncExitStack, name: str
) -> None:
    good = await beside()
    bad = await Polling.connect(closing, good.gateway.url)
    assert await post_badly(bad, PAYLOADS[name]) <= {200, 400, 413}


async def test_before_it_has_joined_a_polling_client_gets_nowhere_either(
    beside: Beside, closing: AsyncExitStack
) -> None:
    good = await beside(handshake_timeout=0.5)

    async def visit(name: str) -> set[int]:
        return await post_badly(await Polling.start(closing, good.gateway.url), PAYLOADS[name])

    assert set().union(*await asyncio.gather(*map(visit, PAYLOADS))) <= {200, 400, 413}
    assert len(good.gateway.gateway._connections) == 1


@pytest.mark.parametrize(
    "query",
    [
        "",
        "EIO=3&transport=polling",
        "EIO=4&transport=nonsense",
        "EIO=4&transport=websocket",
        "EIO=4&transport=polling&sid=nonsense",
        "EIO=4&transport=polling&j=x",
        "EIO=4&transport=polling&sid=%00",
        "EIO=four&transport=polling",
        "EIO=4&EIO=4&transport=polling",
        "EIO=4&transport=polling&sid=" + "x" * 4000,
    ],
)
async def test_a_bad_handshake_is_refused(beside: Beside, closing: AsyncExitStack, query: str) -> None:
    good = await beside()
    session = await closing.enter_async_context(aiohttp.ClientSession())
    for method in ("GET", "POST", "OPTIONS", "PUT", "DELETE"):
        async with session.request(method, f"{good.gateway.url}/socket.io/?{query}") as response:
            assert response.status in ({200, 400} if method == "OPTIONS" else {400, 404, 405}), method
    assert len(good.gateway.gateway._server.eio.sockets) == 1


async def test_polling_twice_at_once_and_after_the_end_is_survived(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(ping_interval=0.2, ping_timeout=0.3)
    bad = await Polling.connect(closing, good.gateway.url)

    async def poll() -> int:
        async with bad.session.get(bad.url) as response:
            await response.read()
            return response.status

    polls = [asyncio.create_task(poll()) for _ in range(3)]
    await asyncio.sleep(0.05)  # for the polls to be waiting; that they are is not visible from here
    assert await bad.post("1") == 200
    assert await bad.post("1") == 400
    assert set(await asyncio.gather(*polls)) <= {200, 400}
    assert await poll() == 400


async def test_a_session_of_a_websocket_cannot_be_polled_by_another(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside()
    [sid] = good.gateway.gateway._server.eio.sockets
    bad = Polling(await closing.enter_async_context(aiohttp.ClientSession()), good.gateway.url)
    bad.sid = sid
    assert await bad.post("1") == 400
    async with bad.session.get(bad.url) as response:
        assert response.status == 400
    websocket = f"{good.gateway.ws_url}/socket.io/?EIO=4&transport=websocket&sid={sid}"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await bad.session.ws_connect(websocket)


# Floods and clients that do not read


@pytest.mark.parametrize(
    "frame", [EVENT + '["heartbeat"]', EVENT + '5["no-such-request"]', EVENT + '["heartbeat",1,2]']
)
async def test_a_flood_is_refused_and_then_closed(beside: Beside, closing: AsyncExitStack, frame: str) -> None:
    good = await beside(rate_limit_events="20/s", pace=0.2)
    bad = await Packets.connect(closing, good.gateway.ws_url)

    async def flood() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await bad.ws.send_str(frame)
                await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    assert await bad.closed() in {4029, 1006}
    flooding.cancel()
    assert any("RATE_LIMITED" in packet for packet, _ in bad.heard)
    await eventually(lambda: len(good.gateway.gateway._connections) == 1)
    await eventually(lambda: not good.gateway.gateway.presence.status("mallory").online)


LIMIT = 100_000


@pytest.mark.parametrize("door", ["plain", "socketio"])
async def test_a_client_that_never_reads_is_closed_before_its_queue_outgrows_its_bound(
    beside: Beside, closing: AsyncExitStack, door: str
) -> None:
    good = await beside(max_send_buffer=LIMIT)
    gateway = good.gateway.gateway
    if door == "plain":
        await deaf_websocket(closing, good.gateway.url, f"/ws?token={make_token('mallory')}")
    else:
        raw = await deaf_websocket(closing, good.gateway.url, "/socket.io/?EIO=4&transport=websocket")
        join = client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token('mallory')})}")
        await asyncio.get_running_loop().sock_sendall(raw, join)
    await eventually(lambda: len(gateway._connections) == 2)
    [live] = gateway._connections.of_user("default", "mallory")
    frame = "x" * 20_000
    peak = sent = 0
    while gateway._connections.of_user("default", "mallory"):
        await gateway.notify("mallory", "bulk", frame)
        sent += 1
        peak = max(peak, _waiting(gateway, live.peer))
        await asyncio.sleep(0)
        assert sent < 5000, "never closed"
    assert LIMIT - len(frame) < peak <= LIMIT + len(frame) + 200
    await eventually(lambda: len(gateway._server.eio.sockets) == 1)
    await eventually(lambda: len(served(good.gateway)) == 1)
    await eventually(lambda: not gateway.presence.status("mallory").online)
    explained = await gateway._store.explain("default", "mallory")
    assert explained.transitions[-1].reason in {"too slow", "connection lost"}


async def test_who_is_too_slow_and_reads_after_all_finds_whole_frames_and_then_4008(
    beside: Beside, closing: AsyncExitStack
) -> None:
    good = await beside(max_send_buffer=LIMIT)
    gateway, loop = good.gateway.gateway, asyncio.get_running_loop()
    raw = await deaf_websocket(closing, good.gateway.url, "/socket.io/?EIO=4&transport=websocket")
    await loop.sock_sendall(raw, client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token('mallory')})}"))
    await eventually(lambda: len(gateway._connections) == 2)
    sent = 0
    while gateway._connections.of_user("default", "mallory"):
        await gateway.notify("mallory", "bulk", "x" * 20_000)
        sent += 1
        await asyncio.sleep(0)
        assert sent < 5000, "never closed"
    received = b""
    async with asyncio.timeout(2 * STEP):
        while part := await loop.sock_recv(raw, 1 << 20):
            received += part
    frames = list(_server_frames(received.partition(b"\r\n\r\n")[2]))
    assert {opcode for opcode, _ in frames[:-1]} == {0x81}
    assert all(payload.endswith((b"]", b"}")) for _, payload in frames[:-1])
    assert frames[-1] == (0x88, (4008).to_bytes(2))


def _server_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """First byte and payload of each frame, all of which are whole."""
    at = 0
    while at < len(data):
        opcode, length, at = data[at], data[at + 1], at + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(data[at : at + size]), at + size
        yield opcode, data[at : at + length]
        at += length
    assert at == len(data)


def served(gateway: Running) -> list[str]:
    """The TCP connections that the server holds, whoever in it does: those established, and those the client closed."""
    port = f"{int(gateway.url.rpartition(':')[2]):04X}"
    rows = (line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:])
    return [row[2] for row in rows if row[1].endswith(f":{port}") and row[3] in {"01", "08"}]


def _waiting(gateway: Any, peer: Any) -> int:
    """Bytes that wait in a peer's own queue, whichever door it is of."""
    if hasattr(peer, "_queue"):
        return int(peer._queue.waiting_bytes)
    socket = gateway._server.eio.sockets.get(peer._eio_sid)
    if isinstance(socket, FastSocket):
        return int(socket._transport.get_write_buffer_size())
    return 0 if socket is None else int(socket.queue.waiting_bytes)


@pytest.mark.parametrize("door", ["plain", "socketio", "polling"])
async def test_a_burst_in_one_turn_of_the_loop_does_not_outgrow_the_bound(
    beside: Beside, closing: AsyncExitStack, door: str
) -> None:
    good = await beside(max_send_buffer=LIMIT)
    gateway = good.gateway.gateway
    client: Any
    if door == "plain":
        client = await Plain.connect(closing, good.gateway.ws_url, "mallory")
    elif door == "socketio":
        client = await Packets.connect(closing, good.gateway.ws_url)
    else:
        client = await Polling.connect(closing, good.gateway.url)
    [live] = gateway._connections.of_user("default", "mallory")
    peak = 0
    for _ in range(1000):  # more than the operating system takes in for a client
        await gateway.notify("mallory", "bulk", "x" * 20_000)
        peak = max(peak, _waiting(gateway, live.peer))
    assert peak <= LIMIT + 20_200
    if door == "polling":
        async with client.session.get(client.url) as response:
            assert response.status in {200, 400}
    else:
        assert await client.closed() == 4008
    await eventually(lambda: len(gateway._connections) == 1)


async def test_a_plain_client_that_is_too_slow_is_told_4008(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(max_send_buffer=LIMIT)
    gateway = good.gateway.gateway
    bad = await Plain.connect(closing, good.gateway.ws_url, "mallory")
    for _ in range(1000):
        await gateway.notify("mallory", "bulk", "x" * 20_000)
    assert await bad.closed() == 4008


@pytest.mark.parametrize("door", ["plain", "socketio"])
async def test_a_client_that_asks_and_never_reads_is_closed(beside: Beside, closing: AsyncExitStack, door: str) -> None:
    good = await beside(max_send_buffer=LIMIT, rate_limit_events="10000/s")
    gateway = good.gateway.gateway
    loop = asyncio.get_running_loop()
    payload = {"userIds": ["somebody"] * 1000}
    if door == "plain":
        raw = await deaf_websocket(closing, good.gateway.url, f"/ws?token={make_token('mallory')}")
        ask = client_frame(json.dumps({"event": "check-users-status", "data": payload, "id": 1}))
    else:
        raw = await deaf_websocket(closing, good.gateway.url, "/socket.io/?EIO=4&transport=websocket")
        join = client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token('mallory')})}")
        await loop.sock_sendall(raw, join)
        ask = client_frame(EVENT + "1" + json.dumps(["check-users-status", payload]))
    await eventually(lambda: len(gateway._connections) == 2)
    with contextlib.suppress(ConnectionError):
        for _ in range(300):
            async with asyncio.timeout(STEP):
                await loop.sock_sendall(raw, ask)
            if len(gateway._connections) == 1:
                break
    await eventually(lambda: len(gateway._connections) == 1)
    await eventually(lambda: len(gateway._server.eio.sockets) == 1)
    await eventually(lambda: len(served(good.gateway)) == 1)


# Handshakes that are never finished


async def test_an_engine_that_joins_no_namespace_is_closed(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(handshake_timeout=0.3)
    over_websocket = await Packets.start(closing, good.gateway.ws_url)
    over_polling = await Polling.start(closing, good.gateway.url)
    assert len(good.gateway.gateway._server.eio.sockets) == 3
    await over_websocket.closed()
    with contextlib.suppress(AssertionError):
        await over_polling.poll()
    await eventually(lambda: len(good.gateway.gateway._server.eio.sockets) == 1)


async def test_one_who_was_refused_and_lingers_is_closed(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(handshake_timeout=0.3)
    bad = await Packets.start(closing, good.gateway.ws_url)
    for _ in range(3):
        await bad.ws.send_str(f'40{NAMESPACE},{{"token":"nonsense"}}')
        assert "TOKEN_INVALID" in await bad.packet("44")
    await bad.closed()


async def test_one_who_left_the_namespace_and_lingers_is_closed(beside: Beside, closing: AsyncExitStack) -> None:
    good = await beside(handshake_timeout=0.3)
    bad = await Packets.connect(closing, good.gateway.ws_url)
    await bad.ws.send_str(f"41{NAMESPACE},")
    await bad.closed()
    await eventually(lambda: len(good.gateway.gateway._server.eio.sockets) == 1)


@pytest.mark.parametrize("probe", [None, "2probe", "2", "5", "nonsense", ""])
async def test_an_upgrade_that_is_never_finished_is_closed_and_polling_goes_on(
    beside: Beside, closing: AsyncExitStack, probe: str | None
) -> None:
    good = await beside(handshake_timeout=0.3)
    client = await Polling.connect(closing, good.gateway.url)
    ws = await client.session.ws_connect(f"{good.gateway.ws_url}/socket.io/?EIO=4&transport=websocket&sid={client.sid}")
    if probe is not None:
        await ws.send_str(probe)
    async with asyncio.timeout(STEP):
        while not ws.closed:
            await ws.receive()
    assert await client.post(f'{EVENT}1["heartbeat"]') == 200
    packets: list[str] = []
    while not any(packet.startswith(f"43{NAMESPACE},1") for packet in packets):
        packets += await client.poll()
    assert good.gateway.gateway.presence.status("mallory").online is True


HALVES = {
    "nothing": b"",
    "a byte": b"G",
    "half a head": b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
    "half an upgrade": b"GET /ws?token=x HTTP/1.1\r\nUpgrade: websocket\r\nX-Half: ",
    "a request, then nothing": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "half the head of a body": b"POST /presence/online HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n",
    "zeros": b"\x00" * 100,
    "empty lines": b"\r\n" * 10,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "thousands of headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000,
    "a long line": b"GET /" + b"a" * 20_000,
}


async def test_a_tcp_connection_that_says_nothing_whole_is_closed(spawn: Spawn, closing: AsyncExitStack) -> None:
    process = await spawn(LOG_FORMAT="json", KEEPALIVE_TIMEOUT="0.4", HANDSHAKE_TIMEOUT="0.4")
    good = await Client.connect(closing, process.url, "good")
    host, port = process.url.removeprefix("http://").split(":")

    async def visit(name: str) -> str | None:
        reader, writer = await asyncio.open_connection(host, int(port))
        closing.callback(writer.close)
        writer.write(HALVES[name])
        try:
            async with asyncio.timeout(STEP):
                await reader.read()
        except ConnectionError:
            return None
        except TimeoutError:
            return name
        return None

    still_open = [name for name in await asyncio.gather(*map(visit, HALVES)) if name is not None]
    assert still_open == []
    assert (await good.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert failures_in(process) == []


@pytest.mark.parametrize("path", ["/presence/online", "/socket.io/?EIO=4&transport=polling&sid={sid}"])
async def test_a_body_that_never_comes_is_not_waited_for(beside: Beside, closing: AsyncExitStack, path: str) -> None:
    good = await beside(keepalive_timeout=0.4, handshake_timeout=0.4)
    session = await Polling.connect(closing, good.gateway.url)
    for body in ("", "4"):
        reader, writer = await post_slowly(closing, good.gateway.url, path.format(sid=session.sid), 50)
        writer.write(body.encode())
        async with asyncio.timeout(STEP):
            answer = await reader.readline()
        assert answer.split()[1] in {b"408", b"400"}
        assert reader.at_eof() is False


@pytest.mark.parametrize("path", ["/presence/online", "/socket.io/?EIO=4&transport=polling&sid={sid}"])
async def test_a_body_that_comes_in_pieces_is_put_together(beside: Beside, closing: AsyncExitStack, path: str) -> None:
    good = await beside()
    session = await Polling.connect(closing, good.gateway.url)
    body = '{"userId": "mallory"}' if path == "/presence/online" else EVENT + '5["heartbeat"]'
    reader, writer = await post_slowly(closing, good.gateway.url, path.format(sid=session.sid), len(body))
    for character in body:
        writer.write(character.encode())
        await writer.drain()
        await asyncio.sleep(0.002)  # for each to be a segment of its own
    async with asyncio.timeout(STEP):
        answer = await reader.readline()
    assert answer.split()[1] == b"200"
    packets: list[str] = []
    while path != "/presence/online" and not any(packet.startswith(f"43{NAMESPACE},5") for packet in packets):
        packets += await session.poll()


@pytest.mark.parametrize("path", ["/presence/online", "/socket.io/?EIO=4&transport=polling&sid={sid}"])
async def test_a_body_that_is_cut_off_is_nobodys_failure(beside: Beside, closing: AsyncExitStack, path: str) -> None:
    good = await beside()
    session = await Polling.connect(closing, good.gateway.url)
    connections = len(served(good.gateway))
    _reader, writer = await post_slowly(closing, good.gateway.url, path.format(sid=session.sid), 50)
    writer.write(b"4")
    await eventually(lambda: len(served(good.gateway)) == connections + 1)
    await asyncio.sleep(0.05)  # for the body to be waited for, which is not visible from here
    writer.transport.abort()
    await eventually(lambda: len(served(good.gateway)) == connections)


async def post_slowly(
    closing: AsyncExitStack, url: str, path: str, length: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head of a POST; the body is for the caller to send."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    closing.callback(writer.close)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nX-API-Key: {SERVICE_KEY}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
    return reader, writer


# Anything at all


def failures_in(process: Process) -> list[str]:
    """What the log has of failures; the process logs JSON."""
    found = []
    for line in process.lines:
        try:
            entry = json.loads(line)
        except ValueError:
            found.append(line)
        else:
            if entry["level"] in {"error", "critical", "warning"} or "exception" in entry:
                found.append(line)
    return found


PIECES = [
    *("0", "1", "2", "3", "4", "5", "6", "7", "40", "41", "42", "43", "44", "450-", "451-", "452-", "461-", "2probe"),
    *(f"{NAMESPACE},", NAMESPACE, "/elsewhere,", "/,", ",", "7", "12345678901234567890", "-", "\u0663", "\x1e", "\0"),
    *("[", "]", "{", "}", "null", "true", "1e999", '"', '"heartbeat"', '"check-user-status"', '"disconnect"'),
    *('{"userId":"a"}', '{"userIds":[1]}', '{"token":"x"}', PLACEHOLDER, '"\\ud800"', '["heartbeat"]', '["x",{}]'),
    *("d=", "b", "bAAAA", "é\u2028", "[" * 300, '{"event":"heartbeat","id":1}', '{"event":', '"data":', "x" * 300),
]


def any_frame(chance: random.Random) -> str | bytes:
    match chance.randrange(10):
        case 0:
            return chance.randbytes(chance.randrange(40))
        case 1:
            return "".join(chance.choices(PIECES, k=chance.randrange(1, 4))).encode()
        case 2:
            good = chance.choice([*ANSWERED.values(), *REFUSED.values()])[:2000]
            at = chance.randrange(len(good) + 1)
            return good[:at] + chance.choice(PIECES) + good[at + chance.randrange(3) :]
        case 3 | 4 | 5:
            return EVENT + "".join(chance.choices(PIECES, k=chance.randrange(1, 6)))
        case _:
            return "".join(chance.choices(PIECES, k=chance.randrange(1, 7)))


async def visit_badly(visit: AsyncExitStack, url: str, chance: random.Random) -> int:
    """Connect by some door, and send anything; return how many frames or bodies were sent."""
    ws_url = url.replace("http", "ws", 1)
    match chance.randrange(4):
        case 0:
            polling = await Polling.connect(visit, url)
            for _ in range(8):
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    assert await polling.post(any_frame(chance)) in {200, 400, 413}
            return 8
        case 1:
            bad: Plain | Packets = await Plain.connect(visit, ws_url, "mallory")
        case 2:
            bad = await Packets.start(visit, ws_url)
        case _:
            bad = await Packets.connect(visit, ws_url)
    sent = 0
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        while sent < 30 and not bad.ws.closed:
            frame = any_frame(chance)
            await (bad.ws.send_bytes(frame) if isinstance(frame, bytes) else bad.ws.send_str(frame))
            sent += 1
            if chance.random() < 0.3:
                await asyncio.sleep(0)
    if chance.random() < 0.5:
        bad.vanish()
    return sent


@pytest.mark.parametrize("seed", [1, 2])
async def test_anything_at_all_costs_only_its_sender(spawn: Spawn, closing: AsyncExitStack, seed: int) -> None:
    process = await spawn(LOG_FORMAT="json", RATE_LIMIT_EVENTS="10000/s", PRESENCE_OFFLINE_GRACE="0.2")
    good = await Client.connect(closing, process.url, "good")
    chance = random.Random(seed)
    sent = 0
    while sent < 300:
        async with AsyncExitStack() as visit:
            sent += await visit_badly(visit, process.url, chance)
        assert (await good.ask("heartbeat"))["event"] == "heartbeat-ack"
    late = await Client.connect(closing, process.url, "late")
    await good.hears("user-online", userId="late")
    async with asyncio.timeout(STEP):
        while (await late.ask("get-online-users"))["data"]["count"] != 2:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    assert good.goodbyes == []
    assert await process.stop() == 0
    assert failures_in(process) == []
