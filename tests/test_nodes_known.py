"""The nodes of a cluster, as one finds them: over a bus that is in this process, with times that are over at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from conftest import TIMING

from gateway.connections.draining import Draining
from gateway.errors import ConflictError, NotFoundError, StoreUnavailableError, UnavailableError
from gateway.nodes.bus import LocalBus
from gateway.operators import nodes as module
from gateway.operators.nodes import Listed, Nodes, Report
from gateway.presence.follower import Follower
from gateway.presence.model import Beat
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import View

NOW = 1_000_000


class Bus(LocalBus):
    """A bus to others in this process, who hear at once."""

    def __init__(self, others: list[Bus]) -> None:
        super().__init__()
        self.others = others
        self.said: list[str] = []
        self.deaf = False
        self._handling: set[asyncio.Task[None]] = set()
        others.append(self)

    def publish(self, topic: str, data: Any) -> None:
        self.said.append(topic)
        message = msgspec.json.encode(data)
        for other in self.others:
            if other is not self and not other.deaf:
                decoder, handler = other._subscribers[topic]
                task = asyncio.ensure_future(_hear(handler, decoder.decode(message)))
                self._handling.add(task)
                task.add_done_callback(self._handling.discard)


async def _hear(handler: Callable[[Any], Awaitable[None]], data: Any) -> None:
    await handler(data)


class Away(MemoryStore):
    """A store that may be away."""

    away = False

    async def leases(self) -> dict[str, int]:
        if self.away:
            raise StoreUnavailableError("gone")
        return await super().leases()


class Going(Draining):
    """Whether a node takes clients, which has none."""

    def __init__(self) -> None:
        self.begun = self.stops = False
        self.secret = 1
        """Of its settings."""

    async def begin(self) -> None:
        self.begun = True

    def end(self) -> bool:
        self.begun = self.begun and self.stops
        return not self.stops


class World:
    """Two nodes on one store."""

    def __init__(self) -> None:
        self.store = Away(TIMING, begin=NOW << 20)
        self.buses: list[Bus] = []
        self.draining: dict[str, Going] = {}
        self.views: dict[str, View] = {}
        self.one, self.two = self.node("one"), self.node("two")

    def node(self, name: str) -> Nodes:
        follower = Follower(self.store, self.views.setdefault(name, View()), [])
        draining = self.draining[name] = Going()
        return Nodes(
            name, Bus(self.buses), self.store, follower, lambda clients=0: report(name, draining, clients), draining
        )

    async def renew(self) -> None:
        for name in ("one", "two"):
            await self.store.renew(name, NOW)


def report(name: str, going: Going, clients: int = 0) -> Report:
    return Report(
        node=name,
        version="1",
        compiled=True,
        pid=1,
        at=NOW,
        started_at=NOW,
        connections=3,
        users=2,
        sockets={},
        clients=3,
        opened=3,
        polling=0,
        draining=going.begun,
        settings={"node_lease": len(name), "jwt_secret": going.secret},
        away=None,
        clock_offset=0,
        webhooks=None,
        listed=tuple(
            Listed(
                namespace="/",
                id=str(number),
                client="",
                upgraded=True,
                rooms=(),
                address=None,
                user_agent=None,
                tenant=None,
                user_id=None,
                connected_at=None,
            )
            for number in range(min(clients, 5))
        ),
    )


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "ANSWER", 60)
    monkeypatch.setattr(module, "CATCH_UP", 30)
    world = World()
    await world.renew()
    return world


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Wait for nobody."""
    monkeypatch.setattr(module, "ANSWER", 0.05)
    monkeypatch.setattr(module, "CATCH_UP", 0.02)


async def test_each_node_that_holds_a_lease_is_known_with_what_it_says(world: World) -> None:
    found = await world.one.look()
    assert [(each.node, each.lease_until) for each in found] == [
        ("one", NOW + TIMING.lease),
        ("two", NOW + TIMING.lease),
    ]
    assert [each.report is not None and each.report.connections for each in found] == [3, 3]


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_does_not_answer_is_silent(world: World) -> None:
    world.buses[1].deaf = True
    found = await world.one.look()
    assert [(each.node, each.report is None) for each in found] == [("one", False), ("two", True)]


async def test_whoever_asks_meanwhile_gets_the_same_answer(world: World) -> None:
    first, second = await asyncio.gather(world.one.look(), world.one.look())
    assert first is second
    assert world.buses[0].said == ["who-is-there"]
    assert await world.one.look() is not first


