"""What a door that speaks Socket.IO is written against, and how it reaches one client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

import socketio

from gateway import wire
from gateway.engine import json
from gateway.engine.batch import Batch
from gateway.engine.environ import REQUEST
from gateway.engine.stream import Route, write_all
from gateway.errors import CloseCode
from gateway.recovery.offsets import Mark, Offset
from gateway.recovery.sessions import MAX_WATCHED_BYTES, rooms_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence

    from aiohttp import web

    from gateway.connections.live import LiveConnection
    from gateway.delivery.queue import Queued
    from gateway.engine.server import Server
    from gateway.engine.stream import Asked, Sink, Told
    from gateway.presence.watching import WatchList
    from gateway.recovery.recovery import Recovered, Recovery, Return
    from gateway.recovery.sessions import Session

_AGENTS = ("Mozilla/", "node")
"""How the user agents begin of browsers, and of what polls in Node: ``node-XMLHttpRequest``, and ``node`` for fetch."""

_NO_CODE = 1000
"""What a connection is closed with that nothing else was decided for."""

EXPECTED = 10_000
"""Acknowledgements that one client may owe. An earlier one is forgotten: what it was for comes again."""

_LOSSES = frozenset({"ping timeout", "transport close", "transport error"})
"""python-engineio's words for a connection that was lost; `Server.reason` has them."""


