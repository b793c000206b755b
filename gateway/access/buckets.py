"""The token bucket that rates are kept by. Time comes in as an argument, in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.access.limits import Rate


class TokenBucket:
    """Lets a burst of `rate.count` through, and from then on `rate.count` per `rate.seconds`.

    Args:
        rate: how many, in what time.
        now: when it starts, full.
    """

    def __init__(self, rate: Rate, now: float) -> None:
        self._count = float(rate.count)
        self._per_second = float(rate.count / rate.seconds)
        self._tokens = float(rate.count)
        self._at = now

    @property
    def at(self) -> float:
        """When it was last asked, or when it started."""
        return self._at

    @property
    def full_at(self) -> float:
        """When it is full, or has been since: from then on it says no more than a new one."""
        return self._at + (self._count - self._tokens) / self._per_second

    def fill(self) -> None:
        """Let it be full."""
        self._tokens = self._count

    def take(self, now: float, tokens: int = 1) -> float:
        """Take a token, or several at once.

        Returns:
            0 where they were there; otherwise nothing is taken, and it is the seconds until they will be.
        """
        there = self._tokens
        if now > self._at:
            there += (now - self._at) * self._per_second
            self._at = now
            there = min(there, self._count)
        if there >= tokens:
            self._tokens = there - tokens
            return 0.0
        self._tokens = there
        return (tokens - there) / self._per_second
