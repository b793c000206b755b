"""Rates, and what keeps to them. Time comes in as an argument, in seconds."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from gateway.buckets import TokenBucket

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


class KeyedBuckets(Generic[_Key]):
    """A token bucket for each key, for as many keys as `capacity`.

    Past it the key unused for longest is forgotten, so that no flood of keys fills the memory.
    """

    def __init__(self, rate: Rate, *, capacity: int = 100_000) -> None:
        self._rate = rate
        self._capacity = capacity
        self._buckets: OrderedDict[_Key, TokenBucket] = OrderedDict()

    def take(self, key: _Key, now: float) -> float:
        """As `TokenBucket.take`, from the key's own bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now)
