"""The Pusher door over a real connection, on both engines: what no protocol test with a held wire shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from conftest import STEP, Running, eventually

Serve = Callable[..., Awaitable[Running]]

APP = {"pusher_app_id": "1", "pusher_app_key": "app-key", "pusher_app_secret": "app-secret"}
LIMIT = 100_000
pytestmark = pytest.mark.parametrize("engine", ["fast", "stock"])


async def connect(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=2**16)
    head = "GET /app/app-key?protocol=7 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), STEP)
    return reader, writer


def frame(payload: bytes, kind: int = 0x81) -> bytes:
    """One masked frame, with a mask of zeros."""
    assert len(payload) < 126
    return bytes((kind, 0x80 | len(payload))) + bytes(4) + payload


async def test_who_reads_nothing_is_closed_and_costs_nobody_else_anything(serve: Serve, engine: str) -> None:
    running = await serve(gateway_engine=engine, max_send_buffer=LIMIT, **APP)
    _reader, writer = await connect(running)
    subscribe = {"event": "pusher:subscribe", "data": {"channel": "news"}}
    writer.write(frame(json.dumps(subscribe).encode()))
    channels, door = running.gateway._channels.channels, running.gateway._pusher
    assert door is not None
    await eventually(lambda: list(channels.subscribers("default", "news")))
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
    said = 0
    while not running.gateway._counts.too_slow["pusher"]:
        await channels.say("default", ["news"], "bulk", "x" * 10_000, keep=False)
        said += 1
        assert said < 2000, "never closed"
        await asyncio.sleep(0)
    await eventually(lambda: not list(channels.subscribers("default", "news")))
    assert not door.clients
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"\x00\xff", b"\xff\xfe"])
async def test_bytes_that_are_no_text_cost_their_sender_the_connection_at_the_most(
    serve: Serve, engine: str, sent: bytes
) -> None:
    running = await serve(gateway_engine=engine, **APP)
    reader, writer = await connect(running)
    writer.write(frame(sent, 0x82) + frame(b'{"event":"pusher:ping"}'))
    async with asyncio.timeout(STEP):
        heard = await reader.readuntil(b'"pusher:pong"')
        assert b'"pusher:error"' in heard
        writer.write(frame(sent))
        assert b"\x03\xef" in await reader.read(), "1007 in the close frame"
    writer.close()
    door = running.gateway._pusher
    assert door is not None
    await eventually(lambda: not door.clients)
