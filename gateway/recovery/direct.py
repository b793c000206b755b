"""Recent events to users and rooms, kept for clients that lost their connection and are about to be back.

Every node hears all of them by the bus, and keeps each once, since a client may come back to any node.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from gateway.recovery.offsets import Mark

Target = tuple[str, str, object]
"""Whom an event is for: ``("user", tenant, user id)``, or ``("room", namespace, room)``, where a room of None is
everyone in the namespace."""

OVERHEAD = 300
"""Bytes that an event takes besides its text."""

REMEMBERED = 50_000
"""Targets for which the last discarded event is remembered."""


_ALWAYS: Mapping[Target, Mark] = {}


class Event:
    """One event, as it was published."""

    __slots__ = ("added", "at", "log", "number", "position", "sender", "skipped", "targets", "text")

    def __init__(
        self, targets: tuple[Target, ...], text: bytes | None, sender: str, number: int, position: int | None
    ) -> None:
        self.targets = targets
        self.text = text
        """A JSON array of its name and arguments; None if JSON cannot hold it. A client that missed such an event
        cannot recover."""
        self.sender = sender
        """The short name of who published it,"""
        self.number = number
        """and how many messages they had published with it."""
        self.position = position
        """Its position on the bus; None while that is not known."""
        self.skipped: frozenset[str] = frozenset()
        """Clients of a room that it is not for, by their ids in the namespace."""
        self.log = 0
        """The position of the presence log, as this node had read it, when it was published."""
        self.at = 0
        """When it was added, in Unix milliseconds."""
        self.added = 0
        """How many events had been added with it."""

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return OVERHEAD + len(self.text or b"")

    def is_past(self, mark: Mark) -> bool:
        """Whether it lies past a mark: a client with this mark has not been told of it."""
        if self.sender == mark.sender and self.number <= mark.number:
            return False
        return self.position is None or self.position > mark.bus


class _Line:
    """The events of one target."""

    __slots__ = ("events", "size")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.size = 0


class Direct:
    """The recent events of all targets.

    Args:
        clock: the time, in Unix milliseconds.
        horizon: milliseconds that an event is kept.
        limit: bytes of all events, about; past it the oldest are discarded.
        limit_each: bytes of the events of one target, likewise.
    """

    def __init__(self, clock: Callable[[], int], horizon: int, limit: int, limit_each: int) -> None:
        self.size = 0
        """Bytes kept, about."""
        self._clock = clock
        self._horizon = horizon
        self._limit = limit
        self._limit_each = limit_each
        self._lines: dict[Target, _Line] = {}
        self._order: OrderedDict[tuple[int, Target], Event] = OrderedDict()
        """All of them, in the order in which they were added."""
        self._added = 0
        self._unplaced: dict[int, Event] = {}
        """This node's events whose position is not known yet, by number."""
        self._forgotten: OrderedDict[Target, dict[str, Event]] = OrderedDict()
        """By target and sender, the last event that was discarded, without its text; of `REMEMBERED` targets."""
        self._lost: dict[str, Event] = {}
        """By sender, the last such event of all other targets."""

    def add(self, event: Event, log: int) -> None:
        """Keep an event, published when the node had followed the presence log up to `log`."""
        now = event.at = self._clock()
        self._added += 1
        event.added, event.log = self._added, log
        for target in dict.fromkeys(event.targets):  # an application may name a room twice
            line = self._lines.get(target)
            if line is None:
                line = self._lines[target] = _Line()
            line.events.append(event)
            line.size += event.size
            self.size += event.size
            self._order[event.added, target] = event
            while line.size > self._limit_each:
                self._let_go(target, line)
        if event.position is None:
            self._unplaced[event.number] = event
        self.forget(now)

    def place(self, number: int, position: int) -> None:
        """Take note of the position of a message that this node has published."""
        if (event := self._unplaced.pop(number, None)) is not None:
            event.position = position

    def forget(self, now: int) -> None:
        """Discard the oldest events: those too old at `now`, and as many as exceed the limit."""
        while self._order:
            (_added, target), event = next(iter(self._order.items()))
            if self.size <= self._limit and now - event.at <= self._horizon:
                break
            self._let_go(target, self._lines[target])

    def begin_anew(self) -> None:
        """Forget everything, because events were missed: what is kept is not complete any more."""
        self.size = 0
        for kept in (self._lines, self._order, self._unplaced, self._forgotten, self._lost):
            kept.clear()

    def missed(
        self, targets: Iterable[Target], mark: Mark, names: Collection[str], since: Mapping[Target, Mark] = _ALWAYS
    ) -> list[Event] | None:
        """The events of some targets that a client has not been told of, in the order of the bus.

        Args:
            targets: the targets that the client belongs to.
            mark: how far it has been told.
            names: its present and former ids in the namespace; events that skip one of them are left out.
            since: by target, the mark from which on the client belongs to it; to the others it always did.

        Returns:
            None if some of them are not kept any more.
        """
        if any(event.is_past(mark) for event in self._lost.values()):
            return None
        found: dict[int, Event] = {}
        for target in targets:
            begun = since.get(target, mark)
            if any(event.is_past(mark) and event.is_past(begun) for event in self._forgotten.get(target, {}).values()):
                return None
            for event in self._lines[target].events if target in self._lines else ():
                if event.is_past(mark) and event.is_past(begun) and event.skipped.isdisjoint(names):
                    found[id(event)] = event
        if any(event.text is None for event in found.values()):
            return None
        placed = [event for event in found.values() if event.position is not None]
        placed.sort(key=lambda event: event.position or 0)
        return placed + sorted(
            (event for event in found.values() if event.position is None), key=lambda event: event.number
        )

    def _let_go(self, target: Target, line: _Line) -> None:
        event = line.events.popleft()
        del self._order[event.added, target]
        line.size -= event.size
        self.size -= event.size
        if not line.events:
            del self._lines[target]
        if event.position is None:  # and its message may never come back from the bus
            self._unplaced.pop(event.number, None)
        last = self._forgotten.setdefault(target, {})
        last[event.sender] = Event((), None, event.sender, event.number, event.position)
        self._forgotten.move_to_end(target)
        if len(self._forgotten) > REMEMBERED:
            for sender, each in self._forgotten.popitem(last=False)[1].items():
                known = self._lost.get(sender)
                # Events of channels all have the number 0, and always a position.
                if known is None or (known.number, known.position or 0) < (each.number, each.position or 0):
                    self._lost[sender] = each
