"""The outbox in this process's memory: for one node. What waits here ends with its process."""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from gateway.webhooks.event import Message, message_of
from gateway.webhooks.outbox import OVERFLOW, Bounds, Letter, Outbox, State, Taken, Waiting

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gateway.presence.model import Transition
    from gateway.webhooks.endpoint import Endpoint

CHUNK = 500
"""Events that one step moves at the most."""


class _Queue:
    """One endpoint's."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, Message] = OrderedDict()
        """By place, in order."""
        self.dead: OrderedDict[int, Letter] = OrderedDict()
        self.stopped: str | None = None


class MemoryOutbox(Outbox):
    """An outbox that lives and dies with its process.

    Args:
        bounds: how much is kept.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._committed: deque[Transition | Message] = deque(maxlen=bounds.queue)
        self._let_go = 0
        self._queues: dict[str, _Queue] = {}
        self._place = 0

    def keep(self, event: Transition | Message) -> None:
        """Take what is committed in; the store calls it in the same step."""
        if len(self._committed) == self._bounds.queue:
            self._let_go += 1
        self._committed.append(event)

    async def register(self, names: Collection[str]) -> None:
        """Make endpoints known; see the port."""
        for name in names:
            self._queue(name)

    async def add(self, messages: Sequence[Message]) -> int:
        """Put events into the outbox; see the port."""
        room = max(0, max(1, self._bounds.queue // 2) - len(self._committed))
        self._committed.extend(messages[:room])
        return len(messages[room:])

    async def take(self, endpoints: Sequence[Endpoint], now: int) -> Taken:
        """Move events into queues; see the port."""
        let_go, self._let_go = self._let_go, 0
        moved = min(len(self._committed), CHUNK)
        for _ in range(moved):
            event = self._committed.popleft()
            message = event if isinstance(event, Message) else message_of(event)
            for endpoint in endpoints:
                if message is not None and message.type in endpoint.types:
                    self._queue(endpoint.name).waiting[self._next()] = message
        buried = dropped = 0
        for endpoint in endpoints:
            queue = self._queue(endpoint.name)
            for place in list(islice(queue.waiting, max(0, len(queue.waiting) - self._bounds.queue))):
                letter = Letter(message=queue.waiting[place], reason=OVERFLOW, attempts=0, failed_at=now)
                dropped += await self.bury(endpoint.name, str(place), letter)
                buried += 1
        return Taken(moved, let_go, buried, dropped)

    async def read(self, name: str, after: str, limit: int) -> Sequence[Waiting]:
        """Read a queue; see the port."""
        last, waiting = int(after or 0), self._queue(name).waiting
        behind = list(takewhile(lambda place: place > last, reversed(waiting)))
        return [Waiting(str(place), waiting[place]) for place in islice(reversed(behind), limit)]

    async def done(self, name: str, place: str) -> None:
        """Take an event out; see the port."""
        self._queue(name).waiting.pop(int(place), None)

    async def bury(self, name: str, place: str, letter: Letter) -> int:
        """Make a dead letter; see the port."""
        queue = self._queue(name)
        if queue.waiting.pop(int(place), None) is None:
            return 0
        queue.dead[self._next()] = letter
        if len(queue.dead) <= self._bounds.dead:
            return 0
        queue.dead.popitem(last=False)
        return 1

    async def letters(self, name: str) -> Sequence[Letter]:
        """Read dead letters; see the port."""
        return list(self._queue(name).dead.values()) if name in self._queues else []

    async def replay(self, name: str, ids: Collection[str] | None) -> Sequence[str]:
        """Send dead letters again; see the port."""
        if name not in self._queues:
            return []
        queue = self._queue(name)
        chosen = [place for place, letter in queue.dead.items() if ids is None or letter.message.id in ids]
        replayed = []
        for place in chosen:
            message = queue.dead.pop(place).message
            queue.waiting[self._next()] = message
            replayed.append(message.id)
        return replayed

    async def stop(self, name: str, reason: str) -> None:
        """Send nothing to an endpoint; see the port."""
        self._queue(name).stopped = reason

    async def resume(self, name: str) -> bool:
        """Send to an endpoint again; see the port."""
        if name not in self._queues or self._queues[name].stopped is None:
            return False
        self._queues[name].stopped = None
        return True

    async def forget(self, name: str) -> tuple[int, int] | None:
        """Let go of an endpoint; see the port."""
        queue = self._queues.pop(name, None)
        return None if queue is None else (len(queue.waiting), len(queue.dead))

    async def states(self) -> dict[str, State]:
        """Read what is known of each endpoint; see the port."""
        return {
            name: State(waiting=len(queue.waiting), dead=len(queue.dead), stopped=queue.stopped)
            for name, queue in self._queues.items()
        }

    async def close(self) -> None:
        """Nothing to let go of."""

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())

    def _next(self) -> int:
        self._place += 1
        return self._place
