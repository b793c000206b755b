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
"""How many times as long as a flush took the next one waits at least, so that telling all of all takes a seventh of the
time: in a storm of N who come, a flush for each interval would still be N² deliveries."""

LONGEST_REST = 0.2
"""Seconds that a change waits at the most, however many are told."""

Batch = Any
"""Events in a codec's own encoding, made once; only the codec's members look inside."""


class Codec(Protocol):
    """How one kind of client is written to. Members that share a codec share what it has encoded."""

    def encode(self, events: Sequence[tuple[str, object]]) -> Batch:
        """Encode events, each a name and its data, to be written in their order."""

    def write_all(self, batch: Batch, sinks: Sequence[Any]) -> None:
        """Send a batch to many members, by their sinks, as each one's `write` does."""


class MarkingCodec(Codec, Protocol):
    """A codec whose events say up to where a client has been told, so that it may go on from there."""

    @property
    def mark(self) -> Any:
        """What else than changes its events tell: an encoding with an older one is not used again. Never None."""

    def encode_told(self, events: Sequence[tuple[str, object]], after: int, to: int) -> Batch:
        """Encode the net effect of the log between two positions."""


class Member(Protocol):
    """One recipient of an audience."""

    @property
    def codec(self) -> Codec:
        """How to encode for it."""

    @property
    def sink(self) -> Any:
        """What its codec writes to; only the codec looks inside."""

    def write(self, batch: Batch) -> None:
        """Send a batch. Never blocks: a member that cannot keep up is closed, by itself."""


def net_changes(transitions: Iterable[Transition]) -> list[wire.EventBody]:
    """Reduce the transitions of some time to what a client that heard of none of them needs to hear.

    One event at the most for each user, with their last version; none for one who ended as they began,
    such as a user who left and came back.
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
    """When changes go out: a lone one at once, and otherwise all that an interval has gathered.

    After a flush that told of one user alone, a change of another user does not wait for the interval's end: two such
    flushes may come within one. So who comes just after another has come or gone is heard of at once, what one user
    does and undoes within an interval is still no event, and a storm is told of once in each.

    Args:
        interval: seconds that changes are gathered for.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._at = self._before = float("-inf")
        """When the last flush was, and the one before it."""
        self._rest = 0.0
        """Seconds that the last one was dear enough to rest for."""
        self._lone: str | None = None
        """Of whom alone the last one told; None for several."""

    def due(self, now: float, user_id: str) -> float:
        """When a user's change goes out, of which nothing waits yet: now or later."""
        kept = self._at if self._lone is None or self._lone == user_id else self._before
        return max(now, self._at + self._rest, kept + self._interval)

    def flushed(self, now: float, took: float, users: Iterable[str]) -> None:
        """Take note of a flush.

        Args:
            now: when it was.
            took: seconds that it took.
            users: whose changes were pending; one may be there more than once.
        """
        told = set(users)
        self._before, self._at = self._at, now
        self._rest = min(took * REST, LONGEST_REST)
        self._lone = told.pop() if len(told) == 1 else None


class Deliveries:
    """What was told to members: counted once for each flush, however many members there are."""

    def __init__(self) -> None:
        self.delivered = 0
        """Batches that were written, each to one member."""
        self.changes = Histogram(SIZES)
        """How many changes were told together, by flush."""
        self.seconds = Histogram()
        """Seconds that a flush took."""


class Audience:
    """Members that hear of the same changes, and the changes that they have not heard of yet.

    Args:
        pace: when what is pending goes out.
        position: of the log, up to where whoever joins first is told by what they read.
        pass_over: called with two positions where nothing is told of what came between them.
        reduce: what is told of transitions; as `net_changes`.
        deliveries: where it is counted what was told.
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
        """The sink of each, by how it is encoded for."""
        self._heard: dict[Member, int] = {}
        """How many of those that are pending a member has heard of, or knew when it joined; for all others none."""
        self._encoded: dict[tuple[Codec, Any, int, int], Batch | None] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def join(self, member: Member) -> None:
        """Let a member hear of what is published from now on."""
        self._members.setdefault(member.codec, {})[member] = member.sink
        if self.pending:
            self._heard[member] = len(self.pending)

    def leave(self, member: Member) -> None:
        """Let a member hear no more; one that never joined is ignored."""
        members = self._members.get(member.codec)
        if members is not None:
            members.pop(member, None)
            if not members:
                del self._members[member.codec]
        self._heard.pop(member, None)

    def pass_over(self, member: Member) -> None:
        """Take what is pending as told to a member."""
        if self.pending and member in self._members.get(member.codec, ()):
            self._heard[member] = len(self.pending)

    def told(self, member: Member) -> int:
        """Up to where on the log a member has been told, by events or by what it could read when it joined."""
        heard = self._heard.get(member, 0)
        return self.pending[heard - 1].position if heard else self.position

    def flush(self) -> None:
        """Write what is pending to every member, each from where it is on."""
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
        # Those few are set aside: to look all others up would take as long as all else that is done for them here.
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
        """Encode what is pending from `start` on, once for all who are told the same; None for nothing to tell."""
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
    """The audiences of this node: everyone of each tenant.

    Args:
        scheduler: the event loop.
        interval: seconds that changes of one audience are gathered for, as `Pace` does it. The first change after a
            quiet interval goes out at once.
        position: up to where this node has followed the log.
        pass_over: called with a tenant and two positions where those who can recover are told nothing of what came
            between them.
        stopwatch: seconds on a clock that goes on within one turn of the loop, as the loop's own may not.
        reduce: what is told of one audience's transitions; as `net_changes`.
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
        """What was told, since the start."""
        self.on_flush: Callable[[Sequence[Transition], float, int], None] | None = None
        """Called with what was told, in how many seconds, and to how many members; None for nobody to be told."""

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
        """Let a member hear no more; one that never joined is ignored."""
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

        Called before an answer from the view goes to it: an answer that knows of a change before the event
        that tells of it would be a picture that a netted-out event never corrects.
        """
        audience = self._audiences.get(tenant)
        if audience is not None:
            audience.catch_up(member)

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take news of the log in, to go out within the interval."""
        for transition in transitions:
            audience = self._audiences.get(transition.tenant)
            if audience is None:
                continue
            audience.pending.append(transition)
            if audience.timer is None:
                # Never earlier than this turn of the loop's end: what came in one batch goes out in one.
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
