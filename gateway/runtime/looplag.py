"""How late the event loop is: what else every client of this node waits for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gateway.runtime.measures import Histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

INTERVAL = 0.25
"""Seconds between two looks."""


class LoopLag:
    """Sleeps, and measures by how much it slept too long. Four times a second, which costs next to nothing.

    Args:
        stopwatch: seconds on a clock that goes on within one turn of the loop.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        stopwatch: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.late = Histogram()
        """Seconds that the loop was late."""
        self._stopwatch = stopwatch
        self._sleep = sleep

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            due = self._stopwatch() + INTERVAL
            await self._sleep(INTERVAL)
            self.late.observe(max(0.0, self._stopwatch() - due))
