"""The time that presence goes by: it never goes back, and where the store has a clock, it is the store's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ACCURACY = 100
"""Milliseconds. An answer that took longer is not taken for the time, unless it is the first; nor is a difference that
an answer may have by itself."""


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
    """Set a clock by another, which is read over some way; one that is not there leaves it."""
    asked_at = clock.monotonic()
    theirs = await read()
    if theirs is not None:
        clock.set_by(theirs, asked_at)


class SteadyClock:
    """The time, in Unix milliseconds, which never goes back.

    It follows the system's clock until another sets it, and then only that one, by the monotonic clock in between.
    Where what it follows is set forward, it follows; where that is set back, it goes on from where it was: by the
    monotonic clock, or standing still until the other has caught up.
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
        took = (answered_at - asked_at) // 1_000_000
        if took > ACCURACY and self._set_by_another:
            return
        ahead = (theirs * 1_000_000 + (answered_at - asked_at) // 2) - answered_at
        if not self._set_by_another:
            self._set_by_another = True
            self._last = 0  # what was read before was by another clock
            self._ahead = ahead
        elif abs(ahead - self._ahead) > ACCURACY * 1_000_000:
            self._ahead = ahead
