"""Recovery: what a client missed while it was away, put together from what this node and its store still have."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from gateway.connections import encoded
from gateway.errors import StoreUnavailableError
from gateway.presence.fanout import net_changes
from gateway.presence.history import Change, History, read_back, without_flickers
from gateway.presence.model import Event as PresenceEvent
from gateway.presence.watching import WatchList
from gateway.recovery.direct import Direct, Event
from gateway.recovery.offsets import Mark, Offset, short
from gateway.recovery.sessions import EVERYONE, FORMER, RoomName, Session, Sessions
from gateway.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.nodes.bus import Bus
    from gateway.presence.store import Store
    from gateway.presence.view import View
    from gateway.presence.visibility import Visibility
    from gateway.recovery.direct import Target
    from gateway.recovery.sessions import Directory

_log = structlog.get_logger(__name__)

PATIENCE = 1.0
"""Seconds that this node has to hear what another has told a client already."""

POLL = 0.01
"""Seconds between looks whether it has."""

SINGLY = 100
"""Changes of presence that a client is told one by one; what is more than that it is told as its net effect, as whoever
stayed was told by flushes. Past it, thousands who come back at once would each be told of all others' absence."""

FORGET = 5.0
"""Seconds between looks for what is too old to be kept."""

CHANGED = PresenceEvent.CHANGED
"""What a user is told of themselves."""

Reading = tuple[tuple["Target", ...], bytes | None, frozenset[str]]
"""Of a message on the bus: whom it is for, its text as `Event` has it, and who is skipped."""


class Return(msgspec.Struct):
    """A client that is back, before it is known what it missed."""

    session: Session
    """As it was."""
    offset: Offset
    began: int
    """From where on this node had heard the bus when it was looked for."""
    certain: bool
    """Whether it is known what its client was told nobody of by the node that it was last on."""
    reached: int | None = None
    """Up to where on the log `changes` were read; None where this node has them."""
    changes: list[Change] = []
    events: list[Event] = []
    """From before this node heard the bus."""


class Recovered(msgspec.Struct):
    """A client that goes on where it was."""

    offset: Offset
    """Up to where it has been told, with this node as the place of its session."""
    rooms: list[RoomName]
    """What it was in."""
    watched: WatchList | None
    """Whom it watches; None for one that never watched anybody."""
    missed: list[tuple[str, bytes]]
    """The offset and the text of each event it missed, in order; a text is a JSON array of name and arguments."""
    replaced: str | None
    """The name of the connection that it takes the place of; None where that has ended."""
    removed: list[RoomName] = []
    """What it was in, and was taken out of while it was away."""


