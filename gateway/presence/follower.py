"""Reads the log into the view, and hands what changed to whoever listens: fan-out and hooks."""

from __future__ import annotations

import asyncio
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
            view holds them. A listener must not block.
    """

    def __init__(self, store: Store, view: View, listeners: Sequence[Listener]) -> None:
        self._store = store
        self._view = view
        self._listeners = listeners

    async def start(self) -> None:
        """Load the first snapshot. Nobody is told: whoever connects later reads the view."""
        self._view.load(await self._store.snapshot())

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                await self._advance()
            except Exception:
                _log.exception("following the log failed; trying again")
                await asyncio.sleep(RETRY)

    async def reach(self, position: int) -> None:
        """Bring the view up to `position` of the log, by whoever reads it first: this call, or `run`."""
        while self._view.position < position:
            await self._advance()

    async def _advance(self) -> None:
        """Read once, as soon as there is something. Two who do at a time do no harm: the view takes each entry once."""
        try:
            news = self._view.apply(await self._store.read(self._view.position, wait=True))
        except LogTrimmedError as gap:
            _log.warning("fell behind the log; taking a snapshot", position=self._view.position, gap=str(gap))
            news = self._view.load(await self._store.snapshot())
        if news:
            for listener in self._listeners:
                try:
                    listener(news)
                except Exception:
                    _log.exception("a listener failed")
