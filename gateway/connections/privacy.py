"""What single users are told otherwise than everyone: the truth about themselves, and whom they may see from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway import wire
from gateway.connections import encoded
from gateway.presence.model import OFFLINE, Event, Transition
from gateway.presence.visibility import never_seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.connections.connections import Connections
    from gateway.connections.live import LiveConnection
    from gateway.nodes.bus import Bus
    from gateway.presence.view import View
    from gateway.presence.visibility import Visibility

_log = structlog.get_logger(__name__)

ALLOWED = "may be seen"
"""The reason of a change that is none but to one who looks."""


class _Changed(msgspec.Struct, frozen=True):
    """A rule about who may see whom has changed."""

    tenant: str
    user_id: str | None


class Privacy:
    """Stands before the fan-out. A listener of the follower.

    Args:
        view: what is told.
        clock: the time, in Unix milliseconds.
        bus: how other nodes hear that a rule has changed.
        visibility: who may see whom; None where everyone sees everyone.
        listeners: what tells everyone.
    """

    def __init__(
        self,
        view: View,
        clock: Callable[[], int],
        bus: Bus,
        visibility: Visibility | None,
        listeners: Sequence[Callable[[Sequence[Transition]], None]],
    ) -> None:
        self.connections: Connections | None = None
        """This node's; None until they are there."""
        self._view = view
        self._clock = clock
        self._bus = bus
        self._visibility = visibility
        self._listeners = listeners
        view.on_private = self.tell_owner
        bus.subscribe("visibility", _Changed, self._on_changed)
        if visibility is not None:
            visibility.on_flip = self._on_flip

    # Themselves

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take news of the log in. Who turns invisible, or is no more, hears what is true instead."""
        view = self._view
        if not view.hidden and not view.revealed:
            self._publish(transitions)
            return
        others: list[Transition] = []
        turned: dict[tuple[str, str], None] = {}
        for transition in transitions:
            key = (transition.tenant, transition.user_id)
            if (key in view.hidden or key in view.revealed) and self._of(*key):
                self._publish(others)
                others = []
                self._publish_to_others(transition)
                turned[key] = None
            else:
                others.append(transition)
        self._publish(others)
        for tenant, user_id in turned:
            self.tell_owner(tenant, user_id)

    def tell_owner(self, tenant: str, user_id: str) -> None:
        """Tell a user's connections what only they are told of their user."""
        now = self._clock()
        body = msgspec.Raw(encoded.status_at(self._view.own_status(tenant, user_id, now), now))
        for live in self._of(tenant, user_id):
            if live.hears_of(user_id):
                live.emit(Event.CHANGED, body)

    def _publish_to_others(self, transition: Transition) -> None:
        assert self.connections is not None  # noqa: S101 - else nobody has connections
        own = self._of(transition.tenant, transition.user_id)
        for live in own:
            self.connections.catch_up(live)
        self._publish([transition])
        for live in own:
            live.pass_over()

    def _publish(self, transitions: Sequence[Transition]) -> None:
        if transitions:
            for listener in self._listeners:
                try:
                    listener(transitions)
                except Exception:
                    _log.exception("a listener failed")

    def _of(self, tenant: str, user_id: str) -> Sequence[LiveConnection]:
        return () if self.connections is None else self.connections.of_user(tenant, user_id)

    # Others

    def visibility_changed(self, tenant: str, user_id: str | None) -> None:
        """A rule has changed: about whom a user sees, or by whom the user is seen; None for everyone's.

        Raises:
            RuntimeError: a rule says so while it is asked.
        """
        if self._visibility is not None:
            self._visibility.check()  # before other nodes hear of it
        self._bus.publish("visibility", _Changed(tenant, user_id))
        self._change(tenant, user_id)

    async def _on_changed(self, changed: _Changed) -> None:
        self._change(changed.tenant, changed.user_id)

    def _change(self, tenant: str, user_id: str | None) -> None:
        visibility = self._visibility
        if visibility is None:
            return
        visibility.forget(tenant, user_id, self._view.position)
        if user_id is None:  # all pairs that are known may be many: each is asked for when it is next looked at
            return
        for viewer in visibility.viewers(tenant, user_id):
            if self._of(tenant, viewer) and not visibility.exhausted:
                visibility.compare(tenant, viewer, [user_id])
        if self._of(tenant, user_id):
            visibility.compare(tenant, user_id, visibility.looked_at(tenant, user_id))

    def _on_flip(self, tenant: str, viewer: str, user_id: str, seen: bool) -> None:  # noqa: FBT001 - a callback
        """Tell a viewer's connections that they see a user from now on, or do not any more."""
        status = self._view.status(tenant, user_id)
        now = self._clock()
        transition = Transition(position=0, at=now, was=OFFLINE, now=status, reason=ALLOWED)
        event, body = wire.event_body(Event.ONLINE, transition) if seen else never_seen(user_id, now)
        for live in self._of(tenant, viewer):
            pending = live.watcher is not None and live.watcher.flip(user_id, seen=seen)
            if status.online and not pending and live.hears_of(user_id):
                live.emit(event, body)
