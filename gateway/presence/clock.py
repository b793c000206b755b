"""The clock of presence: it never goes back, and follows the store's clock if the store has one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ACCURACY = 100
"""Milliseconds that the clock may differ from the store's answer. If the answer took more than twice as long, half of
that time: the store may have given it at any moment of it, so only a larger difference is certainly an error."""


class Clock(Protocol):
    """What the tracker needs of a clock."""

    @property
    def offset(self) -> int:
        """Milliseconds that the system's clock is behind this one; negative where it is ahead."""

    def __call__(self) -> int:
        """The time now, in Unix milliseconds."""

    def monotonic(self) -> int:
        """Nanoseconds on a clock that nobody sets."""

    def set_by(self, theirs: int, asked_at: int) -> None:
        """Go by another clock from now on.

        Args:
            theirs: its time, in Unix milliseconds.
            asked_at: `monotonic` when it was asked.
        """


async def follow(clock: Clock, read: Callable[[], Awaitable[int | None]]) -> None:
    """Set a clock by another one, which `read` returns the time of; if that returns None, the clock stays as it is."""
    asked_at = clock.monotonic()
    theirs = await read()
    if theirs is not None:
        clock.set_by(theirs, asked_at)


class SteadyClock:
    """The time, in Unix milliseconds, which never goes back.

    It follows the system's clock until `set_by` is called. From then on it follows only the clock that it was set by,
    and the monotonic clock in between. If the clock that it follows is set forward, it jumps with it. If that is set
    back, it does not go back, but goes on by the monotonic clock, or stands still until the other has caught up.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self.monotonic = monotonic
        self._ahead = wall() - monotonic()
        self._set_by_another = False
        self._last = 0

    @property
    def offset(self) -> int:
        """Milliseconds that the system's clock is behind this one; negative where it is ahead."""
        return (self.monotonic() + self._ahead - self._wall()) // 1_000_000

    def __call__(self) -> int:
        """The time now."""
        monotonic, ahead = self.monotonic(), self._ahead
        if not self._set_by_another and (measured := self._wall() - monotonic) > ahead:
            self._ahead = ahead = measured
        now = (monotonic + ahead) // 1_000_000
        if now <= self._last:
            return self._last
        self._last = now
        return now

    def set_by(self, theirs: int, asked_at: int) -> None:
        """Go by another clock from now on; see `Clock`."""
        answered_at = self.monotonic()
        half = (answered_at - asked_at) // 2
        ahead = theirs * 1_000_000 + half - answered_at
        if not self._set_by_another:
            self._set_by_another = True
            self._last = 0  # times read before were another clock's, which may have been ahead
            self._ahead = ahead
        elif abs(ahead - self._ahead) > max(ACCURACY * 1_000_000, half):
            self._ahead = ahead
