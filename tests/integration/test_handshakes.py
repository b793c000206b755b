"""What stands before aiohttp: what it opens, and that whatever it leaves is answered as if it were not there."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from clients import NAMESPACE, client_frame
from conftest import STEP, Running, eventually, make_settings, make_token
from protocol import Hosted
from redis_servers import make_certificates

from gateway import Gateway
from gateway.app import create_app
from gateway.doors.problems import problems

Serve = Callable[..., Awaitable[Running]]

USUAL = "/socket.io/?EIO=4&transport=websocket"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def head(target: str = USUAL, *more: str, first: str = "", without: str = "", **instead: str) -> bytes:
    """A request for a WebSocket; `more` are further lines, `instead` other values."""
    values = {
        "Host": "presence.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    }
    values |= {name.replace("_", "-"): value for name, value in instead.items()}
    lines = [f"{name}: {value}" for name, value in values.items() if name != without]
    return "\r\n".join([first or f"GET {target} HTTP/1.1", *lines, *more, "", ""]).encode("latin-1")


TAKEN = {
    "as libraries ask": head(),
    "as browsers ask": head(
        USUAL,
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
        "Accept-Encoding: gzip, deflate, br",
        "Cookie: a=b; c=d",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Origin: http://presence.example",
        Connection="keep-alive, Upgrade",
    ),
    "as nginx asks": head(
        USUAL, "X-Forwarded-For: 10.0.0.1, 10.0.0.2", "X-Forwarded-Proto: http", Connection="upgrade"
    ),
    "in small letters": head()
    .lower()
    .replace(b"get", b"GET")
    .replace(b"http/", b"HTTP/")
    .replace(b"eio", b"EIO")
    .replace(KEY.lower().encode(), KEY.encode()),
    "in capitals": head(Upgrade="WEBSOCKET", Connection="UPGRADE"),
    "the other way round": head("/socket.io/?transport=websocket&EIO=4&room=%C3%A9+a%2Bb&empty="),
    "with no space, and with more": head(USUAL, "X-None:value", "X-More: \t value of two words", "X-Empty:"),
    "with an empty session id": head(f"{USUAL}&sid="),
}

LEFT = {
    "another method": head(first=f"POST {USUAL} HTTP/1.1"),
    "a small method": head(first=f"get {USUAL} HTTP/1.1"),
    "an older version": head(first=f"GET {USUAL} HTTP/1.0"),
    "a newer version": head(first=f"GET {USUAL} HTTP/2.0"),
    "a small version": head(first=f"GET {USUAL} http/1.1"),
    "two spaces": head(first=f"GET  {USUAL} HTTP/1.1"),
    "no version": head(first=f"GET {USUAL}"),
    "an absolute target": head(f"http://presence.example{USUAL}"),
    "another path": head("/socket.iox/?EIO=4&transport=websocket"),
    "a path without its slash": head("/socket.io?EIO=4&transport=websocket"),
    "a path in escapes": head("/socket%2Eio/?EIO=4&transport=websocket"),
    "a fragment": head(f"{USUAL}#here"),
    "a quotation mark": head(f'{USUAL}&a="b"'),
    "what is not ASCII": head(f"{USUAL}&a=é"),
    "JSONP": head(f"{USUAL}&j=1"),
    "another protocol": head("/socket.io/?EIO=3&transport=websocket"),
    "no protocol": head("/socket.io/?transport=websocket"),
    "polling": head("/socket.io/?EIO=4&transport=polling"),
    "an unknown session": head(f"{USUAL}&sid=nobody"),
    "no query": head("/socket.io/"),
    "no host": head(without="Host"),
    "two hosts": head(USUAL, "Host: another.example"),
    "no upgrade": head(without="Upgrade"),
    "another upgrade": head(Upgrade="h2c"),
    "no connection": head(without="Connection"),
    "another connection": head(Connection="close"),
    "a connection of which there are two opinions": head(Connection="notupgrade"),
    "no key": head(without="Sec-WebSocket-Key"),
    "two keys": head(USUAL, f"Sec-WebSocket-Key: {KEY}"),
    "a key that is too short": head(Sec_WebSocket_Key="c2hvcnQ="),
    "a key that is none": head(Sec_WebSocket_Key="!" * 24),
    "no version of WebSocket": head(without="Sec-WebSocket-Version"),
    "another version of WebSocket": head(Sec_WebSocket_Version="8"),
    "a body": head(USUAL, "Content-Length: 4") + b"body",
    "no body": head(USUAL, "Content-Length: 0"),
    "a body in parts": head(USUAL, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two opinions on a body": head(USUAL, "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "what it expects": head(USUAL, "Expect: 100-continue"),
    "a folded line": head(USUAL, "X-Long: a", " b"),
    "a line without a colon": head(USUAL, "nonsense"),
    "a name with a space": head(USUAL, "X Name: a"),
    "a space before the colon": head(USUAL, "X-Name : a"),
    "no name": head(USUAL, ": a"),
    "a space at the end": head(USUAL, "X-Name: a "),
    "a control character": head(USUAL, "X-Name: a\x01b"),
    "a zero": head(USUAL, "X-Name: a\x00b"),
    "a value that is not ASCII": head(USUAL, "X-Name: é"),
    "a lone line feed": head(USUAL, "X-Name: a\nX-Other: b"),
    "a lone carriage return": head(USUAL, "X-Name: a\rX-Other: b"),
    "only line feeds": head().replace(b"\r\n", b"\n"),
    "an empty line before": b"\r\n" + head(),
    "another site's page": head(USUAL, "Origin: https://evil.example"),
    "an origin that is none": head(USUAL, "Origin: https://[evil"),
    "a header twice": head(USUAL, "X-Twice: a", "x-twice: b"),
    "many headers": head(USUAL, *(f"X-{number}: a" for number in range(100))),
    "more headers than anyone takes": head(USUAL, *(f"X-{number}: a" for number in range(200))),
    "a long line": head(USUAL, f"X-Long: {'a' * 8000}"),
    "a longer line": head(USUAL, f"X-Long: {'a' * 9000}"),
    "long headers": head(USUAL, *(f"X-{number}: {'a' * 4000}" for number in range(5))),
    "a long target": head(f"{USUAL}&a={'b' * 9000}"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "another call": b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
}

_OWN = re.compile(rb"Date: [^\r]*|[\w-]{20}(?=\")")
"""What no two answers have alike."""


async def answer(running: Running, *parts: bytes) -> bytes:
    """What is answered, without what no two answers have alike, until there is the head and what came with it."""
    reader, writer = await connect(running)
    for part in parts:
        writer.write(part)
        await writer.drain()
        if len(parts) > 1:
            await asyncio.sleep(0)
    try:
        async with asyncio.timeout(STEP):
            said = await reader.readuntil(b"\r\n\r\n")
            if (found := re.search(rb"Content-Length: (\d+)", said)) is not None:
                said += await reader.readexactly(int(found[1]))
            elif said.startswith(b"HTTP/1.1 101"):
                said += await reader.readuntil(b"}")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        said = getattr(error, "partial", b"")
    finally:
        writer.close()
    return _OWN.sub(b"", said)


async def connect(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*running.runner.addresses[0][:2])


def count_others(running: Running) -> list[Any]:
    """aiohttp's handlers, as they are made from now on."""
    front: Any = running.runner.server
    made: list[Any] = []
    others = front._others

    def make() -> Any:
        made.append(others())
        return made[-1]

    front._others = make
    return made