async def test_clients_are_listed_where_that_is_asked_for(world: World) -> None:
    plain, listed = await asyncio.gather(world.one.look(), world.one.look(3))
    assert [each.report and len(each.report.listed) for each in plain] == [0, 0]
    assert [each.report and len(each.report.listed) for each in listed] == [3, 3]


async def test_a_node_with_other_settings_is_named_with_them(world: World) -> None:
    assert [each.differs for each in await world.one.look()] == [(), ()]
    world.draining["two"].secret = 2
    known = await world.one.look()
    assert [each.differs for each in known] == [(), ("JWT_SECRET",)]
    assert [each.differs for each in await world.two.look()] == [("JWT_SECRET",), ()]
    assert world.one.warnings() == []
    world.one.compare(known)
    assert world.one.warnings() == ["two has other settings than this node: JWT_SECRET; set them alike"]
    world.draining["two"].secret = 1
    world.one.compare(await world.one.look())
    assert world.one.warnings() == []


async def test_one_that_no_longer_waits_leaves_the_others_their_answer(world: World) -> None:
    waiting = asyncio.create_task(world.one.look())
    other = asyncio.create_task(world.one.look())
    await asyncio.sleep(0)
    waiting.cancel()
    assert len(await other) == 2


async def test_while_the_store_is_away_a_node_knows_itself(world: World) -> None:
    world.store.away = True
    [own] = await world.one.look()
    assert (own.node, own.lease_until, own.report is not None) == ("one", None, True)


async def test_a_view_that_is_behind_is_said_to_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.store.beat("one", [Beat(tenant="t", user_id="u", at=NOW, holds=True)])

    async def never(_follower: Follower, _position: int) -> None:
        await asyncio.Event().wait()

    [own, _] = await world.one.look()
    assert own.report is not None
    assert own.report.log_lag is not None
    monkeypatch.setattr(Follower, "reach", never)
    monkeypatch.setattr(module, "CATCH_UP", 0.02)
    [own, _] = await world.one.look()
    assert own.report is not None
    assert own.report.log_lag == 20  # it waited so long, and its view is of the same millisecond
    world.views["one"].position = (NOW - 5000) << 20
    [own, _] = await world.one.look()
    assert own.report is not None
    assert own.report.log_lag == 5000


async def test_the_node_that_is_meant_drains_and_no_other(world: World) -> None:
    said = await world.one.drain("two")
    assert (said.node, said.draining, said.connections) == ("two", True, 3)
    await asyncio.sleep(0)
    assert [name for name, going in world.draining.items() if going.begun] == ["two"]
    assert (await world.one.drain("one", force=True)).draining
    await asyncio.sleep(0)
    assert [name for name, going in world.draining.items() if going.begun] == ["one", "two"]


async def test_the_last_that_takes_clients_drains_where_it_is_forced_to(world: World) -> None:
    await world.one.drain("two")
    for asked in (world.one, world.two):
        with pytest.raises(ConflictError, match="those of one would have nowhere to go"):
            await asked.drain("one")
    assert not world.draining["one"].begun
    assert (await world.one.drain("two")).draining, "which drains already"
    assert (await world.two.drain("one", force=True)).draining


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_does_not_answer_takes_no_clients_of_another(world: World) -> None:
    world.buses[1].deaf = True
    with pytest.raises(ConflictError, match="no other node takes clients"):
        await world.one.drain("one")


async def test_the_node_that_is_meant_takes_clients_again(world: World) -> None:
    for name in ("one", "two"):
        await world.one.drain(name, force=True)
        await asyncio.sleep(0)
    assert not (await world.one.undrain("two")).draining
    assert [name for name, going in world.draining.items() if going.begun] == ["one"]
    assert not (await world.one.undrain("one")).draining
    assert not world.draining["one"].begun


async def test_a_node_that_stops_takes_no_clients_again(world: World) -> None:
    for name in ("one", "two"):
        world.draining[name].stops = world.draining[name].begun = True
        with pytest.raises(ConflictError, match=f"{name} stops"):
            await world.one.undrain(name)


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_is_not_there_cannot_drain(world: World) -> None:
    for command in (world.one.drain, world.one.undrain):
        with pytest.raises(NotFoundError, match="those that there are: one, two"):
            await command("three")
    world.buses[1].deaf = True
    with pytest.raises(UnavailableError, match="two has not answered; it drains"):
        await world.one.drain("two")
    with pytest.raises(UnavailableError, match="two has not answered; it takes clients"):
        await world.one.undrain("two")
    assert not any(going.begun for going in world.draining.values())
