"""What the engine closes in python-socketio, one sentence each; the doors' tests see the same from outside."""

import asyncio
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import takewhile
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import socketio
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from clients import Client, Packets, Polling, abort, client_frame, deaf_websocket
from conftest import STEP, Running, eventually, make_settings, make_token
from protocol import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebSocket,
    frame,
    open_link,
    probe,
    upgrade_headers,
)
from structlog.testing import capture_logs

from gateway import Gateway, Transition
from gateway.access.auth import Identity
from gateway.app import create_app
from gateway.engine import json
from gateway.engine.fast import FastSocket
from gateway.engine.manager import Manager
from gateway.engine.outbound import OutboundQueue, text_size
from gateway.engine.server import Engine
from gateway.engine.stream import Outbox, Stream
from gateway.errors import TokenInvalidError
from gateway.presence.model import Beat, Profile
from gateway.runtime.tasks import end

Serve = Callable[..., Awaitable[Running]]

on_fast = pytest.mark.usefixtures("fast")
"""For what the stock engine leaves to aiohttp."""


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ENGINE", "fast")


def test_json_errors_are_value_errors_whatever_is_wrong() -> None:
    for text in ("{", "[" * 100_000, "nul", "\ud83d"):
        with pytest.raises(ValueError):
            json.loads(text)
    assert json.loads('{"a":[1,null]}') == {"a": [1, None]}
    assert json.dumps({"a": "é"}, separators=(", ", ": ")) == '{"a":"é"}'


async def test_the_queue_counts_bytes_and_says_once_that_they_are_too_many() -> None:
    said: list[int] = []
    queue = OutboundQueue(text_size, 5, lambda: said.append(queue.waiting_bytes))
    queue.put_nowait("ab")
    queue.put_nowait("éé")
    assert (queue.waiting_bytes, said) == (6, [6])
    queue.put_nowait("c")
    assert said == [6]
    assert await queue.get() == "ab"
    assert queue.waiting_bytes == 5
    queue.drop_all()
    assert queue.waiting_bytes == 0


async def test_a_client_is_forgotten_whole_and_the_others_stay() -> None:
    manager = Manager()
    manager.set_server(socketio.AsyncServer(client_manager=manager))
    first, second = [await manager.pre_connect(eio_sid, "/a") for eio_sid in ("e1", "e2")]
    for sid in (first, second):
        manager.pending_connect["/a"].remove(sid)
    manager.pre_disconnect(first, "/a")
    await manager.disconnect(first, "/a")
    assert dict(manager.rooms["/a"][None]) == {second: "e2"}
    assert set(manager.rooms["/a"]) == {None, second}
    assert manager.pending_disconnect == {}
    await manager.disconnect(second, "/a")
    assert manager.rooms == {}


async def test_a_task_is_kept_until_it_has_ended() -> None:
    async def wait_for_what_nobody_else_has() -> None:
        await asyncio.get_running_loop().create_future()

    engine = Engine(async_mode="aiohttp")
    task = weakref.ref(engine.start_background_task(wait_for_what_nobody_else_has))
    await asyncio.sleep(0)
    gc.collect()
    kept = task()
    assert kept is not None
    await end([kept])
    assert engine._tasks == set()


async def test_one_that_cannot_be_written_to_costs_the_others_nothing() -> None:
    outbox = Outbox()
    broken, sound = Mock(is_closing=Mock(side_effect=RuntimeError("a mistake"))), Mock()
    sound.is_closing.return_value, sound.get_write_buffer_size.return_value = False, 0
    for transport in (broken, sound):
        stream = Stream(Mock(), outbox, transport, file=-1, receivers=[], max_buffer=1000)
        stream.send(b"a frame")
    with capture_logs() as logs:
        outbox.write_all()
    sound.write.assert_called_once_with(b"a frame")
    assert [line["event"] for line in logs] == ["a connection could not be written to"]


