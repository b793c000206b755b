"""The log of channels in this process's memory: for one node."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec

from gateway.access.limits import KeyedBuckets, Rate
from gateway.channels.log import TIME_BITS, TOPIC, ChannelLog, Kept, first_kept, used_up
from gateway.channels.model import History, Said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.model import Draft
    from gateway.nodes.bus import Bus


class _Kept:
    """What is kept of one channel."""

    __slots__ = ("events", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        """Behind which nothing is missing before the first of `events`."""
        self.events: deque[Said] = deque()

    def drop(self) -> None:
        """Let go of the oldest."""
        self.missing = self.events.popleft().position


class MemoryChannelLog(ChannelLog):
    """A log that lives and dies with its process.

    Args:
        bus: what counts what is said.
        kept: how much is kept.
        begin: the position before its first event, which grows from start to start.
    """

    def __init__(self, bus: Bus, kept: Kept, *, begin: int = 0) -> None:
        super().__init__()
        self._bus = bus
        self._kept = kept
        self._began = self._position = begin
        self._histories: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        """By channel, the one last where something was said last."""
        self._once: OrderedDict[str, tuple[int, Sequence[Said]]] = OrderedDict()
        """By name, when it was said and what."""
        self._budgets: KeyedBuckets[str] = KeyedBuckets(Rate(kept.budget, kept.ttl / 1000))

    async def say(
        self, drafts: Sequence[Draft], now: int, *, once: str | None = None, budget: str | None = None
    ) -> Sequence[Said]:
        """Say something; see the port."""
        self._forget(now)
        if once is not None and (earlier := self._once.get(once)) is not None:
            return earlier[1]
        if budget is not None:
            sizes = [len(bytes(draft.data)) for draft in drafts if draft.keep]
            cost = self._kept.cost(sizes, named=once is not None)
            if wait := self._budgets.of(budget, now / 1000).take(now / 1000, cost):
                raise used_up(self._kept, wait)
        said = [self._append(draft, now) for draft in drafts]
        if once is not None:
            self._once[once] = now, said
        for each in said:
            self._bus.publish(TOPIC, None)
            self._tell(each, own=True)
        return said

    def _append(self, draft: Draft, now: int) -> Said:
        self._position = max(self._position + 1, now << TIME_BITS)
        said = Said(**msgspec.structs.asdict(draft), position=self._position if draft.keep else 0, at=now)
        if draft.keep and self._kept.events:
            key = (draft.tenant, draft.channel)
            kept = self._histories.get(key)
            if kept is None:
                kept = self._histories[key] = _Kept(self._begin(now))
            self._histories.move_to_end(key)
            kept.events.append(said)
            if len(kept.events) > self._kept.events:
                kept.drop()
        return said

    async def history(self, tenant: str, channel: str, now: int, *, after: int | None, limit: int) -> History:
        """Read what was said; see the port."""
        self._forget(now)
        begin = self._begin(now)
        lost = after is not None and after > self._position  # of a clock that went back between two starts
        known = 0 if after is None or lost else after
        kept = self._histories.get((tenant, channel))
        while kept is not None and kept.events and kept.events[0].position <= begin:
            kept.drop()
        found = [said for said in ([] if kept is None else kept.events) if said.position > known]
        events, missing = found[-limit:], begin
        if kept is not None and found:
            before = len(kept.events) - len(found)
            missing = kept.events[before - 1].position if before else kept.missing
        recovered = after is not None and not lost and len(found) <= limit and (after or begin) >= missing
        return History(events, self._position, recovered and self._kept.events > 0)

    def _begin(self, now: int) -> int:
        """Behind which whatever was said is kept, as far as time goes."""
        return max(first_kept(now, self._kept), self._began)

    def _forget(self, now: int) -> None:
        """Let go of channels in which all is too old, and of names."""
        begin = first_kept(now, self._kept)
        while self._histories:
            key, kept = next(iter(self._histories.items()))
            if kept.events and kept.events[-1].position > begin:
                break
            del self._histories[key]
        while self._once:
            name, (at, _said) = next(iter(self._once.items()))
            if at > now - self._kept.again:
                break
            del self._once[name]

    async def close(self) -> None:
        """Nothing to let go of."""
