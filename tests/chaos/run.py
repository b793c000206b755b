"""One run: a world, people who come and go in it, a plan of faults, and the judgement of what everybody saw."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import msgspec
from aiohttp import web
from conftest import ROOT
from receivers import Answers, Call, Receiver, receiver

from chaos.channels import early, membership, outside, repeated, rosters, shuffled, unheard
from chaos.clients import Client
from chaos.faults import FAULTS, Strike, mixed, overlapping, strike
from chaos.node import SHY, STRANGER, may_see
from chaos.promises import (
    STATUSES,
    disorder,
    exported,
    history,
    revoked,
    sightings,
    statuses,
    undelivered,
    unhidden,
    unwatched,
    without_own,
)
from chaos.trace import Record, Rule, Violation, divergences, pictures
from chaos.truth import Facts, Truth, agreement, leaves, missed, sessions
from chaos.world import EXPORTS, TIMING, Backend, World, now, until
from gateway.runtime.tasks import end as end_tasks

EVIDENCE = ROOT / "tests" / "output" / "chaos"
"""Where the trace and the logs of a run are kept that found a violation."""
NODES = 3
JOIN = 30.0
"""Seconds until every client must be connected, at the beginning and when all is mended."""
QUIET = TIMING.detection / 1000
"""Seconds until everyone must agree, after the last that happened."""
SKEW = 5.0
KILLED_AT = 15
"""Requests to the receiver before the one in whose middle its sender is killed."""
WEBHOOKS = 60.0
"""Seconds in which the receiver of webhooks must have everything, after all is mended."""
MOODY, WATCHERS, WATCHED, REVOKED = 3, 3, 10, 2
PRESENCE, PUBLIC = "presence-room-a", "room-b"
"""The channels that some are in."""
SPEAKERS = 2
"""Who say something there, each one message after the other."""
INSIDE = 30
"""Of so many people some are in channels, of each kind, with two tabs at most; more would be another test."""
EMPTY = 4.0
"""Seconds until no channel may be occupied, after the last has said goodbye."""


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
    webhooks: bool = False
    """Whether a receiver of webhooks and an export run along, and it is the nodes that do them which are broken."""


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
    found["webhooks"] = Scenario(
        "webhooks", "kill -9 of the nodes that send webhooks, and export", faults=("kill",), people=60, webhooks=True
    )
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
    """``open``, ``goodbye``, ``drop``, ``vanish``, ``choose`` or ``revoke``."""
    client: str
    status: str = ""
    """Which one it sets by hand."""


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
    ruled: bool
    """Whether the nodes have a rule about who may see whom: what they tell then goes another way than without."""

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
        more = _onlookers([each.user for each in clients], random.Random(f"{seed} and more"))  # leaves the others be
        clients += more
        moves += _choices(more, random.Random(f"{seed} and moods"), seconds)
        moves += _revocations(more, random.Random(f"{seed} and tokens"), seconds)
        moves.sort(key=lambda one: one.at)
        callers = _callers(random.Random(f"{seed} and doors"))
        clients += callers
        calling = [each for each in callers if each.name.endswith("/goes")]
        moves = sorted([*moves, *_moves(calling, random.Random(f"{seed} and calls"), seconds)], key=lambda one: one.at)
        skew = None
        if scenario.skewed or (scenario.name in MIXED and chance.random() < 0.5):
            others = [node for node in range(NODES) if not scenario.skewed or all(one.node != node for one in strikes)]
            skew = chance.choice(others), chance.choice((-SKEW, SKEW))
        ruled = random.Random(f"{seed} of {scenario.name}").random() < 0.5
        return cls(scenario, seed, seconds, tuple(clients), tuple(moves), tuple(strikes), skew, ruled)

    def may_see(self, viewer: str, user: str) -> bool:
        """Whether a user may see another."""
        return not self.ruled or may_see(viewer, user)

    @property
    def moody(self) -> frozenset[str]:
        """Who sets a status by hand."""
        return frozenset(client.user for client in self.clients if client.user.startswith("mood"))

    @property
    def unjudged(self) -> frozenset[str]:
        """Who may be offline to others while a connection lives, or at once when it ends."""
        return self.moody | {client.user for client in self.clients if client.user.startswith("outcast")}

    @property
    def watches(self) -> dict[str, frozenset[str]]:
        """Of whom a client hears; one that is not here hears of everyone."""
        users = frozenset(client.user for client in self.clients)
        heard = {}
        for client in self.clients:
            if client.door != "native":
                heard[client.name] = frozenset[str]()
                continue
            theirs = frozenset(client.watches) or users - ({client.user} & self.moody)
            seen = frozenset(user for user in theirs if self.may_see(client.user, user))
            if seen != users:
                heard[client.name] = seen
        return heard

    def inside(self, channel: str) -> dict[str, str]:
        """The clients that are in a channel while they are connected, and whose they are."""
        return {client.name: client.user for client in self.clients if channel in client.channels}

    def __str__(self) -> str:
        clock = f", the clock of node {self.skew[0]} {self.skew[1]:+g} s" if self.skew else ""
        rule = ", a rule hides some from some" if self.ruled else ""
        counts = f"{len(self.clients)} clients, {len(self.moves)} moves"
        head = f"{self.scenario.name}, seed {self.seed}: {counts}{clock}{rule}"
        return "\n  ".join([head, *map(str, self.strikes)])


def _population(scenario: Scenario, chance: random.Random) -> list[Client]:
    """A third stays and goes to another node where its own is away; a third is bound to one; a third comes and goes."""
    clients = []
    for number in range(scenario.people):
        kind = ("resident", "bound", "guest")[number % 3]
        user = f"{kind}-{number}{_trait(number)}"
        tabs = max(scenario.tabs, 2 if kind != "bound" and chance.random() < 0.3 else 1)
        clients += [
            Client(
                name=f"{user}/{tab}",
                user=user,
                node=chance.randrange(NODES) if kind != "bound" else number // 3 % NODES,
                pinned=kind == "bound",
                polling=chance.random() < 0.2,
                channels=(PRESENCE, PUBLIC) if number < INSIDE and number % 5 < 2 and tab < 2 else (),
            )
            for tab in range(tabs)
        ]
    return clients


def _trait(number: int) -> str:
    """What the rule goes by: some of each kind are hidden, and from some of each kind."""
    return f"-{SHY}" if number % 4 == 1 else f"-{STRANGER}" if number % 8 == 2 else ""


def _onlookers(users: Sequence[str], chance: random.Random) -> list[Client]:
    """Some who set their status by hand, some who watch a few of all users, and some whose tokens are revoked."""
    moody = [f"mood-{number}{_trait(number)}" for number in range(MOODY)]
    others = sorted({*users, *moody})
    outcasts = [f"outcast-{number}{_trait(number)}" for number in range(REVOKED)]
    watchers = [
        (f"watcher-{number}{_trait(number)}", tuple(chance.sample(others, WATCHED))) for number in range(WATCHERS)
    ]
    return [
        Client(name=f"{user}/0", user=user, node=chance.randrange(NODES), watches=watches)
        for user, watches in [*((user, ()) for user in [*moody, *outcasts]), *watchers]
    ]


def _callers(chance: random.Random) -> list[Client]:
    """Some who use Laravel Echo, some who use pusher-js, one who uses both; of each kind one comes and goes."""
    made = [
        ("laravel-0", "echo", "stays"),
        (f"laravel-1-{SHY}", "echo", "goes"),
        ("pusher-0", "pusher", "stays"),
        (f"pusher-1-{STRANGER}", "pusher", "goes"),
        ("both-0", "echo", "stays"),
        ("both-0", "pusher", "goes"),
    ]
    return [
        Client(
            name=f"{user}/{door}/{what}",
            user=user,
            node=chance.randrange(NODES),
            # Laravel Echo is not told that it is in a channel which has no members.
            channels=(PRESENCE,) if door == "echo" else (PRESENCE, PUBLIC),
            door=door,
        )
        for user, door, what in made
    ]


def _choices(clients: Sequence[Client], chance: random.Random, seconds: float) -> list[Move]:
    """The moody set another status every now and then."""
    moves = []
    for client in clients:
        at = chance.uniform(0, 2)
        while client.user.startswith("mood") and at < seconds:
            moves.append(Move(at, "choose", client.name, chance.choice(STATUSES)))
            at += 0.2 + chance.expovariate(1 / 2.5)
    return moves


def _revocations(clients: Sequence[Client], chance: random.Random, seconds: float) -> list[Move]:
    """The tokens of some are revoked at one time or another."""
    outcasts = [client for client in clients if client.user.startswith("outcast")]
    return [Move(chance.uniform(0, seconds), "revoke", client.name) for client in outcasts]


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
    webhooks: tuple[int, int] = (0, 0)
    """How many events the receiver took, and how often it took one."""
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
    async with AsyncExitStack() as stack:
        hook: Receiver | None = None
        if plan.scenario.webhooks:
            hook = await stack.enter_async_context(receiver())
        world = await stack.enter_async_context(
            World.start(plan.scenario.backend, users, folder, count=NODES, skew=plan.skew, hook=hook, ruled=plan.ruled)
        )
        if hook is not None:
            hook.answers = _unwilling(hook, world, random.Random(plan.seed))
        stuck: list[Violation] = []
        truth: Truth | None = None
        hooked: list[Violation] = []
        told, up, occupied = dict[int, list[str]](), set[str](), dict[int, list[str]]()
        try:
            await _live(world, plan)
            truth = await _settle(world, users, plan.moody)
            told, up = await world.members(PRESENCE), set(world.clients.up)
            if hook is not None:
                await _all_taken(hook, folder / EXPORTS, truth)
                hooked = [*_of_webhooks(hook, truth), *_of_export(folder / EXPORTS, truth)]
            occupied = await _emptied(world)
        except TimeoutError as error:
            stuck.append(Violation(Rule.STUCK, now(), "", "", str(error)))
        outcome = judge(plan, world, truth)
        if truth is not None:
            inside = plan.inside(PRESENCE)
            there = {inside[client] for client in up if client in inside}
            outcome.violations += rosters(told, there, truth.at)
            outcome.violations += [
                Violation(Rule.OCCUPIED, now(), "", "", f"node {node}: {', '.join(names)}")
                for node, names in occupied.items()
                if names
            ]
        if hook is not None:
            outcome.violations += hooked if truth is not None else _of_webhooks(hook, truth)
            outcome.webhooks = len(hook.taken()), sum(each.taken for each in hook.calls)
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
            elif one.verb == "choose":
                world.clients.tell("choose", client=one.client, status=one.status)
            elif one.verb == "revoke":
                wanted.discard(one.client)
                group.create_task(world.revoke(by_name[one.client].user, random.Random(one.at)))
            else:
                world.clients.tell(one.verb, client=one.client)
                if one.verb != "drop":
                    wanted.discard(one.client)

    strikes = plan.strikes
    if plan.scenario.webhooks:  # which nodes these are, no plan can say
        busy = sorted({await world.on_duty("webhooks"), await world.on_duty("export")})
        strikes = tuple(replace(one, node=node) for one in strikes for node in busy)
    guests = sorted({client.user for client in plan.clients if client.user.startswith("guest")})
    numbers = count(1)
    talking = [asyncio.create_task(world.notify(guests, random.Random(plan.seed)))]
    for place in range(SPEAKERS):
        chance = random.Random(f"{plan.seed} says {place}")
        speaking = world.speak(f"speaker-{place}", (PRESENCE, PUBLIC), numbers, chance)
        talking.append(asyncio.create_task(speaking))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(move())
            group.create_task(strike(world, strikes, begin))
    finally:
        await end_tasks(talking)
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


async def _settle(world: World, users: Sequence[str], moody: frozenset[str]) -> Truth:
    """Wait until nothing is to come, let every client look once more, and ask for the truth."""
    await asyncio.sleep(QUIET)
    world.clients.tell("look")
    await asyncio.sleep(1.0)
    return await world.truth(users, moody)


async def _emptied(world: World) -> dict[int, list[str]]:
    """Let everybody say goodbye, and ask which channels are occupied all the same."""
    occupied: dict[int, list[str]] = {}

    async def empty() -> bool:
        occupied.update(await world.occupied())
        return not any(occupied.values())

    world.clients.tell("leave")
    with suppress(TimeoutError):  # what is left is judged
        await until(empty, "no channel is occupied", within=EMPTY)
    return occupied


def _unwilling(hook: Receiver, world: World, chance: random.Random) -> Answers:
    """A receiver that takes its time and refuses now and then; the sender is killed while it waits for an answer."""

    async def answers(_call: Call) -> web.Response | None:
        if len(hook.calls) > KILLED_AT and not world.impairments:
            while not world.impairments:  # noqa: ASYNC110 - nobody else has to know of it
                await asyncio.sleep(0.01)
            return None
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        return web.Response(status=500) if chance.random() < 0.1 else None

    return answers


async def _all_taken(hook: Receiver, exports: Path, truth: Truth) -> None:
    """Wait for what is still to be sent, and to be exported."""

    async def taken() -> bool:
        return not (
            any(hook.missing(user, version) for user, (version, _status) in truth.store.items())
            or _of_export(exports, truth)
        )

    with suppress(TimeoutError):  # what is missing is judged
        await until(taken, "every transition was told to the receiver, and exported", within=WEBHOOKS)


def _of_webhooks(hook: Receiver, truth: Truth | None) -> list[Violation]:
    """What breaks the promise of webhooks: none lost, repeated by the same id only, each user's in order."""
    found = [Violation(Rule.WEBHOOK, now(), "", "", detail) for detail in hook.violations()]
    for user, (version, _status) in truth.store.items() if truth is not None else ():
        if lost := hook.missing(user, version):
            found.append(Violation(Rule.WEBHOOK, now(), user, "", f"never taken: {sorted(lost)} of {version}"))
    return found