class Namespace(socketio.AsyncNamespace):  # type: ignore[misc]  # untyped base
    """A namespace whose requests arrive whole: with their name, and whether an acknowledgement is awaited."""

    server: Server
    hears_presence = False
    """Whether its clients hear of presence, and what users are notified of."""
    recovery: Recovery | None = None
    """What lets its clients go on where they lost their connection; None where they begin anew."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.codec = EventCodec(namespace)
        self._marking_codec: MarkingCodec | None = None
        self._returns: dict[str, Return | None] = {}
        """Clients that can recover, from their CONNECT packet until its answer."""
        self._sessions: dict[str, Session] = {}
        """Of clients that can recover, from the answer on."""
        self._recovered: dict[str, Recovered] = {}
        """Of those that have, until they were told what they missed."""

    def recover_by(self, recovery: Recovery) -> None:
        """Let clients go on where they lost their connection."""
        self.recovery = recovery
        self._marking_codec = MarkingCodec(self.namespace, recovery)

    @abstractmethod
    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
        """Let a client in.

        Raises:
            socketio.exceptions.ConnectionRefusedError: it is not let in; its arguments are the client's
                ``connect_error``: message and data.
        """

    @abstractmethod
    async def on_connected(self, sid: str) -> None:
        """The client has been told that it is connected."""

    @abstractmethod
    async def on_disconnect(self, sid: str, reason: str) -> None:
        """The connection ended; `reason` is one of `Server.reason`."""

    def owner(self, sid: str) -> tuple[str, str] | None:  # noqa: ARG002 - for those that override it
        """Whose a client is that was let in, as tenant and user id; None for one that cannot recover."""
        return None

    def live(self, sid: str) -> LiveConnection | None:  # noqa: ARG002 - for those that override it
        """The connection of the user whose client it is; None where it is nobody's."""
        return None

    def token(self, sid: str) -> tuple[str | None, int | None]:  # noqa: ARG002 - for those that override it
        """The id of a client's token, and when it was issued, in Unix milliseconds; None where it does not say."""
        return None, None

    async def rooms_lost(self, sid: str, found: Return) -> Collection[object]:  # noqa: ARG002 - likewise
        """Of the rooms that a client comes back to, those it may not be in any more: it hears nothing of them."""
        return ()

    def told(self, sid: str) -> int:  # noqa: ARG002 - for those that override it
        """Up to where on the presence log a client has been told; 0 for one that does not hear of it."""
        return 0

    @abstractmethod
    def on_request(
        self, sid: str, event: str, args: list[Any], *, acknowledged: bool
    ) -> object | Coroutine[Any, Any, object]:
        """Answer an event, at once or by a coroutine. The answer is the acknowledgement, where one is awaited."""

    def on_acknowledged(self, sid: str, item_id: str) -> None:
        """A client has acknowledged what waited for it, and was handed to it."""

    @cached_property
    def route(self) -> Route:
        """Where events go that come over the fast path; all clients have the same."""
        return Route(self.namespace, self.codec.event, self.codec.acknowledgement, self._ask, self._tell)

    def client(self, sid: str) -> Any:
        """What `route` knows a client by."""
        return sid

    def _ask(self, sid: str, message: bytes) -> Asked:
        event, args = _read(message)
        answer = self.on_request(sid, event, args, acknowledged=True)
        return _encode_later(answer) if isinstance(answer, Coroutine) else wire.encode(answer)

    def _tell(self, sid: str, message: bytes) -> Told:
        event, args = _read(message)
        answer = self.on_request(sid, event, args, acknowledged=False)
        return answer if isinstance(answer, Coroutine) else None

    async def trigger_event(self, event: str, *args: Any) -> None:
        """Hand python-socketio's two calls on.

        Its own version calls a disconnect handler again after a TypeError, and finds handlers by event names
        that clients choose; requests come to `on_request` by another way.
        """
        if event == "connect":
            sid, environ, auth = args
            await self._connect(sid, environ[REQUEST], auth)
        elif event == "disconnect":
            self._end_session(*args)
            await self.on_disconnect(*args)

    def peer(self, sid: str) -> SocketPeer:
        """Reach a client of this namespace.

        Raises:
            socketio.exceptions.ConnectionRefusedError: it has left.
        """
        eio_sid = self.server.manager.eio_sid_from_sid(sid, self.namespace)
        if not self.server.is_open(eio_sid):
            raise socketio.exceptions.ConnectionRefusedError("the client has left")
        recovers = self._marking_codec is not None and (sid in self._returns or sid in self._sessions)
        codec = self._marking_codec if self._marking_codec is not None and recovers else self.codec
        return SocketPeer(self, codec, sid, eio_sid)

    def ask_for_word(self, sid: str, item_id: str) -> int:
        """Expect that a client acknowledges something, and return the number that its acknowledgement has."""
        manager = self.server.manager
        number: int = manager._generate_ack_id(sid, lambda *_said: self.on_acknowledged(sid, item_id))  # noqa: SLF001 - listed
        if number > EXPECTED:  # of a client that does not acknowledge; at 0 is what counts them
            manager.callbacks[sid].pop(number - EXPECTED, None)
        return number

    # Recovery

    async def _connect(self, sid: str, request: web.Request, auth: object) -> None:
        if self.recovery is not None and can_recover(request.headers):
            self._returns[sid] = None
        try:
            await self.on_connect(sid, request, auth)
            if self.recovery is not None and sid in self._returns:
                owner = self.owner(sid)
                if owner is None:
                    del self._returns[sid]
                else:
                    found = await self.recovery.find(self.namespace, owner, auth, presence=self.hears_presence)
                    if found is not None and found.session.rooms and (lost := await self.rooms_lost(sid, found)):
                        found.session = found.session.without(lost)
                    self._returns[sid] = found
        except BaseException:
            self._returns.pop(sid, None)
            raise

    def former(self, auth: object, owner: tuple[str, str]) -> str:
        """What a client was called whose connection here is not known to be lost yet; empty for another client."""
        pid = auth.get("pid") if isinstance(auth, dict) else None
        session = None if self.recovery is None else self.recovery.sessions.find(pid, owner, self.namespace)
        return "" if session is None else session.sid

    def begin_session(self, sid: str) -> str | None:
        """Begin the session of a client that is about to be told that it is connected.

        Returns:
            Its private id, which is the old one for a client that goes on with a session; None without one.
        """
        owner = self.owner(sid)
        if self.recovery is None or sid not in self._returns or owner is None:
            return None
        session, recovered = self.recovery.begin(
            self.namespace, owner, sid, self._returns.pop(sid), presence=self.hears_presence, token=self.token(sid)
        )
        self._sessions[sid] = session
        if recovered is not None:
            self._recovered[sid] = recovered
        return session.pid

    def resume(self, sid: str) -> Resumption | None:
        """Put a client that goes on with its session back into its rooms, and end the connection that it replaces.

        Returns:
            What it is to be told; None for a client that begins anew.
        """
        recovered = self._recovered.pop(sid, None)
        if recovered is None or self._marking_codec is None:
            return None
        manager = self.server.manager
        manager.enter_again(sid, self.namespace, tuple(recovered.rooms))
        if recovered.replaced is not None:
            eio_sid = manager.eio_sid_from_sid(recovered.replaced, self.namespace)
            if eio_sid is not None:
                self.server.close_socket(eio_sid, CloseCode.GOING_AWAY)
        return Resumption(self._marking_codec, recovered)

    def marking_codec_of(self, sid: str) -> MarkingCodec | None:
        """How events are encoded for a client that can recover; None for another."""
        return self._marking_codec if sid in self._sessions else None

    def is_coming(self, sid: str) -> bool:
        """Whether a client that can recover has not been told yet that it is connected: it is told all at once."""
        return sid in self._returns

    def rooms_changed(self, sid: str, rooms: Collection[object]) -> None:
        """Keep the rooms of a client for when it is lost."""
        session = self._sessions.get(sid)
        if session is not None and self.recovery is not None:
            session.be_in(rooms_of(rooms), self.recovery.mark())
            self.recovery.sessions.change(session)

    def settling(self, sid: str) -> Awaitable[None] | None:
        """Wait until other nodes find a client's rooms, and whom it watches, as they are now, or not at all.

        Returns:
            None where that is so already. It raises StoreUnavailableError where that cannot be told now.
        """
        session = self._sessions.get(sid)
        return None if session is None or self.recovery is None else self.recovery.sessions.settling(session)

    def watched_changed(self, sid: str, watched: WatchList) -> None:
        """Keep whom a client watches for when it is lost, but for a list that is too long: that one begins anew."""
        session = self._sessions.get(sid)
        if session is None or self.recovery is None:
            return
        session.watched = watched
        if watched.size > MAX_WATCHED_BYTES:
            self.recovery.sessions.end(session)
        else:
            self.recovery.sessions.change(session)

    def token_changed(self, sid: str) -> None:
        """Keep which token a client has now for when it is lost: it is that one which may be revoked."""
        session = self._sessions.get(sid)
        if session is not None and self.recovery is not None:
            session.jti, session.issued_at = self.token(sid)
            self.recovery.sessions.change(session)

    def _end_session(self, sid: str, reason: str) -> None:
        """Keep the session of a client that was lost, or whose node stops; forget that of any other."""
        self._returns.pop(sid, None)
        self._recovered.pop(sid, None)
        session = self._sessions.pop(sid, None)
        if session is None or self.recovery is None:
            return
        socket = self.server.eio.sockets.get(self.server.manager.eio_sid_from_sid(sid, self.namespace))
        code = _NO_CODE if socket is None else socket.close_code
        lost = reason in _LOSSES or (socket is not None and socket.lost)
        if code == CloseCode.GOING_AWAY or (code == _NO_CODE and lost):
            self.recovery.lose(session, self.told(sid))
        else:
            self.recovery.sessions.end(session)


