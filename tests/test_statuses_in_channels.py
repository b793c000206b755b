"""``user.status``: what subscribers by the doors of Laravel and Pusher hear of users in presence channels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from loops import Loop

from gateway.channels.audience import ChannelAudience
from gateway.channels.model import Said, Subscriber
from gateway.channels.names import scope_of
from gateway.channels.statuses import Statuses
from gateway.presence.fanout import LONGEST_REST, REST
from gateway.presence.model import Profile, Status, Transition, UserStatus
from gateway.presence.view import View

PROFILE = Profile(name="Ann", role="host", avatar="a.png")
T = 1_700_000_000_000


class Echo:
    """A subscriber of another door: what it hears, and how it is written to."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, Any]]] = []
        self.codec: Any = self
        self.sink = self

    def encode(self, events: Any) -> Any:
        raise AssertionError(events)

    def removed(self, channel: str) -> None:
        raise AssertionError(channel)

    def encode_said(self, said: Said) -> Any:
        return said.event, said.channel, json.loads(bytes(said.data))

    def write(self, batch: Any) -> None:
        self.heard.append(batch)

    def write_all(self, batch: Any, sinks: list[Echo]) -> None:
        for sink in sinks:
            sink.write(batch)

    def told(self) -> list[tuple[str, str, bool]]:
        assert {event for event, _channel, _data in self.heard} <= {"user.status"}
        return [(channel, data["user_id"], data["is_online"]) for _event, channel, data in self.heard]


class World:
    """Presence, and who is in which room, as `Statuses` hears of them."""

    def __init__(self, visibility: Any = None) -> None:
        self.elapsed: Iterator[float] = itertools.repeat(0.0)
        """What the stopwatch shows."""
        self.loop, self.view, self.rooms = Loop(), View(), View()
        self.audience = ChannelAudience(self.loop, 0.02, visibility, self.rooms, lambda: 0)
        channels = ["presence-room-5", "presence-room-6"]
        membership: Any = SimpleNamespace(
            follower=SimpleNamespace(loaded=True),
            occupied=lambda tenant, prefix: [c for c in channels if c.startswith(prefix)],
            members=lambda tenant, channel: self.rooms.online(scope_of(tenant, channel)),
        )
        self.statuses = Statuses(
            self.audience,
            membership,
            self.view,
            self.loop,
            0.02,
            visibility,
            stopwatch=lambda: next(self.elapsed),
        )
        self.versions: dict[tuple[str, str], int] = {}

    def subscribe(self, channel: str, user: str = "echo", live: Any = None) -> Echo:
        echo = Echo()
        self.audience.join(Subscriber("acme", f"{user}-{channel}", echo, user_id=user, live=live), channel)
        return echo

    def _change(self, view: View, publish: Callable[[list[Transition]], None], scope: str, user: str, to: str) -> None:
        was = view.status(scope, user)
        version = was.version + 1
        now = UserStatus(tenant=scope, user_id=user, status=Status(to), version=version, active_at=T, profile=PROFILE)
        position = max(self.view.position, self.rooms.position) + 1
        news = view.apply([Transition(position=position, at=T, was=was.status, now=now, reason="test")])
        publish(news)
        self.loop.run_until(self.loop.now + 1)

    def presence(self, user: str, to: str) -> None:
        self._change(self.view, self.statuses.publish, "acme", user, to)

    def room(self, user: str, to: str, channel: str = "presence-room-5") -> None:
        scope = scope_of("acme", channel)
        self._change(self.rooms, self.statuses.publish_members, scope, user, to)


def test_who_is_online_is_told_in_its_channel() -> None:
    world = World()
    echo, other = world.subscribe("presence-online-users"), world.subscribe("presence-lobby")
    for status in ("online", "away", "offline"):
        world.presence("ann", status)
    assert echo.told() == [("presence-online-users", "ann", is_online) for is_online in (True, True, False)]
    assert echo.heard[0][2] == {
        "user_id": "ann",
        "user_name": "Ann",
        "role": "host",
        "avatar": "a.png",
        "is_online": True,
        "last_seen": "2023-11-14T22:13:20.000Z",
        "timestamp": "2023-11-14T22:13:20.000Z",
    }
    assert other.heard == []


def test_a_room_hears_who_enters_leaves_and_turns_away_in_it() -> None:
    world = World()
    echo = world.subscribe("presence-room-5")
    world.presence("ann", "online")
    assert echo.heard == []
    world.room("ann", "online")
    world.room("bob", "online", "presence-room-6")
    world.room("bob", "online", "presence-lobby")
    world.presence("ann", "away")
    world.presence("bob", "online")
    world.presence("bob", "away")
    world.room("ann", "offline")
    world.presence("ann", "online")
    assert echo.told() == [("presence-room-5", "ann", is_online) for is_online in (True, True, False)]
    assert {data["room_id"] for _event, _channel, data in echo.heard} == {"5"}


