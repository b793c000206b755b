"""One run: a world, people who come and go in it, a plan of faults, and the judgement of what everybody saw."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from conftest import ROOT

from chaos.clients import Client
from chaos.faults import FAULTS, Strike, mixed, overlapping, strike
from chaos.trace import Record, Rule, Violation, divergences, pictures
from chaos.truth import Facts, Truth, agreement, leaves, missed, sessions
from chaos.world import TIMING, Backend, World, now, until

EVIDENCE = ROOT / "tests" / "output" / "chaos"
"""Where the trace and the logs of a run are kept that found a violation."""
NODES = 3
JOIN = 30.0
"""Seconds until every client must be connected, at the beginning and when all is mended."""
QUIET = TIMING.detection / 1000
"""Seconds until everyone must agree, after the last that happened."""
SKEW = 5.0


@dataclass(frozen=True)
class Scenario:
    """What a run is made of, but for chance."""

    name: str
    about: str
    backend: Backend = Backend.REDIS
    faults: tuple[str, ...] = ()
    """What it is about, each beginning before the one before is over; none where anything goes."""
    skewed: bool = False
    tabs: int = 1
    """How often each of the people is there."""
    people: int = 30


def _scenarios() -> dict[str, Scenario]:
    found = {"calm": Scenario("calm", "nothing: who comes and goes, and no fault")}
    for name, each in FAULTS.items():
        backend = Backend.REDIS if Backend.REDIS in each.backends else next(iter(each.backends))
        found[name] = Scenario(name, each.about, backend, (name,))
    found["storm"] = Scenario("storm", "500 clients reconnecting at once", faults=("storm",), tabs=5, people=100)
    found["skew"] = Scenario(
        "skew", "a clock 5 s off on one node, and kill -9 of another", faults=("kill",), skewed=True
    )
    found["cut-wipe"] = Scenario("cut-wipe", "a node cut off when Redis loses its data", faults=("cut", "redis-wipe"))
    for backend in Backend:
        name = "mixed" if backend is Backend.REDIS else f"mixed-{backend}"
        found[name] = Scenario(name, f"all at random, on {backend}", backend)
    return found


SCENARIOS = _scenarios()
MIXED = tuple(name for name in SCENARIOS if name.startswith("mixed"))
ALONE = tuple(name for name in SCENARIOS if name not in MIXED)


@dataclass(frozen=True)
class Move:
    """What one client does at one time of a plan."""

    at: float
    verb: str
    """``open``, ``goodbye``, ``drop`` or ``vanish``."""
    client: str


@dataclass(frozen=True)
class Plan:
    """All that happens in a run. The same seed makes the same plan."""

    scenario: Scenario
    seed: int
    seconds: float
    clients: tuple[Client, ...]
    moves: tuple[Move, ...]
    strikes: tuple[Strike, ...]
    skew: tuple[int, float] | None

    @classmethod
    def make(cls, scenario: Scenario, seed: int, seconds: float) -> Plan:
        """Make a plan.

        Args:
            scenario: what it is about.
            seed: of all chance in it.
            seconds: how long it goes on where anything goes; one fault alone takes as long as it needs.
        """
        chance = random.Random(seed)
        if scenario.name in MIXED:
            strikes = mixed(scenario.backend, chance, NODES, seconds)
        else:
            strikes = overlapping(scenario.faults, chance, NODES)
            seconds = max((one.at + one.seconds for one in strikes), default=4.0) + 1.0
        clients = _population(scenario, chance)
        moves = _moves([each for each in clients if each.user.startswith("guest")], chance, seconds)
        skew = None
        if scenario.skewed or (scenario.name in MIXED and chance.random() < 0.5):
            others = [node for node in range(NODES) if not scenario.skewed or all(one.node != node for one in strikes)]
            skew = chance.choice(others), chance.choice((-SKEW, SKEW))
        return cls(scenario, seed, seconds, tuple(clients), tuple(moves), tuple(strikes), skew)

    def __str__(self) -> str:
        clock = f", the clock of node {self.skew[0]} {self.skew[1]:+g} s" if self.skew else ""
        head = f"{self.scenario.name}, seed {self.seed}: {len(self.clients)} clients, {len(self.moves)} moves{clock}"
        return "\n  ".join([head, *map(str, self.strikes)])


def _population(scenario: Scenario, chance: random.Random) -> list[Client]:
    """A third stays and goes to another node where its own is away; a third is bound to one; a third comes and goes."""
    clients = []
    for number in range(scenario.people):
        kind = ("resident", "bound", "guest")[number % 3]
        user = f"{kind}-{number}"
        tabs = max(scenario.tabs, 2 if kind != "bound" and chance.random() < 0.3 else 1)
        clients += [
            Client(
                name=f"{user}/{tab}",
                user=user,
                node=chance.randrange(NODES) if kind != "bound" else number // 3 % NODES,
                pinned=kind == "bound",
                polling=chance.random() < 0.2,
            )
            for tab in range(tabs)
        ]
    return clients


def _moves(guests: Sequence[Client], chance: random.Random, seconds: float) -> list[Move]:
    """Guests go and come back: at once, within the grace, or after it. Some are not there in the end."""
    moves = []
    for guest in guests:
        at = chance.uniform(0, 2)
        while at < seconds - 0.5:
            verb = chance.choice(("goodbye", "vanish", "drop", "goodbye", "vanish"))
            moves.append(Move(at, verb, guest.name))
            if verb != "drop":  # after which it comes back by itself
                at += chance.choice((0.0, 0.02, chance.uniform(0.1, 1.0), chance.uniform(1.0, 4.0)))
                if at >= seconds and chance.random() < 0.5:
                    break
                moves.append(Move(min(at, seconds), "open", guest.name))
            at += chance.expovariate(1 / 2.5)
    return sorted(moves, key=lambda move: move.at)


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)
    """How long after a node's death its users' ``user-offline`` came, at each watcher; milliseconds."""
    records: int = 0
    took: float = 0.0

    def count(self, *rules: Rule) -> int:
        return sum(violation.rule in rules for violation in self.violations)


async def run(plan: Plan) -> Outcome:
    """Carry a plan out, and judge it. What it found is told, and kept in a folder."""
    say(str(plan))
    began = time.monotonic()
    folder = EVIDENCE / f"{plan.scenario.name}-{plan.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    users = sorted({client.user for client in plan.clients})
    async with World.start(plan.scenario.backend, users, folder, count=NODES, skew=plan.skew) as world:
        stuck: list[Violation] = []
        truth: Truth | None = None
        try:
            await _live(world, plan)
            truth = await _settle(world, users)
        except TimeoutError as error:
            stuck.append(Violation(Rule.STUCK, now(), "", "", str(error)))
        outcome = judge(plan, world, truth)
    outcome.violations[:0] = stuck
    outcome.took = time.monotonic() - began
    if outcome.violations:
        _keep(folder, outcome, world)
    else:
        shutil.rmtree(folder)
    return outcome


async def _live(world: World, plan: Plan) -> None:
    """Let everybody in, then let things happen."""
    by_name = {client.name: client for client in plan.clients}
    wanted = set(by_name)
    for client in plan.clients:
        world.clients.open(client)
    await _all_up(world, wanted)
    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def move() -> None:
        for one in plan.moves:
            await asyncio.sleep(max(0.0, begin + one.at - loop.time()))
            if one.verb == "open":
                world.clients.open(by_name[one.client])
                wanted.add(one.client)
            else:
                world.clients.tell(one.verb, client=one.client)
                if one.verb != "drop":
                    wanted.discard(one.client)

    async with asyncio.TaskGroup() as group:
        group.create_task(move())
        group.create_task(strike(world, plan.strikes, begin))
    await world.ready()
    await _all_up(world, wanted)


async def _all_up(world: World, wanted: set[str]) -> None:
    async def up() -> bool:
        return wanted == world.clients.up.keys()

    try:
        await until(up, "every client is connected", within=JOIN)
    except TimeoutError as error:
        missing, more = wanted - world.clients.up.keys(), world.clients.up.keys() - wanted
        raise TimeoutError(f"{error}: without {sorted(missing)[:5]}, with {sorted(more)[:5]}") from None


async def _settle(world: World, users: Sequence[str]) -> Truth:
    """Wait until nothing is to come, let every client look once more, and ask for the truth."""
    await asyncio.sleep(QUIET)
    world.clients.tell("look")
    await asyncio.sleep(1.0)
    return await world.truth(users)


def judge(plan: Plan, world: World, truth: Truth | None) -> Outcome:
    """Check every rule."""
    records: list[Record] = sorted(world.clients.records, key=lambda record: record.at)
    facts = Facts(
        timing=TIMING,
        sessions=sessions(records, {client.name: client.user for client in plan.clients}),
        impairments=world.impairments,
        wall=time.time() * 1000 - now(),
        skewed=world.skewed is not None,
    )
    end = truth.at if truth is not None else now()
    drawn = pictures(records, facts.blind)
    outcome = Outcome(plan, records=len(records))
    outcome.leaves, late = leaves(facts, records, drawn, end)
    outcome.violations = [violation for picture in drawn.values() for violation in picture.violations]
    outcome.violations += [*divergences(records), *facts.false_offlines(records), *late]
    outcome.violations += missed(facts, records, drawn, end)
    if truth is not None:
        outcome.violations += agreement(facts, drawn, truth)
    return outcome


def _keep(folder: Path, outcome: Outcome, world: World) -> None:
    """Write down what shows a violation, and say where."""
    with (folder / "trace.jsonl").open("wb") as trace:
        for record in sorted(world.clients.records, key=lambda record: record.at):
            trace.write(msgspec.json.encode(record) + b"\n")
    impairments = sorted(world.impairments, key=lambda each: each.begin)
    (folder / "impairments.json").write_bytes(msgspec.json.format(msgspec.json.encode(impairments)))
    lines = [
        f"{one.at:.0f} {one.rule}: {one.user} at {one.client or 'the store'}: {one.detail}"
        for one in outcome.violations
    ]
    (folder / "violations.txt").write_text(f"{outcome.plan}\n\n" + "\n".join(lines) + "\n")
    counted = ", ".join(f"{count} x {rule}" for rule, count in Counter(one.rule for one in outcome.violations).items())
    say("\n    ".join([f"  {counted}; see {folder.relative_to(ROOT)}", *lines[:10]]))


def seed() -> int:
    """That of ``CHAOS_SEED``, or a new one."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))


def say(text: str) -> None:
    """Tell it at once, also where output goes to a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def replay(plan: Plan) -> str:
    """The command that carries the same plan out again."""
    return f"python -m tests.chaos --fault {plan.scenario.name} --seed {plan.seed} --round {plan.seconds:g} --seconds 0"
