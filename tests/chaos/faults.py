"""Every fault by name: what it does to a world while it lasts, and that it is over when it has ended."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from redis_servers import ClusterServers, RedisServer, SentinelServers

from chaos.truth import Harm, Impairment
from chaos.world import TIMING, Backend, World, now, until

OVER_LEASE = (TIMING.detection / 1000 + 0.5, TIMING.detection / 1000 + 2.0)
"""Seconds after which a node that is away is surely declared dead."""
AROUND_LEASE = (1.0, TIMING.detection / 1000 + 1.0)
"""From what nobody should notice, to what everybody must."""


SENTINEL_REST = 5.0
"""Seconds between failovers: twice its failover-timeout long, a sentinel attempts no second one."""


class Target(StrEnum):
    """What a fault breaks; two at a time break different things."""

    NODE = "node"
    STORE = "store"
    CLIENTS = "clients"


Break = Callable[[World, int], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One way to break a world."""

    name: str
    about: str
    target: Target
    seconds: tuple[float, float]
    """How long it lasts when it is alone: from, to."""
    breaks: Break
    """Breaks a world when entered, for one node where that is its target, and mends it when left."""
    backends: frozenset[Backend]
    mixed: tuple[float, float]
    """How long it lasts among others."""


FAULTS: dict[str, Fault] = {}

_ANY = frozenset(Backend)


def fault(
    name: str,
    about: str,
    target: Target,
    seconds: tuple[float, float],
    *,
    mixed: tuple[float, float] | None = None,
    backends: frozenset[Backend] = _ANY,
) -> Callable[[Callable[[World, int], AsyncIterator[None]]], Break]:
    """Enter a fault into the table."""

    def enter(steps: Callable[[World, int], AsyncIterator[None]]) -> Break:
        breaks = asynccontextmanager(steps)
        FAULTS[name] = Fault(name, about, target, seconds, breaks, backends, mixed or seconds)
        return breaks

    return enter


def redis(world: World) -> RedisServer:
    assert isinstance(world.store, RedisServer)
    return world.store


_PROXIED = frozenset({Backend.REDIS})


@fault("kill", "kill -9 of a node", Target.NODE, OVER_LEASE, mixed=AROUND_LEASE)
async def kill(world: World, node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.KILLED, node):
        await world.nodes[node].kill()
        yield
        await world.nodes[node].start()


@fault("stop", "SIGSTOP for longer than the lease, SIGCONT", Target.NODE, OVER_LEASE, mixed=AROUND_LEASE)
async def stop(world: World, node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.STOPPED, node):
        world.nodes[node].signal(signal.SIGSTOP)
        try:
            yield
        finally:
            world.nodes[node].signal(signal.SIGCONT)


@fault(
    "redis-restart",
    "redis-server killed, started with its data",
    Target.STORE,
    (4.0, 6.0),
    mixed=(1.0, 6.0),
    backends=_PROXIED,
)
async def redis_restart(world: World, _node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.STORE_AWAY):
        await redis(world).kill()
        yield
        await redis(world).start()
        await world.ready()


@fault(
    "redis-wipe", "redis-server killed, started empty", Target.STORE, (2.0, 5.0), mixed=(0.2, 5.0), backends=_PROXIED
)
async def redis_wipe(world: World, _node: int) -> AsyncIterator[None]:
    # What no node knows, none can give back: on a busy machine those that were killed before may take long to start.
    await world.somebody_knows()
    begin = now()
    with world.impaired(Harm.STORE_AWAY):
        await redis(world).kill()
        redis(world).wipe()
        yield
        await redis(world).start()
        await world.ready()
        world.wipes.append(Impairment(Harm.STORE_AWAY, begin, now()))


@fault("cut", "one node's connection to Redis cut", Target.NODE, OVER_LEASE, mixed=AROUND_LEASE, backends=_PROXIED)
async def cut(world: World, node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.CUT_OFF, node):
        await world.proxies[node].cut()
        yield
        await world.proxies[node].listen()


@fault(
    "swallow",
    "one node's connection to Redis swallowed",
    Target.NODE,
    OVER_LEASE,
    mixed=AROUND_LEASE,
    backends=_PROXIED,
)
async def swallow(world: World, node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.CUT_OFF, node):
        world.proxies[node].swallow()
        yield
        world.proxies[node].flow()


@fault(
    "slow",
    "one node's connection to Redis slowed: 150 ms each way, 64 KB/s",
    Target.NODE,
    (6.0, 8.0),
    backends=_PROXIED,
)
async def slow(world: World, node: int) -> AsyncIterator[None]:
    with world.impaired(Harm.SLOWED, node):
        world.proxies[node].slow(delay=0.15, rate=65536)
        yield
        world.proxies[node].slow()


