"""Engine.IO 4 and Socket.IO 5 by their bytes, and a host application's namespace to speak them to."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import aiohttp
import socketio
from conftest import STEP, Running, eventually

Serve = Callable[..., Awaitable[Running]]

PATH = "/socket.io/?EIO=4&transport="
SEPARATOR = "\x1e"
TRANSPORTS = ["polling", "websocket", "upgraded"]


# The host application


class Host(socketio.AsyncNamespace):  # type: ignore[misc]  # untyped base
    """A namespace as an application registers it beside the gateway's own. It keeps what it is told."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.joined: list[tuple[str, Any]] = []
        self.left: list[tuple[str, str]] = []
        self.told: list[Any] = []

    async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        if isinstance(auth, dict) and "refuse" in auth:
            raise socketio.exceptions.ConnectionRefusedError(*auth["refuse"])
        self.joined.append((sid, auth))

    async def on_disconnect(self, sid: str, reason: str) -> None:
        self.left.append((sid, reason))

    async def misses(self, sid: str) -> str:
        """Wait until a client has left, see that it left once, and return the reason."""
        await eventually(lambda: any(left == sid for left, _ in self.left))
        [reason] = [reason for left, reason in self.left if left == sid]
        return reason

    async def on_tell(self, sid: str, *args: Any) -> None:
        """Keep what was said."""
        self.told.append(args[0] if len(args) == 1 else args)

    async def on_echo(self, sid: str, *args: Any) -> None:
        """Say what was said, by an event."""
        await self.emit("echoed", args, to=sid)

    async def on_answer(self, sid: str, *args: Any) -> tuple[Any, ...]:
        """Say what was said, as the acknowledgement."""
        return args

    async def on_one(self, sid: str, arg: Any) -> Any:
        """Say the one thing that was said; a list is one thing."""
        return arg

    def on_plain(self, sid: str, arg: Any) -> Any:
        """As `on_one`, from a handler that is no coroutine."""
        return arg

    async def on_turns(self, sid: str, turns: int) -> int:
        """Answer some turns of the loop later."""
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    async def on_fail(self, sid: str) -> None:
        raise RuntimeError("the application's own")


@dataclass
class Hosted:
    """A gateway beside which an application serves two namespaces of its own."""

    running: Running
    main: Host
    chat: Host

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def server(self) -> Any:
        """The Socket.IO server, of which only python-socketio's documented methods are called here."""
        return self.running.gateway._server

    @classmethod
    async def start(cls, serve: Serve, **settings: Any) -> Self:
        running = await serve(**settings)
        hosted = cls(running, Host("/"), Host("/chat"))
        for namespace in (hosted.main, hosted.chat):
            hosted.server.register_namespace(namespace)
        return hosted


# Socket.IO packets

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)

_FORMAT = re.compile(r"4([0-6])(?:(?<=[56])([0-9]+)-)?(?:(/[^,]*)(?:,|$))?([0-9]+)?(.*)", re.DOTALL)


class Packet(NamedTuple):
    """A Socket.IO packet, with its attachments where they belong."""

    kind: int
    namespace: str
    id: int | None
    data: Any


def decode(text: str) -> tuple[Packet, int]:
    """Decode a packet; also say how many attachments follow."""
    match = _FORMAT.fullmatch(text)
    assert match is not None, text
    kind, attachments, namespace, packet_id, data = match.groups()
    assert namespace != "/", text  # which is left out
    return (
        Packet(
            int(kind),
            namespace or "/",
            int(packet_id) if packet_id else None,
            json.loads(data) if data else None,
        ),
        int(attachments or 0),
    )


def encode(kind: int, data: Any = None, namespace: str = "/", id: int | None = None) -> list[str | bytes]:  # noqa: A002 - the wire's name
    """Encode a packet as Engine.IO's messages: its text, then its attachments."""
    attachments: list[bytes] = []
    data = _taken_out(data, attachments)
    return [
        f"4{kind}"
        + (f"{len(attachments)}-" if attachments else "")
        + ("" if namespace == "/" else f"{namespace},")
        + ("" if id is None else str(id))
        + ("" if data is None else json.dumps(data)),
        *attachments,
    ]


def _taken_out(data: Any, attachments: list[bytes]) -> Any:
    match data:
        case bytes():
            attachments.append(data)
            return {"_placeholder": True, "num": len(attachments) - 1}
        case list() | tuple():
            return [_taken_out(item, attachments) for item in data]
        case dict():
            return {key: _taken_out(value, attachments) for key, value in data.items()}
    return data


