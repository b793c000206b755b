"""How often and how much: plain numbers that are counted where something happens, and read by ``/metrics``."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of times: from a round trip to what somebody is called for at night."""

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Bounds of what comes in batches."""


class Histogram:
    """How often something had which size.

    Args:
        bounds: the largest of each class, ascending; what is more than the last is of a class of its own.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many were of each class."""
        self.sum = 0.0

    def observe(self, size: float, times: int = 1) -> None:
        """Count one, or several of one size."""
        self.counts[bisect_left(self.bounds, size)] += times
        self.sum += size * times

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound as text, with how many were not more; as Prometheus has it."""
        names = [*(format(float(bound), "g") for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))
