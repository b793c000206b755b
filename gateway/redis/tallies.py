"""What each node counts, added up: known to all of them, as it was up to a second ago."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import StoreUnavailableError
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds between two times that a node tells and hears."""

RETRY_REFUSED = 5.0
"""The same, where Redis is there and refuses."""

_TALLY = Script((files("gateway.redis") / "tally.lua").read_text())
_decode = msgspec.json.Decoder(dict[str, int]).decode


class Tallies:
    """Tells others what this node counts, and hears what they do.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        node: this node's name.
        keep: seconds that a node's counts hold which is not heard of any more; three times `INTERVAL` at the least.
        clock: the time, in Unix milliseconds.
        mine: what this node counts, by name.
        on_others: called with what all others count, each time that it was heard.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        node: str,
        *,
        keep: float,
        clock: Callable[[], int],
        mine: Callable[[], Mapping[str, int]],
        on_others: Callable[[dict[str, int]], None],
    ) -> None:
        self._commands = Commands(client)
        base = base_of(prefix)
        self._keys = [f"{base}tally", f"{base}tally:until"]
        self._node = node
        self._keep = round(max(keep, 3 * INTERVAL) * 1000)
        self._clock = clock
        self._mine = mine
        self._on_others = on_others
        self._told = b""

    async def exchange(self) -> None:
        """Tell and hear now.

        Raises:
            StoreUnavailableError: what others count stays as it was.
        """
        counts = msgspec.json.encode(dict(self._mine()))
        said = counts if counts != self._told else b""
        self._told = b""  # until it is known
        known, *others = await self._run(self._keep, said)
        if not known:
            known, *others = await self._run(self._keep, counts)
        self._told = counts
        total: Counter[str] = Counter()
        for each in others:
            total.update(_decode(each))
        self._on_others(dict(total))

    async def run(self) -> None:
        """Tell and hear, until cancelled."""
        while True:
            try:
                await self.exchange()
            except StoreUnavailableError as error:
                _log.debug("what other nodes count is not to be had", error=str(error))
            except Exception:
                _log.exception("what other nodes count cannot be read; trying again")
                await asyncio.sleep(RETRY_REFUSED)
            await asyncio.sleep(INTERVAL)

    async def close(self) -> None:
        """Count no more."""
        with suppress(Exception):  # the node goes; what it counted runs out
            await self._run(0, b"")
        await self._commands.close()

    async def _run(self, keep: int, counts: bytes) -> list[bytes]:
        arguments = [self._node, self._clock(), keep, counts]
        answer: list[bytes] = await self._commands.answer(self._commands.start(_TALLY, list(self._keys), arguments))
        return answer
