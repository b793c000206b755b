"""Tells audiences what changed: the net effect of each interval, encoded once, written once per recipient."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from gateway import wire
from gateway.presence.model import Transition, net_event
from gateway.runtime.measures import SIZES, Histogram

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    from gateway.runtime.timers import Scheduler

REST = 6.0
"""The next flush waits at least this many times as long as the last one took, so that flushing takes a seventh of the
time at the most. Without it, N users who connect at once would cost N² deliveries, even with one flush per interval."""

LONGEST_REST = 0.2
"""Seconds that a change waits for that reason at the most."""

Batch = Any
"""Events as a codec has encoded them. Only members of that codec look inside."""


class Codec(Protocol):
    """Encodes events for one kind of client. Members with the same codec share what it has encoded."""

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode events, each a name and its data, in their order."""

    def write_all(self, batch: Batch, sinks: Sequence[Any]) -> None:
        """Send a batch to many members at once, given their sinks; the same as calling `write` of each."""


class MarkingCodec(Codec, Protocol):
    """A codec whose events tell a client how far it has been told, so that it can recover from there."""

    @property
    def mark(self) -> Any:
        """How far clients have been told by the bus, which goes into each event, too; never None.

        A batch that was encoded with another mark is not reused.
        """

    def encode_told(self, events: Sequence[tuple[str, object]], after: int, to: int) -> Batch:
        """Encode events that sum up the log behind `after`, up to `to`."""


class Member(Protocol):
    """One recipient: a client's connection."""

    @property
    def codec(self) -> Codec:
        """How to encode for it."""

    @property
    def sink(self) -> Any:
        """What its codec writes to. Only the codec looks inside."""

    def write(self, batch: Batch) -> None:
        """Send a batch. It never blocks: a member that cannot keep up closes itself."""


def net_changes(transitions: Iterable[Transition]) -> list[wire.EventBody]:
    """Reduce transitions to the events that a client needs that has heard of none of them.

    At most one event for each user, with their last version. None for a user who ended as they began, such as one who
    left and came back.
    """
    first: dict[str, Transition] = {}
    last: dict[str, Transition] = {}
    for transition in transitions:
        first.setdefault(transition.user_id, transition)
        last[transition.user_id] = transition
    return [
        wire.event_body(event, final)
        for user_id, final in last.items()
        if (event := net_event(first[user_id], final)) is not None
    ]


class Pace:
    """Decides when changes go out: a single one at once, and otherwise all that were gathered in an interval.

    A flush that told of one user only does not make a change of another user wait: two such flushes may come within one
    interval. So a user who comes just after another is heard of at once, something that one user does and undoes within
    an interval is no event, and a storm of changes is told of once per interval.

    Args:
        interval: seconds that changes are gathered for.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._at = self._before = float("-inf")
        """When the last flush was, and the one before it."""
        self._rest = 0.0
        """Seconds to rest after the last flush, by how long it took."""
        self._lone: str | None = None
        """The only user that the last flush told of; None if it told of several."""

    def due(self, now: float, user_id: str) -> float:
        """When a user's change goes out if nothing else is pending: now or later."""
        kept = self._at if self._lone is None or self._lone == user_id else self._before
        return max(now, self._at + self._rest, kept + self._interval)

    def flushed(self, now: float, took: float, users: Iterable[str]) -> None:
        """Take note of a flush.

        Args:
            now: when it was.
            took: seconds that it took.
            users: whose changes it told; a user may be in it more than once.
        """
        told = set(users)
        self._before, self._at = self._at, now
        self._rest = min(took * REST, LONGEST_REST)
        self._lone = told.pop() if len(told) == 1 else None

    def is_over(self, now: float) -> bool:
        """Whether it is by now as a new one would be: no flush of before holds anything back."""
        return now >= self._at + max(self._rest, self._interval)


class Deliveries:
    """Counts what was sent to members."""

    def __init__(self) -> None:
        self.delivered = 0
        """Batches that were written to members; one written to ten members counts ten times."""
        self.changes = Histogram(SIZES)
        """Changes that one flush told of."""
        self.seconds = Histogram()
        """Seconds that one flush took."""


