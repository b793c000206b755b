"""Reads the log into the view, and hands what changed to the listeners: the fan-out, watch lists and hooks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from gateway.errors import LogTrimmedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.presence.model import Transition, UserStatus
    from gateway.presence.store import Store
    from gateway.presence.view import View

    Listener = Callable[[Sequence[Transition]], None]

_log = structlog.get_logger(__name__)

RETRY = 0.25
"""Seconds to wait after the store failed before it is asked again."""

PATIENCE = 5.0
"""Seconds that a command waits for the log at the most: longer than it takes to find that a connection is dead."""


class Follower:
    """Keeps one view up to date with one store's log.

    Args:
        store: whose log.
        view: where it is read into.
        listeners: each is called with every batch of new transitions, in the order of the log, when the view holds
            them. A listener must not block.
    """

    def __init__(self, store: Store, view: View, listeners: Sequence[Listener]) -> None:
        self.loaded = False
        """True when the view holds a snapshot; until then it knows nobody."""
        self.resyncs = 0
        """How many snapshots had to be taken after the first."""
        self.lost: list[UserStatus] = []
        """What the view knows and the store has lost, as of the last resync. The tracker restores it."""
        self._store = store
        self._view = view
        self._listeners = listeners
        self._resyncing = asyncio.Lock()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def view(self) -> View:
        """The view that it keeps."""
        return self._view

    @property
    def position(self) -> int:
        """Up to where the view has followed the log."""
        return self._view.position

    @property
    def waiting(self) -> int:
        """How many commands wait until the view shows what they did."""
        return len(self._waiting)

    def _view_position(self) -> int:
        return self._view.position

    async def start(self) -> None:
        """Load the first snapshot. Listeners are told nothing: nobody is connected yet.

        Raises:
            StoreUnavailableError: the store cannot be reached; `run` tries again.
        """
        self._view.load(await self._store.snapshot())
        self.loaded = True

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                if not self.loaded:
                    await self.start()
                if self._store.near:  # a command of this process reads the log itself, in `reach`: wait for the rest
                    await self._store.wait_past(self._view_position)
                await self._advance()
            except StoreUnavailableError as error:
                self._wake(error)
                await asyncio.sleep(RETRY)
            except Exception as error:
                _log.exception("following the log failed; trying again")
                self._wake(StoreUnavailableError(str(error)))
                await asyncio.sleep(RETRY)

    async def reach(self, position: int) -> None:
        """Return when the view has reached `position` of the log, or has taken a snapshot.

        Raises:
            StoreUnavailableError: the log cannot be read now, or did not come for `PATIENCE` seconds.
        """
        if self._store.near:  # reading costs nothing, so it is not left to `run`
            while self._view.position < position:
                await self._advance()
        elif self._view.position < position:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((position, future))
            try:
                async with asyncio.timeout(PATIENCE):
                    await future
            except TimeoutError:
                raise StoreUnavailableError(f"the log did not come to {position} in {PATIENCE:g} s") from None

    async def resync(self) -> None:
        """Take a snapshot, tell the listeners what was missed, and keep in `lost` what the store has lost."""
        position = self._view.position
        async with self._resyncing:
            if self._view.position != position:  # another task has just done it
                return
            snapshot = await self._store.snapshot()
            self.resyncs += 1
            self.lost = self._view.ahead_of(snapshot)
            news = self._view.load(snapshot)
            self.loaded = True
            _log.warning(
                "the log did not go on from where this node was: it was cut off, or the store lost data",
                missed_here=len(news),
                lost_there=len(self.lost),
            )
            self._publish(news)
            self._wake(past_all=True)

    async def _advance(self) -> None:
        """Wait for more of the log, and apply it."""
        position = self._view.position
        try:
            entries = await self._store.read(position, wait=True)
        except LogTrimmedError:
            await self.resync()
            return
        if self._view.position == position:  # otherwise another task has read this meanwhile
            self._publish(self._view.apply(entries))
            if self._waiting:
                self._wake()

    def _publish(self, news: Sequence[Transition]) -> None:
        if news:
            for listener in self._listeners:
                try:
                    listener(news)
                except Exception:
                    _log.exception("a listener failed")

    def _wake(self, error: Exception | None = None, *, past_all: bool = False) -> None:
        """Let those commands go on whose position the view has reached.

        Args:
            error: what every waiting command raises instead; None for none.
            past_all: a snapshot was taken: every command goes on, since a position that the store lost never comes.
        """
        waiting, self._waiting = self._waiting, []
        for position, future in waiting:
            if future.done():  # the command has given up
                continue
            if error is not None:
                future.set_exception(error)
            elif past_all or position <= self._view.position:
                future.set_result(None)
            else:
                self._waiting.append((position, future))
