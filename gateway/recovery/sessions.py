"""Sessions: what a client gets back when it reconnects and names its private id, on this node or on another."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.presence.history import Span
from gateway.presence.watching import WatchList
from gateway.recovery.offsets import Mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

OVERHEAD = 1000
"""Bytes that a session takes besides its rooms, its watch list and its `untold` spans."""

SPAN = 24
"""Bytes that one span of `Session.untold` takes, or one mark of `Session.since`."""

EVERYONE = ""
"""The key of `Session.untold` for a client that hears of everyone. It is no user's id."""

SHARE = 16
"""One user's lost sessions may take one part in so many of what all may take. Past it that user's oldest are dropped: a
user who comes and goes makes nobody else begin anew."""

FORMER = 8
"""How many ids of former connections a session keeps."""

MAX_WATCHED_BYTES = 65_536
"""How large the watch list of a session may be: a thousand ids of forty characters. With a larger one the client cannot
recover, and begins anew."""

RoomName = str | int
"""The type of the names of python-socketio's rooms that a session can keep; others cannot travel to other nodes."""


class Session(msgspec.Struct):
    """The part of a connection that outlives it, for its client to go on with after a reconnect."""

    pid: str
    """The private id. A client that names it, and is its owner, goes on with the session."""
    namespace: str
    owner: tuple[str, str]
    """Tenant and user id of the verified token."""
    sid: str
    """The connection's id in the namespace."""
    former: list[str] = []
    """The ids of its former connections, latest first: events may have been sent to these that it has not got."""
    rooms: list[RoomName] = []
    since: list[Mark] = []
    """For each of `rooms`, up to where its node had heard the bus when the client entered it. What was said there
    before is not the client's to hear, whatever offset it sends."""
    placed: Mark | None = None
    """Up to where its node had heard the bus when it wrote `rooms`. Removals before that are reflected in `rooms`. None
    if its node does not say."""
    untold: dict[str, list[Span]] | None = None
    """Once the connection is lost: the spans of the presence log, up to where its client had been told, that its node
    told nobody of, because the changes cancelled out. By user id, or `EVERYONE` for a client that hears of everyone.
    None if its node has not said: there may be some, and other nodes cannot know."""
    watched: WatchList | None = None
    """Whom it watches; None if it never watched anybody."""
    jti: str | None = None
    """The id of the last token of its connection; None if that has none."""
    issued_at: int | None = None
    """When that token was issued, in Unix milliseconds; None if it does not say."""
    origin: str = ""
    """The node that its client was on before this one, from the client's offset; empty for a new session."""

    @property
    def tenant(self) -> str:
        """Its owner's tenant."""
        return self.owner[0]

    @property
    def user_id(self) -> str:
        """Its owner's user id."""
        return self.owner[1]

    @property
    def names(self) -> list[str]:
        """The ids of its connection and of the former ones."""
        return [self.sid, *self.former]

    @property
    def entered(self) -> dict[RoomName, Mark]:
        """`since` by room."""
        return dict(zip(self.rooms, self.since, strict=False))  # a node of another version has none

    def be_in(self, rooms: Sequence[RoomName], mark: Mark) -> None:
        """Set the rooms; those that are new count from `mark` on."""
        entered = self.entered
        self.rooms, self.since, self.placed = list(rooms), [entered.get(room, mark) for room in rooms], mark

    def without(self, rooms: Collection[object]) -> Session:
        """A copy without some of the rooms."""
        entered = self.entered
        kept = [room for room in self.rooms if room not in rooms]
        return msgspec.structs.replace(self, rooms=kept, since=[entered[room] for room in kept if room in entered])

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        rooms = sum(len(room) if isinstance(room, str) else 8 for room in self.rooms) + SPAN * len(self.since)
        untold = sum(len(user) + SPAN * len(spans) for user, spans in (self.untold or {}).items())
        return OVERHEAD + rooms + untold + (0 if self.watched is None else self.watched.size)


class Directory(Protocol):
    """Where nodes find each other's sessions. `put` and `drop` return at once, and take effect soon after."""

    def put(self, session: Session) -> None:
        """Publish a session, as it is now, for other nodes to take."""

    def drop(self, pid: str) -> None:
        """Withdraw a session."""

    def settling(self, pid: str) -> Awaitable[None] | None:
        """Return what to wait for until the last `put` or `drop` of a session has taken effect; None if it has.

        Awaiting it raises `StoreUnavailableError` if the directory cannot be reached.
        """

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> Session | None:
        """Take a session over from another node. If several nodes try, one gets it.

        Returns:
            None if there is no such session, or it is not this owner's.

        Raises:
            StoreUnavailableError: the directory cannot be reached.
        """

    async def run(self) -> None:
        """Carry out what was put and dropped, and keep what was put from expiring, until cancelled."""

    async def close(self) -> None:
        """Carry out what is left, and release all resources. Call it when `run` has ended, or is about to."""


