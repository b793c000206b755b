"""In-process hooks: ``@gateway.on("user-online")``. Each runs beside everything else, in order, and harms nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from gateway.channels.changes import EVENTS as CHANNEL_EVENTS
from gateway.channels.changes import ChannelChange, change_of
from gateway.presence.model import Event, Transition
from gateway.runtime.functions import is_async

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = structlog.get_logger(__name__)

Change = Transition | ChannelChange
"""What a hook is called with."""

Hook = Callable[[Any], Awaitable[object]]

BACKLOG = 10_000
"""Transitions that wait for one hook; past it the oldest are dropped, and the log says so."""

TIMEOUT = 30.0
"""Seconds that a hook may take for one transition, where its registration does not say."""

GRACE = 1.0
"""Seconds that a hook has to end which is cancelled. One that does not is left to itself."""

OUTCOMES = ("done", "failed", "timed_out", "dropped", "missed")
"""What becomes of a transition that a hook is to be called with: the last two are those that it is not called with,
because it is too slow, or because they are no longer on the log."""


class Registration(NamedTuple):
    """One hook, and how it is called."""

    event: str
    hook: Hook
    timeout: float | None
    """Seconds for one transition; None for as long as it takes."""
    name: str
    """What the log calls it, and where it is called once in the cluster, what its position is kept under."""


class Hooks:
    """The hooks that an application registered. Those called on every node have a queue each."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        """How often each was so."""
        self.once: list[Registration] = []
        """Those that are called once in the cluster, which `OnceHooks` does."""
        self._hooks: list[tuple[Registration, asyncio.Queue[Change]]] = []
        self._left: set[asyncio.Task[None]] = set()
        self._running = False

    def add(
        self,
        event: str,
        hook: Hook,
        *,
        once: bool = False,
        timeout: float | None = TIMEOUT,
        name: str | None = None,
    ) -> None:
        """Call `hook` with each transition that makes `event`; with each `ChannelChange` that is one of a channel's.

        Args:
            event: which.
            hook: an async function.
            once: by one node of the cluster; otherwise by each.
            timeout: seconds for one transition; None for as long as it takes.
            name: what it is known by, the same on each node; None for its module's and its own.

        Raises:
            ValueError: there is no such event, the time is none, or with `once` the name is missing or taken, or the
                event is a channel's.
            TypeError: the hook is no async function.
            RuntimeError: the hooks run already.
        """
        if event not in (*Event, *CHANNEL_EVENTS):
            raise ValueError(f"no event {event!r}; there are {', '.join((*Event, *CHANNEL_EVENTS))}")
        if once and event in CHANNEL_EVENTS:
            raise ValueError(f"once is for {', '.join(Event)}: what happens to channels is told once by webhooks")
        if self._running:
            raise RuntimeError("register hooks before the application starts")
        if not is_async(hook):
            raise TypeError(
                f"{_name(hook)} is no async function: write `async def`, and await asyncio.to_thread(…) for what blocks"
            )
        if timeout is not None and timeout <= 0:
            raise ValueError("timeout takes seconds, or None for as long as a hook takes")
        if not once:
            self._hooks.append((Registration(event, hook, timeout, name or _name(hook)), asyncio.Queue(BACKLOG)))
            return
        if name is None:
            module, own = getattr(hook, "__module__", None), getattr(hook, "__qualname__", None)
            if module is None or own is None:
                raise ValueError("name what is called once in the cluster: name=…, the same on each node")
            name = f"{event}:{module}.{own}"
        if any(each.name == name for each in self.once):
            raise ValueError(f"two hooks of the name {name!r}, by which their place is kept: give one another name=…")
        self.once.append(Registration(Event(event), hook, timeout, name))

    @property
    def waiting(self) -> int:
        """How many changes wait for hooks that are called on every node."""
        return sum(queue.qsize() for _registration, queue in self._hooks)

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take news of the log in."""
        if self._hooks:
            self._put(transitions)

    def publish_channels(self, transitions: Sequence[Transition]) -> None:
        """Take news of the log of channels in."""
        if self._hooks:
            self._put([change for each in transitions if (change := change_of(each)) is not None])

    def _put(self, changes: Sequence[Change]) -> None:
        for registration, queue in self._hooks:
            for change in changes:
                if change.event == registration.event:
                    if queue.full():
                        dropped = queue.get_nowait()
                        self.outcomes["dropped"] += 1
                        _log.warning("a hook is too slow; dropped", hook=registration.name, user=dropped.user_id)
                    queue.put_nowait(change)

    async def run(self) -> None:
        """Run every hook until cancelled."""
        self._running = True
        async with asyncio.TaskGroup() as tasks:
            for registration, queue in self._hooks:
                tasks.create_task(self._run(registration, queue))

    async def call(self, registration: Registration, transition: Change) -> None:
        """Call a hook, and return when it is done with the transition, in whatever way.

        One that takes too long is cancelled, and one that does not heed that is left to itself. Where this is
        cancelled, so is the hook.
        """
        task = asyncio.create_task(_call(registration.hook, transition))
        told = {"hook": registration.name, "user": transition.user_id}
        try:
            await asyncio.wait([task], timeout=registration.timeout)
        finally:
            if in_time := task.done():
                outcome = "failed" if task.cancelled() or task.exception() is not None else "done"
                self.outcomes[outcome] += 1
            else:
                self._left.add(task)
                task.add_done_callback(self._end)
                task.cancel()
        if not in_time:
            self.outcomes["timed_out"] += 1
            _log.error("a hook took too long; cancelled", **told, timeout=registration.timeout)
            await asyncio.wait([task], timeout=GRACE)
            if not task.done():
                _log.error("a hook goes on though it was cancelled; it is left to itself", **told)
        elif task.cancelled():
            _log.error("a hook was cancelled by what it awaited", **told)
        elif (error := task.exception()) is not None:
            _log.error("a hook failed", **told, exc_info=error)

    async def _run(self, registration: Registration, queue: asyncio.Queue[Change]) -> None:
        while True:
            await self.call(registration, await queue.get())

    def _end(self, task: asyncio.Task[None]) -> None:
        self._left.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a hook failed as it was cancelled", exc_info=error)


async def _call(hook: Hook, transition: Change) -> None:
    await hook(transition)


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", repr(hook))