def _put_back(data: Any, attachments: list[bytes]) -> Any:
    match data:
        case {"_placeholder": True, "num": int(num)}:
            return attachments[num]
        case list():
            return [_put_back(item, attachments) for item in data]
        case dict():
            return {key: _put_back(value, attachments) for key, value in data.items()}
    return data


# Engine.IO, over each transport


class EndedError(Exception):
    """The server ended the connection, with this WebSocket close code or none."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(code)
        self.code = code


class Link(ABC):
    """One Engine.IO connection, whatever it goes over."""

    sid = ""
    _questions = itertools.count(1_000_000)

    @abstractmethod
    async def send(self, *packets: str | bytes) -> None:
        """Send packets at once: in one request, or in one TCP segment."""

    @abstractmethod
    async def packet(self) -> str | bytes:
        """The next packet.

        Raises:
            EndedError: there will be none.
        """

    @abstractmethod
    async def ended(self) -> int | None:
        """Wait until the server has ended the connection, and return the WebSocket close code if there was one."""

    @abstractmethod
    async def vanish(self) -> None:
        """Leave without a word."""

    async def message(self) -> Packet:
        """The next Socket.IO packet."""
        while (text := await self.packet()) == "6":
            pass
        if text == "1":
            raise EndedError
        assert isinstance(text, str), text
        packet, due = decode(text)
        attachments = []
        for _ in range(due):
            attachment = await self.packet()
            assert isinstance(attachment, bytes), attachment
            attachments.append(attachment)
        return packet._replace(data=_put_back(packet.data, attachments))

    async def tell(self, data: list[Any], namespace: str = "/", id: int | None = None) -> None:  # noqa: A002 - the wire's name
        """Send an event."""
        await self.send(*event(data, namespace, id))

    async def join(self, namespace: str = "/", auth: Any = None) -> str:
        """Connect to a namespace, and return the session's id there."""
        await self.send(*encode(CONNECT, auth, namespace))
        packet = await self.message()
        assert packet[:3] == (CONNECT, namespace, None), packet
        assert set(packet.data) == {"sid"}
        return str(packet.data["sid"])

    async def rest(self, namespace: str = "/") -> list[Packet]:
        """What has been sent so far and not yet read: all that comes before the answer to a question asked now."""
        question = next(self._questions)
        await self.tell(["answer", "rest"], namespace, question)
        heard = []
        while (packet := await self.message()) != (ACK, namespace, question, ["rest"]):
            heard.append(packet)
        return heard


def event(data: list[Any], namespace: str = "/", id: int | None = None) -> list[str | bytes]:  # noqa: A002 - the wire's name
    """Encode an event, binary where it has attachments."""
    [text, *attachments] = encode(EVENT, data, namespace, id)
    return encode(BINARY_EVENT, data, namespace, id) if attachments else [text]


