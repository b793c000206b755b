"""The log of channels: what is said in them, appended once, in one order, and heard by every node.

This is the port. Its adapters are `log_memory` (one process) and `log_redis` (many processes);
``tests/test_channel_log.py`` holds both to this contract:

- `say` appends all of its drafts in one step, or none. Every node, including the one that says it, hears each event
  once. The order is the same for all nodes and in the histories.
- The history of a channel is bounded in number and in time. `history` tells whether an event behind the position that
  it is asked for has been deleted; if the position is older than everything that is kept, it says that one may have
  been.
- If something is said again under the same `once` within `Kept.again`, nothing is said, and the caller gets what was
  said the first time. One copy of it is kept, however many channels it was said in.
- A `budget` bounds how much of one sender's events is kept. What exceeds it is refused as a whole. It is refilled
  evenly, in the time that a history is kept; so no more than twice the budget is kept at any time.
- Each method raises `StoreUnavailableError` if the store cannot be reached. It is then not known whether something was
  said; with `once`, it can be repeated.
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
    from gateway.runtime.traces import Tracer

_log = structlog.get_logger(__name__)

TOPIC = "channel"
"""The topic of the bus for what is said."""

TIME_BITS = 20
"""The lower bits of a position, below its time in Unix milliseconds; ids of Redis's streams are mapped to the same."""

OVERHEAD = 400
"""Bytes that an event, a name given as `once` and a receipt each take besides the text."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of each channel."""

    events: int = 100
    """How many; 0 keeps none."""
    ttl: int = 86_400_000
    """Milliseconds that one is kept."""
    again: int = 3_600_000
    """Milliseconds that a name given as `once` is remembered."""
    budget: int = 16_777_216
    """Bytes, about, that one sender's events may take at the same time."""

    def cost(self, sizes: Collection[int], *, named: bool) -> int:
        """Bytes, about, that keeping one event takes from its sender's budget.

        Args:
            sizes: the size of the event's text, once for each channel whose history keeps it.
            named: whether it is kept under a name given as `once`, too.
        """
        kept = [*sizes] if self.events else []
        if named:
            kept.append(max(sizes, default=0))
        # Never more than the whole budget: a larger event has to wait for a full one, but can be said.
        return min(self.budget, sum(kept) + OVERHEAD * (1 + len(kept)))


class ChannelLog(ABC):
    """The port; see the module for the contract."""

    def __init__(self) -> None:
        self.trace: Tracer | None = None
        """What trace something is part of that is said; None traces nothing."""
        self.hear: Callable[[Said, bool], object] = lambda _said, _own: None
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
            once: a name, unique in the cluster, under which this is said only once; None if it may be repeated. With a
                name, the drafts may differ in the channel only.
            budget: a name, unique in the cluster, of the budget that this counts against; None for none.

        Raises:
            InvalidPayloadError: a draft is too large for the bus.
            RateLimitedError: the budget is used up; nothing was said.
            StoreUnavailableError: the store cannot be reached.
        """

    @abstractmethod
    async def history(self, tenant: str, channel: str, now: int, *, after: int | None, limit: int) -> History:
        """Read what was said in a channel.

        Args:
            tenant: whose channel.
            channel: which.
            now: Unix milliseconds.
            after: the position of the last event that the caller has; None for the last events, and 0 for all that are
                kept.
            limit: how many at the most. If there are more, the oldest of them are left out, and `History.recovered` is
                False.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release the adapter's resources."""

    def _tell(self, said: Said, *, own: bool) -> None:
        """Call `hear`. If it fails, that is logged, and the next events are heard all the same."""
        try:
            self.hear(said, own)
        except Exception:
            _log.exception("an event of a channel could not be sent to this node's clients", channel=said.channel)


def used_up(kept: Kept, wait: float) -> RateLimitedError:
    """The error for a sender whose budget is used up; `wait` is the seconds until it suffices."""
    return RateLimitedError(
        f"{kept.budget} bytes of this user's messages are kept already (MESSAGE_BUDGET); older ones have to go first",
        wait,
    )


def first_kept(now: int, kept: Kept) -> int:
    """The position behind which events are recent enough to be kept."""
    return max(0, now - kept.ttl) << TIME_BITS
