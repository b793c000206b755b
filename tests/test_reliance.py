"""What the engine relies on in libraries beyond their documentation, one test for each line of its list.

The list is the docstring of `gateway.engine`. What fails here after an upgrade says which line does not hold any more.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from socket import socketpair
from typing import Any, cast

import aiohttp
import engineio
import pytest
import socketio
import uvloop
import yarl
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from conftest import eventually
from engineio import packet as eio_packet
from engineio.async_drivers import aiohttp as aiohttp_driver
from engineio.async_socket import AsyncSocket
from engineio.payload import Payload
from multidict import CIMultiDict, CIMultiDictProxy

import gateway.engine

URL = "http://127.0.0.1"


def lines_of_the_list() -> list[str]:
    """Each line of the list, as its test is named: library and name."""
    assert gateway.engine.__doc__ is not None
    found, library = [], ""
    for line in gateway.engine.__doc__.splitlines():
        if re.fullmatch(r"(python-)?\w+", line):
            library = line.removeprefix("python-")
        elif match := re.match(r"    ([a-z ]+):", line):
            found.append(f"test_{library}_{match[1].replace(' ', '_')}")
    return found


def test_each_line_of_the_list_has_its_test() -> None:
    tests = {name for name in globals() if re.match(r"test_(socketio|engineio|aiohttp|uvloop|picows)_", name)}
    assert tests == set(lines_of_the_list())
    assert len(tests) > 15


def names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


class Recorder(socketio.AsyncNamespace):  # type: ignore[misc]  # untyped base
    """A namespace that says yes to everything."""

    async def trigger_event(self, event: str, *args: Any) -> None:
        pass


class Server(socketio.AsyncServer):  # type: ignore[misc]  # untyped base
    """A stock server that writes down what it is asked to do."""

    def __init__(self) -> None:
        super().__init__(async_mode="aiohttp", async_handlers=False)
        self.done: list[tuple[Any, ...]] = []
        self.register_namespace(Recorder("/a"))

    async def _handle_connect(self, *args: Any) -> None:
        self.done.append(("connect", *args))
        await super()._handle_connect(*args)

    async def _handle_event(self, *args: Any) -> None:
        self.done.append(("event", *args))

    async def _handle_disconnect(self, *args: Any) -> None:
        self.done.append(("disconnect", *args))
        await super()._handle_disconnect(*args)

    async def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        self.done.append(("send", eio_sid, pkt.encode()))

    async def joined(self) -> str:
        """Let one client in."""
        await self.eio.handlers["connect"]("e1", {})
        await self.eio.handlers["message"]("e1", "0/a,")
        return str(self.manager.sid_from_eio_sid("e1", "/a"))


# python-socketio


def test_socketio_engine_class() -> None:
    class Engine(engineio.AsyncServer):  # type: ignore[misc]  # untyped base
        pass

    class Own(socketio.AsyncServer):  # type: ignore[misc]  # untyped base
        def _engineio_server_class(self) -> type[Engine]:
            return Engine

    assert type(Own(async_mode="aiohttp").eio) is Engine


async def test_socketio_engine_handlers() -> None:
    server = socketio.AsyncServer(async_mode="aiohttp")
    assert server.eio.handlers == {
        "connect": server._handle_eio_connect,
        "message": server._handle_eio_message,
        "disconnect": server._handle_eio_disconnect,
    }
    assert names(server._handle_eio_connect) == ["eio_sid", "environ"]
    assert names(server._handle_eio_message) == ["eio_sid", "data"]
    assert names(server._handle_eio_disconnect) == ["eio_sid", "reason"]
    initialized: list[None] = []
    server.manager.initialize = lambda: initialized.append(None)
    environ: dict[str, Any] = {}
    before = {name: id(value) for name, value in vars(server).items()}
    assert server.manager_initialized is False
    for _ in range(2):
        await server._handle_eio_connect("e1", environ)
    changed = {name for name, value in vars(server).items() if before.get(name) != id(value)}
    assert (changed, initialized) == ({"manager_initialized"}, [None])
    assert server.manager_initialized is True
    assert server.environ == {"e1": environ}
    assert server.environ["e1"] is environ


async def test_socketio_packet_handlers() -> None:
    server = Server()
    await server.joined()
    server.done.clear()
    for text in ('2/a,7["ask",1]', "1/a,", "0/a,{}"):
        await server.eio.handlers["message"]("e1", text)
    await server.eio.handlers["disconnect"]("e1", "gone")
    said = [done for done in server.done if done[0] != "send"]
    assert said == [
        ("event", "e1", "/a", 7, ["ask", 1]),
        ("disconnect", "e1", "/a", server.reason.CLIENT_DISCONNECT),
        ("connect", "e1", "/a", {}),
        ("disconnect", "e1", "/a", "gone"),
    ]


async def test_socketio_sending() -> None:
    server = Server()
    sid = await server.joined()
    assert server.done[-1] == ("send", "e1", f'0/a,{{"sid":"{sid}"}}')

    sent: list[tuple[str, Any]] = []

    async def keep(eio_sid: str, pkt: Any) -> None:
        sent.append((eio_sid, pkt))

    server._send_eio_packet = keep
    await server.eio.handlers["connect"]("e2", {})
    await server.eio.handlers["message"]("e2", "0/a,")
    await server.emit("bytes", b"x", namespace="/a")
    packets = [pkt for _eio_sid, pkt in sent if pkt.binary]
    assert len(packets) == 2
    assert packets[0] is packets[1], "shared: its first encoding is kept for both"


async def test_socketio_attachments() -> None:
    server = Server()
    await server.joined()
    await server.eio.handlers["message"]("e1", '52-/a,["x",{"_placeholder":true,"num":0}]')
    assert server._binary_packet["e1"].attachment_count == 2
    await server.eio.handlers["message"]("e1", b"1")
    assert "e1" in server._binary_packet
    await server.eio.handlers["message"]("e1", b"2")
    assert server._binary_packet == {}
    assert server.done[-1][0] == "event"


async def test_socketio_client_manager() -> None:
    server = Server()
    manager = server.manager
    called: list[tuple[Any, ...]] = []

    async def connect(sid: str, namespace: str) -> None:
        called.append(("connect", sid, namespace, sid in manager.pending_connect.get(namespace, [])))
        await type(manager).connect(manager, sid, namespace)

    manager.connect = connect
    sid = await server.joined()
    assert called == [("connect", sid, "/a", True)]
    assert manager.pending_connect.get("/a", []) == []
    assert dict(manager.rooms["/a"][None]) == {sid: "e1"}
    assert manager.is_connected(sid, "/a")
    manager.basic_enter_room(sid, "/a", "room", eio_sid=None)
    assert set(manager.rooms["/a"]) == {None, sid, "room"}
    manager.basic_leave_room(sid, "/a", "room")
    assert set(manager.rooms["/a"]) == {None, sid}
    manager.pre_disconnect(sid, "/a")
    assert manager.pending_disconnect == {"/a": [sid]}
    assert not manager.is_connected(sid, "/a")
    manager.basic_disconnect(sid, "/a")
    assert manager.rooms == {}
    assert manager.callbacks == {}


async def test_socketio_acknowledgements() -> None:
    server = Server()
    manager = server.manager
    sid = await server.joined()
    called: list[tuple[Any, ...]] = []
    numbers = [manager._generate_ack_id(sid, lambda *said: called.append(said)) for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert set(manager.callbacks[sid]) == {0, 1, 2, 3}
    await server._handle_eio_message("e1", '3/a,2["x",1]')
    await server._handle_eio_message("e1", '3/a,2["again"]')
    await server._handle_eio_message("e1", "3/a,3[]")
    assert called == [("x", 1), ()]
    assert set(manager.callbacks[sid]) == {0, 1}


async def test_socketio_other_nodes() -> None:
    published: list[Any] = []
    heard: asyncio.Queue[Any] = asyncio.Queue()

    class Manager(socketio.AsyncRedisManager):  # type: ignore[misc]  # untyped base
        async def _publish(self, data: Any) -> None:
            published.append(data)

        async def _listen(self) -> AsyncIterator[Any]:
            while True:
                yield await heard.get()

    server = Server()
    manager = Manager()
    manager.set_server(server)
    server.manager = manager
    await manager.emit("ask", 1, namespace="/a")
    assert [message["method"] for message in published] == ["emit"]
    emitted: list[Any] = []

    async def handle(message: Any) -> None:
        emitted.append(message)

    manager._handle_emit = handle
    thread = asyncio.create_task(manager._thread())
    await heard.put({**published[0], "host_id": "another"})
    await eventually(lambda: emitted)
    thread.cancel()
    await asyncio.gather(thread, return_exceptions=True)
    assert emitted[0]["event"] == "ask"


# python-engineio


@pytest.fixture
async def stock() -> AsyncIterator[tuple[engineio.AsyncServer, str, list[Any]]]:
    """A stock Engine.IO server whose sessions are written down as they begin, and its address."""
    begun: list[Any] = []

    class Engine(engineio.AsyncServer):  # type: ignore[misc]  # untyped base
        async def _handle_connect(self, *args: Any) -> Any:
            begun.append(args)
            if args[0]["QUERY_STRING"].endswith("refuse=1"):
                return web.Response(status=503, text="busy")
            return await super()._handle_connect(*args)

    server = Engine(async_mode="aiohttp", cors_allowed_origins=["https://good"], monitor_clients=False)
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield server, f"{URL}:{runner.addresses[0][1]}/engine.io/", begun
    await runner.cleanup()


async def test_engineio_handshake(stock: tuple[engineio.AsyncServer, str, list[Any]]) -> None:
    server, url, begun = stock
    assert names(engineio.AsyncServer._handle_connect) == ["self", "environ", "transport", "jsonp_index"]
    async with aiohttp.ClientSession() as http:
        for query, origin in (("EIO=3", None), ("EIO=4&transport=x", None), ("EIO=4", "https://evil"), ("sid=x", None)):
            async with http.get(f"{url}?{query}", headers={} if origin is None else {"Origin": origin}) as response:
                assert response.status == 400
        assert begun == []
        async with http.get(f"{url}?EIO=4&transport=polling&refuse=1") as response:
            assert (response.status, await response.text()) == (503, "busy")
        assert server.sockets == {}
        async with http.get(f"{url}?EIO=4&transport=polling") as response:
            assert (await response.text()).startswith("0{")
        environ, transport, _jsonp = begun[1]
        assert (len(begun), transport) == (2, "polling")
        assert isinstance(environ["aiohttp.request"], web.Request)
        assert len(server.sockets) == 1


def test_engineio_cors() -> None:
    server = engineio.AsyncServer(async_mode="aiohttp", cors_allowed_origins=["https://good"])
    environ = {"HTTP_ORIGIN": "https://good", "REQUEST_METHOD": "GET"}
    assert ("Access-Control-Allow-Origin", "https://good") in server._cors_headers(environ)


async def test_engineio_session(stock: tuple[engineio.AsyncServer, str, list[Any]]) -> None:
    server, url, _begun = stock
    found: list[tuple[AsyncSocket, list[Any]]] = []

    class Own(AsyncSocket):  # type: ignore[misc]  # untyped base
        pass

    @server.on("connect")  # type: ignore[untyped-decorator]
    async def connect(sid: str, environ: Any) -> None:
        socket = server.sockets[sid]
        found.append((socket, [type(socket), *socket.queue._queue]))
        socket.__class__ = Own

    async with aiohttp.ClientSession() as http, http.get(f"{url}?EIO=4&transport=polling") as response:
        sid = json.loads((await response.text())[1:])["sid"]
    [(socket, [kind, opening])] = found
    assert kind is AsyncSocket
    assert opening.packet_type == eio_packet.OPEN
    assert opening.data["upgrades"] == ["websocket"]
    assert (server.sockets[sid], socket.sid) == (socket, sid)
    assert isinstance(socket, Own)


async def test_engineio_session_state() -> None:
    server = engineio.AsyncServer(async_mode="aiohttp")
    state = vars(AsyncSocket(server, "sid"))
    assert set(state) == {
        *("server", "sid", "queue", "session", "last_ping"),
        *("connected", "upgrading", "upgraded", "closing", "closed"),
    }
    assert [name for name, value in state.items() if value is False] == [
        *("connected", "upgrading", "upgraded", "closing", "closed")
    ]
    assert isinstance(state["queue"], asyncio.Queue)


async def test_engineio_session_life() -> None:
    assert names(AsyncSocket.close) == ["self", "wait", "abort", "reason"]
    for name, argument in (("receive", "pkt"), ("send", "pkt"), ("handle_get_request", "environ")):
        assert names(getattr(AsyncSocket, name)) == ["self", argument]
    assert names(AsyncSocket.handle_post_request) == ["self", "environ"]
    assert names(AsyncSocket._websocket_handler) == ["self", "ws"]
    assert names(AsyncSocket.schedule_ping) == names(AsyncSocket.check_ping_timeout) == ["self"]
    said: list[tuple[Any, ...]] = []
    server = engineio.AsyncServer(async_mode="aiohttp")

    @server.on("disconnect")  # type: ignore[untyped-decorator]
    async def disconnect(sid: str, reason: str) -> None:
        said.append((sid, reason, socket.closing, socket.closed))

    socket = AsyncSocket(server, "sid")
    await socket.close(wait=False, abort=True, reason="why")
    await socket.close(wait=False, abort=True, reason="again")
    assert said == [("sid", "why", True, False)]
    assert socket.closed


def test_engineio_driver() -> None:
    server = engineio.AsyncServer(async_mode="aiohttp")
    assert server._async["websocket"] is aiohttp_driver.WebSocket
    driver = aiohttp_driver.WebSocket(print, server)
    assert (driver.handler, driver.server) == (print, server)
    assert {"__call__", "close", "send", "wait"} <= set(dir(driver))


def test_engineio_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Payload, "max_decode_packets", 2)
    assert len(Payload(encoded_payload="4a\x1e4b").packets) == 2
    with pytest.raises(ValueError, match="Too many packets"):
        Payload(encoded_payload="4a\x1e4b\x1e4c")


# aiohttp


async def answered(handler: Any, send: bytes) -> bytes:
    """What a server with this handler answers to a request, to the connection's end."""
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        writer.write(send)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        await runner.cleanup()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class Nothing(web.StreamResponse):
    """An answer that somebody else gives."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self._keep_alive = False
        self.asked: list[str] = []

    async def prepare(self, request: Any) -> None:
        self.asked.append("prepare")

    async def write_eof(self, data: bytes = b"") -> None:
        self.asked.append("write_eof")


async def test_aiohttp_handler() -> None:
    found: list[Any] = []

    async def take_over(request: web.Request) -> web.StreamResponse:
        handler, transport = request.protocol, request.transport
        assert isinstance(handler, RequestHandler)
        assert transport is handler.transport
        assert transport is not None
        found.extend((handler._message_tail, handler._buffer_paused))
        transport.set_protocol(asyncio.Protocol())
        handler.transport = None
        handler.connection_lost(None)
        transport.write(b"taken")
        transport.close()
        return Nothing()

    # What comes along with the head of an upgrade is kept for whoever takes the connection.
    assert await answered(take_over, REQUEST + b"more") == b"taken"
    assert found == [b"more", False]


async def test_aiohttp_response() -> None:
    response = Nothing()

    async def answer(request: web.Request) -> web.StreamResponse:
        return response

    assert await answered(answer, REQUEST) == b""
    assert response.asked == ["prepare", "write_eof"]


async def test_aiohttp_request() -> None:
    found: list[Any] = []

    async def forget(request: web.Request) -> web.StreamResponse:
        found.extend((request._protocol is request.protocol, request._payload_writer is None))
        request._protocol = request._payload_writer = None  # type: ignore[assignment]
        found.append(len(request._message.raw_headers))
        request._message = request._message._replace(raw_headers=())
        found.extend((request.raw_headers, request.headers["Host"], request.path))
        return Nothing()

    assert await answered(forget, REQUEST) == b""
    assert found == [True, False, 3, (), "x", "/"]


async def test_aiohttp_protocol() -> None:
    """Whatever a connection has sent by then is its handler's, which is made of its server."""
    made: list[Any] = []

    class First(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)

        def data_received(self, data: bytes) -> None:
            server = runner._server
            assert server is not None
            made.append(handler := server())
            self.transport.set_protocol(handler)
            handler.connection_made(self.transport)
            handler.data_received(data)

    class Runner(web.AppRunner):
        closed = False

        @property
        def server(self) -> Any:
            return First if self._server is not None else None

        async def shutdown(self) -> None:
            self.closed = True
            await super().shutdown()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="answered", headers={"Connection": "close"})

    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"answered")
    writer.close()
    assert len(made) == 1
    assert not runner.closed
    await runner.cleanup()
    assert runner.closed