@pytest.fixture
async def pair(serve: Serve) -> tuple[Running, Running]:
    """A gateway behind its front, and one in an application that others run."""
    return await serve(gateway_engine="fast"), await serve(
        web.Application(middlewares=[problems]), gateway_engine="fast"
    )


@pytest.mark.parametrize("request_head", TAKEN.values(), ids=TAKEN)
async def test_what_is_plain_is_opened_without_aiohttp_and_answered_as_by_it(
    pair: tuple[Running, Running], request_head: bytes
) -> None:
    made = count_others(pair[0])
    said = await answer(pair[0], request_head)
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said == await answer(pair[1], request_head)
    assert made == []


@pytest.mark.parametrize("request_head", LEFT.values(), ids=LEFT)
async def test_what_is_not_plain_is_left_to_aiohttp_as_it_came(
    pair: tuple[Running, Running], request_head: bytes
) -> None:
    made = count_others(pair[0])
    said = await answer(pair[0], request_head)
    assert said == await answer(pair[1], request_head)
    assert len(made) == 1
    assert not pair[0].runner.server.waiting  # type: ignore[union-attr]


async def test_what_comes_in_parts_is_left_to_aiohttp(pair: tuple[Running, Running]) -> None:
    made = count_others(pair[0])
    for at in (1, 20, len(head()) - 3, len(head()) - 1):
        assert (await answer(pair[0], head()[:at], head()[at:])).startswith(b"HTTP/1.1 101 ")
    assert (await answer(pair[0], *(bytes([each]) for each in head()))).startswith(b"HTTP/1.1 101 ")
    assert 1 <= len(made) <= 5  # the system may put parts together


async def test_what_comes_behind_the_head_is_heard(serve: Serve) -> None:
    running = await serve(gateway_engine="fast")
    made = count_others(running)
    joining = client_frame(f"40{NAMESPACE},{json.dumps({'token': make_token('alice')})}")
    reader, writer = await connect(running)
    writer.write(head() + joining + client_frame(f'42{NAMESPACE},1["heartbeat"]')[:5])
    async with asyncio.timeout(STEP):
        await reader.readuntil(b'"connected"')
    writer.close()
    assert made == []


async def test_a_connection_that_asked_for_something_else_may_become_a_websocket(serve: Serve) -> None:
    running = await serve(gateway_engine="fast")
    reader, writer = await connect(running)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n" + head())
    async with asyncio.timeout(STEP):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"HTTP/1.1 101 ")
    writer.close()


