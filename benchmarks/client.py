"""The lightest Socket.IO client there can be: it must never be what a benchmark measures.

Frames to send are made once, beforehand, and what comes in is told apart by its first bytes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "/ws/messages"

_UPGRADE = (
    "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{agent}\r\n"
)
_BROWSER = "User-Agent: Mozilla/5.0\r\n"
_TEXT, _CLOSE = 0x81, 0x88
_MASKED, _LENGTH_16, _LENGTH_64 = 0x80, 126, 127
_BIND_WITHOUT_PORT = 24  # IP_BIND_ADDRESS_NO_PORT: the port is chosen when it is known where to
_NO_MASK = bytes(4)  # a mask like any other to the server, and nothing to do for the client


def text_frame(text: str) -> bytes:
    """Encode a WebSocket text frame, as a client sends it."""
    payload = text.encode()
    if len(payload) < _LENGTH_16:
        return bytes((_TEXT, _MASKED | len(payload))) + _NO_MASK + payload
    return struct.pack("!BBH", _TEXT, _MASKED | _LENGTH_16, len(payload)) + _NO_MASK + payload


def request_frame(event: str, *arguments: object) -> bytes:
    """Encode a Socket.IO event that awaits its acknowledgement."""
    return text_frame(f"42{NAMESPACE},1{json.dumps([event, *arguments], separators=(',', ':'))}")


def event_start(event: str) -> bytes:
    """How the text of an event from the server begins."""
    return f'42{NAMESPACE},["{event}"'.encode()


_CONNECTED = event_start("connected")
_ACKNOWLEDGEMENT = f"43{NAMESPACE},".encode()
_CLOSE_FRAME = bytes((_CLOSE, _MASKED | 2)) + _NO_MASK + struct.pack("!H", 1000)
_GOODBYE = text_frame(f"41{NAMESPACE},")
_PONG = text_frame("3")


class ClientError(Exception):
    """The server did what a benchmark has no use for."""


class Client(asyncio.Protocol):
    """One connection of one user.

    Args:
        token: who it is.
        on_answer: called with each acknowledgement.
        on_event: called with each event; both get the text of the packet.

    Attributes:
        ready: done when the server has greeted the user.
        closed: done when the connection has ended.
        asked_at: when it sent its CONNECT packet, in seconds of `time.perf_counter`; None before.
        close_code: what the server closed it with; None where it did not, or gave no code.
        frame_bytes: how long the last frame was, its head included.
    """

    def __init__(
        self, token: str, on_answer: Callable[[Client, bytes], None], on_event: Callable[[bytes], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.asked_at: float | None = None
        self.close_code: int | None = None
        self.frame_bytes = 0
        self.send: Callable[[bytes], None]
        self._token = token
        self._on_answer = on_answer
        self._on_event = on_event
        self._upgraded = False
        self._buffer = b""

    @classmethod
    async def open(
        cls,
        port: int,
        token: str,
        on_answer: Callable[[Client, bytes], None],
        on_event: Callable[[bytes], None],
        host: str = "127.0.0.1",
        receive_buffer: int | None = None,
        source: str | None = None,
        *,
        browser: bool = False,
    ) -> Client:
        """Connect, and wait until the server has greeted the user.

        Args:
            port: where the server listens.
            token: who it is.
            on_answer: called with each acknowledgement.
            on_event: called with each event.
            host: the server's address.
            receive_buffer: bytes that the system holds for a client that does not read; None leaves it to the system.
            source: the address that it comes from; None leaves it to the system.
            browser: say that it is one, which the gateway lets recover its connection.

        Raises:
            ClientError: it does not let the user in.
            OSError: there is no server.
        """
        loop = asyncio.get_running_loop()
        own = socket.socket()
        own.setblocking(False)
        if receive_buffer is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            own.setsockopt(socket.IPPROTO_IP, _BIND_WITHOUT_PORT, 1)
            own.bind((source, 0))
        await loop.sock_connect(own, (host, port))
        transport, client = await loop.create_connection(lambda: cls(token, on_answer, on_event), sock=own)
        transport.write(_UPGRADE.format(host=host, port=port, agent=_BROWSER if browser else "").encode())
        await client.ready
        return client

    async def say_goodbye(self) -> None:
        """Leave as a browser does: the namespace first, then the WebSocket."""
        self.send(_GOODBYE)
        self.send(_CLOSE_FRAME)
        await self.closed

    def vanish(self) -> None:
        """Be gone without a goodbye, as when a phone's process is killed."""
        self._transport.abort()

    def stop_reading(self) -> None:
        """Leave what the server sends where it is."""
        self._transport.pause_reading()

    def read_again(self) -> None:
        """Take what has waited since `stop_reading`."""
        self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of how to send; see the base class."""
        self._transport = cast("asyncio.Transport", transport)
        self.send = self._transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end; see the base class."""
        if not self.ready.done():
            self.ready.set_exception(exc or ClientError("the server closed the connection"))
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take frames apart; see the base class."""
        buffer = self._buffer + data if self._buffer else data
        if not self._upgraded:
            buffer = self._upgrade(buffer)
        start, end = 0, len(buffer)
        while self._upgraded and end - start >= 2:  # noqa: PLR2004 - the least that a frame can be
            length, payload = buffer[start + 1], start + 2
            if length == _LENGTH_16:
                length, payload = int.from_bytes(buffer[start + 2 : start + 4]), start + 4
            elif length == _LENGTH_64:
                length, payload = int.from_bytes(buffer[start + 2 : start + 10]), start + 10
            if payload + length > end:
                break
            if buffer[start] == _TEXT:
                self.frame_bytes = payload + length - start
                self._packet(buffer[payload : payload + length])
            elif buffer[start] == _CLOSE:
                if length:
                    self.close_code = int.from_bytes(buffer[payload : payload + 2])
                self._transport.close()
                return  # whatever comes after it does not count
            else:
                raise ClientError(f"neither text nor close, as no server here sends it: {buffer[start : start + 20]!r}")
            start = payload + length
        self._buffer = buffer[start:]

    def _upgrade(self, buffer: bytes) -> bytes:
        """Take note of the handshake's answer when it is whole, and return what is left to read."""
        head, found, rest = buffer.partition(b"\r\n\r\n")
        if not found:
            return buffer
        if not head.startswith(b"HTTP/1.1 101"):
            raise ClientError(head.decode())
        self._upgraded = True
        return rest

    def _packet(self, text: bytes) -> None:
        if text.startswith(_ACKNOWLEDGEMENT):
            self._on_answer(self, text)
        elif text.startswith(_CONNECTED):
            self.ready.set_result(None)
        elif text.startswith(b"42"):
            self._on_event(text)
        elif text.startswith(b"2"):
            self.send(_PONG)
        elif text.startswith(b"0"):
            packet = text_frame(f"40{NAMESPACE},{json.dumps({'token': self._token})}")
            self.asked_at = time.perf_counter()
            self.send(packet)
        elif not text.startswith((b"40", b"6")):
            raise ClientError(text.decode())
