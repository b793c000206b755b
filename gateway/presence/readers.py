"""Readers of a log in this process, who wait for it to grow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Readers:
    """Those who wait, until the log goes on past what they have.

    Who may read on by themselves meanwhile is not woken for what they have read.

    Args:
        end: where the log ends.
    """

    def __init__(self, end: Callable[[], int]) -> None:
        self._end = end
        self._waiting: list[tuple[Callable[[], int], asyncio.Future[None]]] = []
        self._looking = False
        """Whether they are looked at when this turn of the loop is over."""

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait_past(self, position: Callable[[], int]) -> None:
        """Wait until the log goes on past where a reader is then."""
        while self._end() <= position():
            more = asyncio.get_running_loop().create_future()
            self._waiting.append((position, more))
            await more

    def grown(self) -> None:
        """The log has grown: wake those who are behind when this turn of the loop is over."""
        if self._waiting and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._looking = False
        end, still = self._end(), []
        for position, more in self._waiting:
            if more.done():  # whoever waited has given up
                continue
            if position() < end:
                more.set_result(None)
            else:
                still.append((position, more))
        self._waiting = still