class Audience:
    """Members that hear of the same changes, and the changes that they have not heard of yet.

    Args:
        pace: decides when pending changes go out.
        position: the position of the log at which the first member joins: it has read everything up to there.
        pass_over: called with two positions if the changes between them cancelled out, and nobody was told.
        reduce: makes the events that are sent out of transitions, such as `net_changes`.
        deliveries: counts what is sent.
    """

    def __init__(
        self,
        pace: Pace,
        position: int = 0,
        pass_over: Callable[[int, int], None] = lambda _after, _to: None,
        reduce: Callable[[Iterable[Transition]], list[wire.EventBody]] = net_changes,
        deliveries: Deliveries | None = None,
    ) -> None:
        self._pass_over = pass_over
        self._reduce = reduce
        self._deliveries = Deliveries() if deliveries is None else deliveries
        self.position = position
        """Up to where on the log every member has been told."""
        self.pending: list[Transition] = []
        self.pace = pace
        self.timer: asyncio.TimerHandle | None = None
        self._members: dict[Codec, dict[Member, Any]] = {}
        """The sink of each member, by codec."""
        self._heard: dict[Member, int] = {}
        """How many of the pending changes a member has heard of, or knew when it joined; 0 for those not listed."""
        self._encoded: dict[tuple[Codec, Any, int, int], Batch | None] = {}
        """Batches of this flush, by codec, mark, and the first and last of the pending changes that they tell of."""

    def __bool__(self) -> bool:
        return bool(self._members)

    def join(self, member: Member) -> None:
        """Let a member hear of changes that are published from now on."""
        self._members.setdefault(member.codec, {})[member] = member.sink
        if self.pending:
            self._heard[member] = len(self.pending)

    def leave(self, member: Member) -> None:
        """Take a member out; one that never joined is ignored."""
        members = self._members.get(member.codec)
        if members is not None:
            members.pop(member, None)
            if not members:
                del self._members[member.codec]
        self._heard.pop(member, None)

    def pass_over(self, member: Member) -> None:
        """Skip, for one member, everything that is pending."""
        if self.pending and member in self._members.get(member.codec, ()):
            self._heard[member] = len(self.pending)

    def told(self, member: Member) -> int:
        """The position of the log up to which a member knows everything, by events or by what it read as it joined."""
        heard = self._heard.get(member, 0)
        return self.pending[heard - 1].position if heard else self.position

    def flush(self) -> None:
        """Write what is pending to every member, to each what it has not heard of."""
        try:
            for codec, members in list(self._members.items()):
                self._flush(codec, members)
        finally:
            if self.pending:
                self.position = self.pending[-1].position
            self.pending.clear()
            self._heard.clear()
            self._encoded.clear()

    def _flush(self, codec: Codec, members: dict[Member, Any]) -> None:
        for member in [each for each in self._heard if each in members]:
            self.catch_up(member)
        # The few who have heard are taken out for a moment: testing each of the others would double the cost.
        heard = {each: members.pop(each) for each in self._heard if each in members}
        sinks = [*members.values()]
        members.update(heard)
        if sinks and (batch := self._batch(codec, 0)) is not None:
            self._deliveries.delivered += len(sinks)
            codec.write_all(batch, sinks)

    def catch_up(self, member: Member) -> None:
        """Write what is pending to one member; one that never joined hears nothing."""
        heard = self._heard.get(member, 0)
        if heard < len(self.pending) and member in self._members.get(member.codec, ()):
            self._heard[member] = len(self.pending)
            batch = self._batch(member.codec, heard)
            if batch is not None:
                self._deliveries.delivered += 1
                member.write(batch)

    def _batch(self, codec: Codec, start: int) -> Batch | None:
        """Encode what is pending from `start` on, once for all who are told the same; None if there is nothing."""
        mark = getattr(codec, "mark", None)
        key = (codec, mark, start, len(self.pending))
        if key not in self._encoded:
            self._encoded[key] = self._encode(codec, start, told=mark is not None)
        return self._encoded[key]

    def _encode(self, codec: Codec, start: int, *, told: bool) -> Batch | None:
        changes = self._reduce(self.pending[start:])
        if not told:
            return codec.encode(changes) if changes else None
        after = self.pending[start - 1].position if start else self.position
        to = self.pending[-1].position
        if changes:
            return cast("MarkingCodec", codec).encode_told(changes, after, to)
        self._pass_over(after, to)
        return None


