"""The end of background tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 0.5
"""Seconds before a task is cancelled again."""


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and return when they have ended.

    A cancellation may be swallowed: redis-py does so while it connects. Such a task is cancelled again.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _ended, running = await asyncio.wait(running, timeout=PATIENCE)