@fault("reset", "one node's connections to Redis reset, again and again", Target.NODE, (4.0, 6.0), backends=_PROXIED)
async def reset(world: World, node: int) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            world.proxies[node].reset()
            await asyncio.sleep(0.5)

    with world.impaired(Harm.SHAKEN, node):
        resetting = asyncio.create_task(again())
        yield
        resetting.cancel()


@fault(
    "failover", "Sentinel failover: the master killed", Target.STORE, (1.0, 2.0), backends=frozenset({Backend.SENTINEL})
)
async def failover(world: World, _node: int) -> AsyncIterator[None]:
    assert isinstance(world.store, SentinelServers)
    with world.impaired(Harm.STORE_AWAY):
        await world.store.kill_master()
        await world.store.wait_for_new_master()
        await world.ready()
    yield
    replica = world.store.replica  # the master that was; the sentinels make it follow the new one
    await replica.start()

    async def follows() -> bool:
        role = await replica.cli("ROLE")
        return bool(role[0] == "slave" and role[3] == "connected")

    await until(follows, "the former master follows the new one")
    await asyncio.sleep(SENTINEL_REST)


@fault(
    "reshard",
    "Cluster resharding: the gateway's slot moved",
    Target.STORE,
    (3.0, 4.0),
    backends=frozenset({Backend.CLUSTER}),
)
async def reshard(world: World, _node: int) -> AsyncIterator[None]:
    assert isinstance(world.store, ClusterServers)
    key = f"{{{world.prefix}}}:log"
    owner = world.store.nodes.index(await world.store.owner(key))
    with world.impaired(Harm.STORE_AWAY):
        await world.store.move_slot(key, world.store.nodes[owner - 1])
        await world.ready()
    yield


@fault("storm", "every client's connection dropped at once", Target.CLIENTS, (2.0, 2.0))
async def storm(world: World, _node: int) -> AsyncIterator[None]:
    world.clients.tell("storm")
    yield


@dataclass(frozen=True)
class Strike:
    """One fault at one time of a plan."""

    at: float
    """Seconds after the clients are there."""
    fault: str
    node: int
    seconds: float

    def __str__(self) -> str:
        on = f" of node {self.node}" if FAULTS[self.fault].target is Target.NODE else ""
        return f"{self.at:5.1f} s: {self.fault}{on} for {self.seconds:.1f} s"


def overlapping(names: Sequence[str], chance: random.Random, nodes: int) -> list[Strike]:
    """A plan of given faults, each beginning a second before the one before is over."""
    plan: list[Strike] = []
    at = 2.0
    for name in names:
        plan.append(
            Strike(round(at, 3), name, chance.randrange(nodes), round(chance.uniform(*FAULTS[name].seconds), 3))
        )
        at = plan[-1].at + plan[-1].seconds - 1.0
    return plan


def mixed(backend: Backend, chance: random.Random, nodes: int, seconds: float) -> list[Strike]:
    """A plan of many faults, which overlap unless they break the same thing."""
    names = [name for name, each in FAULTS.items() if backend in each.backends]
    free: dict[tuple[Target, int], float] = {}
    plan = []
    at = 2.0
    while at < seconds:
        name = chance.choice(names)
        chosen = FAULTS[name]
        node = chance.randrange(nodes)
        what = (chosen.target, node if chosen.target is Target.NODE else 0)
        lasts = chance.uniform(*chosen.mixed)
        if free.get(what, 0) <= at and at + lasts <= seconds:
            plan.append(Strike(round(at, 3), name, node, round(lasts, 3)))
            free[what] = at + lasts + 1.0
        at += chance.uniform(0.5, 4.0)
    return plan


async def strike(world: World, plan: Sequence[Strike], begin: float) -> None:
    """Carry a plan out. Faults of the same thing wait for one another, where mending takes longer than planned.

    Args:
        world: what is broken.
        plan: how.
        begin: the loop's time that the plan counts from.
    """
    loop = asyncio.get_running_loop()
    locks: dict[tuple[Target, int], asyncio.Lock] = {}

    async def carry_out(one: Strike) -> None:
        chosen = FAULTS[one.fault]
        lock = locks.setdefault((chosen.target, one.node if chosen.target is Target.NODE else 0), asyncio.Lock())
        await asyncio.sleep(max(0.0, begin + one.at - loop.time()))
        async with lock, chosen.breaks(world, one.node):
            await asyncio.sleep(one.seconds)

    async with asyncio.TaskGroup() as group:
        for one in plan:
            group.create_task(carry_out(one))
