"""Sessions: what a client can come back to, by its private id, on this node and on others."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.presence.history import Span
from gateway.presence.watching import WatchList
from gateway.recovery.offsets import Mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OVERHEAD = 1000
"""Bytes that a session takes besides the names of its rooms, and whom it watches."""

SPAN = 24
"""Bytes that one span of `Session.untold` takes."""

EVERYONE = ""
"""The key of `Session.untold` for a client that hears of everyone. It is no user's id."""

FORMER = 8
"""Names of former connections that a session keeps."""

MAX_WATCHED_BYTES = 65_536
"""How large the watch list of a session may be: a thousand ids of forty characters. A larger one ends the session, and
its client begins anew."""

RoomName = str | int
"""Of python-socketio's rooms, those that other nodes can be told of."""


class Session(msgspec.Struct):
    """What of a connection outlives it."""

    pid: str
    """The private id: whoever names it, and is its owner, goes on with it."""
    namespace: str
    owner: tuple[str, str]
    """Tenant and user id of the verified token."""
    sid: str
    """The connection's name in the namespace."""
    former: list[str] = []
    """What it was called before, latest first: a connection may break before what was for these has been heard."""
    rooms: list[RoomName] = []
    placed: Mark | None = None
    """Up to where on the bus its node had heard when its rooms were as they are: whoever was taken out of one before
    has none of it left. None where its node does not say."""
    untold: dict[str, list[Span]] | None = None
    """Once the connection is lost: the spans of the presence log, up to where its client had been told, that its node
    told nobody of, because the changes cancelled out. By user id, or `EVERYONE` for a client that hears of everyone.
    None if its node has not said: there may be some, and other nodes cannot know."""
    watched: WatchList | None = None
    """Whom it watches; None for one that never watched anybody."""
    jti: str | None = None
    """The id of the token that its connection had last; None for one that has none."""
    issued_at: int | None = None
    """When that was issued, in Unix milliseconds; None where it does not say."""
    origin: str = ""
    """The node whose client it was before, as its offset said; empty for one that is new."""

    @property
    def tenant(self) -> str:
        """Its owner's."""
        return self.owner[0]

    @property
    def user_id(self) -> str:
        """Its owner."""
        return self.owner[1]

    @property
    def names(self) -> list[str]:
        """What it is called, and was."""
        return [self.sid, *self.former]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        rooms = sum(len(room) if isinstance(room, str) else 8 for room in self.rooms)
        untold = sum(len(user) + SPAN * len(spans) for user, spans in (self.untold or {}).items())
        return OVERHEAD + rooms + untold + (0 if self.watched is None else self.watched.size)


class Directory(Protocol):
    """Where other nodes find a node's sessions. What is put or dropped is done soon."""

    def put(self, session: Session) -> None:
        """Let other nodes find a session, as it is now."""

    def drop(self, pid: str) -> None:
        """Let nobody find a session any more."""

    def settling(self, pid: str) -> Awaitable[None] | None:
        """Wait until no other node can find a session as it was before it was put or dropped last.

        Returns:
            None where that is so already. It raises StoreUnavailableError where that cannot be told now.
        """

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> Session | None:
        """Take a session over from another node; None where there is none of this owner. Of several, one has it.

        Raises:
            StoreUnavailableError: this cannot be told now.
        """

    async def run(self) -> None:
        """Do what was put and dropped, and keep it from running out, until cancelled."""

    async def close(self) -> None:
        """Do now what was put and dropped, and let go of whatever is held; `run` has ended, or is about to."""


class NoDirectory:
    """The directory of a node that is alone."""

    def put(self, session: Session) -> None:
        """Nobody looks."""

    def drop(self, pid: str) -> None:
        """Nobody looks."""

    def settling(self, pid: str) -> Awaitable[None] | None:  # noqa: ARG002 - the port's
        """Nobody looks."""
        return None

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> Session | None:  # noqa: ARG002 - the port's
        """Nobody has any."""
        return None

    async def run(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to let go of."""


class Sessions:
    """This node's sessions: of live connections, and of lost ones for some time.

    Args:
        clock: the time, in Unix milliseconds.
        window: milliseconds that a lost one is kept.
        limit: bytes of all that are lost; past it the oldest go first.
        directory: where other nodes find them.
    """

    def __init__(self, clock: Callable[[], int], window: int, limit: int, directory: Directory) -> None:
        self.size = 0
        """Bytes of those that are lost, about."""
        self._clock = clock
        self._window = window
        self._limit = limit
        self._directory = directory
        self._live: dict[str, Session] = {}
        self._lost: OrderedDict[str, tuple[int, int, Session]] = OrderedDict()
        """By private id, in the order in which they were lost: when, and their size."""

    def __len__(self) -> int:
        return len(self._live) + len(self._lost)

    def begin(self, session: Session) -> None:
        """Keep the session of a live connection, in place of one of the same id."""
        self._remove(session.pid)
        self._live[session.pid] = session
        self._directory.put(session)

    def change(self, session: Session) -> None:
        """Let other nodes know what has changed of a session."""
        if self._live.get(session.pid) is session:
            self._directory.put(session)

    def settling(self, session: Session) -> Awaitable[None] | None:
        """Wait until other nodes find a session as it is now, or not at all; see `Directory.settling`."""
        return self._directory.settling(session.pid)

    async def withdraw(self, pid: str) -> None:
        """Let no other node find a session here that is about to go on: it would be as it was before.

        Raises:
            StoreUnavailableError: whether others can find it is not known.
        """
        self._directory.drop(pid)
        if (waiting := self._directory.settling(pid)) is not None:
            await waiting

    def lose(self, session: Session) -> None:
        """Keep a session whose connection was lost, unless a newer connection has gone on with it."""
        if self._live.get(session.pid) is not session:
            return
        now = self._clock()
        del self._live[session.pid]
        self._lost[session.pid] = now, session.size, session
        self.size += session.size
        self._directory.put(session)
        self.forget(now)

    def end(self, session: Session) -> None:
        """Forget a session for good, unless a newer connection has gone on with it."""
        if self._live.get(session.pid) is session:
            del self._live[session.pid]
            self._directory.drop(session.pid)

    def find(self, pid: object, owner: tuple[str, str], namespace: str) -> Session | None:
        """The session of an id, if it is this owner's; it stays where it is. None where there is none."""
        self.forget(self._clock())
        if not isinstance(pid, str):
            return None
        session = self._live.get(pid)
        if session is None and pid in self._lost:
            session = self._lost[pid][2]
        return session if session is not None and (session.owner, session.namespace) == (owner, namespace) else None

    def is_live(self, session: Session) -> bool:
        """Whether its connection counts as alive."""
        return self._live.get(session.pid) is session

    def forget(self, now: int) -> None:
        """Let go of those whose time is over at `now`, or that are too many."""
        while self._lost:
            pid, (at, _size, _session) = next(iter(self._lost.items()))
            if self.size <= self._limit and now - at <= self._window:
                break
            self._remove(pid)
            self._directory.drop(pid)

    def _remove(self, pid: str) -> None:
        self._live.pop(pid, None)
        _at, size, _session = self._lost.pop(pid, (0, 0, None))
        self.size -= size


def rooms_of(names: Any) -> list[RoomName]:
    """Of python-socketio's rooms, those that a session keeps: named by a text or a number, as all are that travel."""
    return sorted((name for name in names if isinstance(name, str | int)), key=str)