def _read(message: bytes) -> tuple[str, list[Any]]:
    """Read an event as it came: a JSON array of its name and its arguments.

    Raises:
        ValueError: it is no event.
    """
    event, *args = json.loads(message)
    if not isinstance(event, str) or event in wire.SOCKET_IO_EVENTS:
        raise ValueError("no name for an event")
    return event, args


async def _encode_later(answer: Coroutine[Any, Any, object]) -> bytes:
    return wire.encode(await answer)


def can_recover(headers: Mapping[str, str]) -> bool:
    """Whether a client is socket.io-client, which takes an offset behind an event's arguments.

    Others would hand it to their handlers. It is known by what runs it: a browser, or Node, whose WebSockets name
    nothing, but offer compression; the clients in Python that name nothing do not.
    """
    agent = headers.get("User-Agent")
    if agent is None:
        return "permessage-deflate" in headers.get("Sec-WebSocket-Extensions", "")
    return agent.startswith(_AGENTS)


class EventCodec:
    """Encodes events for one namespace."""

    def __init__(self, namespace: str) -> None:
        self.event = f"42{namespace},".encode()
        """How a client's event begins, as Engine.IO carries it. Of ``/`` none does: python-socketio takes those."""
        self.acknowledgement = f"43{namespace},".encode()
        place = "" if namespace == "/" else f"{namespace},"
        self.connect = f"0{place}".encode()
        """How the answer to its CONNECT packet begins."""
        self.disconnect = Batch([f"1{place}".encode()])
        self._prefix = f"2{place}".encode()

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode events, each a name and its data, to be sent in their order."""
        return self.batch(events)

    def batch(self, events: Iterable[tuple[object, ...]]) -> Batch:
        """Encode events, each a name and its arguments."""
        return Batch([self._prefix + wire.encode(event) for event in events])

    def write_all(self, batch: Batch, sinks: Sequence[Sink]) -> None:
        """Send a batch to many clients."""
        write_all(batch, sinks)

    def encode_queued(self, queued: Queued, number: int) -> Batch:
        """Encode what waited for a client, with its id behind its data, to be acknowledged by a number.

        No offset is told with it: it is not among what a client that lost its connection has missed.
        """
        return Batch([b"%b%d%b" % (self._prefix, number, wire.encode((queued.event, queued.data, queued.id)))])


class MarkingCodec(EventCodec):
    """Encodes events for clients that can recover: with an offset behind the arguments.

    Args:
        namespace: of the clients.
        recovery: what knows up to where they have been told.
    """

    def __init__(self, namespace: str, recovery: Recovery) -> None:
        super().__init__(namespace)
        self.plain = EventCodec(namespace)
        """Encodes the same without an offset: what a client is not told again when it goes on."""
        self._recovery = recovery

    @property
    def mark(self) -> Mark:
        """Up to where on the bus clients have been told."""
        return self._recovery.mark()

    def encode_told(self, events: Sequence[tuple[str, object]], after: int, to: int) -> Batch:
        """Encode the net effect of the log between two positions; each event says how much of it has been told."""
        node, mark, last = self._recovery.node, self._recovery.mark(), len(events)
        offsets = [Offset(node, after, mark, to, heard) for heard in range(1, last)]
        return self.join(zip([*offsets, Offset(node, to, mark)], map(wire.encode, events), strict=True))

    def offset(self, log: int, mark: Mark) -> str:
        """The offset of a client that has been told up to a position of the log, and up to a mark."""
        return str(Offset(self._recovery.node, log, mark))

    def encode_at(self, event: str, data: object, log: int, mark: Mark) -> Batch:
        """Encode one event for a client that has been told up to a position of the log, and now up to a mark."""
        return self.join([(Offset(self._recovery.node, log, mark), wire.encode((event, data)))])

    def join(self, events: Iterable[tuple[Offset | str, bytes]]) -> Batch:
        """Put offsets to events that are encoded already, as JSON arrays of their name and arguments."""
        return Batch([b'%b%b,"%b"]' % (self._prefix, text[:-1], str(offset).encode()) for offset, text in events])


class Resumption:
    """What a client hears that goes on with its session.

    Args:
        codec: its namespace's.
        recovered: what it missed.
    """

    def __init__(self, codec: MarkingCodec, recovered: Recovered) -> None:
        self._codec = codec
        self._offset = recovered.offset
        self.missed = codec.join(recovered.missed) if recovered.missed else None
        """What it missed; None where that is nothing."""
        self.watched = recovered.watched
        """Whom it watches; None for one that never watched anybody."""
        self.removed = recovered.removed
        """The rooms that it was taken out of while it was away."""

    def opening(self, event: str, data: object) -> Batch:
        """Its first event, which says of what it missed that it has not been told yet."""
        return self._codec.join([(self._offset, wire.encode((event, data)))])


class SocketPeer:
    """One client, as its Engine.IO connection reaches it.

    Args:
        namespace: whose client.
        codec: how events are encoded for it.
        sid: what it is called there.
        eio_sid: its Engine.IO connection.
    """

    __slots__ = ("_eio_sid", "_namespace", "_sid", "codec", "sink")

    def __init__(self, namespace: Namespace, codec: EventCodec, sid: str, eio_sid: str) -> None:
        self.codec = codec
        self._namespace = namespace
        self._sid = sid
        self._eio_sid = eio_sid
        self.sink: Sink = namespace.server.eio.sockets[eio_sid].sink
        """What sends events; a connection for which more waits than may is closed with 4008."""

    def write(self, batch: Batch) -> None:
        """Send events."""
        self.sink.write(batch)

    def hand(self, queued: Queued) -> None:
        """Send what waited for the client, which is to acknowledge it."""
        self.write(self.codec.encode_queued(queued, self._namespace.ask_for_word(self._sid, queued.id)))

    def close(self, code: CloseCode) -> None:
        """Close the connection with `code`.

        A client whose node goes away is left to reconnect by itself; the others are told that the server meant
        them, and do not.
        """
        if code is not CloseCode.GOING_AWAY:
            self.write(self.codec.disconnect)
        self._namespace.server.close_socket(self._eio_sid, code)
