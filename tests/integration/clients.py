"""The clients of these tests: real ones that keep what they hear, and raw ones that can misbehave."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import re
import socket
import struct
import time
from contextlib import AsyncExitStack
from typing import Any, Self

import aiohttp
import socketio
from conftest import STEP, eventually, make_token

NAMESPACE = "/ws/messages"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

USER_STATUS = {"userId", "online", "status", "statusText", "lastActive", "connectedAt", "version"}
USER_ONLINE = {"userId", "online", "status", "timestamp", "version"}
USER_OFFLINE = {"userId", "online", "status", "lastActive", "timestamp", "version"}
PRESENCE_EVENTS = {"user-online", "user-offline", "user-status-changed"}

Heard = tuple[str, Any]


def is_timestamp(value: object) -> bool:
    return isinstance(value, str) and TIMESTAMP.fullmatch(value) is not None


def brief_token(user: str = "alice") -> str:
    """A token that expires in 0.3 to 1.3 seconds: ``exp`` is in whole ones."""
    return make_token(user, exp=math.ceil(time.time() + 0.3))


class Listener:
    """What one client has heard, in order."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    def names(self) -> list[str]:
        return [name for name, _data in self.heard]

    def of(self, event: str, **fields: object) -> list[Any]:
        """The payloads of every `event` heard whose fields are these."""
        return [data for name, data in self.heard if name == event and fields.items() <= data.items()]

    def presence(self, user: str | None = None) -> list[tuple[str, str, int]]:
        """Every presence event heard: its name, whose it is, and the version."""
        return [
            (name, data["userId"], data["version"])
            for name, data in self.heard
            if name in PRESENCE_EVENTS and user in (None, data["userId"])
        ]

    async def hears(self, event: str, **fields: object) -> Any:
        """Wait for an event with these fields, and return its payload."""
        found = await eventually(lambda: self.of(event, **fields))
        return found[-1]


class Client(Listener):
    """The Socket.IO client of Python, in the gateway's namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.io = socketio.AsyncClient(reconnection=False)
        self.refusals: list[Any] = []
        self.goodbyes: list[Any] = []
        self.queued: list[tuple[str, Any]] = []
        """Of what waited for its user: id and data."""
        self.io.on("*", self._hear, namespace=NAMESPACE)
        self.io.on("connect_error", self.refusals.append, namespace=NAMESPACE)
        self.io.on("disconnect", self.goodbyes.append, namespace=NAMESPACE)

    def _hear(self, event: str, data: Any = None, queued_id: str | None = None) -> None:
        self.heard.append((event, data))
        if queued_id is not None:
            self.queued.append((queued_id, data))

    @classmethod
    async def connect(cls, closing: AsyncExitStack, url: str, user: str = "alice", **options: Any) -> Self:
        """Connect with a user's token, and wait to be greeted; `options` are the library's."""
        client = cls()
        options.setdefault("auth", {"token": make_token(user)})
        await client.try_to_connect(closing, url, **options)
        await client.hears("connected")
        return client

    async def try_to_connect(self, closing: AsyncExitStack, url: str, **options: Any) -> None:
        session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        closing.push_async_callback(session.close)
        closing.push_async_callback(self.io.disconnect)
        self.io.eio.external_http = True  # the session is this test's to close
        self.io.eio.http = session
        options = {"transports": ["websocket"], "wait_timeout": STEP} | options
        await self.io.connect(url, namespaces=[NAMESPACE], **options)

    @property
    def socket_id(self) -> str:
        return str(self.io.get_sid(NAMESPACE))

    async def ask(self, event: str, payload: Any = None) -> Any:
        """Send a request, and return its acknowledgement."""
        return await self.io.call(event, payload, namespace=NAMESPACE, timeout=STEP)

    async def tell(self, event: str, payload: Any = None) -> None:
        """Send a request that asks for no acknowledgement."""
        await self.io.emit(event, payload, namespace=NAMESPACE)

    async def status(self, user: str) -> Any:
        return (await self.ask("check-user-status", {"userId": user}))["data"]

    async def leave(self) -> None:
        """Say goodbye, as a page's ``socket.disconnect()`` does."""
        await self.io.disconnect()

    def vanish(self) -> None:
        """Cut the connection without a word."""
        abort(self.io.eio.ws)

    async def closed(self) -> None:
        await eventually(lambda: self.goodbyes)


def abort(ws: aiohttp.ClientWebSocketResponse, *, reset: bool = True) -> None:
    """End a WebSocket's TCP connection without a close frame.

    Args:
        ws: whose.
        reset: with an RST; otherwise with a FIN, as the system does for a process that was killed.
    """
    raw = ws.get_extra_info("socket")
    if raw is None:  # it has ended already
        return
    if reset:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ws._response.connection.transport.abort()  # type: ignore[union-attr]


