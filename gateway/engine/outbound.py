"""What waits to be sent to one client, bounded in bytes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


ITEM_OVERHEAD = 200
"""Bytes that an item which waits takes besides its text."""


CLOSE_TIMEOUT = 2.0
"""Seconds that a WebSocket's close frame has to leave, before the connection is cut."""


@asynccontextmanager
async def cut_off(transport: asyncio.Transport | None) -> AsyncIterator[None]:
    """Close a WebSocket within a time: what is not done by then, or has not left soon after, is cut off."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            yield
    except TimeoutError:
        if transport is not None:
            transport.abort()
    else:
        if transport is not None and transport.get_write_buffer_size():  # a client that does not read
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, transport.abort)


def text_size(text: str | bytes) -> int:
    """The bytes that a text takes as UTF-8."""
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode())


class OutboundQueue(asyncio.Queue[Any]):
    """A queue whose items' bytes are counted, and which says so, once, when they are too many.

    It never refuses an item and never blocks a sender: what the sender is told is that the client is too slow.

    Args:
        size_of: the bytes that an item will take.
        limit: how many may wait.
        on_overflow: called once, when more do.
    """

    def __init__(self, size_of: Callable[[Any], int], limit: int, on_overflow: Callable[[], None]) -> None:
        super().__init__()
        self.waiting_bytes = 0
        self._size_of = size_of
        self._limit = limit
        self._on_overflow: Callable[[], None] | None = on_overflow

    def _put(self, item: Any) -> None:
        super()._put(item)
        self.waiting_bytes += self._size_of(item)
        if self.waiting_bytes > self._limit and self._on_overflow is not None:
            on_overflow, self._on_overflow = self._on_overflow, None
            on_overflow()

    def _get(self) -> Any:
        item = super()._get()
        self.waiting_bytes -= self._size_of(item)
        return item

    def drop_all(self) -> None:
        """Forget what waits."""
        while not self.empty():
            self.get_nowait()
