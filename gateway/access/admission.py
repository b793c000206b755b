"""When all come at once: handshakes are let in at a rate, wait for their turn a little, and else come back later.

A client that is answered late is not lost: it waits as long as its own time-out, and nothing of it was looked at yet.
So up to `PATIENCE` a handshake over the rate is held. Whoever would wait for longer is refused before anything is
verified, with the time after which there will be room.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import structlog

from gateway.access.buckets import TokenBucket
from gateway.errors import NodeBusyError, ServerDrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.access.limits import Rate
    from gateway.runtime.timers import Scheduler

_log = structlog.get_logger(__name__)

PATIENCE = 3.0
"""Seconds that a handshake is held at the most: by two less than the shortest time-out of the clients we know, which is
python-socketio's, of 5 seconds for a request (socket.io-client has 20)."""

TICK = 0.01
"""Seconds between two looks at who may come in, while somebody waits."""

LONGEST = 30.0
"""Seconds that nobody is asked to stay away for longer than, but for the jitter."""

JITTER = 0.2
"""The part of its time by which each of those who are refused comes back earlier or later."""

DRAIN_SPREAD = 2.0
"""Seconds over which those who are refused while the node drains come back."""


class _Turn(NamedTuple):
    """A handshake that waits."""

    granted: asyncio.Future[None]
    since: float
    is_gone: Callable[[], bool]


class Admission:
    """Lets handshakes in at a rate, with a burst of its count, in the order in which they came.

    Args:
        rate: how many in what time.
        scheduler: the event loop.
        dice: numbers from 0 to 1, for the jitter.
    """

    def __init__(self, rate: Rate, scheduler: Scheduler, dice: Callable[[], float] = random.random) -> None:
        self.waited = 0
        """Handshakes that were held, and then let in."""
        self.waited_seconds = 0.0
        """How long those were held, together."""
        self.refused = 0
        """Handshakes that would have waited for too long."""
        self.left = 0
        """Clients that left while they waited; they cost the others no turn."""
        self._rate = rate
        self._per_second = rate.count / rate.seconds
        self._scheduler = scheduler
        self._dice = dice
        self._bucket: TokenBucket | None = None
        self._waiting: deque[_Turn] = deque()
        self._most = max(1, int(self._per_second * PATIENCE))
        self._promised = 0.0
        """When the last of those who were refused would have its turn, if all came back."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Handshakes that are held now."""
        return len(self._waiting)

    def enter(self, is_gone: Callable[[], bool]) -> asyncio.Future[None] | None:
        """Ask for a turn.

        Args:
            is_gone: whether the client has left, asked when its turn comes.

        Returns:
            None where it may come in at once; otherwise what to await, which raises what this does.

        Raises:
            NodeBusyError: it would wait for too long, or left while it waited.
            ServerDrainingError: nobody is let in any more.
        """
        if self._closed:
            raise self._draining()
        now = self._scheduler.time()
        if not self._waiting and not self._take(now):
            return None
        if len(self._waiting) >= self._most:
            self.refused += 1
            raise self._busy(now)
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append(_Turn(granted, now, is_gone))
        if self._timer is None:
            _log.info("more connections come than CONNECT_RATE; they wait", rate=f"{self._per_second:g}/s")
            self._arm(now + max(TICK, 1 / self._per_second))
        return granted

    def enter_at_once(self) -> bool:
        """Come in where one may at once; where not, it is as if nobody had asked."""
        return not self._closed and not self._waiting and not self._take(self._scheduler.time())

    def enter_now(self) -> None:
        """Ask for a turn that cannot be waited for.

        Raises:
            NodeBusyError: others wait, or the rate is used up.
            ServerDrainingError: nobody is let in any more.
        """
        if self._closed:
            raise self._draining()
        now = self._scheduler.time()
        if self._waiting or self._take(now):
            self.refused += 1
            raise self._busy(now)

    def close(self) -> None:
        """Let nobody in any more, and refuse those who wait."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._refuse(self._waiting.popleft(), self._draining())

    def open(self) -> None:
        """Let in again, after `close`."""
        self._closed = False

    def check_open(self) -> None:
        """Look again, after a turn was waited for.

        Raises:
            ServerDrainingError: nobody is let in any more.
        """
        if self._closed:
            raise self._draining()

    def _take(self, now: float) -> float:
        if self._bucket is None:
            self._bucket = TokenBucket(self._rate, now)
        return self._bucket.take(now)

    def _arm(self, when: float) -> None:
        self._timer = self._scheduler.call_at(when, self._turn)

    def _turn(self) -> None:
        """Let in whoever's turn it is."""
        now = self._scheduler.time()
        wait = 0.0
        while self._waiting and not wait:
            turn = self._waiting[0]
            if turn.granted.done() or turn.is_gone():
                self.left += 1
                self._refuse(self._waiting.popleft(), NodeBusyError("the client has left", 0))
            elif not (wait := self._take(now)):
                self._waiting.popleft()
                self.waited += 1
                self.waited_seconds += now - turn.since
                turn.granted.set_result(None)
        if self._waiting:
            self._arm(now + max(TICK, wait))
        else:
            self._timer = None
            _log.info("nobody waits to connect any more", waited=self.waited, refused=self.refused, left=self.left)

    def _refuse(self, turn: _Turn, error: NodeBusyError | ServerDrainingError) -> None:
        if not turn.granted.done():
            turn.granted.set_exception(error)

    def _busy(self, now: float) -> NodeBusyError:
        """Give whoever is refused a turn of their own, behind those who were refused before, give or take a jitter.

        They are asked to come when half of those who wait now have come in, so that the queue has room for them and
        never runs empty.
        """
        self._promised = min(max(self._promised, now) + 1 / self._per_second, now + LONGEST)
        wait = PATIENCE / 2 + (self._promised - now)
        return NodeBusyError(
            "more connect than this node lets in at a time; connect again", wait * (1 + JITTER * (2 * self._dice() - 1))
        )

    def _draining(self) -> ServerDrainingError:
        retry_after = ServerDrainingError.retry_after + DRAIN_SPREAD * self._dice()
        return ServerDrainingError("this node is shutting down; connect again", retry_after)
