"""One timer for all that is to happen later: a hashed timing wheel.

Scheme 6 of Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), with a heap of the times that have
anything instead of a tick for each: setting and cancelling cost the same however many timers there are, the loop has
one timer for all of them, and none where nothing is due.
"""

from __future__ import annotations

import asyncio
import math
from heapq import heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger(__name__)

_SLOTS = 40
"""In a second. A slot's time is its number divided by them, as uvloop divides its milliseconds: the two are the same
float then. A product would often be a little more, and the loop, which knows no less than a millisecond, would turn
without a rest until the next one."""

RESOLUTION = 1 / _SLOTS
"""Seconds that a timer may be late: nothing that waits here is set in less than tenths of a second."""


class Scheduler(Protocol):
    """The part of an event loop that timers need."""

    def time(self) -> float:
        """Seconds on a clock that only goes forward."""

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back at `when`."""


class RunningLoop:
    """The event loop, looked up when it is first needed: a gateway is made before its loop runs, and has only one.

    To look it up is a system call, until Python 3.12.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def time(self) -> float:
        """Seconds on the loop's clock."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return loop.time()

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back at `when`."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return loop.call_at(when, callback)


class Timer:
    """Something that is to happen."""

    __slots__ = ("_arguments", "_callback")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._arguments = arguments

    def cancel(self) -> None:
        """Let it not happen. Cancelling twice, or too late, changes nothing."""
        self._callback = None
        self._arguments = ()

    def fire(self) -> None:
        """Let it happen now, if it was not cancelled; called by the wheel."""
        callback, self._callback = self._callback, None
        if callback is not None:
            try:
                callback(*self._arguments)
            except Exception:
                _log.exception("a timer's callback failed")
        self._arguments = ()


class TimerWheel:
    """Timers by when they are due, `RESOLUTION` apart.

    Args:
        scheduler: the event loop.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._slots: dict[int, list[Timer]] = {}
        self._numbers: list[int] = []
        """The slots that have timers, as a heap."""
        self._handle: asyncio.TimerHandle | None = None
        self._armed = 0
        """The slot that the handle is set to."""

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> Timer:
        """Call `callback` with `arguments` in `delay` seconds, never earlier; what it raises is logged."""
        timer = Timer(callback, arguments)
        number = math.ceil((self._scheduler.time() + delay) * _SLOTS)
        slot = self._slots.get(number)
        if slot is not None:
            slot.append(timer)
            return timer
        self._slots[number] = [timer]
        heappush(self._numbers, number)
        if self._handle is None or number < self._armed:
            self._arm()
        return timer

    def close(self) -> None:
        """Forget every timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._slots.clear()
        self._numbers.clear()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed = self._numbers[0]
        self._handle = self._scheduler.call_at(self._armed / _SLOTS, self._turn)

    def _turn(self) -> None:
        self._handle = None
        now = self._scheduler.time()
        due = []
        while self._numbers and self._numbers[0] / _SLOTS <= now:
            due.append(self._slots.pop(heappop(self._numbers)))
        for timer in chain.from_iterable(due):  # what they set for at once is for the loop's next turn
            timer.fire()
        if self._numbers and self._handle is None:
            self._arm()
