"""Moves committed events into the endpoints' queues, and runs a courier for each: the work of one node at a time."""

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
"""Seconds between looks into the outbox and the queues when nothing announces events."""

GATHER = 0.02
"""Seconds that events gather before they are moved, so that many are moved in one step."""

RETRY = 0.5
"""Seconds until the outbox is tried again after it could not be reached."""

STEPS = 20
"""Times in a row that the outbox is taken from before the couriers get to look: they must send even if it never gets
empty."""


class Webhooks:
    """Sends webhooks while it is this node's duty, and answers operators' questions about queues and dead letters.

    Args:
        outbox: where events wait.
        endpoints: where they are sent.
        policy: how they are sent.
        clock: the time, in Unix milliseconds.
        duty: decides which node sends.
    """

    def __init__(
        self, outbox: Outbox, endpoints: Sequence[Endpoint], policy: Policy, clock: Callable[[], int], duty: Duty
    ) -> None:
        self.counts = {endpoint.name: Counts() for endpoint in endpoints}
        """What this node has sent, by endpoint."""
        self.let_go = 0
        """Events that the full outbox dropped before a sender took them, as far as this node has found."""
        self.unreadable = 0
        """Queued events that this node could not read."""
        self.couriers: Sequence[Courier] = ()
        """The couriers at work; empty while another node sends."""
        self.trace: Callable[[str, Poster], Poster] | None = None
        """Given an endpoint's name and its poster, returns a poster that traces each attempt. None without tracing."""
        self._news = asyncio.Event()
        self.notes = Notes(
            outbox,
            {kind for endpoint in endpoints for kind in endpoint.types},
            clock,
            RunningLoop(),
            is_sender=lambda: bool(self.couriers),
            wake=self._news.set,
        )
        """Makes the events that no store commits."""
        self._outbox = outbox
        self._endpoints = endpoints
        self._policy = policy
        self._clock = clock
        self._duty = duty

    def publish(self, transitions: Sequence[Transition]) -> None:  # noqa: ARG002 - the outbox has them
        """Take note that there is something new in the outbox. A listener of the follower."""
        self._news.set()

    async def run(self) -> None:
        """Send while it is this node's duty, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._duty.run(self.work))
            tasks.create_task(self.notes.run())

    async def work(self) -> None:
        """Send until cancelled. If two nodes ever did at once, endpoints would get events twice, with the same id."""
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
        """Move events from the outbox into the queues, and let the couriers look there, until cancelled."""
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
        """Move some events; return whether there may be more."""
        taken = await self._outbox.take(self._endpoints, self._clock())
        if taken.let_go:
            self.let_go += taken.let_go
            _log.error(
                "webhooks were dropped, because no node took them from the outbox and it was full", count=taken.let_go
            )
        if taken.unreadable:
            self.unreadable += taken.unreadable
            _log.error(
                "webhooks in a queue cannot be read by this version of the gateway; they are dead letters now, which"
                " only a version that can read them lists",
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
        """The state of each endpoint, by name, also of those that are configured no more."""
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
        """Let an endpoint that was stopped be sent to again; return whether it was.

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
        """Delete an endpoint that is configured no more; see `forget`."""
        return await forget(self._outbox, name, self.configured)

    async def close(self) -> None:
        """Write the notes that still wait, and close the outbox. Call it when `run` has ended."""
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
        ids: the ids of their events; None for all.
        name: the endpoint; None for all.

    Returns:
        The endpoint's name and the event's id, for each that is sent again.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    return [(each, found) for each in await _names(outbox, name) for found in await outbox.replay(each, ids)]


async def forget(outbox: Outbox, name: str, configured: Collection[str]) -> tuple[int, int]:
    """Delete an endpoint that is configured no more, with its queue and dead letters.

    Args:
        outbox: where they are.
        name: the endpoint.
        configured: the names of the endpoints that are configured.

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