class Polling(Link):
    """Engine.IO over long-polling."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.base = f"{url}{PATH}polling"
        self.opening: dict[str, Any] = {}
        self.waiting: deque[str | bytes] = deque()

    @classmethod
    async def open(cls, closing: AsyncExitStack, url: str) -> Self:
        link = cls(await closing.enter_async_context(aiohttp.ClientSession()), url)
        status, body = await link.request("GET", link.base)
        assert (status, body[:1]) == (200, "0")
        link.opening = json.loads(body[1:])
        link.sid = link.opening["sid"]
        return link

    @property
    def url(self) -> str:
        return f"{self.base}&sid={self.sid}"

    async def request(self, method: str, url: str, **options: Any) -> tuple[int, str]:
        """Make a request, and return its status and text."""
        async with asyncio.timeout(STEP), self.http.request(method, url, **options) as response:
            return response.status, await response.text()

    async def post(self, *packets: str | bytes) -> tuple[int, str]:
        """Post packets in one request."""
        body = SEPARATOR.join(
            packet if isinstance(packet, str) else "b" + base64.b64encode(packet).decode() for packet in packets
        )
        return await self.request("POST", self.url, data=body.encode())

    async def poll(self) -> tuple[int, str]:
        """Poll once."""
        return await self.request("GET", self.url)

    async def send(self, *packets: str | bytes) -> None:
        status, body = await self.post(*packets)
        assert (status, body.lower()) == (200, "ok")

    async def packet(self) -> str | bytes:
        while not self.waiting:
            status, body = await self.poll()
            if status != 200 or body in {"", "1"}:
                raise EndedError
            self.waiting += [
                base64.b64decode(packet[1:], validate=True) if packet[0] == "b" else packet
                for packet in body.split(SEPARATOR)
            ]
        packet = self.waiting.popleft()
        if packet == "1":
            raise EndedError
        return packet

    async def ended(self) -> int | None:
        async with asyncio.timeout(STEP):
            while (await self.poll())[0] == 200:
                pass
        return None

    async def vanish(self) -> None:
        await self.http.close()


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """One WebSocket frame, as a client sends it."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    size, mark = len(payload), masked << 7
    if size < 126:
        head += bytes([mark | size])
    elif size < 65536:
        head += bytes([mark | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mark | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(a ^ b for a, b in zip(payload, itertools.cycle(mask), strict=False))


def message_frame(packet: str | bytes) -> bytes:
    """One Engine.IO packet as a frame."""
    return frame(TEXT, packet.encode()) if isinstance(packet, str) else frame(BINARY, packet)


def upgrade_headers(key: str = "") -> dict[str, str]:
    """What asks for a WebSocket."""
    key = key or base64.b64encode(os.urandom(16)).decode()
    return {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }


class WebSocket(Link):
    """Engine.IO over WebSocket, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opening: dict[str, Any] = {}

    @classmethod
    async def connect(cls, closing: AsyncExitStack, url: str) -> Self:
        """Connect by TCP, and no further."""
        host, port = url.removeprefix("http://").split(":")
        async with asyncio.timeout(STEP):
            reader, writer = await asyncio.open_connection(host, int(port))
        closing.callback(writer.close)
        return cls(reader, writer)

    async def request(self, query: str, headers: dict[str, str]) -> tuple[int, str]:
        """Ask for something, and return the status and the head of the answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **headers}.items())
        self.writer.write(f"GET /socket.io/?{query} HTTP/1.1\r\n{lines}\r\n".encode())
        async with asyncio.timeout(STEP):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), head.decode()

    @classmethod
    async def upgrade(cls, closing: AsyncExitStack, url: str, query: str) -> tuple[int, Self]:
        """Ask for a WebSocket, and return the answer's status."""
        link = await cls.connect(closing, url)
        status, _ = await link.request(query, upgrade_headers())
        return status, link

    @classmethod
    async def open(cls, closing: AsyncExitStack, url: str) -> Self:
        status, link = await cls.upgrade(closing, url, "EIO=4&transport=websocket")
        assert status == 101
        opening = await link.packet()
        assert isinstance(opening, str)
        assert opening[:1] == "0"
        link.opening = json.loads(opening[1:])
        link.sid = link.opening["sid"]
        return link

    def write(self, *frames: bytes) -> None:
        """Write frames in one TCP segment."""
        self.writer.write(b"".join(frames))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload.

        Raises:
            EndedError: the connection is over.
        """
        try:
            async with asyncio.timeout(STEP):
                head, size = await self.reader.readexactly(2)
                assert size < 128, "a server does not mask"
                if size > 125:
                    size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
                payload = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EndedError from None
        assert head & 0xF0 == 0x80, "each packet is a frame of its own"
        return head & 0x0F, payload

    async def send(self, *packets: str | bytes) -> None:
        self.write(*map(message_frame, packets))
        await self.writer.drain()

    async def packet(self) -> str | bytes:
        opcode, payload = await self.frame()
        if opcode == CLOSE:
            self.write(frame(CLOSE, payload))
            raise EndedError(int.from_bytes(payload[:2]) if payload else None)
        return payload.decode() if opcode == TEXT else payload

    async def ended(self) -> int | None:
        code = None
        async with asyncio.timeout(STEP):
            while True:
                try:
                    await self.packet()
                except EndedError as end:
                    code = code or end.code
                    if end.code is None and self.reader.at_eof():
                        return code
                    if end.code is None and self.reader.exception() is not None:
                        return code

    async def vanish(self) -> None:
        self.writer.transport.abort()


async def upgrade(closing: AsyncExitStack, url: str, polling: Polling) -> WebSocket:
    """Go on over WebSocket, as a client does that has no request under way."""
    link = await probe(closing, url, polling.sid)
    await link.send("5")
    return link


async def probe(closing: AsyncExitStack, url: str, sid: str) -> WebSocket:
    """Open a WebSocket for a polling session, as far as its probe's answer."""
    status, link = await WebSocket.upgrade(closing, url, f"EIO=4&transport=websocket&sid={sid}")
    assert status == 101
    link.sid = sid
    await link.send("2probe")
    assert await link.packet() == "3probe"
    return link


async def open_link(closing: AsyncExitStack, url: str, transport: str) -> Link:
    """Open Engine.IO over one of `TRANSPORTS`, and no namespace."""
    if transport == "websocket":
        return await WebSocket.open(closing, url)
    polling = await Polling.open(closing, url)
    return await upgrade(closing, url, polling) if transport == "upgraded" else polling