def test_whoever_was_in_a_room_before_this_node_was_asked_is_known() -> None:
    world = World()
    world.room("ann", "online")
    world.presence("ann", "online")
    echo = world.subscribe("presence-room-5")
    world.presence("ann", "away")
    assert echo.told() == [("presence-room-5", "ann", True)]
    world.room("ann", "offline")
    world.presence("ann", "online")
    assert len(echo.heard) == 2


def test_native_clients_hear_of_presence_otherwise() -> None:
    world = World()
    live = SimpleNamespace(connection=SimpleNamespace(door="socketio"), mark=None)
    native, echo = world.subscribe("presence-online-users", live=live), world.subscribe("presence-online-users", "e")
    world.presence("ann", "online")
    assert (native.heard, len(echo.heard)) == ([], 1)


def test_of_several_changes_at_once_the_last_is_told() -> None:
    world = World()
    echo = world.subscribe("presence-online-users")
    run_until, world.loop.run_until = world.loop.run_until, lambda now: None  # type: ignore[method-assign]
    for status in ("online", "away", "offline"):
        world.presence("ann", status)
    world.presence("bob", "online")
    run_until(world.loop.now + 1)
    assert echo.told() == [("presence-online-users", "ann", False), ("presence-online-users", "bob", True)]


def test_a_lone_change_is_told_at_once_and_so_is_that_of_another_user_just_after_it() -> None:
    world = World()
    echo = world.subscribe("presence-online-users")
    run_until, world.loop.run_until = world.loop.run_until, lambda now: None  # type: ignore[method-assign]

    def told_after(seconds: float, *changes: tuple[str, str]) -> list[str]:
        before = len(echo.heard)
        for user, status in changes:
            world.presence(user, status)
        run_until(world.loop.now + seconds)
        return [data["user_id"] for _event, _channel, data in echo.heard[before:]]

    assert told_after(0.001, ("ann", "online")) == ["ann"]
    assert told_after(0.001, ("ann", "away")) == [], "what one user does within an interval is told in its end"
    assert told_after(0.02) == ["ann"]
    assert told_after(0.02) == []
    assert told_after(0.001, ("ann", "offline")) == ["ann"]
    assert told_after(0.001, ("bob", "online")) == ["bob"]
    assert told_after(0.001, ("cem", "online")) == [], "of more the interval gathers"
    assert told_after(0.02, ("dan", "online")) == ["cem", "dan"]


@pytest.mark.parametrize(("took", "rest"), [(0.001, 0.02), (0.03, 0.03 * REST), (0.5, LONGEST_REST)])
def test_a_flush_rests_for_as_long_as_those_of_presence_do(took: float, rest: float) -> None:
    world = World()
    echo = world.subscribe("presence-online-users")
    run_until, world.loop.run_until = world.loop.run_until, lambda now: None  # type: ignore[method-assign]
    world.elapsed = itertools.chain([0.0, took], itertools.repeat(0.0))
    world.presence("ann", "online")
    run_until(world.loop.now)
    world.presence("ann", "away")
    [due] = world.loop.waiting()
    assert due - world.loop.now == pytest.approx(rest)
    run_until(due)
    assert len(echo.heard) == 2


def test_what_is_known_of_a_channel_s_pace_is_let_go_of_with_the_next_that_is_told() -> None:
    world = World()
    for channel in ("presence-online-users", "presence-room-5"):
        world.subscribe(channel)
    world.presence("ann", "online")
    world.room("ann", "online")
    assert list(world.statuses._paces) == [("acme", "presence-room-5")]


def test_its_subscribers_are_looked_up_once_for_all_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    echo = world.subscribe("presence-online-users")
    lookups: list[str] = []
    others = world.audience.others

    def look_up(tenant: str, channel: str) -> Any:
        lookups.append(channel)
        return others(tenant, channel)

    monkeypatch.setattr(world.audience, "others", look_up)
    run_until, world.loop.run_until = world.loop.run_until, lambda now: None  # type: ignore[method-assign]
    for number in range(100):
        world.presence(f"u{number}", "online")
    run_until(world.loop.now + 1)
    assert len(echo.heard) == 100
    assert lookups == ["presence-online-users"]


@pytest.mark.parametrize("viewer", ["friend", "stranger"])
def test_whoever_may_not_see_a_user_is_told_nothing(viewer: str) -> None:
    world = World(SimpleNamespace(heeds=[], sees=lambda tenant, viewer, user: viewer == "friend"))
    echo = world.subscribe("presence-online-users", viewer)
    world.presence("ann", "online")
    assert len(echo.heard) == (viewer == "friend")


def test_nothing_is_kept_for_channels_that_nobody_listens_to() -> None:
    world = World()
    world.presence("ann", "online")
    world.room("ann", "online")
    assert (world.statuses._pending, world.statuses._timers) == ({}, {})
