"""What nodes tell each other besides presence: emits, notifications, kicks. Each message reaches every other node once.

This is the port, and its adapter for one process. `redis.bus` is the one for many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

from gateway.runtime.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from gateway.runtime.traces import Tracer

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message, as it travels."""

    sender: str
    topic: str
    data: msgspec.Raw
    """As JSON, which whoever subscribed to the topic knows the type of."""
    number: int = 0
    """Counts what the sender has published; 0 in one of a version that did not count."""
    trace: Trace | None = None
    """What it is part of; None for nothing."""


def written(sender: str, topic: str, data: bytes, number: int = 0, trace: Trace | None = None) -> bytes:
    """A message as JSON. Versions that know of no traces write four fields, and read those of five."""
    if trace is None:
        return msgspec.json.encode((sender, topic, msgspec.Raw(data), number))
    return msgspec.json.encode((sender, topic, msgspec.Raw(data), number, trace))


class Bus(ABC):
    """The port.

    What one node publishes, each other node hears, in that order, from when it started. A message waits while the
    store is away, and is lost only to a node that falls behind by more than the bus holds, which is told.
    """

    def __init__(self) -> None:
        self.gaps = 0
        """How often messages between this node and others were lost."""
        self.began = 0
        """From which position on this node has heard all that others published; later than before after a gap."""
        self.told = 0
        """Up to which position messages of other nodes have been handled here."""
        self.last = 0
        """How many messages this node has published: the number of the last one."""
        self.current: tuple[int, Message] | None = None
        """The position and the message that is being handled."""
        self.returned: Callable[[int, int], None] | None = None
        """Called with the number of a message of this node and its position, as soon as that is known."""
        self.trace: Tracer | None = None
        """What trace something is part of that is published; None traces nothing."""
        self.within: Callable[[Trace, str, int], AbstractContextManager[None]] | None = None
        """Called with the trace, the topic and the position of a message, returns within what it is handled; None where
        nothing traces that."""
        self._subscribers: dict[str, tuple[msgspec.json.Decoder[Any], Callable[[Any], Awaitable[None]]]] = {}

    def subscribe(self, topic: str, kind: type[_T], handler: Callable[[_T], Awaitable[None]]) -> None:
        """Hear what other nodes publish under a topic.

        Args:
            topic: which; one handler each.
            kind: the type of its data.
            handler: called with one message after the other. The next waits until it is done.
        """
        self._subscribers[topic] = msgspec.json.Decoder(kind), handler

    @property
    def waiting(self) -> int:
        """How many messages have not left this node yet."""
        return 0

    @abstractmethod
    def publish(self, topic: str, data: Any) -> None:
        """Tell every other node.

        Args:
            topic: under which they hear it.
            data: anything that JSON can hold.

        Raises:
            InvalidPayloadError: it is too large to travel.
        """

    @abstractmethod
    async def read_back(self, after: int) -> Sequence[tuple[int, Message]] | None:
        """Read what any node published after a position, with the position of each; None where not all is there.

        Raises:
            StoreUnavailableError: this cannot be told now.
        """

    @abstractmethod
    async def claim(self, name: str) -> bool:
        """Of all nodes that claim a name, be the one that does what all have heard of.

        Raises:
            StoreUnavailableError: this cannot be told now.
        """

    @abstractmethod
    async def start(self) -> None:
        """Take note of what others publish from now on; `run` hands it on.

        Raises:
            StoreUnavailableError: the store is away; `run` starts when it is back.
        """

    @abstractmethod
    async def started(self) -> None:
        """Return when this node misses nothing more."""

    @abstractmethod
    async def run(self) -> None:
        """Send and hear, until cancelled."""

    @abstractmethod
    async def flush(self, within: float) -> None:
        """Return when what was published until now has left this node, or after so many seconds."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever the adapter holds; `run` has ended."""

    async def hand_on(self, message: Message, position: int = 0) -> None:
        """Give a message to whoever subscribed to its topic."""
        if (subscriber := self._subscribers.get(message.topic)) is None:
            _log.debug("nobody hears this topic here", topic=message.topic)
            return
        decoder, handler = subscriber
        self.current = position, message
        try:
            if message.trace is None or self.within is None:
                await handler(decoder.decode(message.data))
            else:
                with self.within(message.trace, message.topic, position):
                    await handler(decoder.decode(message.data))
        except Exception:
            _log.exception("a message could not be handled", topic=message.topic, sender=message.sender)
        finally:
            self.current = None


class LocalBus(Bus):
    """The bus of a node that is alone: there is nobody to tell."""

    def publish(self, topic: str, data: Any) -> None:  # noqa: ARG002 - the port's
        """Tell nobody; it counts all the same."""
        self.last += 1
        self.told = self.last

    async def read_back(self, after: int) -> Sequence[tuple[int, Message]] | None:  # noqa: ARG002 - the port's
        """Nothing is kept."""
        return None

    async def claim(self, name: str) -> bool:  # noqa: ARG002 - the port's
        """Be the one."""
        return True

    async def start(self) -> None:
        """Nothing to hear."""

    async def started(self) -> None:
        """Nothing to wait for."""

    async def run(self) -> None:
        """Nothing to do."""

    async def flush(self, within: float) -> None:
        """Nothing to wait for."""

    async def close(self) -> None:
        """Nothing to let go of."""
