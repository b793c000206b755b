"""Revoking tokens: on this node at once, and on all others by a register in Redis."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import NotReadyError, StoreUnavailableError, TokenInvalidError, UnavailableError
from gateway.revocation.revocations import MOST, Revocation, Revocations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.nodes.bus import Bus
    from gateway.revocation.revocations import Bearer, Register

_log = structlog.get_logger(__name__)

TOPIC = "revoked"
"""The topic of the bus that tells nodes to look into the register."""

LOOK = 1.0
"""Seconds between looks into the register, in case a message of the bus was lost."""

RETRY = 0.25
"""Seconds between looks until the register has been read for the first time."""

RETRY_REFUSED = 5.0
"""Seconds to wait after Redis has answered with an error."""

FORGET = 30_000
"""Milliseconds between looks for revocations that have expired."""


class Nudge(msgspec.Struct, frozen=True):
    """A message of the bus: look into the register now."""


class Revoker:
    """Revokes tokens, and follows what other nodes revoke.

    Args:
        register: where nodes share revocations; None for a single node, which forgets them when it ends.
        bus: tells other nodes to look into the register.
        clock: the time, in Unix milliseconds.
        most: how many revocations are kept.
    """

    def __init__(self, register: Register | None, bus: Bus, clock: Callable[[], int], *, most: int = MOST) -> None:
        self.known = Revocations()
        """This node's copy."""
        self.on_news: Callable[[Sequence[Revocation]], None] = lambda _news: None
        """Called with revocations that are new to this node, to close the connections that they cover."""
        self._register = register
        self._bus = bus
        self._clock = clock
        self._most = most
        self._loaded = asyncio.Event()
        if register is None:
            self._loaded.set()
        self._waiting: dict[str, Revocation] = {}
        """Revocations of this node that have yet to be put into the register, by name."""
        self._lost: list[Revocation] = []
        """Revocations that the register has lost, and has yet to be given back."""
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._forgot_at = 0
        if register is not None:
            bus.subscribe(TOPIC, Nudge, self._on_nudge)

    def check(self, bearer: Bearer) -> None:
        """Check that a token is not revoked.

        Raises:
            TokenInvalidError: the token is revoked.
            NotReadyError: this node has just started, and has not read the register yet.
        """
        if not self._loaded.is_set():
            raise NotReadyError("this node is starting, and the store has not answered yet; try again in a moment")
        if self.known.cover(bearer):
            raise TokenInvalidError("the token has been revoked; get a new one")

    async def revoke(self, revocation: Revocation) -> None:
        """Refuse tokens from now on: on this node at once, on all others within moments after this returns.

        Raises:
            UnavailableError: as many revocations are kept as may be; this one was not added.
            StoreUnavailableError: this node refuses the tokens, and tells the others when the store is back.
        """
        if revocation.name not in self.known and len(self.known) >= self._most:
            self.known.forget(self._clock())
            if len(self.known) >= self._most:
                raise full(self._most)
        self._apply([revocation])
        if self._register is None:
            return
        name, waiting = revocation.name, self._waiting.get(revocation.name)
        self._waiting[name] = revocation if waiting is None else waiting.joined_with(revocation)
        async with self._turn:
            if name in self._waiting:  # else another has put it
                await self._put(self._register)
        if name not in self.known:
            raise full(self._most)

    async def load(self) -> None:
        """Read the register. Until that has succeeded once, nobody is let in.

        Raises:
            StoreUnavailableError: the store cannot be reached; `run` goes on trying.
        """
        if self._register is not None:
            async with self._turn:
                await self._exchange(self._register)

    async def loaded(self) -> None:
        """Return when the register has been read for the first time."""
        await self._loaded.wait()

    async def run(self) -> None:
        """Follow the register, and remove revocations that have expired, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if self._loaded.is_set() else RETRY):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.load()
            except StoreUnavailableError as error:
                _log.debug("revocations cannot be read; going on with those that are known", error=str(error))
            except Exception:
                _log.exception("revocations cannot be read; trying again")
                await asyncio.sleep(RETRY_REFUSED)
            now = self._clock()
            if now - self._forgot_at >= FORGET:
                self._forgot_at = now
                self.known.forget(now)

    async def close(self) -> None:
        """Put what waits into the register, and close it."""
        if self._register is not None:
            with suppress(Exception):  # the node stops; the callers have been told that not all nodes know
                async with self._turn:
                    await self._put(self._register)
            await self._register.close()

    async def _on_nudge(self, _nudge: Nudge) -> None:
        self._wake.set()

    async def _exchange(self, register: Register) -> None:
        news, continues = await register.follow(self._clock())  # first, so that a failing `put` does not prevent it
        if not continues:
            self._lost = self._beyond(news)
            if self._lost:
                _log.warning(
                    "the store has lost revocations; giving back those that this node knows", lost=len(self._lost)
                )
        self._apply(news)
        self._loaded.set()
        if self._waiting:
            await self._put(register)
        if self._lost:
            await register.put(self._lost, self._clock())  # those that it refuses hold on this node all the same
            self._lost = []
            self._bus.publish(TOPIC, Nudge())

    def _beyond(self, found: Sequence[Revocation]) -> list[Revocation]:
        """The revocations known here that the register, which has just been read as a whole, lacks or has less of.

        There may be none: that a `follow` does not go on from the last one does not mean that anything was lost.
        """
        there = {each.name: each for each in found}
        now = self._clock()
        return [
            each
            for each in self.known
            if each.until > now and ((same := there.get(each.name)) is None or same.joined_with(each) != same)
        ]

    async def _put(self, register: Register) -> None:
        """Put what waits into the register. What it refuses is not kept here either."""
        waiting = list(self._waiting.values())
        full = await register.put(waiting, self._clock())
        for revocation in waiting:
            if self._waiting[revocation.name] == revocation:  # otherwise it has been extended meanwhile
                del self._waiting[revocation.name]
        for revocation in full:
            self.known.remove(revocation)
        if full:
            _log.error("as many revocations are kept as may be; further ones were refused", refused=len(full))
        self._bus.publish(TOPIC, Nudge())

    def _apply(self, revocations: Sequence[Revocation]) -> None:
        news = [each for each in revocations if self.known.add(each)]
        if news:
            self.on_news(news)


def full(most: int = MOST) -> UnavailableError:
    """The error for a caller whose revocation is refused because of `MOST`."""
    return UnavailableError(
        f"{most} revocations are kept, and no more; revoke by userId, which takes one place for all tokens of a user, "
        "and give expiresAt, so that a place is free again when the tokens have expired"
    )
