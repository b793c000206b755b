"""A node that stops: its clients go a few at a time, so that the other nodes take them in as they come."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.access.admission import Admission
    from gateway.access.limits import Rate
    from gateway.connections.connections import Connections

_log = structlog.get_logger(__name__)

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


class _Door(Protocol):
    def close_nobodys(self) -> None:
        """Close the clients that are nobody's, so that they go elsewhere."""


class Draining:
    """Whether this node takes clients, and how those it has go.

    Args:
        connections: its live connections.
        admission: what lets new ones in.
        departures: how fast they go.
        doors: where clients may be that are nobody's yet; None is skipped.
    """

    def __init__(
        self, connections: Connections, admission: Admission, departures: Departures, doors: Sequence[_Door | None]
    ) -> None:
        self._connections = connections
        self._admission = admission
        self._departures = departures
        self._doors = [door for door in doors if door is not None]
        self._stops = False
        self._going: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Have balancers send nobody here any more: this node stops."""
        self._stops = self._connections.leaving = True

    async def begin(self) -> None:
        """Let nobody in any more, and every client go; return when they have gone, whoever began it."""
        if self._going is None or not self._connections.draining:
            _log.info("draining", connections=len(self._connections))
            self._admission.close()
            for door in self._doors:
                door.close_nobodys()
            self._going = asyncio.create_task(self._connections.drain(self._departures))
        await asyncio.shield(self._going)

    def end(self) -> bool:
        """Let clients in again, and those stay who were not told to go yet.

        Returns:
            Whether it does: a node that stops takes nobody.
        """
        if not self._stops and self._connections.draining:
            _log.info("taking clients again")
            self._connections.stay()
            self._admission.open()
        return not self._stops