async def test_what_one_turn_has_for_many_is_written_to_each_and_what_is_not_taken_is_left_to_the_loop() -> None:
    outbox, owner = Outbox(), Mock()
    pairs = [socket.socketpair() for _ in range(4)]
    streams, transports = [], []
    for near, far in pairs:
        near.setblocking(False)
        far.settimeout(1)
        transports.append(Mock(**{"is_closing.return_value": False, "get_write_buffer_size.return_value": 0}))
        streams.append(Stream(owner, outbox, transports[-1], file=near.fileno(), receivers=[], max_buffer=1000))
    with suppress(BlockingIOError):  # the second client does not read
        while True:
            pairs[1][0].send(b"f" * 4096)
    pairs[2][1].close()  # the third is gone
    transports[3].get_write_buffer_size.return_value = 999  # for the fourth more waits than may
    for number, stream in enumerate(streams):
        stream.send(b"one of %d" % number)
        stream.send(b", and another")
    outbox.write_all()
    assert pairs[0][1].recv(100) == b"one of 0, and another"
    transports[0].write.assert_not_called()
    transports[1].write.assert_called_once_with(b"one of 1, and another")
    transports[2].write.assert_not_called()
    transports[3].write.assert_not_called()
    owner.on_overflow.assert_called_once_with()
    outbox.write_all()  # nothing is written twice
    transports[1].write.assert_called_once()
    for pair in pairs:
        for end_of_it in pair:
            end_of_it.close()


@pytest.mark.parametrize(("system", "context", "file"), [("posix", None, 5), ("posix", object(), -1), ("nt", None, -1)])
def test_only_what_is_a_file_is_written_to(
    monkeypatch: pytest.MonkeyPatch, system: str, context: object, file: int
) -> None:
    known = {"sslcontext": context, "socket": Mock(fileno=lambda: 5)}
    session = FastSocket(Mock(), "one")
    session.outbox, session.max_send_buffer = Outbox(), 1000
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", system)
        session.attach(Mock(), Mock(get_extra_info=known.get))
    assert session.stream.file == file


async def test_one_connection_may_not_try_to_connect_without_end(serve: Serve) -> None:
    running = await serve()
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{running.ws_url}/socket.io/?EIO=4&transport=websocket") as ws,
    ):
        for _ in range(12):
            await ws.send_str('40/ws/messages,{"token":"bad"}')
        refused = 0
        while (message := await ws.receive(5)).type is aiohttp.WSMsgType.TEXT:
            refused += message.data.startswith("44/ws/messages,")
        assert refused == 10
        assert ws.close_code == 4029


@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_client_that_left_before_its_websocket_opened_leaves_nothing_behind(
    serve: Serve, caplog: pytest.LogCaptureFixture, *, upgrade: bool
) -> None:
    @web.middleware
    async def leave(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        if "Upgrade" in request.headers:
            assert request.transport is not None
            request.transport.abort()  # as the system finds it after a standstill
        return await handler(request)

    running = await serve(web.Application(middlewares=[leave]))
    address = f"{running.ws_url}/socket.io/?EIO=4&transport=websocket"
    async with aiohttp.ClientSession() as http:
        if upgrade:
            async with http.get(f"{running.url}/socket.io/?EIO=4&transport=polling") as response:
                address += "&sid=" + json.loads((await response.text())[1:])["sid"]
        with pytest.raises(aiohttp.ClientError):
            await http.ws_connect(address)
    engine = running.gateway._server.eio
    assert [socket.upgrading for socket in engine.sockets.values()] == [False] * upgrade
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_polling_body_without_a_length_is_read_whole(serve: Serve) -> None:
    running = await serve()

    async def chunks(text: str) -> AsyncIterator[bytes]:
        yield text.encode()

    async with aiohttp.ClientSession() as http:
        address = f"{running.url}/socket.io/?EIO=4&transport=polling"
        async with http.get(address) as response:
            sid = (await response.json(content_type=None, loads=lambda text: json.loads(text[1:])))["sid"]
        connect = f'40/ws/messages,{{"token":"{make_token("alice")}"}}'
        async with http.post(f"{address}&sid={sid}", data=chunks(connect)) as response:
            assert response.status == 200
        await eventually(lambda: running.gateway.presence.status("alice").online)


async def test_a_probe_that_was_given_up_does_not_turn_a_later_loss_into_a_goodbye(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(presence_offline_grace=60)
    alice = await Polling.connect(closing, running.url, "alice")
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{running.ws_url}/socket.io/?EIO=4&transport=websocket&sid={alice.sid}") as probe,
    ):
        await probe.send_str("2probe")
        assert await probe.receive_str() == "3probe"
        await probe.close(code=1000)
    assert await alice.post("1") == 200
    await eventually(lambda: len(running.gateway._connections) == 0)
    assert running.gateway.presence.status("alice").online


@pytest.mark.parametrize("path", ["/ws?", "/socket.io/?EIO=4&transport=websocket&"])
async def test_what_a_hook_sends_to_whoever_comes_online_is_heard_after_connected(path: str) -> None:
    gateway = Gateway(make_settings())

    @gateway.on("user-online")
    async def welcome(change: Transition) -> None:
        await gateway.notify(change.user_id, "welcome", {"n": 1})

    runner = web.AppRunner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://{host}:{port}{path}token={make_token('alice')}") as ws,
        ):
            await ws.send_str("40/ws/messages,") if "socket.io" in path else None
            heard = ""
            while "welcome" not in heard:
                heard += await ws.receive_str(timeout=STEP)
            assert heard.index('"connected"') < heard.index('"welcome"')
    finally:
        await runner.cleanup()