async def test_aiohttp_message() -> None:
    class Connection:
        transport = None
        ssl_context, peername, sockname = object(), ("10.0.0.1", 1), None

    url = yarl.URL.build(path="/a/", query_string="b=c%20d", encoded=True)
    headers = CIMultiDictProxy(CIMultiDict([("Host", "x"), ("Cookie", "e=f")]))
    message = RawRequestMessage("GET", url.raw_path_qs, HttpVersion11, headers, (), False, None, True, False, url)
    loop = asyncio.get_running_loop()
    request = web.Request(message, EMPTY_PAYLOAD, Connection(), None, None, loop)  # type: ignore[arg-type]
    assert (request.method, request.path_qs, dict(request.query)) == ("GET", "/a/?b=c%20d", {"b": "c d"})
    assert (request.host, request.scheme, request.remote, request.cookies) == ("x", "https", "10.0.0.1", {"e": "f"})
    assert (request.version, request.transport, request.raw_headers) == (HttpVersion11, None, ())


def test_aiohttp_listening() -> None:
    async def run() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [listening] = site._server.sockets  # type: ignore[union-attr]
        assert listening.fileno() > 0
        await runner.cleanup()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# uvloop


def test_uvloop_transport() -> None:
    class First(asyncio.Protocol):
        pass

    class Buffered(asyncio.BufferedProtocol):
        pass

    async def run() -> None:
        near, far = socketpair()
        with far:
            transport, first = await asyncio.get_running_loop().create_connection(First, sock=near)
            kept = weakref.ref(first)
            del first
            transport.set_protocol(Buffered())
            assert kept() is not None
            transport.set_protocol(asyncio.Protocol())
            transport.set_protocol(Buffered())
            assert kept() is None
            transport.abort()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# picows


