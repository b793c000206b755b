"""Who types: told when it begins and ends, at most so often, and over by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from conftest import Clock
from loops import Loop

from gateway.channels.events import USER_TYPING
from gateway.channels.model import Person, Said
from gateway.channels.typists import EVERY, EXPIRES, Typists
from gateway.errors import UnavailableError
from gateway.presence.model import Profile
from gateway.wire import encode

ALICE = Person(user_id="alice", profile=Profile(name="Alice"))
ROOM = ("acme", "room-1")


class Node:
    """What `Channels` is to typists, where what is said is heard by all nodes at once."""

    def __init__(self, others: list[Node]) -> None:
        self.on_said: dict[str, Any] = {}
        self.on_end: list[Any] = []
        self.told: list[tuple[str, bool]] = []
        self.away = False
        self.nodes = others
        others.append(self)

    async def say(
        self, tenant: str, channels: list[str], event: str, data: Any, *, sender: str, source: str | None, keep: bool
    ) -> None:
        assert (event, keep) == (USER_TYPING, False)
        if self.away:
            raise UnavailableError("away")
        raw = msgspec.Raw(encode(data))
        said = Said(
            tenant=tenant, channel=channels[0], event=event, data=raw, sender=sender, source=source, keep=keep,
            position=0, at=0,
        )  # fmt: skip
        for node in self.nodes:
            node.tell(said)
            node.on_said[event](said)

    def tell(self, said: Said) -> None:
        body = msgspec.json.decode(said.data)
        self.told.append((body["user_name"], body["is_typing"]))


@pytest.fixture
def nodes(clock: Clock) -> tuple[Loop, Node, Typists, Node, Typists]:
    loop, all_nodes = Loop(), list[Node]()
    one, two = Node(all_nodes), Node(all_nodes)
    typists = [Typists(node, loop, clock) for node in (one, two)]  # type: ignore[arg-type]  # the part of it that is asked
    return loop, one, typists[0], two, typists[1]


Nodes = tuple[Loop, Node, Typists, Node, Typists]
BEGAN, ENDED = ("Alice", True), ("Alice", False)


def ended(connection: str) -> Any:
    return SimpleNamespace(connection_id=connection)


async def test_it_is_told_when_it_begins_and_when_it_ends_once_each(nodes: Nodes) -> None:
    _loop, one, typists, two, _ = nodes
    for _ in range(3):
        await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    for _ in range(3):
        await typists.type(*ROOM, ALICE, is_typing=False, source="a")
    assert one.told == two.told == [BEGAN, ENDED]


async def test_who_goes_on_is_told_to_every_so_often(nodes: Nodes) -> None:
    loop, one, typists, two, _ = nodes
    for second in range(10):
        loop.run_until(100.0 + second)
        await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    assert one.told == two.told == [BEGAN] * round(10 / EVERY)


async def test_it_is_over_by_itself_on_every_node_once(nodes: Nodes) -> None:
    loop, one, typists, two, _ = nodes
    await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    loop.run_until(100.0 + EXPIRES - 0.1)
    assert two.told == [BEGAN]
    loop.run_until(100.0 + EXPIRES)
    assert one.told == two.told == [BEGAN, ENDED]
    await typists.type(*ROOM, ALICE, is_typing=False, source="a")
    await typists.end(ended("a"))
    assert one.told == two.told == [BEGAN, ENDED]
    await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    assert one.told == two.told == [BEGAN, ENDED, BEGAN]
    loop.run_until(100.0 + 3 * EXPIRES)
    assert loop.waiting() == []


async def test_who_types_in_two_tabs_types_until_both_have_ended(nodes: Nodes) -> None:
    _loop, one, typists, _two, _ = nodes
    await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    await typists.type(*ROOM, ALICE, is_typing=True, source="b")
    await typists.end(ended("a"))
    await typists.end(ended("nobody"))
    assert one.told == [BEGAN]
    await typists.end(ended("b"))
    assert one.told == [BEGAN, ENDED]
    assert (typists._typists, typists._by_source) == ({}, {})


async def test_a_message_ends_it_in_every_tab(nodes: Nodes) -> None:
    _loop, one, typists, _two, _ = nodes
    await typists.stop(*ROOM, "alice", "a")
    assert one.told == []
    for source in ("a", "b", None):
        await typists.type(*ROOM, ALICE, is_typing=True, source=source)
    await typists.stop(*ROOM, "alice", "a")
    assert one.told == [BEGAN, ENDED]
    assert (typists._typists, typists._by_source) == ({}, {})


async def test_where_the_store_is_away_it_ends_by_itself(nodes: Nodes) -> None:
    loop, one, typists, two, _ = nodes
    one.away = True
    with pytest.raises(UnavailableError):
        await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    one.away = False
    await typists.type(*ROOM, ALICE, is_typing=True, source="a")
    one.away = True
    await typists.end(ended("a"))
    assert two.told == [BEGAN]
    loop.run_until(100.0 + EXPIRES)
    assert two.told == [BEGAN, ENDED]


async def test_a_backend_s_own_is_left_to_it(nodes: Nodes) -> None:
    loop, one, _typists, _two, _ = nodes
    for data in (b'{"user_id":"x","user_name":"x","is_typing":true,"timestamp":""}', b"5"):
        for sender in (None, "alice"):
            if sender is not None and data != b"5":
                continue
            said = Said(
                tenant="acme", channel="room-1", event=USER_TYPING, data=msgspec.Raw(data), sender=sender, position=0,
                at=0,
            )  # fmt: skip
            one.on_said[USER_TYPING](said)
    assert loop.waiting() == []


async def test_a_connection_that_ends_while_it_is_over_elsewhere_ends_well(nodes: Nodes) -> None:
    _loop, one, typists, two, _ = nodes
    for channel in ("room-1", "room-2"):
        await typists.type("acme", channel, ALICE, is_typing=True, source="a")
    say = one.say

    async def slow(tenant: str, channels: list[str], *said: Any, **how: Any) -> None:
        """The store takes its time, in which both have sent what they typed."""
        one.say = say  # type: ignore[method-assign]
        for channel in ("room-1", "room-2"):
            await typists.stop("acme", channel, "alice", None)
        await say(tenant, channels, *said, **how)

    one.say = slow  # type: ignore[method-assign]
    await typists.end(ended("a"))
    assert one.told == two.told == [BEGAN, BEGAN, ENDED, ENDED]