class NoDirectory:
    """The directory of a node that is alone: no other node looks for its sessions, or has any."""

    def put(self, session: Session) -> None:
        """Do nothing."""

    def drop(self, pid: str) -> None:
        """Do nothing."""

    def settling(self, pid: str) -> Awaitable[None] | None:  # noqa: ARG002 - the port's
        """Return None: there is nothing to wait for."""
        return None

    async def take(self, node: str, pid: str, owner: tuple[str, str]) -> Session | None:  # noqa: ARG002 - the port's
        """Return None: there is no other node."""
        return None

    async def run(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class Sessions:
    """This node's sessions: those of live connections, and for a while those of lost ones.

    Args:
        clock: the time, in Unix milliseconds.
        window: milliseconds that a lost session is kept.
        limit: bytes of all lost sessions; past it the oldest are dropped. One owner may have one `SHARE`th of it.
        directory: where other nodes find them.
    """

    def __init__(self, clock: Callable[[], int], window: int, limit: int, directory: Directory) -> None:
        self.size = 0
        """Bytes of all lost sessions, about."""
        self._clock = clock
        self._window = window
        self._limit = limit
        self._directory = directory
        self._live: dict[str, Session] = {}
        self._of: dict[tuple[str, str], dict[str, int]] = {}
        """The sizes of lost sessions by owner and private id, in the order in which they were lost."""
        self._lost: OrderedDict[str, tuple[int, int, Session]] = OrderedDict()
        """By private id, in the order in which they were lost: the time of the loss, the size, and the session."""

    def __len__(self) -> int:
        return len(self._live) + len(self._lost)

    def begin(self, session: Session) -> None:
        """Add the session of a live connection, in place of one with the same private id."""
        self._remove(session.pid)
        self._live[session.pid] = session
        self._directory.put(session)

    def change(self, session: Session) -> None:
        """Publish what has changed of a session."""
        if self._live.get(session.pid) is session:
            self._directory.put(session)

    def settling(self, session: Session) -> Awaitable[None] | None:
        """Return what to wait for until other nodes see a session as it is now; see `Directory.settling`."""
        return self._directory.settling(session.pid)

    async def withdraw(self, pid: str) -> None:
        """Keep other nodes from taking a session that is about to be gone on with here.

        Raises:
            StoreUnavailableError: it is not known whether they still can.
        """
        self._directory.drop(pid)
        if (waiting := self._directory.settling(pid)) is not None:
            await waiting

    def lose(self, session: Session) -> None:
        """Keep a session whose connection was lost, unless a newer connection has already gone on with it."""
        if self._live.get(session.pid) is not session:
            return
        now = self._clock()
        del self._live[session.pid]
        self._lost[session.pid] = now, session.size, session
        self.size += session.size
        of_owner = self._of.setdefault(session.owner, {})
        of_owner[session.pid] = session.size
        self._directory.put(session)
        while len(of_owner) > 1 and sum(of_owner.values()) > self._limit // SHARE:
            self._let_go(next(iter(of_owner)))
        self.forget(now)

    def end(self, session: Session) -> None:
        """Forget a session for good, unless a newer connection has already gone on with it."""
        if self._live.get(session.pid) is session:
            del self._live[session.pid]
            self._directory.drop(session.pid)

    def find(self, pid: object, owner: tuple[str, str], namespace: str) -> Session | None:
        """Find a session by its private id, and leave it where it is; None if this owner has no such session."""
        self.forget(self._clock())
        if not isinstance(pid, str):
            return None
        session = self._live.get(pid)
        if session is None and pid in self._lost:
            session = self._lost[pid][2]
        return session if session is not None and (session.owner, session.namespace) == (owner, namespace) else None

    def is_live(self, session: Session) -> bool:
        """Whether its connection is alive, as far as is known."""
        return self._live.get(session.pid) is session

    def forget(self, now: int) -> None:
        """Drop the oldest lost sessions: those too old at `now`, and as many as exceed the limit."""
        while self._lost:
            pid, (at, _size, _session) = next(iter(self._lost.items()))
            if self.size <= self._limit and now - at <= self._window:
                break
            self._let_go(pid)

    def _let_go(self, pid: str) -> None:
        self._remove(pid)
        self._directory.drop(pid)

    def _remove(self, pid: str) -> None:
        self._live.pop(pid, None)
        _at, size, lost = self._lost.pop(pid, (0, 0, None))
        self.size -= size
        if lost is not None:
            del self._of[lost.owner][pid]
            if not self._of[lost.owner]:
                del self._of[lost.owner]


def rooms_of(names: Any) -> list[RoomName]:
    """Those of python-socketio's rooms that a session can keep, sorted."""
    return sorted((name for name in names if isinstance(name, str | int)), key=str)
