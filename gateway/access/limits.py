"""Rates, and what keeps to them. Time comes in as an argument, in seconds."""

from __future__ import annotations

import re
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from gateway.access.buckets import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Hashable

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_RATE = re.compile(r"(?P<count>[1-9]\d{0,8})/(?P<unit>s|min|h)")


class Rate(msgspec.Struct, frozen=True):
    """So many events in so many seconds."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read ``100/s``, ``60/min`` or ``1000/h``.

        Raises:
            ValueError: it is neither of these.
        """
        match = _RATE.fullmatch(text.strip())
        if match is None:
            raise ValueError("a rate reads 100/s, 60/min or 1000/h")
        return cls(int(match["count"]), _UNITS[match["unit"]])


_Key = TypeVar("_Key", bound="Hashable")


LOOKS = 16
"""Buckets that are looked at to make room for another: the most that one key costs."""


class KeyedBuckets(Generic[_Key]):
    """A token bucket for each key, for as many keys as `capacity`.

    Past it one is forgotten that is full again, and so says nothing; where none is, the one that is nearest to it, and
    of such the one unused for longest. So no flood of keys fills the memory, nor gives anybody a full bucket: keys that
    were used once are the first to go.
    """

    def __init__(self, rate: Rate, *, capacity: int = 100_000) -> None:
        self._rate = rate
        self._capacity = capacity
        self._buckets: dict[_Key, TokenBucket] = {}
        self._queue: list[tuple[float, float, int, _Key]] = []
        """A heap of all keys by when their bucket is full and was last used, as was so when it was last looked at:
        since then both can only have become later, but for `forget`. The number tells keys apart."""
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: _Key, now: float) -> float:
        """As `TokenBucket.take`, from the key's own bucket."""
        return self.of(key, now).take(now)

    def of(self, key: _Key, now: float) -> TokenBucket:
        """The key's own bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._capacity:
                self._make_room(now)
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
            heappush(self._queue, (now, now, next(self._numbers), key))
        return bucket

    def forget(self, key: _Key) -> None:
        """Let a key begin with a full bucket."""
        if (bucket := self._buckets.get(key)) is not None:
            bucket.fill()

    def _make_room(self, now: float) -> None:
        looked_at: list[tuple[float, float, int, _Key]] = []
        while self._queue and len(looked_at) < LOOKS:
            queued_at, _, number, key = heappop(self._queue)
            bucket = self._buckets[key]
            full_at = bucket.full_at
            looked_at.append((full_at, bucket.at, number, key))
            if full_at <= max(now, queued_at):
                break  # it says nothing, or none of the others says less
        looked_at.sort(key=lambda each: each[:3])
        del self._buckets[looked_at[0][3]]
        for each in looked_at[1:]:
            heappush(self._queue, each)