class FanOut:
    """The audiences of this node, one for each tenant.

    Args:
        scheduler: the event loop.
        interval: seconds that changes of one audience are gathered for; see `Pace`. The first change after a quiet
            interval goes out at once.
        position: returns up to where this node has followed the log.
        pass_over: called with a tenant and two positions if the changes between them cancelled out, and clients that
            can recover were not told of them.
        stopwatch: returns seconds of a clock that goes on within one turn of the loop, as the loop's own may not.
        reduce: makes the events that are sent out of an audience's transitions.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        interval: float,
        position: Callable[[], int] = lambda: 0,
        pass_over: Callable[[str, int, int], None] = lambda _tenant, _after, _to: None,
        *,
        stopwatch: Callable[[], float] = time.perf_counter,
        reduce: Callable[[Iterable[Transition]], list[wire.EventBody]] = net_changes,
    ) -> None:
        self._scheduler = scheduler
        self._reduce = reduce
        self._interval = interval
        self._position = position
        self._pass_over = pass_over
        self._stopwatch = stopwatch
        self._audiences: dict[str, Audience] = {}
        self.deliveries = Deliveries()
        """What was sent, since the start."""
        self.on_flush: Callable[[Sequence[Transition], float, int], None] | None = None
        """Called after each flush with its transitions, the seconds that it took, and how many members were told."""

    def join(self, tenant: str, member: Member) -> Audience:
        """Let a member hear of the tenant's changes that are published from now on."""
        audience = self._audiences.get(tenant)
        if audience is None:
            audience = self._audiences[tenant] = Audience(
                Pace(self._interval), self._position(), partial(self._pass_over, tenant), self._reduce, self.deliveries
            )
        audience.join(member)
        return audience

    def leave(self, tenant: str, member: Member) -> None:
        """Take a member out; one that never joined is ignored."""
        audience = self._audiences.get(tenant)
        if audience is None:
            return
        audience.leave(member)
        if not audience:
            del self._audiences[tenant]
            if audience.timer is not None:
                audience.timer.cancel()

    def catch_up(self, tenant: str, member: Member) -> None:
        """Tell one member now what it has not heard of.

        To be called before the member gets an answer from the view. Otherwise the answer could show a change that is
        still pending; if that is undone before it goes out, no event would ever correct the answer.
        """
        audience = self._audiences.get(tenant)
        if audience is not None:
            audience.catch_up(member)

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions, to go out within the interval. The follower calls it."""
        for transition in transitions:
            audience = self._audiences.get(transition.tenant)
            if audience is None:
                continue
            audience.pending.append(transition)
            if audience.timer is None:
                # Even if it is due now, it waits for the end of the loop's turn: one batch in is one batch out.
                due = audience.pace.due(self._scheduler.time(), transition.user_id)
                audience.timer = self._scheduler.call_at(due, partial(self._flush, audience))

    def _flush(self, audience: Audience) -> None:
        audience.timer = None
        now, users = self._scheduler.time(), [transition.user_id for transition in audience.pending]
        self.deliveries.changes.observe(len(audience.pending))
        told = None if self.on_flush is None else (audience.pending.copy(), self.deliveries.delivered)
        began = self._stopwatch()
        try:
            audience.flush()
        finally:
            took = self._stopwatch() - began
            audience.pace.flushed(now, took, users)
        self.deliveries.seconds.observe(took)
        if told is not None and self.on_flush is not None:
            self.on_flush(told[0], took, self.deliveries.delivered - told[1])