class Raw(Listener):
    """A WebSocket under a test's own hand: for Engine.IO packets, or the plain door's frames."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, session: aiohttp.ClientSession) -> None:
        super().__init__()
        self.ws = ws
        self.session = session

    @classmethod
    async def open(cls, closing: AsyncExitStack, url: str, **options: Any) -> Self:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        client = cls(await session.ws_connect(url, **({"max_msg_size": 0} | options)), session)
        closing.callback(lambda: client)  # which keeps it: aiohttp closes a WebSocket that nobody holds
        return client

    async def receive(self) -> str:
        """The next text frame."""
        message = await asyncio.wait_for(self.ws.receive(), STEP)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return str(message.data)

    async def closed(self) -> int | None:
        """Read to the end, and return the close code."""
        async with asyncio.timeout(STEP):
            while not self.ws.closed:
                message = await self.ws.receive()
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._take(message.data)
        return self.ws.close_code

    def _take(self, frame: str) -> None:
        """Keep what a frame says."""

    def vanish(self, *, reset: bool = True) -> None:
        abort(self.ws, reset=reset)


class Plain(Raw):
    """A client of the plain WebSocket door."""

    @classmethod
    async def connect(cls, closing: AsyncExitStack, ws_url: str, user: str = "alice", **options: Any) -> Self:
        client = await cls.open(closing, f"{ws_url}/ws?token={make_token(user)}", **options)
        frame = json.loads(await client.receive())
        assert frame["event"] == "connected"
        client.heard.append((frame["event"], frame["data"]))
        return client

    def _take(self, frame: str) -> None:
        decoded = json.loads(frame)
        self.heard.append((decoded["event"], decoded.get("data", decoded.get("error"))))

    async def frame(self) -> Any:
        return json.loads(await self.receive())

    async def until(self, event: str) -> Any:
        """Read frames until one has this name, and return it; what came before it is kept as heard."""
        while True:
            frame = await self.frame()
            self.heard.append((frame["event"], frame.get("data")))
            if frame["event"] == event:
                return frame

    async def ask(self, event: object, data: object = None, *, id: object = 1) -> Any:  # noqa: A002 - the wire's name
        """Send a request, and return the frame that answers it."""
        await self.ws.send_json({"event": event, "data": data, "id": id})
        while True:
            frame = await self.frame()
            if frame.get("id") == id:
                return frame
            self.heard.append((frame["event"], frame.get("data")))


class Packets(Raw):
    """An Engine.IO connection over WebSocket, packet by packet."""

    @classmethod
    async def start(cls, closing: AsyncExitStack, ws_url: str, **options: Any) -> Self:
        """Open Engine.IO, and no namespace."""
        client = await cls.open(closing, f"{ws_url}/socket.io/?EIO=4&transport=websocket", **options)
        assert (await client.receive())[:1] == "0"
        return client

    @classmethod
    async def connect(cls, closing: AsyncExitStack, ws_url: str, user: str = "mallory") -> Self:
        """Open Engine.IO, and the namespace with a user's token."""
        client = await cls.start(closing, ws_url)
        await client.join(make_token(user))
        return client

    async def join(self, token: str) -> None:
        await self.ws.send_str(f"40{NAMESPACE},{json.dumps({'token': token})}")
        assert (await self.packet("40"))[:2] == "40"
        assert "connected" in await self.packet("42")

    async def packet(self, start: str) -> str:
        """Read packets until one starts so, answering pings."""
        while True:
            packet = await self.receive()
            if packet.startswith(start):
                return packet
            if packet == "2":
                await self.ws.send_str("3")

    async def ask(self, event: str, payload: object, ack: int = 7) -> Any:
        await self.ws.send_str(f"42{NAMESPACE},{ack}{json.dumps([event, payload])}")
        answer = await self.packet(f"43{NAMESPACE},{ack}")
        return json.loads(answer[answer.index("[") :])[0]

    def _take(self, frame: str) -> None:
        self.heard.append((frame, {}))


class Polling:
    """An Engine.IO connection over long-polling, request by request."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.base = f"{url}/socket.io/?EIO=4&transport=polling"
        self.sid = ""

    @classmethod
    async def start(cls, closing: AsyncExitStack, url: str) -> Self:
        client = cls(await closing.enter_async_context(aiohttp.ClientSession()), url)
        async with client.session.get(client.base) as response:
            client.sid = json.loads((await response.text())[1:])["sid"]
        return client

    @classmethod
    async def connect(cls, closing: AsyncExitStack, url: str, user: str = "mallory") -> Self:
        client = await cls.start(closing, url)
        assert await client.post(f"40{NAMESPACE},{json.dumps({'token': make_token(user)})}") == 200
        packets = await client.poll()
        while not any(packet.startswith("42") for packet in packets):
            packets += await client.poll()
        assert packets[0][:2] == "40"
        return client

    @property
    def url(self) -> str:
        return f"{self.base}&sid={self.sid}"

    async def post(self, body: str | bytes | io.BytesIO, **options: Any) -> int:
        async with self.session.post(self.url, data=body, **options) as response:
            await response.read()
            return response.status

    async def poll(self) -> list[str]:
        async with self.session.get(self.url, timeout=aiohttp.ClientTimeout(STEP)) as response:
            assert response.status == 200
            return (await response.text()).split("\x1e")


async def deaf_websocket(closing: AsyncExitStack, url: str, path: str) -> socket.socket:
    """Open a WebSocket over TCP with a tiny receive buffer, which nobody reads after the handshake."""
    host, port = url.removeprefix("http://").split(":")
    raw = socket.socket()
    closing.callback(raw.close)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, (host, int(port)))
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    await loop.sock_sendall(raw, head.encode())
    answer = await loop.sock_recv(raw, 12)
    assert answer == b"HTTP/1.1 101"
    return raw


def client_frame(text: str) -> bytes:
    """One masked WebSocket text frame."""
    payload = text.encode()
    assert len(payload) < 65536
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    mask = os.urandom(4)
    return b"\x81" + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
