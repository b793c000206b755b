"""Recovery: a client that reconnects gets what it missed, from this node's memory, the store's log and the bus."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from gateway.access.limits import KeyedBuckets, Rate
from gateway.connections import encoded
from gateway.errors import StoreUnavailableError
from gateway.presence.fanout import net_changes
from gateway.presence.history import Change, History, read_back, without_flickers
from gateway.presence.model import RESTORED
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
"""Seconds that this node waits to hear what another node has told the client already."""

POLL = 0.01
"""Seconds between looks whether it has."""

SINGLY = 100
"""Changes of presence that a client is told one by one. If there are more, it is told their net effect only. Otherwise
each of thousands who come back at once would be told of the absence of all the others."""

FAR = Rate(20, 60.0)
"""How often the clients of one user may come back from so long ago that it costs as much as a hundred new ones do: a
client chooses its offset. Past it they begin anew."""

MANY = 1000
"""Changes of presence that are so much, or any that this node has to read."""

FORGET = 5.0
"""Seconds between looks for what is too old to be kept."""

CHANGED = PresenceEvent.CHANGED
"""The event that tells a user of their own status."""

Reading = tuple[tuple["Target", ...], bytes | None, frozenset[str]]
"""A message of the bus in the form that recovery keeps: its targets, its text as in `Event`, the clients to skip."""


class Return(msgspec.Struct):
    """A client that is back, and what was read for it, before it is decided whether it can recover."""

    session: Session
    """As it was when the connection was lost."""
    offset: Offset
    began: int
    """The position from which on this node had heard the bus when the session was looked for."""
    certain: bool
    """Whether `Session.untold` is known to be complete."""
    reached: int | None = None
    """Up to where `changes` were read from the store's log; None if this node's history has all that was missed."""
    changes: list[Change] = []
    """The tenant's changes that were read from the store's log."""
    events: list[Event] = []
    """Events from before this node heard the bus."""


class Recovered(msgspec.Struct):
    """A client that goes on with its session."""

    offset: Offset
    """How far it has been told before `missed`, with this node as the place of its session."""
    rooms: list[RoomName]
    """The rooms that it is in again."""
    watched: WatchList | None
    """Whom it watches; None if it never watched anybody."""
    missed: list[tuple[str, bytes]]
    """The offset and the text of each event it missed, in order. A text is a JSON array of name and arguments."""
    replaced: str | None
    """The id of its former connection, if that is still alive and has to be closed; None if it has ended."""
    removed: list[RoomName] = []
    """The rooms that it was taken out of while it was away."""


class Recovery:
    """Keeps sessions and recent events, and finds what a client that is back has missed.

    Args:
        node: this node's whole name.
        window: milliseconds that a lost session is kept.
        horizon: milliseconds that events and changes are kept: the window, and the time until a loss is noticed.
        buffer: bytes that a client may have missed at the most; with more, it begins anew.
        memory: bytes of all that is kept: a quarter for sessions, a quarter for events to users and rooms, and half
            for changes of presence.
        clock: the time, in Unix milliseconds.
        bus: carries events between nodes.
        store: its log is read if `history` does not go back far enough.
        view: shows how far this node has followed the log.
        directory: where nodes find each other's sessions.
        visibility: who may see whom; None if everyone sees everyone.
        hears_everyone: whether a client that never watched anybody hears of everyone; otherwise it hears of nobody.
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
        """By topic of the bus, a function that reads a message which was published before this node heard the bus; it
        returns None for one that is not recovered."""
        self.removals: Callable[[tuple[str, str], RoomName], Sequence[Target]] = lambda _owner, _room: ()
        """Given a user, by tenant and id, and a room: the targets of events that take the user out of the room."""
        self.is_revoked: Callable[[Session], bool] = lambda _session: False
        """Whether the last token of a session has been revoked, so that nobody may go on with it."""
        self._nobody = None if hears_everyone else WatchList()
        self._buffer = buffer
        self._clock = clock
        self._bus = bus
        self._store = store
        self._view = view
        self._visibility = visibility
        self._began = bus.began
        self._far: KeyedBuckets[tuple[str, str]] = KeyedBuckets(FAR)
        bus.returned = self.direct.place

    # What is said

    def mark(self) -> Mark:
        """How far clients of this node have been told of the bus."""
        return Mark(self._bus.told, self.node, self._bus.last)

    def record(self, targets: Sequence[Target], text: bytes | None, skipped: Iterable[str] = (), *, own: bool) -> Mark:
        """Keep an event that is about to be sent to clients.

        Args:
            targets: whom it is for.
            text: as in `Event`.
            skipped: the clients among these that it is not for, by their ids.
            own: True if it is in the message that this node has just published; False if it is in the message of the
                bus that is being handled. Both may be going on at the same time.

        Returns:
            The mark of a client that has been told of it.
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
        """Look for the session that a client names, and read what it may have missed. `begin` has to follow.

        The session is not changed, except that no other node can take it any more.

        Args:
            namespace: to which the client connects.
            owner: tenant and user id of its token.
            auth: the payload of its CONNECT packet.
            presence: whether it hears of presence.

        Returns:
            None if there is no such session, or what the client missed cannot be read.
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
                if offset.node != self.node:  # a session of this node does not depend on the directory
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
        """Begin a connection's session: go on with the one that was found, or make a new one.

        Args:
            namespace: of the connection.
            owner: tenant and user id of its token.
            sid: its id in the namespace.
            found: what `find` returned.
            presence: whether it hears of presence.
            token: its token's id, and when that was issued, as in `Session`.

        Returns:
            The session, and how the client goes on with it; None as the second if the session is a new one.
        """
        jti, issued_at = token
        removed = [] if found is None else self._removed(found)
        if found is not None and removed:
            found.session = found.session.without(removed)
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
        # A copy, since the former connection may still be alive, and change its list.
        watched = None if was.watched is None else was.watched.copy()
        session = Session(was.pid, namespace, owner, sid, former, rooms, list(was.since), was.placed, watched=watched)
        session.jti, session.issued_at, session.origin = jti, issued_at, found.offset.node
        self.sessions.begin(session)
        # With the last of the missed events the client is up to date, also with events that are not for it.
        offset, now = found.offset._replace(node=self.node), Offset(self.node, found.offset.log, self.mark())
        if presence:
            now = now._replace(log=max(found.offset.log, self._view.position))
        if missed:
            missed[-1] = (str(now), missed[-1][1])
        return session, Recovered(offset if missed else now, session.rooms, watched, missed, replaced, removed)

    def lose(self, session: Session, told: int) -> None:
        """Keep the session of a lost connection, whose client had been told up to the position `told` of the log."""
        watched, tenant = self._watched(session), session.owner[0]
        if watched is not None:
            session.untold = self.history.silent_of(tenant, watched.users, told)
        elif self._visibility is None:
            session.untold = {EVERYONE: [self.history.silent_until(tenant, told)]}
        self.sessions.lose(session)

    async def run(self) -> None:
        """Discard what is too old, and keep the directory up to date, until cancelled."""
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
        """The session of a client whose last offset names a node, and whether its `untold` is complete."""
        if node != self.node and (session := await self.directory.take(node, pid, owner)) is not None:
            return session, session.untold is not None
        here = self.sessions.find(pid, owner, namespace)
        # A session here from before the client was on that node is out of date. But one that was gone on with here,
        # coming from that node, is the right one: the client was lost again before it got an offset of this node.
        return here if here is not None and node in (self.node, here.origin) else None, node == self.node

    def _look_for_gaps(self) -> None:
        """Forget all events if messages of the bus were missed, since it is not known for whom they were."""
        if self._began != self._bus.began:
            self._began = self._bus.began
            self.direct.begin_anew()

    async def _look_back(self, found: Return, *, presence: bool) -> Return | None:
        """Read from the bus and the store what this node does not have; None if they do not have it either."""
        offset, tenant = found.offset, found.session.owner[0]
        if not await self._reach(offset, presence=presence):
            return None
        self._look_for_gaps()
        if offset.mark.bus < self._bus.began:
            if not self._may_look_far(found.session.owner):
                return None
            events = await self._read_events(offset.mark.bus)
            if events is None:
                return None
            found.events = events
        if presence and self._since(found.session, offset.log) is None:
            if not self._may_look_far(found.session.owner):
                return None
            read = await read_back(self._store, self._view, tenant, offset.log)
            if read is None:
                return None
            found.reached, found.changes = read
        return found

    def _may_look_far(self, owner: tuple[str, str]) -> bool:
        return not self._far.take(owner, self._clock() / 1000)

    async def _reach(self, offset: Offset, *, presence: bool) -> bool:
        """Wait until this node has heard everything that the client has been told; return whether it has."""
        position = max(offset.log, offset.to) if presence else 0
        try:
            async with asyncio.timeout(PATIENCE):
                while self._view.position < position or self._bus.told < offset.mark.bus:  # noqa: ASYNC110 - rare
                    await asyncio.sleep(POLL)
        except TimeoutError:
            return False
        return True

    async def _read_events(self, after: int) -> list[Event] | None:
        """Read the events that were published before this node heard the bus; None if they are not kept."""
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
        """The rooms that a client was taken out of after `Session.rooms` was written."""
        session, mark = found.session, found.session.placed or found.offset.mark
        removed = []
        for room in session.rooms:
            if targets := self.removals(session.owner, room):
                events = self.direct.missed(targets, mark, ())
                early = (event for event in found.events if event.is_past(mark))
                # If it is not known any more, the client is taken out, and may ask to be let in again.
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
        """The mark of a client that had `mark`, and was then told this event and all that it missed before it."""
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
        since: dict[Target, Mark] = {("room", session.namespace, room): at for room, at in session.entered.items()}
        events = self.direct.missed(targets, mark, session.names, since)
        if events is None:
            return None
        hears = set(targets)
        early = [
            event
            for event in found.events
            if event.is_past(mark)
            and event.skipped.isdisjoint(session.names)
            and any(target in hears and event.is_past(since.get(target, mark)) for target in event.targets)
        ]
        return None if any(event.text is None for event in early) else early + events

    def _since(self, session: Session, position: int) -> list[Change] | None:
        """The changes after a position that a session's client hears of; None if not all of them are kept here."""
        watched = self._watched(session)
        tenant = session.owner[0]
        if watched is None:
            return self.history.since(tenant, position)
        return self.history.since_of(tenant, position, watched.users)

    def _watched(self, session: Session) -> WatchList | None:
        """The watch list by which a session's client hears of users; None if it hears of everyone."""
        return self._nobody if session.watched is None else session.watched

    def _changes(self, found: Return) -> list[_Told] | None:
        """The presence events that a client missed; None if they cannot be made any more."""
        offset, watched = found.offset, self._watched(found.session)
        if watched is not None and offset.to and offset.to <= watched.narrowed:
            return None  # it has the beginning of a batch for a longer watch list, which cannot be made again
        changes = self._changes_missed(found, watched)
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
            return None  # a batch with events about the user themselves cannot be made again: they see other statuses
        own = [change for change in later if change.transition.user_id == owner[1]]
        told = self._told(found, begun, [change for change in later if change.transition.user_id != owner[1]])
        if own:
            now = self._clock()
            status = msgspec.Raw(encoded.status_at(self._view.own_status(*owner, now), now))
            told.append(_Told(max(own[-1].position, later[-1].position), text=encode((CHANGED, status))))
        return told

    def _changes_missed(self, found: Return, watched: WatchList | None) -> list[Change] | None:
        """The changes that a client missed; None if they are not known any more, or not to be told again."""
        if found.reached is None:
            changes = self._since(found.session, found.offset.log)
        else:
            since = self.history.since(found.session.owner[0], found.reached, known=True)
            # What was read ahead of this node's view is left out: it is told when the view gets there.
            known = [change for change in found.changes if change.position <= self._view.position]
            changes = None if since is None else known + since
            if changes is not None and watched is not None:
                changes = [change for change in changes if _is_watched(change, watched)]
        if changes is None or any(change.transition.reason == RESTORED for change in changes):
            return None  # what a store was given back its client may have been told before, by another node
        return changes if len(changes) <= MANY or self._may_look_far(found.session.owner) else None

    def _seen(self, found: Return, visibility: Visibility, changes: Sequence[Change]) -> list[Change] | None:
        """The changes of users whom a client may see; None if the rule's answers have changed while it was away."""
        (tenant, viewer), offset = found.session.owner, found.offset
        if offset.to or offset.log <= visibility.changed_at.get(tenant, -1):
            return None
        users = dict.fromkeys(change.transition.user_id for change in changes)
        seen = {each.user_id: each for each in visibility.compare(tenant, viewer, users, told=False)}
        if any(each.before is not each.now for each in seen.values()):
            return None
        return [change for change in changes if seen[change.transition.user_id].now]

    def _told(self, found: Return, begun: Sequence[Change], later: Sequence[Change]) -> list[_Told]:
        """The events that tell of changes, in the order of the log.

        Args:
            found: the client.
            begun: the changes of the batch that it has the beginning of.
            later: the changes after these.
        """
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
    """A presence event, and how far a client has been told when it has it: `log`, `to` and `heard` as in `Offset`."""

    log: int
    to: int = 0
    heard: int = 0
    text: bytes = b""

    @property
    def position(self) -> int:
        """The position on the log by which it is sorted among other events."""
        return self.to or self.log


def _is_watched(change: Change, watched: WatchList) -> bool:
    since = watched.users.get(change.transition.user_id)
    return since is not None and change.position > since


def _batch(changes: Sequence[Change], after: int, to: int, heard: int = 0) -> list[_Told]:
    """The events of a batch: the net effect of the changes behind `after`, up to `to`, without the first `heard`."""
    events = net_changes(change.transition for change in changes)
    told = [_Told(after, to, number, encode(event)) for number, event in enumerate(events, 1)]
    if told:
        told[-1] = _Told(to, text=told[-1].text)
    return told[heard:]
