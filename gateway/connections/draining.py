"""A node that stops: its clients go a few at a time, so that the other nodes take them in as they come."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.access.limits import Rate

EVERY = 0.25
"""Seconds, on average, from one batch to the next."""

RETRY_AFTER = 1.0
"""Seconds that clients of a draining node are asked to wait before they connect again, give or take a half: those of
one batch do not come back in one moment."""


class Batch(NamedTuple):
    """Some of the clients."""

    at: float
    """When they are told, in seconds from the beginning."""
    size: int


class Departures(NamedTuple):
    """How fast the clients of a node go.

    Args:
        rate: how many in what time.
        within: seconds in which the last batch begins at the latest; they go faster than the rate where it is to be.
        dice: numbers from 0 to 1, for the jitter.
    """

    rate: Rate
    within: float
    dice: Callable[[], float] = random.random

    def batches(self, count: int) -> list[Batch]:
        """Divide so many clients: evenly, each batch at a moment of its own in its part of the time."""
        lasts = min(count * self.rate.seconds / self.rate.count, self.within)
        number = max(1, math.ceil(lasts / EVERY))
        bounds = [count * each // number for each in range(number + 1)]
        return [
            Batch(0.0 if each == 0 else (each + self.dice()) * lasts / number, bounds[each + 1] - bounds[each])
            for each in range(number)
        ]

    def retry_after(self) -> float:
        """Seconds after which one client is to come back."""
        return round(RETRY_AFTER * (0.5 + self.dice()), 3)
