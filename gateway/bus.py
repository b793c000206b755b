"""What nodes tell each other besides presence: emits, notifications, kicks. Each message reaches every other node once.

This is the port, and its adapter for one process. `redis.bus` is the one for many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message, as it travels."""

    sender: str
    topic: str
    data: msgspec.Raw
    """As JSON, which whoever subscribed to the topic knows the type of."""


class Bus(ABC):
    """The port.

    What one node publishes, each other node hears, in that order, from when it started. A message waits while the
    store is away, and is lost only to a node that falls behind by more than the bus holds, which is told.
    """

    def __init__(self) -> None:
        self.gaps = 0
        """How often messages between this node and others were lost."""
        self._subscribers: dict[str, tuple[msgspec.json.Decoder[Any], Callable[[Any], Awaitable[None]]]] = {}

    def subscribe(self, topic: str, kind: type[_T], handler: Callable[[_T], Awaitable[None]]) -> None:
        """Hear what other nodes publish under a topic.

        Args:
            topic: which; one handler each.
            kind: the type of its data.
            handler: called with one message after the other. The next waits until it is done.
        """
        self._subscribers[topic] = msgspec.json.Decoder(kind), handler

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

    async def hand_on(self, message: Message) -> None:
        """Give a message to whoever subscribed to its topic."""
        if (subscriber := self._subscribers.get(message.topic)) is None:
            _log.debug("nobody hears this topic here", topic=message.topic)
            return
        decoder, handler = subscriber
        try:
            await handler(decoder.decode(message.data))
        except Exception:
            _log.exception("a message could not be handled", topic=message.topic, sender=message.sender)


class LocalBus(Bus):
    """The bus of a node that is alone: there is nobody to tell."""

    def publish(self, topic: str, data: Any) -> None:
        """Tell nobody."""

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
