"""Tasks in the background: how they end, and that it is known."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

_log = structlog.get_logger(__name__)

PATIENCE = 0.5
"""Seconds before a task is cancelled again."""


PART = 50
"""How much is done at once of what is much."""


def run(part: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run what goes on until it is cancelled. That it ended by a mistake is logged at once, and not when it is awaited.

    Args:
        part: what runs.
        name: what the log calls it.
    """
    task = asyncio.create_task(part, name=name)
    task.add_done_callback(_note_end)
    return task


def _note_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a part of this process has ended by a mistake; restart it", part=task.get_name(), exc_info=error)


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and return when they have ended.

    A cancellation may be swallowed: redis-py does so while it connects. Such a task is cancelled again.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _ended, running = await asyncio.wait(running, timeout=PATIENCE)


async def in_parts(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do much, a part at once and then the next, so that others have their turn in between.

    Raises:
        BaseException: what failed first; all else is done by then.
    """
    coming = iter(work)
    failed: BaseException | None = None
    while part := list(islice(coming, PART)):
        for result in await asyncio.gather(*part, return_exceptions=True):
            if failed is None and isinstance(result, BaseException):
                failed = result
    if failed is not None:
        raise failed
