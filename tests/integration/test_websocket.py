"""The plain WebSocket door, section 5 of the contract."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import websockets
from aiohttp import WSMsgType
from clients import USER_OFFLINE, USER_ONLINE, USER_STATUS, Plain, brief_token, is_timestamp
from conftest import STEP, Running, eventually, make_token
from protocol import PING, PONG, frame
from yarl import URL

Serve = Callable[..., Awaitable[Running]]


async def test_a_connection_is_greeted_with_connected(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    [(name, data)] = alice.heard
    assert name == "connected"
    assert set(data) == {"userId", "socketId", "timestamp", "reconnect"}
    assert (data["userId"], data["reconnect"]) == ("alice", False)
    assert isinstance(data["socketId"], str)
    assert is_timestamp(data["timestamp"])


@pytest.mark.parametrize(
    ("event", "data", "answered", "keys"),
    [
        ("check-user-status", {"userId": "alice"}, "user-status", USER_STATUS | {"timestamp"}),
        ("check-users-status", {"userIds": ["a", "b"]}, "users-status", {"statuses", "timestamp"}),
        ("get-online-users", None, "online-users", {"users", "count", "nextCursor", "timestamp"}),
        ("heartbeat", None, "heartbeat-ack", {"timestamp", "lastActive"}),
        ("heartbeat", {"meta": {"page": "home"}}, "heartbeat-ack", {"timestamp", "lastActive"}),
        ("refresh-token", {"token": make_token()}, "token-refreshed", {"expiresAt"}),
    ],
)
@pytest.mark.parametrize("request_id", [0, "seven"])
async def test_every_request_is_answered_with_its_id(
    serve: Serve,
    closing: AsyncExitStack,
    event: str,
    data: object,
    answered: str,
    keys: set[str],
    request_id: object,
) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    frame = await alice.ask(event, data, id=request_id)
    assert set(frame) == {"event", "data", "id"}
    assert (frame["event"], frame["id"]) == (answered, request_id)
    assert set(frame["data"]) == keys


async def test_without_an_id_the_answer_has_none(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    await alice.ws.send_json({"event": "check-user-status", "data": {"userId": "alice"}})
    frame = await alice.frame()
    assert set(frame) == {"event", "data"}
    assert frame["event"] == "user-status"
    await alice.ws.send_json({"event": "check-user-status"})
    frame = await alice.frame()
    assert set(frame) == {"event", "error"}


@pytest.mark.parametrize(
    ("event", "data", "code"),
    [
        ("check-user-status", {}, "INVALID_PAYLOAD"),
        ("check-users-status", {"userIds": [str(number) for number in range(1001)]}, "INVALID_PAYLOAD"),
        ("heartbeat", "now", "INVALID_PAYLOAD"),
        ("refresh-token", {"token": make_token("bob")}, "FORBIDDEN"),
        ("no-such-request", None, "UNKNOWN_EVENT"),
        ("", None, "UNKNOWN_EVENT"),
        ("connect", None, "UNKNOWN_EVENT"),
        ("disconnect", None, "UNKNOWN_EVENT"),
    ],
)
async def test_a_failure_comes_back_with_its_id(
    serve: Serve, closing: AsyncExitStack, event: str, data: object, code: str
) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    frame = await alice.ask(event, data, id=3)
    assert set(frame) == {"event", "error", "id"}
    assert frame["event"] == "error"
    assert set(frame["error"]) == {"code", "message"}
    assert frame["error"]["code"] == code
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "not json",
        "{",
        "null",
        "[]",
        "5",
        "{}",
        '{"data": {}}',
        '{"event": 5}',
        '{"event": null}',
        '{"event": ["heartbeat"]}',
        '{"event": "heartbeat", "id": {}}',
        '{"event": "heartbeat", "id": 1.5}',
        '{"event": "heartbeat", "id": true}',
        '{"event": "heartbeat", "data": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"event": "\\ud800"}',
    ],
)
async def test_a_frame_that_is_no_request_is_answered_as_invalid(
    serve: Serve, closing: AsyncExitStack, frame: str
) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    await alice.ws.send_str(frame)
    answer = await alice.frame()
    assert set(answer) == {"event", "error"}
    assert (answer["event"], answer["error"]["code"]) == ("error", "INVALID_PAYLOAD")
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_binary_frame_is_answered_as_invalid(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Plain.connect(closing, (await serve()).ws_url)
    await alice.ws.send_bytes(b'{"event": "heartbeat"}')
    assert (await alice.frame())["error"]["code"] == "INVALID_PAYLOAD"
    assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_over_the_rate_a_request_is_refused_and_a_flood_is_closed_with_4029(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(rate_limit_events="3/h")
    alice = await Plain.connect(closing, gateway.ws_url)
    for _ in range(3):
        assert (await alice.ask("heartbeat"))["event"] == "heartbeat-ack"
    frame = await alice.ask("heartbeat")
    assert set(frame["error"]) == {"code", "message", "retryAfter"}
    assert frame["error"]["code"] == "RATE_LIMITED"
    for _ in range(40):
        await alice.ws.send_str('{"event": "heartbeat"}')
    assert await alice.closed() == 4029
    await eventually(lambda: not gateway.gateway.presence.status("alice").online)


async def test_events_come_as_on_socket_io(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    alice = await Plain.connect(closing, gateway.ws_url)
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    online = await alice.until("user-online")
    assert set(online) == {"event", "data"}
    assert set(online["data"]) == USER_ONLINE
    assert (online["data"]["userId"], online["data"]["version"]) == ("bob", 1)
    await gateway.gateway.notify("alice", "order-shipped", {"order": 42})
    assert await alice.frame() == {"event": "order-shipped", "data": {"order": 42}}
    await bob.ws.close()
    offline = await alice.until("user-offline")
    assert set(offline["data"]) == USER_OFFLINE
    assert (offline["data"]["userId"], offline["data"]["version"]) == ("bob", 2)
    assert alice.presence("alice") == []


async def test_away_and_back_come_as_one_event_each(serve: Serve, closing: AsyncExitStack) -> None:
    alice = await Plain.connect(closing, (await serve(presence_away_after=0.3)).ws_url)
    away = await alice.until("user-status-changed")
    assert set(away["data"]) == USER_STATUS | {"timestamp"}
    assert (away["data"]["status"], away["data"]["online"]) == ("away", True)
    await alice.ws.send_json({"event": "heartbeat"})
    back = await alice.until("user-status-changed")
    assert (back["data"]["status"], back["data"]["version"]) == ("online", 3)
    assert [name for name in alice.names() if name in {"user-online", "user-offline"}] == []


@pytest.mark.parametrize(
    "place",
    [
        lambda token: (f"?token={token}", {}),
        lambda token: ("", {"Authorization": f"Bearer {token}"}),
        lambda token: ("", {"Cookie": f"jwt={token}"}),
    ],
    ids=["query", "header", "cookie"],
)
async def test_a_token_is_found_in_its_places(
    serve: Serve, closing: AsyncExitStack, place: Callable[[str], tuple[str, dict[str, str]]]
) -> None:
    gateway = await serve()
    query, headers = place(make_token("carol"))
    client = await Plain.open(closing, f"{gateway.ws_url}/ws{query}", headers=headers)
    assert (await client.frame())["data"]["userId"] == "carol"


# The end of a connection


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("", 4001),
        ("nonsense", 4001),
        (make_token(secret="another secret, as long as the other one"), 4001),
        (make_token(exp=None), 4001),
        (make_token(ttl=-60), 4002),
    ],
)
async def test_without_a_good_token_the_connection_is_closed(
    serve: Serve, closing: AsyncExitStack, token: str, code: int
) -> None:
    gateway = await serve()
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={token}")
    assert await client.closed() == code
    assert client.heard == []
    assert gateway.gateway.presence.online_count() == 0


async def test_one_connection_too_many_is_closed_with_4029(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(max_connections_per_user=1)
    first = await Plain.connect(closing, gateway.ws_url)
    second = await Plain.open(closing, f"{gateway.ws_url}/ws?token={make_token()}")
    assert await second.closed() == 4029
    assert (await first.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_full_tenant_is_closed_with_1013(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(max_connections_per_tenant=1)
    await Plain.connect(closing, gateway.ws_url)
    second = await Plain.open(closing, f"{gateway.ws_url}/ws?token={make_token('bob')}")
    assert await second.closed() == 1013


async def test_a_token_that_runs_out_is_closed_with_4002_and_offline_at_once(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.connections.EXPIRY_NOTICE", 0.2)
    gateway = await serve(presence_offline_grace=60)
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={brief_token()}")
    notice = await client.until("token-expired")
    assert set(notice["data"]) == {"timestamp"}
    assert await client.closed() == 4002
    await eventually(lambda: not gateway.gateway.presence.status("alice").online)


async def test_a_refreshed_token_keeps_the_connection(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.connections.EXPIRY_NOTICE", 0.4)
    gateway = await serve()
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={brief_token()}")
    await client.until("token-expired")
    assert (await client.ask("refresh-token", {"token": make_token()}))["event"] == "token-refreshed"
    await asyncio.sleep(0.6)  # the notice that was running would have run out
    assert (await client.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_kick_is_closed_with_4003_and_offline_at_once(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=60)
    client = await Plain.connect(closing, gateway.ws_url)
    assert await gateway.gateway.disconnect("alice") == 1
    assert await client.closed() == 4003
    assert gateway.gateway.presence.status("alice").online is False


async def test_a_node_that_stops_tells_and_closes_with_1001(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    client = await Plain.connect(closing, gateway.ws_url)
    stopping = asyncio.create_task(gateway.runner.cleanup())
    notice = await client.until("server-draining")
    assert set(notice["data"]) == {"timestamp", "retryAfter"}
    assert is_timestamp(notice["data"]["timestamp"])
    assert await client.closed() == 1001
    await stopping
    explained = await gateway.gateway._store.explain("default", "alice")
    assert explained.status.online is True
    assert explained.grace_until is not None


async def test_a_node_that_drains_closes_newcomers_with_1001(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    await gateway.gateway.drain()
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={make_token()}")
    assert await client.closed() == 1001


async def test_a_client_that_is_gone_before_it_is_answered_is_no_error(
    serve: Serve, closing: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    running = await serve()
    for _ in range(10):
        gone = socket.create_connection(("127.0.0.1", URL(running.url).port))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
        gone.send(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        gone.close()
    client = await Plain.connect(closing, running.ws_url)  # comes behind them
    assert (await client.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert [record.message for record in caplog.records if record.exc_info] == []


async def close_without_code(client: Plain) -> None:
    await client.ws._writer.send_frame(b"", aiohttp.WSMsgType.CLOSE)


async def vanish(client: Plain) -> None:
    client.vanish()


async def be_killed(client: Plain) -> None:
    client.vanish(reset=False)


ENDINGS: dict[str, tuple[Callable[[Plain], Any], bool]] = {
    "1000": (lambda client: client.ws.close(code=1000), True),
    "no code": (close_without_code, True),
    "1001": (lambda client: client.ws.close(code=1001), False),
    "4000": (lambda client: client.ws.close(code=4000), False),
    "cut off": (vanish, False),
    "killed": (be_killed, False),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_close_frame_is_a_goodbye_or_a_loss_by_its_code(
    serve: Serve, closing: AsyncExitStack, ending: str
) -> None:
    close, goodbye = ENDINGS[ending]
    gateway = await serve(presence_offline_grace=0.3)
    client = await Plain.connect(closing, gateway.ws_url)
    await close(client)
    await eventually(lambda: len(gateway.gateway._connections) == 0)
    explained = await gateway.gateway._store.explain("default", "alice")
    assert (explained.status.online, explained.grace_until is None) == (not goodbye, goodbye)
    await eventually(lambda: not gateway.gateway.presence.status("alice").online)


async def test_a_connection_cut_off_has_its_grace_and_is_resumed_within_it(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve(presence_offline_grace=60)
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    alice = await Plain.connect(closing, gateway.ws_url)
    alice.vanish()
    await eventually(lambda: len(gateway.gateway._connections) == 1)
    assert gateway.gateway.presence.status("alice").online is True
    again = await Plain.connect(closing, gateway.ws_url)
    assert again.heard[0][1]["reconnect"] is True
    await bob.ask("heartbeat")
    assert bob.presence("alice") == [("user-online", "alice", 1)]


async def test_a_client_that_answers_no_pings_is_lost(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(ping_interval=0.2)
    await Plain.connect(closing, gateway.ws_url, autoping=False)
    assert gateway.gateway.presence.status("alice").online is True
    await eventually(lambda: not gateway.gateway.presence.status("alice").online)


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_control_frames_have_a_rate(serve: Serve, closing: AsyncExitStack, opcode: int) -> None:
    gateway = await serve()
    client = await Plain.connect(closing, gateway.ws_url, autoping=False)
    transport = client.ws._response.connection.transport  # type: ignore[union-attr]
    transport.write(frame(opcode) * 10_000)  # type: ignore[union-attr]
    answers = 0
    while (message := await client.ws.receive(STEP)).type is WSMsgType.PONG:
        answers += 1
    assert (message.type, message.data) == (WSMsgType.CLOSE, 4029)
    assert answers in (range(1024, 1100) if opcode == PING else [0])


async def test_a_client_that_answers_pings_stays(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(ping_interval=0.1)
    client = await Plain.connect(closing, gateway.ws_url)
    reading = asyncio.create_task(client.ws.receive())
    await asyncio.sleep(0.5)  # five intervals, within which it must not be taken for lost
    assert gateway.gateway.presence.status("alice").online is True
    reading.cancel()


async def test_two_doors_are_one_user(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    first = await Plain.connect(closing, gateway.ws_url)
    await gateway.gateway.presence.set_online("alice")
    await first.ws.close()
    await eventually(lambda: len(gateway.gateway._connections) == 1)
    await bob.ask("heartbeat")
    assert bob.presence("alice") == [("user-online", "alice", 1)]
    await gateway.gateway.presence.set_offline("alice")
    await bob.ask("heartbeat")
    assert bob.presence("alice") == [("user-online", "alice", 1), ("user-offline", "alice", 2)]


async def test_a_client_that_vanishes_while_it_is_let_in_leaves_no_ghost(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await serve()
    entered, go_on = asyncio.Event(), asyncio.Event()
    identify = gateway.gateway._authenticator.identify

    async def slowly(token: str | None) -> Any:
        entered.set()
        await go_on.wait()
        return await identify(token)

    monkeypatch.setattr(gateway.gateway._authenticator, "identify", slowly)
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={make_token()}")
    await entered.wait()
    client.vanish()
    go_on.set()
    await eventually(lambda: gateway.gateway.presence.status("alice").version == 2)
    assert gateway.gateway.presence.online_count() == 0
    assert len(gateway.gateway._connections) == 0


# Origins


@pytest.mark.parametrize(
    ("origin", "settings", "allowed"),
    [
        ("same", {}, True),
        (None, {}, True),
        ("https://evil.example", {}, False),
        ("null", {}, False),
        ("https://app.example", {"cors_allowed_origins": "https://app.example"}, True),
        ("https://app.example:8443", {"cors_allowed_origins": "https://app.example"}, False),
        ("https://app.example.evil.example", {"cors_allowed_origins": "https://app.example"}, False),
        ("http://app.example", {"cors_allowed_origins": "https://app.example"}, False),
        ("https://evil.example", {"cors_allowed_origins": "*"}, True),
        ("http://localhost:5173", {}, False),
        ("http://localhost:5173", {"dev": True}, True),
        ("null", {"dev": True}, True),
        ("http://localhost.evil.example", {"dev": True}, False),
        ("https://evil.example", {"dev": True}, False),
    ],
)
@pytest.mark.parametrize("path", ["/ws", "/socket.io/?EIO=4&transport=websocket"])
async def test_a_page_connects_from_an_allowed_origin_only(
    serve: Serve, closing: AsyncExitStack, origin: str | None, settings: dict[str, Any], *, allowed: bool, path: str
) -> None:
    gateway = await serve(**settings)
    headers = {"Authorization": f"Bearer {make_token()}"}
    if origin is not None:
        headers["Origin"] = gateway.url if origin == "same" else origin
    session = await closing.enter_async_context(aiohttp.ClientSession())
    if allowed:
        ws = await session.ws_connect(gateway.ws_url + path, headers=headers)
        await ws.receive_str()
        await ws.close()
    else:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(gateway.ws_url + path, headers=headers)
        assert refused.value.status == (403 if path == "/ws" else 400)


@pytest.mark.parametrize(
    ("origin", "settings", "trusted"),
    [
        (None, {}, True),
        ("https://app.example", {"cors_allowed_origins": "https://app.example"}, True),
        ("https://app.example", {"cors_allowed_origins": "https://app.example,*"}, True),
        ("https://evil.example", {"cors_allowed_origins": "*"}, False),
        ("null", {"dev": True}, False),
    ],
)
async def test_a_cookie_is_a_token_only_from_a_page_allowed_by_name(
    serve: Serve, closing: AsyncExitStack, origin: str | None, settings: dict[str, Any], *, trusted: bool
) -> None:
    gateway = await serve(**settings)
    headers = {"Cookie": f"jwt={make_token()}"} | ({} if origin is None else {"Origin": origin})
    client = await Plain.open(closing, f"{gateway.ws_url}/ws", headers=headers)
    if trusted:
        assert (await client.frame())["event"] == "connected"
    else:
        assert await client.closed() == 4001


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "x" * 5000, "http://localhost:port"])
@pytest.mark.parametrize("path", ["/ws", "/socket.io/?EIO=4&transport=websocket"])
async def test_an_origin_that_is_none_is_refused_without_a_failure(
    serve: Serve, closing: AsyncExitStack, origin: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(dev=True)
    session = await closing.enter_async_context(aiohttp.ClientSession())
    if origin == "http://localhost:port":
        ws = await session.ws_connect(gateway.ws_url + path, headers={"Origin": origin})
        await ws.close()
    else:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(gateway.ws_url + path, headers={"Origin": origin})
        assert refused.value.status in {400, 403}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_get_that_is_no_upgrade_is_told_so(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    session = await closing.enter_async_context(aiohttp.ClientSession())
    async with session.get(f"{gateway.url}/ws?token={make_token()}") as response:
        assert response.status == 426
        assert response.headers["Upgrade"] == "websocket"


async def test_another_library_is_served_too(serve: Serve) -> None:
    gateway = await serve()
    async with websockets.connect(f"{gateway.ws_url}/ws?token={make_token()}") as client:
        assert json.loads(await client.recv())["event"] == "connected"
        await client.send(json.dumps({"event": "heartbeat", "id": 1}))
        assert json.loads(await client.recv())["event"] == "heartbeat-ack"
        await client.close()
    await eventually(lambda: not gateway.gateway.presence.status("alice").online)
