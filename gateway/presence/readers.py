"""Waiting for a log in this process to grow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Readers:
    """The readers that wait until the log has an entry that they have not.

    A reader may read on by itself while it waits. It is not woken for what it has read that way.

    Args:
        end: returns the position of the log's end.
    """

    def __init__(self, end: Callable[[], int]) -> None:
        self._end = end
        self._waiting: list[tuple[Callable[[], int], asyncio.Future[None]]] = []
        self._looking = False
        """Whether `_wake` is scheduled."""

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait_past(self, position: Callable[[], int]) -> None:
        """Wait until the log's end is past the reader's position, which `position` returns when it is looked at."""
        while self._end() <= position():
            more = asyncio.get_running_loop().create_future()
            self._waiting.append((position, more))
            await more

    def grown(self) -> None:
        """Say that the log has grown: at the end of this turn of the loop, the readers that are behind are woken."""
        if self._waiting and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._looking = False
        end, still = self._end(), []
        for position, more in self._waiting:
            if more.done():  # the reader has given up
                continue
            if position() < end:
                more.set_result(None)
            else:
                still.append((position, more))
        self._waiting = still
