"""Hands a connection that asks to be a WebSocket over to picows.

aiohttp routes the request and reads its head as ever, but for most of Socket.IO's, which `front` reads. From then on
the connection is picows's: it answers the upgrade, reads frames in C and calls a listener back, without a task, a queue
or a future for each. aiohttp is told that the connection was lost, and lets go of all it kept of it.

What is relied on in both, beyond what they document, is listed in this package's docstring.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from picows import (
    WSAutoPingStrategy,
    WSListener,
    WSMsgType,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # not in its stubs

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_request import BaseRequest
    from yarl import URL

__all__ = ["Handshake", "TakenOver", "WSListener", "WSMsgType", "is_upgrade", "take_over"]

_log = structlog.get_logger(__name__)

_HEAD = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n"
)

_ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)


class _Logger:
    """picows's logger: the gateway says itself what is worth a line, once and without what clients sent.

    But for what fails in a listener: picows catches it.
    """

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - the standard library's name
        return False

    def log(self, *_arguments: object, **_options: object) -> None:
        pass

    debug = info = warning = error = log

    def exception(self, message: str, *_arguments: object) -> None:
        """A failure inside."""
        _log.exception("picows", detail=message)


_LOGGER = _Logger()


class _Socket:
    """What picows has of a connection's socket: its number, and options that it may set and read for nothing."""

    __slots__ = ("_file",)

    def __init__(self, file: int) -> None:
        self._file = file

    def fileno(self) -> int:
        return self._file

    def setsockopt(self, _level: int, _option: int, _value: int) -> None:
        pass

    def getsockopt(self, _level: int, _option: int) -> int:
        return 0


_ADDRESSES = ("peername", "sockname")


