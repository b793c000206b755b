"""Events to one user or to a room, kept for those who lost their connection and are about to be back.

They are kept once on each node, whoever they are for: each node hears them all by the bus.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from gateway.recovery.offsets import Mark

Target = tuple[str, str, object]
"""Whom an event is for: ``("user", tenant, user id)``, or ``("room", namespace, room)``, where None is everyone."""

OVERHEAD = 300
"""Bytes that an event takes besides its text."""

REMEMBERED = 50_000
"""Targets of which it is known when their last event was that is kept no more."""


class Event:
    """One event, as it was published."""

    __slots__ = ("added", "at", "log", "number", "position", "sender", "skipped", "targets", "text")

    def __init__(
        self, targets: tuple[Target, ...], text: bytes | None, sender: str, number: int, position: int | None
    ) -> None:
        self.targets = targets
        self.text = text
        """A JSON array of its name and its arguments; None for one that JSON cannot hold, which is not kept."""
        self.sender = sender
        self.number = number
        self.position = position
        """On the bus; None as long as it is not known."""
        self.skipped: frozenset[str] = frozenset()
        """Clients of a room, by their names in the namespace, that it is not for."""
        self.log = 0
        """The position of the presence log when it was published."""
        self.at = 0
        self.added = 0

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return OVERHEAD + len(self.text or b"")

    def is_past(self, mark: Mark) -> bool:
        """Whether a client that has been told up to a mark has not been told of it."""
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
    """The events of some time.

    Args:
        clock: the time, in Unix milliseconds.
        horizon: milliseconds that an event is kept.
        limit: bytes of all events, about; past it the oldest go first.
        limit_each: bytes of the events of one target.
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
        """In the order in which they were published here."""
        self._added = 0
        self._unplaced: dict[int, Event] = {}
        """Of this node, by number: their position is not known yet."""
        self._forgotten: OrderedDict[Target, dict[str, Event]] = OrderedDict()
        """The last event of each sender that was let go of, without its text."""
        self._lost: dict[str, Event] = {}
        """The same of targets that are not remembered."""

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
        """Take note where a message of this node stands on the bus."""
        if (event := self._unplaced.pop(number, None)) is not None:
            event.position = position

    def forget(self, now: int) -> None:
        """Let go of what is too old at `now`, or too much."""
        while self._order:
            (_added, target), event = next(iter(self._order.items()))
            if self.size <= self._limit and now - event.at <= self._horizon:
                break
            self._let_go(target, self._lines[target])

    def begin_anew(self) -> None:
        """Forget everything, even what was let go of: some was never here."""
        self.size = 0
        for kept in (self._lines, self._order, self._unplaced, self._forgotten, self._lost):
            kept.clear()

    def missed(self, targets: Iterable[Target], mark: Mark, names: Collection[str]) -> list[Event] | None:
        """The events of some targets that a client has not been told of, in the order of the bus.

        Args:
            targets: whom it hears for.
            mark: up to where it has been told.
            names: what it is called in the namespace, and was.

        Returns:
            None where some of them are kept no more.
        """
        if any(event.is_past(mark) for event in self._lost.values()):
            return None
        found: dict[int, Event] = {}
        for target in targets:
            if any(event.is_past(mark) for event in self._forgotten.get(target, {}).values()):
                return None
            for event in self._lines[target].events if target in self._lines else ():
                if event.is_past(mark) and event.skipped.isdisjoint(names):
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
        if event.position is None:  # and perhaps never has one
            self._unplaced.pop(event.number, None)
        last = self._forgotten.setdefault(target, {})
        last[event.sender] = Event((), None, event.sender, event.number, event.position)
        self._forgotten.move_to_end(target)
        if len(self._forgotten) > REMEMBERED:
            for sender, each in self._forgotten.popitem(last=False)[1].items():
                known = self._lost.get(sender)
                # What channels say has no number of its own, and always a position.
                if known is None or (known.number, known.position or 0) < (each.number, each.position or 0):
                    self._lost[sender] = each
