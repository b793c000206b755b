"""In-process hooks: ``@gateway.on("user-online")``. Each runs beside everything else, in order, and harms nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from gateway.presence.model import Event, Transition

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = structlog.get_logger(__name__)

Hook = Callable[[Transition], Awaitable[object]]

BACKLOG = 10_000
"""Transitions that wait for one hook; past it the oldest are dropped, and the log says so."""


class Hooks:
    """The hooks that an application registered, each with its own queue."""

    def __init__(self) -> None:
        self._hooks: list[tuple[Event, Hook, asyncio.Queue[Transition]]] = []
        self._running = False

    def add(self, event: str, hook: Hook) -> None:
        """Call `hook` with each transition that makes `event`.

        Raises:
            ValueError: there is no such event.
            RuntimeError: the hooks run already.
        """
        if event not in set(Event):
            raise ValueError(f"no event {event!r}; there are {', '.join(Event)}")
        if self._running:
            raise RuntimeError("register hooks before the application starts")
        self._hooks.append((Event(event), hook, asyncio.Queue(BACKLOG)))

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take news of the log in."""
        for event, hook, queue in self._hooks:
            for transition in transitions:
                if transition.event is event:
                    if queue.full():
                        dropped = queue.get_nowait()
                        _log.warning("a hook is too slow; dropped", hook=_name(hook), user=dropped.user_id)
                    queue.put_nowait(transition)

    async def run(self) -> None:
        """Run every hook until cancelled."""
        self._running = True
        async with asyncio.TaskGroup() as tasks:
            for _event, hook, queue in self._hooks:
                tasks.create_task(self._run(hook, queue))

    async def _run(self, hook: Hook, queue: asyncio.Queue[Transition]) -> None:
        while True:
            transition = await queue.get()
            try:
                await hook(transition)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # this task is meant, and not something that the hook awaited
                _log.exception("a hook failed", hook=_name(hook), user=transition.user_id)


def _name(hook: Hook) -> str:
    return getattr(hook, "__qualname__", repr(hook))
