"""Who hears in channels, and what a client that can recover is told with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
from loops import Loop

from gateway.channels.audience import ChannelAudience
from gateway.channels.model import Said, Subscriber
from gateway.presence.view import View


def said(position: int) -> Said:
    data = msgspec.Raw(b"{}")
    return Said(tenant="acme", channel="room-a", event="message.sent", data=data, position=position, at=position)


def test_what_was_said_while_a_client_came_in_is_told_with_the_place_it_has_come_to() -> None:
    told: list[Any] = []
    audience = ChannelAudience(Loop(), 0.02, None, View(), lambda: 0)
    live: Any = SimpleNamespace(
        emit=lambda _event, _data, mark: told.append(mark), mark="known", connection=SimpleNamespace(door="socketio")
    )
    listener: Any = SimpleNamespace(codec=None)
    subscriber = Subscriber("acme", "one", listener, user_id="alice", live=live)
    audience.join(subscriber, "room-a", early=[])
    for position in (1, 2, 3):
        audience.tell(said(position), f"mark {position}")
    assert told == []
    # It has read the first; in between it may have been told of other things, behind the marks of these.
    audience.begin(subscriber, "room-a", 1, "mark 4")
    assert told == [None, "mark 4"]
    audience.tell(said(5), "mark 5")
    assert told == [None, "mark 4", "mark 5"]