class Recovery:
    """Sessions, and what was said while their clients were away.

    Args:
        node: this node's whole name.
        window: milliseconds that a lost session is kept.
        horizon: milliseconds that what was said is kept: the window, and the time until a loss is found.
        buffer: bytes that one session may have missed.
        memory: bytes of all that is kept: a quarter for sessions and for events to users and rooms each, half for
            changes.
        clock: the time, in Unix milliseconds.
        bus: what nodes hear of each other by.
        store: whose log is read where `history` does not go back far enough.
        view: up to where this node has followed it.
        directory: where other nodes find sessions.
        visibility: who may see whom; None where everyone sees everyone.
        hears_everyone: whether those hear of everyone who never watched anybody; else they hear of nobody.
    """

    def __init__(  # noqa: PLR0913 - each is another part of the gateway, or a bound
        self,
        node: str,
        *,
        window: int,
        horizon: int,
        buffer: int,
        memory: int,
        clock: Callable[[], int],
        bus: Bus,
        store: Store,
        view: View,
        directory: Directory,
        visibility: Visibility | None = None,
        hears_everyone: bool = True,
    ) -> None:
        self.node = short(node)
        self.history = History(clock, horizon, memory // 2)
        self.direct = Direct(clock, horizon, memory // 4, buffer)
        self.sessions = Sessions(clock, window, memory // 4, directory)
        self.directory = directory
        self.readers: dict[str, Callable[[msgspec.Raw], Reading | None]] = {}
        """By topic of the bus: how a message is read that this node did not hear; None for one that nobody recovers."""
        self.removals: Callable[[tuple[str, str], RoomName], Sequence[Target]] = lambda _owner, _room: ()
        """By which targets an event is known that takes a user, by tenant and id, out of a room; none where none do."""
        self.is_revoked: Callable[[Session], bool] = lambda _session: False
        """Whether the token that a session had last has been revoked: nobody goes on with it."""
        self._nobody = None if hears_everyone else WatchList()
        self._buffer = buffer
        self._clock = clock
        self._bus = bus
        self._store = store
        self._view = view
        self._visibility = visibility
        self._began = bus.began
        bus.returned = self.direct.place

    # What is said

    def mark(self) -> Mark:
        """Up to where on the bus clients of this node have been told."""
        return Mark(self._bus.told, self.node, self._bus.last)

    def record(self, targets: Sequence[Target], text: bytes | None, skipped: Iterable[str] = (), *, own: bool) -> Mark:
        """Keep an event that is about to be written.

        Args:
            targets: whom it is for.
            text: see `Event`.
            skipped: who of these it is not for.
            own: it is that of the message which this node published last, not of the one which is handled. While that
                takes its time, others say something, too.

        Returns:
            The mark of the event.
        """
        self._look_for_gaps()
        current = None if own else self._bus.current
        if current is None:
            position = self._bus.last if self._store.near else None
            event = Event(tuple(targets), text, self.node, self._bus.last, position)
        else:
            self._bus.told, message = current
            event = Event(tuple(targets), text, short(message.sender), message.number, self._bus.told)
        event.skipped = frozenset(skipped)
        self.direct.add(event, self._view.position)
        return self.mark()

    # Who is back

    async def find(self, namespace: str, owner: tuple[str, str], auth: object, *, presence: bool) -> Return | None:
        """Look for the session that a client names; nothing of it is changed, but that no other node has it any more.

        Args:
            namespace: which the client connects to.
            owner: whom its token proves it to be.
            auth: what it sent with its CONNECT packet.
            presence: whether it hears of presence.

        Returns:
            None where there is none, or what it missed cannot be had.
        """
        if not isinstance(auth, dict):
            return None
        pid, offset = auth.get("pid"), Offset.parse(auth.get("offset"))
        if offset is None or not isinstance(pid, str):
            return None
        try:
            session, certain = await self._session(pid, owner, namespace, offset.node)
            if session is None or session.namespace != namespace or self.is_revoked(session):
                return None
            try:
                await self.sessions.withdraw(pid)
            except StoreUnavailableError:
                if offset.node != self.node:  # in its own place it is as it was, but for the name of its connection
                    raise
            return await self._look_back(Return(session, offset, self._bus.began, certain), presence=presence)
        except StoreUnavailableError:
            return None
        except Exception:
            _log.exception("a session could not be recovered")
            return None

    def begin(
        self,
        namespace: str,
        owner: tuple[str, str],
        sid: str,
        found: Return | None,
        *,
        presence: bool,
        token: tuple[str | None, int | None] = (None, None),
    ) -> tuple[Session, Recovered | None]:
        """Begin a connection's session: the one that was found, with what its client missed, or a new one.

        Args:
            namespace: of the connection.
            owner: whom its token proves it to be.
            sid: its name in the namespace.
            found: the session that it goes on with; None for a new one.
            presence: whether it hears of presence.
            token: the id of its token, and when that was issued, as `Session` has them.
        """
        jti, issued_at = token
        removed = [] if found is None else self._removed(found)
        if found is not None and removed:
            rooms = [room for room in found.session.rooms if room not in removed]
            found.session = msgspec.structs.replace(found.session, rooms=rooms)
        missed = None if found is None else self._missed(found, presence=presence)
        if found is None or missed is None:
            pid = secrets.token_urlsafe(18)
            session = Session(pid, namespace, owner, sid, jti=jti, issued_at=issued_at)
            self.sessions.begin(session)
            return session, None
        was = found.session
        here = self.sessions.find(was.pid, owner, namespace)
        replaced = here.sid if here is not None and self.sessions.is_live(here) else None
        former, rooms = was.names[:FORMER], list(was.rooms)
        # The connection that it was of may live on, and goes on with a list of its own.
        watched = None if was.watched is None else was.watched.copy()
        session = Session(was.pid, namespace, owner, sid, former, rooms, watched=watched, origin=found.offset.node)
        session.jti, session.issued_at, session.placed = jti, issued_at, was.placed
        self.sessions.begin(session)
        # With the last of it a client has been told all, also what it was not to be told.
        offset, now = found.offset._replace(node=self.node), Offset(self.node, found.offset.log, self.mark())
        if presence:
            now = now._replace(log=max(found.offset.log, self._view.position))
        if missed:
            missed[-1] = (str(now), missed[-1][1])
        return session, Recovered(offset if missed else now, session.rooms, watched, missed, replaced, removed)

    def lose(self, session: Session, told: int) -> None:
        """Keep the session of a client that was lost, which had been told up to a position of the log."""
        watched, tenant = self._watched(session), session.owner[0]
        if watched is not None:
            session.untold = self.history.silent_of(tenant, watched.users, told)
        elif self._visibility is None:
            session.untold = {EVERYONE: [self.history.silent_until(tenant, told)]}
        self.sessions.lose(session)

    async def run(self) -> None:
        """Let go of what is too old, and let other nodes find sessions, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.directory.run())
            tasks.create_task(self._forget())

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET)
            now = self._clock()
            for kept in (self.history, self.direct, self.sessions):
                kept.forget(now)

    # One step each

    async def _session(
        self, pid: str, owner: tuple[str, str], namespace: str, node: str
    ) -> tuple[Session | None, bool]:
        """The session of a client that a node told last, and whether it is known what that node passed over."""
        if node != self.node and (session := await self.directory.take(node, pid, owner)) is not None:
            return session, session.untold is not None
        here = self.sessions.find(pid, owner, namespace)
        # One from before it was on that node is out of date; one that went on from there, it has not heard of.
        return here if here is not None and node in (self.node, here.origin) else None, node == self.node

    def _look_for_gaps(self) -> None:
        """Begin anew where messages of other nodes were missed: nobody here knows for whom they were."""
        if self._began != self._bus.began:
            self._began = self._bus.began
            self.direct.begin_anew()

    async def _look_back(self, found: Return, *, presence: bool) -> Return | None:
        """Read what this node does not have of what a client missed; None where nobody has it."""
        offset, tenant = found.offset, found.session.owner[0]
        if not await self._reach(offset, presence=presence):
            return None
        self._look_for_gaps()
        if offset.mark.bus < self._bus.began:
            events = await self._read_events(offset.mark.bus)
            if events is None:
                return None
            found.events = events
        if presence and self._since(found.session, offset.log) is None:
            read = await read_back(self._store, self._view, tenant, offset.log)
            if read is None:
                return None
            found.reached, found.changes = read
        return found

    async def _reach(self, offset: Offset, *, presence: bool) -> bool:
        """Wait until this node has heard what the client has been told; whether it has."""
        position = max(offset.log, offset.to) if presence else 0
        try:
            async with asyncio.timeout(PATIENCE):
                while self._view.position < position or self._bus.told < offset.mark.bus:  # noqa: ASYNC110 - rare
                    await asyncio.sleep(POLL)
        except TimeoutError:
            return False
        return True

    async def _read_events(self, after: int) -> list[Event] | None:
        """Read from the bus what was said before this node heard it; None where that cannot be had."""
        began = self._bus.began
        messages = await self._bus.read_back(after)
        if messages is None:
            return None
        events = []
        for position, message in messages:
            reader = self.readers.get(message.topic)
            if position > began or reader is None or (read := reader(message.data)) is None:
                continue
            targets, text, skipped = read
            event = Event(targets, text, short(message.sender), message.number, position)
            event.skipped, event.log = skipped, position
            events.append(event)
        return events

    def _removed(self, found: Return) -> list[RoomName]:
        """The rooms that a client was taken out of since its session knew that it was in them."""
        session, mark = found.session, found.session.placed or found.offset.mark
        removed = []
        for room in session.rooms:
            if targets := self.removals(session.owner, room):
                events = self.direct.missed(targets, mark, ())
                early = (event for event in found.events if event.is_past(mark))
                # Where nobody knows any more it may ask to be let in.
                if events is None or events or any(not set(targets).isdisjoint(event.targets) for event in early):
                    removed.append(room)
        return removed

    def _missed(self, found: Return, *, presence: bool) -> list[tuple[str, bytes]] | None:
        self._look_for_gaps()
        offset = found.offset
        if self._bus.began != found.began:
            return None
        events = self._events(found, presence=presence)
        changes = self._changes(found) if presence else []
        if events is None or changes is None:
            return None
        missed: list[tuple[str, bytes]] = []
        told = offset._replace(node=self.node)
        waiting = iter(changes)
        change = next(waiting, None)
        for event in (*events, None):
            while change is not None and (event is None or change.position <= event.log):
                told = told._replace(log=change.log, to=change.to, heard=change.heard)
                missed.append((str(told), change.text))
                change = next(waiting, None)
            if event is not None:
                told = told._replace(mark=self._mark_after(event, offset.mark))
                missed.append((str(told), event.text or b""))
        return missed if sum(len(place) + len(text) for place, text in missed) <= self._buffer else None

    def _mark_after(self, event: Event, mark: Mark) -> Mark:
        """What a client has been told that had a mark, and has now heard this event and all that it missed before."""
        if event.position is None:
            return Mark(self._bus.told, event.sender, event.number)
        number = max(event.number, mark.number) if event.sender == mark.sender else mark.number
        return Mark(max(event.position, mark.bus), mark.sender, number)

    def _events(self, found: Return, *, presence: bool) -> list[Event] | None:
        session, mark = found.session, found.offset.mark
        targets: list[Target] = [
            ("room", session.namespace, room)
            for room in (None, *session.names, *session.rooms)  # each room once: a set of names
        ]
        if presence:
            targets.append(("user", *session.owner))
        events = self.direct.missed(targets, mark, session.names)
        if events is None:
            return None
        hears = set(targets)
        early = [
            event
            for event in found.events
            if not hears.isdisjoint(event.targets) and event.is_past(mark) and event.skipped.isdisjoint(session.names)
        ]
        return None if any(event.text is None for event in early) else early + events

    def _since(self, session: Session, position: int) -> list[Change] | None:
        """The changes after a position that a session's client hears of; None where they are not all here."""
        watched = self._watched(session)
        tenant = session.owner[0]
        if watched is None:
            return self.history.since(tenant, position)
        return self.history.since_of(tenant, position, watched.users)

    def _watched(self, session: Session) -> WatchList | None:
        """Whom a session's client hears of; None for everyone."""
        return self._nobody if session.watched is None else session.watched

    def _changes(self, found: Return) -> list[_Told] | None:
        """The presence events that a client missed; None where they are kept no more."""
        tenant, offset = found.session.owner[0], found.offset
        watched = self._watched(found.session)
        if watched is not None and offset.to and offset.to <= watched.narrowed:
            return None  # a batch that it heard the beginning of told of others, too, and is not to be made again
        if found.reached is None:
            changes = self._since(found.session, offset.log)
        else:
            since = self.history.since(tenant, found.reached, known=True)
            # What was read, and this node has not published yet, is told as it comes.
            known = [change for change in found.changes if change.position <= self._view.position]
            changes = None if since is None else known + since
            if changes is not None and watched is not None:
                changes = [change for change in changes if _is_watched(change, watched)]
        if changes is None:
            return None
        begun = [change for change in changes if change.position <= offset.to]
        later = changes[len(begun) :]
        if self._visibility is not None:
            seen = self._seen(found, self._visibility, later)
            if seen is None:
                return None
            later = seen
        owner = found.session.owner
        if not self._view.has_set(*owner):
            return self._told(found, begun, later)
        if any(change.transition.user_id == owner[1] for change in begun):
            return None  # it may have been told otherwise of itself, and the batch is not to be made again
        own = [change for change in later if change.transition.user_id == owner[1]]
        told = self._told(found, begun, [change for change in later if change.transition.user_id != owner[1]])
        if own:
            now = self._clock()
            status = msgspec.Raw(encoded.status_at(self._view.own_status(*owner, now), now))
            told.append(_Told(max(own[-1].position, later[-1].position), text=encode((CHANGED, status))))
        return told

    def _seen(self, found: Return, visibility: Visibility, changes: Sequence[Change]) -> list[Change] | None:
        """Of changes, those of whom a client may see; None where that is not as it was when it was told last."""
        (tenant, viewer), offset = found.session.owner, found.offset
        if offset.to or offset.log <= visibility.changed_at.get(tenant, -1):
            return None
        users = dict.fromkeys(change.transition.user_id for change in changes)
        seen = {each.user_id: each for each in visibility.compare(tenant, viewer, users, told=False)}
        if any(each.before is not each.now for each in seen.values()):
            return None
        return [change for change in changes if seen[change.transition.user_id].now]

    def _told(self, found: Return, begun: Sequence[Change], later: Sequence[Change]) -> list[_Told]:
        """What tells of changes, in the order of the log."""
        tenant, offset = found.session.owner[0], found.offset
        watched = self._watched(found.session)
        missed = _batch(begun, offset.log, offset.to, offset.heard) if offset.to else []
        position = max(offset.log, offset.to)
        if not found.certain:
            later = without_flickers(later)
        if len(later) > SINGLY:
            return missed + _batch(later, position, later[-1].position)
        untold = found.session.untold or {}
        if watched is None and self._visibility is None:
            told = self.history.told(tenant, position, later, untold.get(EVERYONE, ()))
        else:
            users = {} if watched is None else watched.users
            told = self.history.told_of(tenant, position, later, users, untold)
        return missed + [_Told(change.position, text=text) for change in told if (text := change.event) is not None]


class _Told(NamedTuple):
    """A presence event, and up to where on the log a client has been told with it."""

    log: int
    to: int = 0
    heard: int = 0
    """The last two as an `Offset` has them."""
    text: bytes = b""

    @property
    def position(self) -> int:
        """Where it stands among other events."""
        return self.to or self.log


def _is_watched(change: Change, watched: WatchList) -> bool:
    since = watched.users.get(change.transition.user_id)
    return since is not None and change.position > since


def _batch(changes: Sequence[Change], after: int, to: int, heard: int = 0) -> list[_Told]:
    """The net effect of changes behind a position, up to another, but for what has been heard of it."""
    events = net_changes(change.transition for change in changes)
    told = [_Told(after, to, number, encode(event)) for number, event in enumerate(events, 1)]
    if told:
        told[-1] = _Told(to, text=told[-1].text)
    return told[heard:]
