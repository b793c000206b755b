"""Reads the log into the view, and hands what changed to whoever listens: fan-out and hooks."""

from __future__ import annotations

import asyncio
from bisect import insort
from typing import TYPE_CHECKING

import structlog

from gateway.errors import LogTrimmedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.presence.model import Transition
    from gateway.presence.store import Store
    from gateway.presence.view import View

    Listener = Callable[[Sequence[Transition]], None]

_log = structlog.get_logger(__name__)

RETRY = 1.0
"""Seconds to wait after the store failed, before it is asked again."""


class Follower:
    """Keeps one view at the end of one store's log.

    Args:
        store: whose log.
        view: what it is read into.
        listeners: called with each batch of transitions that were news, in the order of the log, after the
            view holds them. A listener must not block, and must not raise.
    """

    def __init__(self, store: Store, view: View, listeners: Sequence[Listener]) -> None:
        self._store = store
        self._view = view
        self._listeners = listeners
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._turn = 0

    async def start(self) -> None:
        """Load the first snapshot. Nobody is told: whoever connects later reads the view."""
        self._view.load(await self._store.snapshot())

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                await self._follow()
            except Exception:
                _log.exception("following the log failed; trying again")
                await asyncio.sleep(RETRY)

    async def reach(self, position: int) -> None:
        """Wait until the view holds the log up to `position`."""
        if self._view.position >= position:
            return
        reached = asyncio.get_running_loop().create_future()
        self._turn += 1  # tells two waiters for one position apart
        insort(self._waiting, (position, self._turn, reached))
        await reached

    async def _follow(self) -> None:
        """Read once: what is there, or as soon as there is something."""
        try:
            news = self._view.apply(await self._store.read(self._view.position, wait=True))
        except LogTrimmedError as gap:
            _log.warning("fell behind the log; taking a snapshot", position=self._view.position, gap=str(gap))
            news = self._view.load(await self._store.snapshot())
        if news:
            for listener in self._listeners:
                listener(news)
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._view.position:
            reached = self._waiting.pop(0)[2]
            if not reached.done():
                reached.set_result(None)