async def test_a_page_hears_before_an_http_answer_tells_it(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(presence_flush_interval=1)
    alice = await Client.connect(closing, running.url)
    for user in ("first", "second"):  # each told at once; what comes next is gathered
        await running.gateway.presence.set_online(user)
        await alice.hears("user-online", userId=user)
    await running.gateway.presence.set_online("bob")
    headers = {"Authorization": f"Bearer {make_token('alice')}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{running.url}/online-status?ids=bob") as answer,
    ):
        assert await answer.json() == [{"id": "bob", "online": True}]
    await running.gateway.presence.set_offline("bob")  # with the first, nothing on balance
    await alice.hears("user-online", userId="bob")
    await alice.hears("user-offline", userId="bob")


async def test_what_comes_behind_a_close_in_one_request_registers_nobody(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    polling = await Polling.start(closing, running.url)
    await polling.post(f'1\x1e40/ws/messages,{{"token":"{make_token("ghost")}"}}')
    manager = running.gateway._server.manager
    assert (manager.rooms, manager.pending_connect) == ({}, {})
    assert not running.gateway.presence.status("ghost").online


async def test_what_is_malformed_is_logged_without_what_it_held(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    with capture_logs() as logs:
        client = await Packets.start(closing, running.ws_url)
        await client.ws.send_str('42/ws/messages,[{"token":"eySECRET"}]')
        await client.closed()
    assert [line["error"] for line in logs if line["event"] == "malformed packet"] == ["no name for an event"]
    assert "eySECRET" not in str(logs)


async def test_an_attachment_named_a_thousand_times_is_not_copied_a_thousand_times(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve()
    with capture_logs() as logs:
        client = await Packets.connect(closing, running.ws_url)
        placeholders = ",".join(['{"_placeholder":true,"num":0}'] * 1000)
        await client.ws.send_str(f"451-/ws/messages,[[{placeholders}]]")
        await client.ws.send_bytes(b"\0" * 60_000)
        await client.closed()
    assert len(str(logs)) < 10_000


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/socket.io/?EIO=4&transport=polling&j=0", {}),
        ("/socket.io/?EIO=4&transport=polling", {"Origin": "http://\xff"}),
        ("/socket.io/?EIO=4&transport=polling", {f"X-{n}": "a" * 8000 for n in range(3)}),
        ("/socket.io/?EIO=4&transport=websocket", {"Upgrade": "websocket", "Connection": "close"}),
        ("/ws", {"Origin": "http://\xff"}),
        ("/static/" + "a" * 4000, {}),
    ],
)
async def test_what_the_libraries_fail_on_is_refused(serve: Serve, path: str, headers: dict[str, str]) -> None:
    running = await serve()
    host, port = running.url.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": host, "Connection": "close"} | headers).items())
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        status = int((await reader.readline()).split()[1])
        writer.close()
    assert 400 <= status < 500
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize(("site", "known"), [(None, True), ("same-origin", True), ("cross-site", False)])
async def test_a_cookie_that_another_site_sends_is_no_token(serve: Serve, site: str | None, *, known: bool) -> None:
    running = await serve(cors_allowed_origins="*")
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    async with (
        aiohttp.ClientSession(headers=headers, cookies={"jwt": make_token()}) as http,
        http.get(f"{running.url}/online-status?ids=a") as response,
    ):
        assert response.status == (200 if known else 401)


async def test_packets_of_any_kind_have_a_rate(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(rate_limit_events="10/s")
    client = await Packets.start(closing, running.ws_url)
    for _ in range(1200):
        await client.ws.send_str("3")
    assert await client.closed() == 4029


async def test_an_upgrade_packet_out_of_place_ends_a_polling_session(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    polling = await Polling.connect(closing, running.url, "alice")
    assert await polling.post("\x1e".join("5" * 100)) == 400


async def test_a_page_of_users_ends_before_it_is_too_large_to_send(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(rate_limit_events="10000/s")
    beat = running.gateway._tracker.beat
    for n in range(1000):
        profile = Profile(name="n" * 128, avatar='"' * 1024)
        await beat(Beat(tenant="default", user_id=f"user-{n:04}", at=1, holds=True, profile=profile))
        await running.gateway.presence.heartbeat(f"user-{n:04}")
    alice = await Client.connect(closing, running.url)
    found: list[str] = []
    cursor = None
    while True:
        data = (await alice.ask("get-online-users", {"cursor": cursor}))["data"]
        found += [user["userId"] for user in data["users"]]
        assert data["count"] == 1001
        if (cursor := data["nextCursor"]) is None:
            break
    assert found == ["alice", *(f"user-{n:04}" for n in range(1000))]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
async def test_a_development_token_is_not_given_through_a_proxy(serve: Serve, header: str) -> None:
    running = await serve(dev=True)
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{running.url}/dev/token?user=alice") as response:
            assert response.status == 200
        async with http.get(f"{running.url}/dev/token?user=alice", headers={header: "8.8.8.8"}) as response:
            assert response.status == 403


async def test_a_body_that_is_not_what_its_encoding_says_is_the_sender_s_mistake(serve: Serve) -> None:
    running = await serve()
    headers = {"Authorization": f"Bearer {make_token()}", "Content-Encoding": "gzip"}
    with capture_logs() as logs:
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.post(f"{running.url}/presence/heartbeat", data=b"abcd") as response,
        ):
            assert response.status == 400
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize("key", ["!" * 22 + "==", "A" * 21 + "===", "A" * 20 + "B==="])
@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_key_that_is_no_base64_is_refused_and_leaves_nothing_behind(
    serve: Serve, closing: AsyncExitStack, caplog: pytest.LogCaptureFixture, key: str, *, upgrade: bool
) -> None:
    running = await serve(handshake_timeout=0.2)
    query = "EIO=4&transport=websocket"
    if upgrade:
        query += f"&sid={(await Polling.start(closing, running.url)).sid}"
    link = await WebSocket.connect(closing, running.url)
    status, _ = await link.request(query, upgrade_headers(key))
    assert status == 400
    server = running.gateway._server
    await eventually(lambda: (server.eio.sockets, server.environ) == ({}, {}))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("early", "answered"),
    [
        (frame(CLOSE, (1000).to_bytes(2)), [1000]),
        (frame(TEXT, b"3", reserved=4), [1002]),
        (frame(PING, b"there?") + frame(CLOSE, (1000).to_bytes(2)), [1000]),
    ],
    ids=["a close", "reserved bits", "a ping and a close"],
)
async def test_frames_that_come_along_with_the_upgrade_are_taken(
    serve: Serve, closing: AsyncExitStack, early: bytes, answered: list[int]
) -> None:
    running = await serve()
    link = await WebSocket.connect(closing, running.url)
    headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **upgrade_headers()}.items())
    with capture_logs() as logs:
        link.write(f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n{headers}\r\n".encode(), early)
        assert (await link.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert [await link.ended()] == answered
        await eventually(lambda: not running.gateway._server.eio.sockets)
    assert [line for line in logs if line["log_level"] == "error"] == []


@on_fast
async def test_the_handshake_is_told_before_anything_that_came_along_is_answered(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve()
    link = await WebSocket.connect(closing, running.url)
    headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **upgrade_headers()}.items())
    early = frame(PING, b"there?")
    link.write(f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n{headers}\r\n".encode(), early)
    await link.reader.readuntil(b"\r\n\r\n")
    [session] = running.gateway._server.eio.sockets.values()
    opcode, opening = await link.frame()
    assert (opcode, json.loads(opening[1:].decode())["sid"]) == (TEXT, session.sid)
    assert await link.frame() == (PONG, b"there?")


async def test_who_comes_and_goes_as_clients_do_costs_no_packet_of_python_socketio(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve()
    monkeypatch.setattr(running.gateway._server, "packet_class", Mock(side_effect=AssertionError))
    client = await Packets.connect(closing, running.ws_url)
    assert len(running.gateway._connections) == 1
    await client.ws.send_str("41/ws/messages,")
    await eventually(lambda: len(running.gateway._connections) == 0)
    assert not client.ws.closed
    await client.join(make_token("alice"))
    assert len(running.gateway._connections) == 1


@pytest.mark.parametrize("come", ["40/ws/messages?a=1,{token}", "40/ws/messages, {token}", "40/ws/messages,{token} "])
@pytest.mark.parametrize("go", ["41/ws/messages", "41/ws/messages?a=1,", '41/ws/messages,{"a":1}'])
async def test_who_comes_and_goes_otherwise_is_understood_too(
    serve: Serve, closing: AsyncExitStack, come: str, go: str
) -> None:
    running = await serve()
    client = await Packets.start(closing, running.ws_url)
    await client.ws.send_str(come.replace("{token}", json.dumps({"token": make_token()})))
    assert (await client.packet("40")).startswith('40/ws/messages,{"sid":"')
    assert len(running.gateway._connections) == 1
    await client.ws.send_str(go)
    await eventually(lambda: len(running.gateway._connections) == 0)


@pytest.mark.parametrize("text", ["40/ws/messages,{", "40/ws/messages,{}x", "4,", "41,", "40/ws/messages,[1]"])
async def test_who_comes_with_what_is_malformed_comes_not_at_all(
    serve: Serve, closing: AsyncExitStack, text: str
) -> None:
    running = await serve()
    client = await Packets.start(closing, running.ws_url)
    with capture_logs() as logs:
        await client.ws.send_str(text)
        await client.ws.send_str("41/ws/messages,")
        other = await Packets.connect(closing, running.ws_url)
        await other.ask("heartbeat", {})
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert len(running.gateway._connections) == 1


async def test_a_client_that_the_server_takes_out_of_a_namespace_is_answered_nothing_there(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve()
    link = await WebSocket.open(closing, running.url)
    join = f'40/ws/messages,{{"token":"{make_token("alice")}"}}'
    await link.send(join)
    joined = json.loads(str(await link.packet()).removeprefix("40/ws/messages,"))
    await running.gateway._server.disconnect(joined["sid"], namespace="/ws/messages")
    await link.send('42/ws/messages,7["heartbeat"]', join)
    heard = [str(await link.packet())]
    while not heard[-1].startswith("40"):
        heard.append(str(await link.packet()))
    assert [packet[:2] for packet in heard] == ["42", "41", "40"], "connected, its end, and joined again"


async def test_an_empty_session_id_is_none(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    status, link = await WebSocket.upgrade(closing, running.url, "EIO=4&transport=websocket&sid=")
    assert status == 101
    opening = await link.packet()
    assert isinstance(opening, str)
    assert opening[:1] == "0"


FLOODS = {
    "pings": frame(PING) * 10_000,
    "pongs": frame(PONG) * 10_000,
    "fragments without a byte": frame(TEXT, b"4", fin=False) + frame(CONTINUATION, fin=False) * 10_000,
    "fragments of a byte": frame(TEXT, b"4", fin=False) + frame(CONTINUATION, b"a", fin=False) * 10_000,
}


@pytest.mark.parametrize(
    ("engine", "name"), [*(("fast", name) for name in FLOODS), ("stock", "pings"), ("stock", "pongs")]
)
@pytest.mark.parametrize("upgraded", [False, True])
async def test_frames_that_are_no_packet_have_a_rate_too(
    serve: Serve, closing: AsyncExitStack, engine: str, name: str, *, upgraded: bool
) -> None:
    running = await serve(rate_limit_events="10/s", gateway_engine=engine)
    link = await open_link(closing, running.url, "upgraded" if upgraded else "websocket")
    assert isinstance(link, WebSocket)
    link.write(FLOODS[name])
    heard = [await link.frame()]
    while heard[-1][0] != CLOSE:
        heard.append(await link.frame())
    assert int.from_bytes(heard[-1][1]) == 4029
    assert len(heard) <= 1100
    assert await eventually(lambda: not running.gateway._server.eio.sockets)


@on_fast
async def test_pings_beside_a_polling_session_have_a_rate_too(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(rate_limit_events="10/s")
    polling = await Polling.connect(closing, running.url, "alice")
    link = await probe(closing, running.url, polling.sid)
    link.write(FLOODS["pings"])
    opcodes: list[int] = []
    while not opcodes or opcodes[-1] != CLOSE:
        opcodes.append((await link.frame())[0])
    assert len(opcodes) <= 1100


@pytest.mark.parametrize("probed", [False, True])
async def test_a_websocket_beside_a_polling_session_ends_with_it(
    serve: Serve, closing: AsyncExitStack, *, probed: bool
) -> None:
    running = await serve()
    polling = await Polling.connect(closing, running.url, "alice")
    if probed:
        link = await probe(closing, running.url, polling.sid)
    else:
        status, link = await WebSocket.upgrade(closing, running.url, f"EIO=4&transport=websocket&sid={polling.sid}")
        assert status == 101
    assert await polling.post("1") == 200
    await link.ended()


async def beside_polling(closing: AsyncExitStack, running: Running) -> socket.socket:
    """Open a WebSocket for a polling session that has not moved over, and read nothing of it."""
    polling = await Polling.start(closing, running.url)
    return await deaf_websocket(closing, running.url, f"/socket.io/?EIO=4&transport=websocket&sid={polling.sid}")


@on_fast
async def test_little_waits_for_a_client_that_does_not_read_beside_its_polling(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(max_send_buffer=65_536, rate_limit_events="100000/s", handshake_timeout=60)
    raw = await beside_polling(closing, running)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(raw, frame(PING, bytes(125)) * 100_000), STEP)


@on_fast
async def test_an_upgrade_that_is_given_up_ends_for_a_client_that_does_not_read(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(max_send_buffer=50_000_000, rate_limit_events="100000/s")
    raw = await beside_polling(closing, running)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, frame(PING, bytes(125)) * 60_000 + frame(TEXT, b"bad"))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(loop.sock_sendall(raw, bytes(100_000_000)), STEP)


@on_fast
@pytest.mark.parametrize("last", [b"", frame(TEXT, b"2", reserved=4, masked=False)], ids=["its end", "a bad frame"])
async def test_one_who_reads_nothing_and_ends_it_is_let_go_of(
    serve: Serve, closing: AsyncExitStack, last: bytes
) -> None:
    running = await serve(max_send_buffer=50_000_000, ping_interval=0.3, ping_timeout=0.3)
    loop = asyncio.get_running_loop()
    raw = await deaf_websocket(closing, running.url, "/socket.io/?EIO=4&transport=websocket")
    await loop.sock_sendall(raw, client_frame(f'40/ws/messages,{{"token":"{make_token("alice")}"}}'))
    await eventually(lambda: running.gateway.presence.status("alice").online)
    [session] = running.gateway._server.eio.sockets.values()
    for _ in range(20):
        await running.gateway.notify("alice", "much", "a" * 1_000_000)
    await loop.sock_sendall(raw, last)
    raw.shutdown(socket.SHUT_WR)
    await eventually(lambda: not running.gateway._server.eio.sockets)
    await eventually(lambda: session._transport.get_extra_info("socket").fileno() == -1)


@on_fast
async def test_empty_messages_that_wait_for_their_turn_are_bounded_too(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve()
    verified = asyncio.Event()

    async def identify(_token: str | None) -> Identity:
        await verified.wait()
        raise TokenInvalidError("no such token")

    monkeypatch.setattr(running.gateway._authenticator, "identify", identify)
    link = await WebSocket.open(closing, running.url)
    await link.send("40/ws/messages,")
    [session] = running.gateway._server.eio.sockets.values()
    await eventually(lambda: session._held is not None)
    link.write(frame(TEXT) * 200_000)
    await eventually(lambda: not session._transport.is_reading())
    assert len(session._held) < 200_000
    verified.set()
    await link.ended()


@pytest.mark.parametrize("data", ["[]", "[1]", '[{"a":1}]'])
async def test_what_is_no_event_is_none_beyond_the_rate_either(
    serve: Serve, closing: AsyncExitStack, data: str
) -> None:
    running = await serve(rate_limit_events="1/h")
    client = await Packets.connect(closing, running.ws_url)
    await client.ask("heartbeat", {})
    with capture_logs() as logs:
        await client.ws.send_str(f"42/ws/messages,{data}")
        assert await client.closed() == 1000
    assert client.heard == [("1", {})]
    assert [line["event"] for line in logs if line["log_level"] != "debug"][:1] == ["malformed packet"]


@on_fast
@pytest.mark.parametrize("client_closes", [True, False])
async def test_no_cycle_is_left_of_a_connection(serve: Serve, closing: AsyncExitStack, *, client_closes: bool) -> None:
    running = await serve()
    client = await Packets.connect(closing, running.ws_url)
    [session] = running.gateway._server.eio.sockets.values()
    left = [weakref.ref(part) for part in (session, session._listener)]
    del session
    gc.disable()  # which looks seldom: see gateway/__main__.py
    try:
        if client_closes:
            await client.ws.close()
        else:
            abort(client.ws)
        await eventually(lambda: [part() for part in left] == [None, None])
    finally:
        gc.enable()


@on_fast
def test_nothing_of_what_served_the_upgrade_is_left() -> None:
    """On the loop that the gateway is served by, whose transports keep more than asyncio's."""

    async def run() -> None:
        gateway = Gateway(make_settings())
        runner = web.AppRunner(create_app(gateway))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with AsyncExitStack() as closing:
            await Packets.connect(closing, f"ws://127.0.0.1:{runner.addresses[0][1]}")
            left.append(len(handlers()))
        await runner.cleanup()

    def handlers() -> list[object]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is RequestHandler]

    left = [len(handlers())]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(run())
    assert left[0] == left[1]


@on_fast
async def test_a_connection_keeps_what_it_needs_and_once(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    await Packets.connect(closing, running.ws_url)
    server = running.gateway._server
    [session] = server.eio.sockets.values()
    environ = server.environ[session.sid]
    assert environ["aiohttp.request"].headers["Upgrade"] == environ["HTTP_UPGRADE"] == "websocket"
    assert environ["aiohttp.request"].raw_headers == ()
    assert not session._listener.wire.request.headers
    assert not hasattr(session._listener, "__dict__")
    assert not hasattr(session, "posting")  # one that polls has it
    [receiver] = session.receivers
    assert receiver.route is server.namespace_handlers["/ws/messages"].route
    [live] = running.gateway._connections.of_user("default", "mallory")
    assert (live.subscriber, live.patience, live.token, live.shares) == (None,) * 4  # it is in no channel, and no flood


@on_fast
async def test_what_fails_while_a_frame_is_read_is_logged(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    client = await Packets.connect(closing, running.ws_url)

    def fail(*_arguments: object) -> None:
        raise LookupError("a mistake of ours")

    [session] = running.gateway._server.eio.sockets.values()
    session.receivers[0].route.tell = fail
    with capture_logs() as logs:
        await client.ws.send_str('42/ws/messages,["heartbeat"]')
        assert await client.closed() == 1011
    assert [line["exc_info"] for line in logs if line["log_level"] == "error"] == [True]


@on_fast
async def test_a_flood_that_is_read_in_one_turn_of_the_loop_is_not_answered_whole(
    serve: Serve, closing: AsyncExitStack
) -> None:
    running = await serve(rate_limit_events="10/s")
    await Packets.connect(closing, running.ws_url)
    [session] = running.gateway._server.eio.sockets.values()
    served = takewhile(bool, (session.stream._serve_event(b'42/ws/messages,["nothing"]') for _ in range(20_000)))
    assert len(list(served)) <= 1100  # what is not is left to the stock path, and all behind it waits


@on_fast
async def test_a_client_that_leaves_while_its_token_is_verified_is_no_error(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve()
    gateway, asked, verified = running.gateway, asyncio.Event(), asyncio.Event()
    identify = gateway._authenticator.identify

    async def slowly(token: str | None) -> Identity:
        asked.set()
        await verified.wait()
        return await identify(token)

    monkeypatch.setattr(gateway._authenticator, "identify", slowly)
    link = await WebSocket.open(closing, running.url)
    await link.send(f'40/ws/messages,{{"token":"{make_token("alice")}"}}')
    await asyncio.wait_for(asked.wait(), STEP)
    await link.vanish()
    await eventually(lambda: not gateway._server.eio.sockets)
    with capture_logs() as logs:
        verified.set()
        await eventually(lambda: not gateway._server.manager.rooms)
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert not any(gateway._counts.refused.values())