class _Transport:
    """The loop's transport as picows has it: with a socket that stays as it is, and without addresses.

    Of the two options that picows sets, the loop has set one, and the other has each request acknowledged twice. Four
    options and two addresses it reads for a line of its log that nobody writes; for each of these uvloop would ask the
    system, and make a socket to do so.
    """

    __slots__ = ("_socket", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket = _Socket(transport.get_extra_info("socket").fileno())

    # Methods that picows calls, as it finds them; one that asks for another is to fail in the contract test.
    abort = property(lambda self: self._transport.abort)
    close = property(lambda self: self._transport.close)
    get_write_buffer_size = property(lambda self: self._transport.get_write_buffer_size)
    write = property(lambda self: self._transport.write)
    writelines = property(lambda self: self._transport.writelines)

    def get_extra_info(self, name: str, default: object = None) -> Any:
        if name == "socket":
            return self._socket
        return default if name in _ADDRESSES else self._transport.get_extra_info(name, default)


class _Accepted(WSUpgradeResponse):
    """The answer to every upgrade, as picows writes it at once: its own it puts together piece by piece, and keeps."""

    def __init__(self) -> None:
        self.status = HTTPStatus.SWITCHING_PROTOCOLS
        self.headers: Any = {}  # picows adds the key's answer
        self.opening = b""
        """What is sent in the same write."""

    def to_bytes(self) -> bytearray:
        return bytearray(_ACCEPTED % self.headers["Sec-WebSocket-Accept"].encode() + self.opening)


_ANSWER = _Accepted()

_METHOD, _VERSION = b"GET", b"HTTP/1.1"
_NO_HEADERS: CIMultiDict[str] = CIMultiDict()
"""What picows keeps of each connection's head, which it has read by then."""


class _Releasing(asyncio.Protocol):
    """A transport's protocol in between: uvloop keeps the last that takes no buffers, and with aiohttp's a tenth more.

    It keeps what takes its data, too: a function is the same for all, and a method would be made for each.
    """

    @staticmethod
    def data_received(data: bytes) -> None:
        """Nothing comes: it is a transport's protocol for no time."""


_RELEASING = _Releasing()


class Handshake(web.Request):
    """A request that aiohttp has not seen.

    Args:
        arrival: its connection, with what aiohttp's handler tells a request of it.
        target: what it asks for, as it came.
        url: the same.
        headers: its own.
        head: all of that, as it came.
        came_along: what has come behind its head.
    """

    ATTRS = web.Request.ATTRS | {"came_along", "head", "wire"}

    def __init__(
        self, arrival: Any, target: str, url: URL, headers: CIMultiDict[str], head: bytes, came_along: bytes
    ) -> None:
        super().__init__(
            RawRequestMessage(
                *("GET", target, HttpVersion11, CIMultiDictProxy(headers), ()),
                *(False, None, True, False, url),
            ),
            EMPTY_PAYLOAD,
            arrival,
            None,  # type: ignore[arg-type]  # nothing is written by it
            None,  # type: ignore[arg-type]  # nor is it any task's
            asyncio.get_running_loop(),
        )
        self.head = head
        self.came_along = came_along
        self.wire = arrival.transport
        """Its transport, which stays known after the connection was handed over, and `transport` is None."""

    @property
    def remote(self) -> str | None:
        """Where it comes from, as aiohttp has it. Looked up when it is asked for, which it seldom is."""
        peername = self.wire.get_extra_info("peername")
        return str(peername[0]) if isinstance(peername, list | tuple) else peername and str(peername)


class TakenOver(web.StreamResponse):
    """What aiohttp's handler returns: an answer that somebody else gives."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self._keep_alive = False

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Nothing to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing to end."""


def is_upgrade(request: web.Request) -> bool:
    """Whether a request can become a WebSocket; where not, aiohttp's own says what is wrong with it."""
    headers = request.headers
    return (
        request.method == "GET"
        and headers.get("Upgrade", "").lower() == "websocket"
        and headers.get("Sec-WebSocket-Version") == "13"
        and _is_key(headers)
    )


def _is_key(headers: CIMultiDict[str] | Any) -> bool:
    """Whether a request has one key, of sixteen bytes in base64: what picows takes, which answers any other itself."""
    keys = headers.getall("Sec-WebSocket-Key", [])
    try:
        return len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16  # noqa: PLR2004
    except ValueError:
        return False


def take_over(request: web.Request, listener: Any, *, max_message: int, max_buffer: int, opening: bytes = b"") -> None:
    """Let a listener of picows have a request's connection.

    Args:
        request: one that `is_upgrade`, whose client has not left.
        listener: a `WSListener`; it hears ``on_ws_connected`` before this returns, and answers pings.
        max_message: bytes that one frame may bring.
        max_buffer: bytes that may wait for a client that does not read, before the listener hears ``pause_writing``.
        opening: frames that are sent with the answer.
    """
    transport = request.transport
    assert transport is not None  # noqa: S101 - the client is there
    protocol = WSProtocol(
        host_port=None,
        ws_path=None,
        is_client_side=False,
        ws_listener_factory=lambda _request: WSUpgradeResponseWithListener(_ANSWER, listener),
        logger=_LOGGER,
        disconnect_on_exception=True,
        websocket_handshake_timeout=None,
        enable_auto_ping=False,
        auto_ping_idle_timeout=None,
        auto_ping_reply_timeout=None,
        auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
        enable_auto_pong=False,  # the listener counts what it answers
        max_frame_size=max_message,
        extra_headers=None,
        read_buffer_init_size=0,
    )
    transport.set_protocol(_RELEASING)
    transport.set_protocol(protocol)
    transport.set_write_buffer_limits(high=max_buffer, low=0)
    if isinstance(request, Handshake):
        came_along, request.came_along = request.came_along, b""
    else:
        came_along = _let_go(request, transport)
    # The request is kept with the connection; what served it need not be.
    request._protocol = request._payload_writer = None  # type: ignore[assignment]  # noqa: SLF001
    protocol.connection_made(_Transport(transport))
    _ANSWER.opening = opening
    data = _HEAD % request.headers["Sec-WebSocket-Key"].encode() + came_along
    while data:
        room = protocol.get_buffer(-1)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
    # The same for all, instead of what it has read of each head, and needs no more.
    head = protocol.transport.request
    head.method, head.version, head.headers = _METHOD, _VERSION, _NO_HEADERS


def _let_go(request: web.Request, transport: asyncio.Transport) -> bytes:
    """Have aiohttp let go of a request's connection, and of its head, which it has twice.

    Returns:
        What has come behind the head.
    """
    handler = request.protocol
    came_along, paused = handler._message_tail, handler._buffer_paused  # noqa: SLF001
    handler.transport = None  # which it would close
    handler.connection_lost(None)
    request._message = request._message._replace(raw_headers=())  # noqa: SLF001
    if paused:
        transport.resume_reading()
    return came_along
