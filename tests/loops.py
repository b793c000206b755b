"""An event loop whose time a test jumps."""

import asyncio
from collections.abc import Callable


class Timer(asyncio.TimerHandle):
    """What somebody asked to be called back by."""


class Loop:
    """The part of a loop that timers need: `gateway.runtime.timers.Scheduler`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self._loop = asyncio.new_event_loop()
        self._loop.close()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        timer = Timer(when, callback, (), self._loop)
        self.timers.append(timer)
        return timer

    def waiting(self) -> list[float]:
        return [timer.when() for timer in self.timers if not timer.cancelled()]

    def run_until(self, now: float) -> None:
        self.now = now
        due = [timer for timer in self.timers if timer.when() <= now]
        self.timers = [timer for timer in self.timers if timer.when() > now]
        for timer in due:
            if not timer.cancelled():
                timer._callback(*timer._args)  # type: ignore[attr-defined]  # not by the handle, which keeps what it raises from the test
