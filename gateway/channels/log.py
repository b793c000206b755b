"""The log of channels: what is said is appended once, in one order, and told by every node.

This is the port; its adapters are `log_memory` and `log_redis`, and ``tests/test_channel_log.py`` is for both.

**The contract**

- `say` appends all of its drafts in one step, or none. Every node, the one that says it included, hears each event
  once, in one order for all, and the history of a channel has that order.
- What is kept of a channel is bounded by number and by time, which its position tells. `history` knows whether
  something between the position that it is asked for and what it still has is gone. Of what is older than anything
  that is kept it knows nothing: the answer is then that something may be gone.
- A name given as `once` makes what is said under it again the same as the first time, for as long as `Kept.again`:
  nothing is said, and the caller gets what was said then. One copy of it is kept, however many channels it is for.
- What counts for a `budget` is refused, whole, where that is used up. It fills again by as much as it holds in the
  time that a history is kept; so of what counts for it there is at no time more than twice as much.
- Each method raises `StoreUnavailableError` where the store cannot be reached. Whether a draft was said is then not
  known; under `once`, it can be given again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gateway.channels.model import Draft, History, Said

_log = structlog.get_logger(__name__)

TOPIC = "channel"
"""Under which the bus has what is said."""

TIME_BITS = 20
"""Of a position, those behind the milliseconds of its time: as the ids of Redis's streams have it."""

OVERHEAD = 400
"""Bytes that an event, a name and a mark of being read each take besides the text."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of each channel."""

    events: int = 100
    """How many; 0 keeps none."""
    ttl: int = 86_400_000
    """Milliseconds that one is kept."""
    again: int = 3_600_000
    """Milliseconds that a name given as `once` is known."""
    budget: int = 16_777_216
    """Bytes, about, that one sender's events may take at once."""

    def cost(self, sizes: Collection[int], *, named: bool) -> int:
        """Bytes of what is kept of one sender's event, about.

        Args:
            sizes: of the event's text, for each channel whose history has it.
            named: whether it is kept under a name, too.
        """
        kept = [*sizes] if self.events else []
        if named:
            kept.append(max(sizes, default=0))
        # One that says more than fits at all waits for all there is: it is kept for its time as well.
        return min(self.budget, sum(kept) + OVERHEAD * (1 + len(kept)))


class ChannelLog(ABC):
    """The port; see the module for the contract."""

    def __init__(self) -> None:
        self.hear: Callable[[Said, bool], None] = lambda _said, _own: None
        """Called on every node with each event, in the one order. The second argument is for `Recovery.record`: True
        where the event is that of the bus's message which this node published last; False for the one that is being
        handled."""

    @abstractmethod
    async def say(
        self, drafts: Sequence[Draft], now: int, *, once: str | None = None, budget: str | None = None
    ) -> Sequence[Said]:
        """Say something in one channel, or the same thing in several.

        Args:
            drafts: in the order in which they are said.
            now: Unix milliseconds.
            once: a name, unique in the gateway, under which this is said only once; None for what may be repeated. Its
                drafts are the same but for the channel.
            budget: a name, unique in the gateway, of whom it counts for; None for what counts for nobody.

        Raises:
            InvalidPayloadError: one is too large to travel.
            RateLimitedError: the budget is used up; nothing was said.
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


def used_up(kept: Kept, wait: float) -> RateLimitedError:
    """What is raised where a budget is used up, for so many seconds."""
    return RateLimitedError(
        f"{kept.budget} bytes of this user's messages are kept already (MESSAGE_BUDGET); older ones have to go first",
        wait,
    )


def first_kept(now: int, kept: Kept) -> int:
    """The position behind which events are young enough to be kept."""
    return max(0, now - kept.ttl) << TIME_BITS