def picows_protocol(listener: Any) -> Any:
    picows = pytest.importorskip("picows")
    from picows.picows import WSProtocol  # type: ignore[attr-defined]  # noqa: PLC0415 - not where picows is not

    return WSProtocol(
        host_port=None,
        ws_path=None,
        is_client_side=False,
        ws_listener_factory=lambda _request: listener,
        logger=types.SimpleNamespace(isEnabledFor=lambda _level: False, debug=print, info=print, exception=print),
        disconnect_on_exception=True,
        websocket_handshake_timeout=None,
        enable_auto_ping=False,
        auto_ping_idle_timeout=None,
        auto_ping_reply_timeout=None,
        auto_ping_strategy=picows.WSAutoPingStrategy.PING_WHEN_IDLE,
        enable_auto_pong=False,
        max_frame_size=1000,
        extra_headers=None,
        read_buffer_init_size=0,
    )


UPGRADE = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def feed(protocol: Any, data: bytes) -> None:
    while data:
        room = protocol.get_buffer(-1)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


OnASocket = Callable[[Any, bytes], Awaitable[tuple[Any, asyncio.Transport, asyncio.StreamReader]]]


@pytest.fixture
async def on_a_socket() -> AsyncIterator[OnASocket]:
    """Give a protocol of picows's a connection, and feed it an upgrade and what came behind it; closed at the end."""
    accepted: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
    writers: list[asyncio.StreamWriter] = []

    class First(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)  # type: ignore[arg-type]

    from gateway.engine.takeover import _Transport  # noqa: PLC0415 - not where picows is not

    async def open_one(listener: Any, sent: bytes) -> tuple[Any, asyncio.Transport, asyncio.StreamReader]:
        server = await asyncio.get_running_loop().create_server(First, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writers.append(writer)
        transport = await accepted
        protocol = picows_protocol(listener)
        transport.set_protocol(protocol)
        protocol.connection_made(_Transport(transport))
        feed(protocol, UPGRADE + sent)
        server.close()
        return protocol, transport, reader

    yield open_one
    (await accepted).abort()
    for writer in writers:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


def listener_of(heard: list[Any]) -> Any:
    picows = pytest.importorskip("picows")

    class Listener(picows.WSListener):  # type: ignore[misc, name-defined]
        def on_ws_connected(self, transport: Any) -> None:
            heard.append(("connected", transport))

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            heard.append(("frame", frame.msg_type, frame.fin, frame.rsv1, frame.get_payload_as_bytes()))

        def on_ws_disconnected(self, transport: Any) -> None:
            heard.append(("disconnected",))

        def pause_writing(self) -> None:
            heard.append(("pause",))

        def resume_writing(self) -> None:
            heard.append(("resume",))

    return Listener()


async def test_picows_protocol(on_a_socket: OnASocket) -> None:
    heard: list[Any] = []
    _protocol, transport, reader = await on_a_socket(listener_of(heard), b"\x81\x82\0\0\0\0hi")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert [each[0] for each in heard] == ["connected", "frame"]
    assert heard[1][2:] == (True, False, b"hi")
    transport.abort()
    await asyncio.sleep(0)


async def test_picows_answer(on_a_socket: OnASocket) -> None:
    picows = pytest.importorskip("picows")
    asked: list[str] = []

    class Answer(picows.WSUpgradeResponse):  # type: ignore[misc, name-defined]
        status = 101
        headers: dict[str, str] = {}  # noqa: RUF012 - as it is read

        def to_bytes(self) -> bytearray:
            asked.append(self.headers["Sec-WebSocket-Accept"])
            return bytearray(b"HTTP/1.1 101 Fine\r\n\r\n")

    heard: list[Any] = []
    answer = picows.WSUpgradeResponseWithListener(Answer(), listener_of(heard))
    _protocol, transport, reader = await on_a_socket(answer, b"")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 101 Fine\r\n\r\n"
    assert asked == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    assert [each[0] for each in heard] == ["connected"]
    transport.abort()
    await asyncio.sleep(0)


async def test_picows_listener(on_a_socket: OnASocket) -> None:
    heard: list[Any] = []
    listener = listener_of(heard)
    listener.on_ws_frame = lambda _transport, frame: heard.append(("its own", frame.get_payload_as_bytes()))
    _protocol, transport, _reader = await on_a_socket(listener, b"\x81\x82\0\0\0\0hi")
    assert heard[-1] == ("its own", b"hi")
    transport.set_write_buffer_limits(high=1000, low=0)
    transport.write(bytes(20_000_000))
    assert heard[-1] == ("pause",)
    transport.abort()
    await eventually(lambda: heard[-1] == ("disconnected",))


async def test_picows_wire(on_a_socket: OnASocket) -> None:
    heard: list[Any] = []
    _protocol, transport, reader = await on_a_socket(listener_of(heard), b"")
    wire = heard[0][1]
    assert wire.request.headers["Sec-WebSocket-Version"] == "13"
    wire.request.headers = {}
    await reader.readuntil(b"\r\n\r\n")
    wire.send_close(4008)
    assert (await reader.readexactly(4)) == b"\x88\x02\x0f\xa8"
    wire.disconnect()
    await asyncio.sleep(0)
    assert transport.is_closing()