async def test_what_is_kept_of_a_handshake_is_what_aiohttp_would_keep(serve: Serve) -> None:
    hosted = await Hosted.start(serve, gateway_engine="fast")
    asked = head(f"{USUAL}&room=%C3%A9", "X-Own: its own", "Cookie: a=b; jwt=none", "User-Agent: Mozilla/5.0")
    environs = []
    for parts in ([asked], [asked[:9], asked[9:]]):
        reader, writer = await connect(hosted.running)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(client_frame("40"))
        async with asyncio.timeout(STEP):
            await reader.readuntil(b"40{")
        own = writer.get_extra_info("sockname")
        [environ] = [hosted.server.get_environ(sid) for sid, _ in hosted.main.joined[-1:]]
        request = environ["aiohttp.request"]
        assert isinstance(request, web.Request)
        kept = {name: environ[name] for name in environ if name not in {"aiohttp.request", "wsgi.input", "wsgi.errors"}}
        environs.append(
            (
                kept,
                *(request.method, request.path, request.path_qs, request.version, request.scheme, request.host),
                *(request.query, request.cookies, request.headers, request.raw_headers, request.remote == own[0]),
                *(request.transport, request.body_exists, request.keep_alive, request.url),
            )
        )
        writer.close()
    assert environs[0] == environs[1]
    assert environs[0][0]["HTTP_X_OWN"] == "its own"
    assert environs[0][-5] is True


async def test_who_comes_over_the_rate_waits_by_aiohttp_and_is_counted_once(serve: Serve) -> None:
    running = await serve(gateway_engine="fast", connect_rate="2/s")
    made = count_others(running)
    said = await asyncio.gather(*(answer(running, head()) for _ in range(4)))
    assert all(each.startswith(b"HTTP/1.1 101 ") for each in said)
    admission = running.gateway._admission
    assert (len(made), admission.waited, admission.refused, admission.left) == (2, 2, 0, 0)


async def test_who_comes_while_the_node_drains_is_refused_once_and_told_when_to_come_back(serve: Serve) -> None:
    running = await serve(gateway_engine="fast")
    await running.gateway.drain()
    said = await answer(running, head())
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: " in said
    assert running.gateway._counts.refused["socketio", "SERVER_DRAINING"] == 1


async def test_one_that_sends_nothing_is_closed_in_time_and_when_the_gateway_stops(serve: Serve) -> None:
    gateway = Gateway(make_settings(gateway_engine="fast", keepalive_timeout=0.2))
    runner = gateway.runner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running = Running(gateway, "", runner)
    front: Any = runner.server
    try:
        async with asyncio.timeout(STEP):
            reader, writer = await connect(running)
            assert await reader.read() == b""
            writer.close()
            await eventually(lambda: not front.waiting)
            front._timeout = 60
            reader, writer = await connect(running)
            await eventually(lambda: front.waiting)
            await runner.cleanup()
            assert await reader.read() == b""
            writer.close()
            assert not front.waiting
    finally:
        await runner.cleanup()


async def test_one_that_leaves_without_a_word_is_forgotten(serve: Serve) -> None:
    running = await serve(gateway_engine="fast")
    front: Any = running.runner.server
    for leave in ("close", "abort"):
        _, writer = await connect(running)
        await eventually(lambda: front.waiting)
        getattr(writer.transport, leave)()
        await eventually(lambda: not front.waiting)


async def test_what_a_stopping_gateway_has_hung_up_on_is_cut_off(serve: Serve) -> None:
    running = await serve(gateway_engine="fast", pusher_app_id="app", pusher_app_key="key", pusher_app_secret="secret")
    silent = []
    for request_head in (head(), head("/app/key?protocol=7")):
        reader, writer = await connect(running)
        writer.write(request_head)
        await asyncio.wait_for(reader.readuntil(b"101 "), STEP)
        silent.append((reader, writer))
    await running.runner.cleanup()
    for reader, writer in silent:  # which answer no close frame
        assert b"\x88" in await asyncio.wait_for(reader.read(), 1)
        writer.close()
    assert not running.gateway._server._outbox.wires  # type: ignore[union-attr]


async def test_over_tls_and_by_a_local_socket(tmp_path: Path, closing: AsyncExitStack) -> None:
    make_certificates(tmp_path)
    serving, asking = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    serving.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    asking.load_verify_locations(tmp_path / "ca.crt")
    gateway = Gateway(make_settings(gateway_engine="fast"))
    runner = gateway.runner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving).start()
    await web.UnixSite(runner, tmp_path / "socket").start()
    made = count_others(Running(gateway, "", runner))
    port = runner.addresses[0][1]
    for url, connector in (
        (f"wss://127.0.0.1:{port}", aiohttp.TCPConnector(ssl=asking)),
        ("ws://localhost", aiohttp.UnixConnector(str(tmp_path / "socket"))),
    ):
        async with aiohttp.ClientSession(connector=connector) as session, session.ws_connect(url + USUAL) as ws:
            assert (await ws.receive_str(timeout=STEP)).startswith("0{")
            await ws.send_str(f"40{NAMESPACE},{json.dumps({'token': make_token('alice')})}")
            assert (await ws.receive_str(timeout=STEP)).startswith("40")
    assert made == []