def _of_export(path: Path, truth: Truth | None) -> list[Violation]:
    """What breaks the promise of an export: each change once."""
    if truth is None:
        return []
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT user_id, version FROM presence_transitions ORDER BY position").fetchall()
        gaps = database.execute("SELECT reason FROM presence_gaps").fetchall()
    found = [Violation(Rule.EXPORT, truth.at, "", "", f"a gap: {reason}") for (reason,) in gaps]
    return [*found, *exported(rows, truth)]


def judge(plan: Plan, world: World, truth: Truth | None) -> Outcome:
    """Check every rule."""
    owners = {client.name: client.user for client in plan.clients}
    last = truth.at if truth is not None else now()  # who goes after that was told to
    ordered = sorted((one for one in world.clients.records if one.at <= last), key=lambda record: record.at)
    records: list[Record] = [*without_own(ordered, owners, plan.moody)]
    facts = Facts(
        timing=TIMING,
        sessions=sessions(records, owners),
        impairments=world.impairments,
        wall=time.time() * 1000 - now(),
        skewed=world.skewed is not None,
        moody=plan.unjudged,
        watches=plan.watches,
    )
    end = last
    drawn = pictures(records, facts.blind)
    outcome = Outcome(plan, records=len(records))
    outcome.leaves, late = leaves(facts, records, drawn, end)
    outcome.violations = [violation for picture in drawn.values() for violation in picture.violations]
    outcome.violations += [*divergences(records), *facts.false_offlines(records), *late]
    outcome.violations += missed(facts, records, drawn, end)
    outcome.violations += [*unwatched(facts, records), *sightings(facts, records, owners)]
    outcome.violations += unhidden(ordered, owners, plan.may_see)
    outcome.violations += disorder(records, world.sent)
    outcome.violations += undelivered(facts, records, owners, world.sent, lost_before=world.lost_before())
    if truth is not None:
        outcome.violations += [*agreement(facts, drawn, truth), *statuses(records, owners, truth), *history(truth)]
        outcome.violations += revoked(facts, world.revoked, truth, world.losses())
    outcome.violations += of_channels(plan, world, facts, ordered, end, settled=truth is not None)
    return outcome


def of_channels(
    plan: Plan, world: World, facts: Facts, records: Sequence[Record], end: float, *, settled: bool
) -> Iterator[Violation]:
    """Check what clients were told of channels."""
    yield from early(records)
    inside = plan.inside(PRESENCE)
    _took, found = membership(facts, records, PRESENCE, inside, plan.may_see, end, settled=settled)
    yield from found
    if settled:
        yield from outside(records, {client.name: client.channels for client in plan.clients}, end)
    losses = world.losses()
    yield from repeated(facts, records, losses, world.spoken)
    yield from shuffled(facts, records, losses, world.spoken)
    yield from unheard(facts, records, world.spoken, losses, end)


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
