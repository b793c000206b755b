"""The log of channels: what is said is appended once, in one order, and told by every node.

This is the port; its adapters are `log_memory` and `log_redis`, and ``tests/test_channel_log.py`` is for both.

**The contract**

- `say` appends all of its drafts in one step, or none. Every node, the one that says it included, hears each event
  once, in one order for all, and the history of a channel has that order.
- What is kept of a channel is bounded by number and by time, which its position tells. `history` knows whether
  something between the position that it is asked for and what it still has is gone. Of what is older than anything
  that is kept it knows nothing: the answer is then that something may be gone.
- A name given as `once` makes what is said under it again the same as the first time, for as long as that is kept:
  nothing is said, and the caller gets what was said then.
- Each method raises `StoreUnavailableError` where the store cannot be reached. Whether a draft was said is then not
  known; under `once`, it can be given again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.channels.model import Draft, History, Said

_log = structlog.get_logger(__name__)

TOPIC = "channel"
"""Under which the bus has what is said."""

TIME_BITS = 20
"""Of a position, those behind the milliseconds of its time: as the ids of Redis's streams have it."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of each channel."""

    events: int = 100
    """How many; 0 keeps none."""
    ttl: int = 86_400_000
    """Milliseconds that one is kept, and that a name given as `once` is known."""


class ChannelLog(ABC):
    """The port; see the module for the contract."""

    def __init__(self) -> None:
        self.hear: Callable[[Said, bool], None] = lambda _said, _own: None
        """Called on every node with each event, in the one order. The second argument is for `Recovery.record`: True
        where the event is that of the bus's message which this node published last; False for the one that is being
        handled."""

    @abstractmethod
    async def say(self, drafts: Sequence[Draft], now: int, *, once: str | None = None) -> Sequence[Said]:
        """Say something in one channel, or the same thing in several.

        Args:
            drafts: in the order in which they are said.
            now: Unix milliseconds.
            once: a name, unique in the gateway, under which this is said only once; None for what may be repeated.

        Raises:
            InvalidPayloadError: one is too large to travel.
            StoreUnavailableError: the store is away.
        """

    @abstractmethod
    async def history(self, tenant: str, channel: str, now: int, *, after: int | None, limit: int) -> History:
        """Read what was said in a channel.

        Args:
            tenant: whose channel.
            channel: which.
            now: Unix milliseconds.
            after: the position of the last event that the caller has; None for one that wants the last ones. 0 is
                before all that is young enough to be kept.
            limit: how many at the most; where there are more after a position, the first of them are left out, and
                `History.recovered` is False.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds."""

    def _tell(self, said: Said, *, own: bool) -> None:
        """Call `hear`, which costs nobody else what is said next, whatever becomes of it."""
        try:
            self.hear(said, own)
        except Exception:
            _log.exception("what was said in a channel could not be told", channel=said.channel)


def first_kept(now: int, kept: Kept) -> int:
    """The position behind which events are young enough to be kept."""
    return max(0, now - kept.ttl) << TIME_BITS
