"""Tells audiences what changed: the net effect of each interval, encoded once, written once per recipient."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gateway import wire
from gateway.presence.model import Transition, event_between

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

Frame = Any
"""One event in a codec's own encoding; only the codec's members look inside."""


class Codec(Protocol):
    """How one kind of client is written to. Members that share a codec share its frames."""

    def encode(self, event: str, data: object) -> Frame:
        """Encode one event."""


class Member(Protocol):
    """One recipient of an audience."""

    @property
    def codec(self) -> Codec:
        """How to encode for it."""

    def write(self, frames: Sequence[Frame]) -> None:
        """Send frames, in order. Never blocks: a member that cannot keep up is closed, by itself."""


class Scheduler(Protocol):
    """The part of an event loop that the fan-out needs."""

    def time(self) -> float:
        """Seconds on a clock that only goes forward."""

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back at `when`."""


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
        if (event := event_between(first[user_id].was, final.now.status)) is not None
    ]


class Audience:
    """Members that hear of the same changes, and the changes that some have not heard of yet."""

    def __init__(self) -> None:
        self.members: dict[Member, int] = {}
        """Each with how many of all the changes ever published here it has heard of, or knew when it joined."""
        self.pending: list[Transition] = []
        self.flushed = 0
        """How many were published before those that are pending."""
        self.flushed_at = float("-inf")
        self.timer: asyncio.TimerHandle | None = None
        self._encoded: dict[tuple[Codec, int, int], list[Frame]] = {}

    @property
    def published(self) -> int:
        """How many changes were ever published here."""
        return self.flushed + len(self.pending)

    def flush(self) -> None:
        """Write what is pending to every member, each from where it is on."""
        try:
            for member in tuple(self.members):
                self.catch_up(member)
        finally:
            self.flushed = self.published
            self.pending.clear()
            self._encoded.clear()

    def catch_up(self, member: Member) -> None:
        """Write what is pending to one member."""
        heard = self.members.get(member)  # None where it left while another was written to
        if heard is None or heard >= self.published:
            return
        # All who have heard of nothing pending share one encoding; the others joined or asked within the
        # interval, and are few.
        start = max(heard - self.flushed, 0)
        key = (member.codec, start, len(self.pending))
        frames = self._encoded.get(key)
        if frames is None:
            changes = net_changes(self.pending[start:])
            frames = self._encoded[key] = [member.codec.encode(event, data) for event, data in changes]
        self.members[member] = self.published
        if frames:
            member.write(frames)


class FanOut:
    """The audiences of this node: everyone of each tenant.

    Args:
        scheduler: the event loop.
        interval: seconds that changes of one audience are gathered for. The first change after a quiet interval
            goes out at once.
    """

    def __init__(self, scheduler: Scheduler, interval: float) -> None:
        self._scheduler = scheduler
        self._interval = interval
        self._audiences: dict[str, Audience] = {}

    def join(self, tenant: str, member: Member) -> None:
        """Let a member hear of the tenant's changes that are published from now on."""
        audience = self._audiences.setdefault(tenant, Audience())
        audience.members[member] = audience.published

    def leave(self, tenant: str, member: Member) -> None:
        """Let a member hear no more; one that never joined is ignored."""
        audience = self._audiences.get(tenant)
        if audience is None:
            return
        audience.members.pop(member, None)
        if not audience.members:
            del self._audiences[tenant]
            if audience.timer is not None:
                audience.timer.cancel()

    def catch_up(self, tenant: str, member: Member) -> None:
        """Tell one member now what it has not heard of.

        Called before an answer from the view goes to it: an answer that knows of a change before the event
        that tells of it would be a picture that a netted-out event never corrects.
        """
        audience = self._audiences.get(tenant)
        if audience is not None and member in audience.members:
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
                due = max(self._scheduler.time(), audience.flushed_at + self._interval)
                audience.timer = self._scheduler.call_at(due, partial(self._flush, audience))

    def _flush(self, audience: Audience) -> None:
        audience.timer = None
        audience.flushed_at = self._scheduler.time()
        audience.flush()
