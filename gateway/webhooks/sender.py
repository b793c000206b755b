"""Takes what was committed to all endpoints: the work of one node at a time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import structlog

from gateway.errors import InvalidPayloadError, NotFoundError, StoreUnavailableError
from gateway.runtime.timers import RunningLoop
from gateway.webhooks.courier import Counts, Courier, Policy
from gateway.webhooks.notes import Notes
from gateway.webhooks.post import HTTPPoster

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gateway.nodes.duty import Duty
    from gateway.presence.model import Transition
    from gateway.webhooks.endpoint import Endpoint
    from gateway.webhooks.outbox import Letter, Outbox, State
    from gateway.webhooks.post import Poster

_log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between looks at the outbox and the queues, where nothing says that there is something."""

GATHER = 0.02
"""Seconds in which events gather before they are moved: where many come, many are moved at once."""

RETRY = 0.5
"""Seconds until the outbox is asked again that could not be reached."""

STEPS = 20
"""Times that the outbox is taken from before the couriers look: where more is always there, they are to send, too."""


class Webhooks:
    """Sends webhooks while it is this node's duty, and answers for what waits and what failed.

    Args:
        outbox: what was committed.
        endpoints: where it is sent.
        policy: how.
        clock: the time, in Unix milliseconds.
        duty: whose turn it is.
    """

    def __init__(
        self, outbox: Outbox, endpoints: Sequence[Endpoint], policy: Policy, clock: Callable[[], int], duty: Duty
    ) -> None:
        self.counts = {endpoint.name: Counts() for endpoint in endpoints}
        """What this node has sent, by endpoint."""
        self.let_go = 0
        """Events that the outbox let go of before any sender came, as this node found."""
        self.unreadable = 0
        """Queued events that this node could not read."""
        self.couriers: Sequence[Courier] = ()
        """Those at work; none where another node sends."""
        self.trace: Callable[[str, Poster], Poster] | None = None
        """Called with an endpoint and what sends to it, returns what traces that; None where nothing does."""
        self._news = asyncio.Event()
        self.notes = Notes(
            outbox,
            {kind for endpoint in endpoints for kind in endpoint.types},
            clock,
            RunningLoop(),
            is_sender=lambda: bool(self.couriers),
            wake=self._news.set,
        )
        """What takes in what no store commits."""
        self._outbox = outbox
        self._endpoints = endpoints
        self._policy = policy
        self._clock = clock
        self._duty = duty

    def publish(self, transitions: Sequence[Transition]) -> None:  # noqa: ARG002 - the outbox has them
        """Hear from the log that there is something in the outbox."""
        self._news.set()

    async def run(self) -> None:
        """Send whenever it is this node's turn, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._duty.run(self.work))
            tasks.create_task(self.notes.run())

    async def work(self) -> None:
        """Send until cancelled. One node does so at a time; should two, events come twice, with the same id."""
        async with AsyncExitStack() as closing:
            couriers = []
            for endpoint in self._endpoints:
                poster = HTTPPoster(endpoint, timeout=self._policy.timeout, connections=self._policy.concurrency)
                closing.push_async_callback(poster.close)
                counts = self.counts[endpoint.name]
                post = poster if self.trace is None else self.trace(endpoint.name, poster)
                couriers.append(
                    Courier(endpoint.name, self._outbox, post, self._policy, self._clock, counts, RunningLoop())
                )
            self.couriers = couriers
            closing.callback(self._forget_couriers)
            async with asyncio.TaskGroup() as tasks:
                for courier in couriers:
                    tasks.create_task(courier.run())
                await self._feed(couriers)

    def _forget_couriers(self) -> None:
        self.couriers = ()

    async def _feed(self, couriers: Sequence[Courier]) -> None:
        """Move what is committed into the queues, and have the couriers look there, whenever there is something."""
        registered = away = False
        while True:
            self._news.clear()
            try:
                if not registered:
                    await self._outbox.register([endpoint.name for endpoint in self._endpoints])
                    registered = True
                for _ in range(STEPS):
                    if not await self._take():
                        break
                else:
                    self._news.set()
                states = await self._outbox.states()
                for courier in couriers:
                    state = states.get(courier.name)
                    if state is None:  # the store has lost it
                        registered = False
                    else:
                        await courier.look(state.waiting, state.stopped, state.dead)
                away = False
            except StoreUnavailableError as error:
                if not away:
                    _log.warning("webhooks wait for the store", error=str(error))
                away = True
                await asyncio.sleep(RETRY)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._news.wait()
                    await asyncio.sleep(GATHER)

    async def _take(self) -> bool:
        """Move what there is; say whether there may be more."""
        taken = await self._outbox.take(self._endpoints, self._clock())
        if taken.let_go:
            self.let_go += taken.let_go
            _log.error(
                "webhooks were let go of: no node took them from the outbox, and it was full", count=taken.let_go
            )
        if taken.unreadable:
            self.unreadable += taken.unreadable
            _log.error(
                "webhooks in a queue cannot be read by this version; they are dead letters that only another one lists",
                count=taken.unreadable,
            )
        if taken.buried:
            _log.warning(
                "the queue of a webhook endpoint was full: its oldest are dead letters now",
                count=taken.buried,
                dropped=taken.dropped,
            )
        return taken.moved > 0

    # What operators ask for

    async def states(self) -> dict[str, State]:
        """What is known of each endpoint, by name, of those too that are configured no more."""
        await self._outbox.register([endpoint.name for endpoint in self._endpoints])
        return await self._outbox.states()

    async def letters(self, name: str | None = None) -> list[tuple[str, Letter]]:
        """The dead letters of one endpoint or of all, oldest first, each with its endpoint.

        Raises:
            NotFoundError: there is no such endpoint.
        """
        return await letters(self._outbox, name)

    async def replay(self, ids: Collection[str] | None, name: str | None = None) -> list[tuple[str, str]]:
        """Send dead letters again; see `replay`."""
        replayed = await replay(self._outbox, ids, name)
        self._news.set()
        return replayed

    async def resume(self, name: str) -> bool:
        """Send to an endpoint again that was stopped; say whether it was.

        Raises:
            NotFoundError: there is no such endpoint.
        """
        await _names(self._outbox, name)
        resumed = await self._outbox.resume(name)
        self._news.set()
        return resumed

    @property
    def configured(self) -> Collection[str]:
        """The names of the endpoints that this node sends to."""
        return self.counts.keys()

    async def forget(self, name: str) -> tuple[int, int]:
        """Let go of an endpoint that is configured no more; see `forget`."""
        return await forget(self._outbox, name, self.configured)

    async def close(self) -> None:
        """Write what waits for the outbox, and let go of it; `run` has ended."""
        with suppress(StoreUnavailableError):
            await self.notes.write()
        await self._outbox.close()


async def letters(outbox: Outbox, name: str | None) -> list[tuple[str, Letter]]:
    """The dead letters of one endpoint or of all; see `Webhooks.letters`."""
    return [(each, letter) for each in await _names(outbox, name) for letter in await outbox.letters(each)]


async def replay(outbox: Outbox, ids: Collection[str] | None, name: str | None) -> list[tuple[str, str]]:
    """Send dead letters again.

    Args:
        outbox: where they are.
        ids: of which events; None for all.
        name: of which endpoint; None for all.

    Returns:
        Endpoint and id of each that is.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    return [(each, found) for each in await _names(outbox, name) for found in await outbox.replay(each, ids)]


async def forget(outbox: Outbox, name: str, configured: Collection[str]) -> tuple[int, int]:
    """Let go of an endpoint that is configured no more, with all that is kept for it.

    Args:
        outbox: where that is.
        name: the endpoint.
        configured: the endpoints that are.

    Returns:
        How many events waited for it, and how many dead letters it had.

    Raises:
        InvalidPayloadError: it is configured.
        NotFoundError: there is no such endpoint.
    """
    if name in configured:
        raise InvalidPayloadError(
            f"webhook endpoint {name!r} is configured: take it out of the settings of every node, which then start"
            " again, before it is forgotten"
        )
    kept = await outbox.forget(name)
    if kept is None:
        raise _no_such(name, await outbox.states())
    return kept


async def _names(outbox: Outbox, name: str | None) -> list[str]:
    known = await outbox.states()
    if name is None:
        return list(known)
    if name not in known:
        raise _no_such(name, known)
    return [name]


def _no_such(name: str, known: Collection[str]) -> NotFoundError:
    return NotFoundError(f"there is no webhook endpoint {name!r}; there are {', '.join(known) or 'none'}")
