"""What must be so in channels: who is in them, as each member is told, and what was said there.

A member of a channel is to it what a user is to everyone, so the rules of presence are asked about it, of a trace in
which whoever is let into the channel comes online. Pure, like `truth`; times are milliseconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, count

import msgspec

from chaos.trace import (
    OFFLINE,
    OFFLINE_EVENT,
    ONLINE_EVENT,
    Abandoned,
    Answer,
    Heard,
    Joined,
    Left,
    Lost,
    Member,
    Message,
    Parted,
    Record,
    Rule,
    Up,
    Violation,
    pictures,
)
from chaos.truth import INFINITY, PROMPT, RECOVERY, Facts, Impairment, hears_by, leaves, sessions

ONLINE = "online"
_OF_PRESENCE = {Rule.LATE: Rule.MEMBERS, Rule.FALSE_OFFLINE: Rule.REMOVED}
"""How rules of presence are called that are broken in a channel."""


class Spoken(msgspec.Struct, frozen=True):
    """A message that a node took."""

    begun: float
    """When it was first sent."""
    at: float
    """When a node had said so."""
    channel: str
    number: int


def as_presence(
    records: Iterable[Record], channel: str, users: Collection[str], is_late: Callable[[int, float], bool]
) -> Iterator[Record]:
    """What a channel's clients were told of its members, as if it were everybody who is online.

    Versions are counted anew, over all clients: of channels nobody is told any.

    Args:
        records: the trace of the clients that are to be in it.
        channel: which.
        users: all who may be in it.
        is_late: whether what a node tells at a time may have been long before, whatever its timestamp says: one that
            was away takes it from a snapshot.
    """
    versions = count(1)
    up: dict[str, Up] = {}
    inside: set[str] = set()
    for record in records:
        client = record.client
        match record:
            case Up():
                up[client] = record
            case Joined() if record.channel == channel and client in up:
                if client not in inside:
                    inside.add(client)
                    yield Up(record.at, client, up[client].node, record.again)
                told = [(user, next(versions), ONLINE if user in record.members else OFFLINE) for user in users]
                yield Answer(record.at, client, told)
            case Member() if record.channel == channel and client in inside:
                event, status = (ONLINE_EVENT, ONLINE) if record.added else (OFFLINE_EVENT, OFFLINE)
                stamp = 0.0 if is_late(up[client].node, record.at) else record.stamp
                yield Heard(record.at, client, event, record.user, next(versions), status, stamp)
            case Parted() if record.channel == channel and client in inside:
                inside.discard(client)
                yield Lost(record.at, client, "parted")
            case Left() | Lost() if client in inside:
                inside.discard(client)
                yield record
            case Left() | Lost() if client in up:  # the gateway may have let it in
                yield Abandoned(record.at, client, up[client].node, up[client].at)
            case Abandoned():
                yield record
            case _:
                pass


def early(records: Iterable[Record]) -> Iterator[Violation]:
    """Members whom a client was told of before it was told that it is in their channel."""
    inside: set[tuple[str, str]] = set()
    for record in records:
        match record:
            case Joined(client=client, channel=channel):
                inside.add((client, channel))
            case Up() | Left() | Lost():
                inside = {each for each in inside if each[0] != record.client}
            case Parted(client=client, channel=channel):
                inside.discard((client, channel))
            case Member(client=client, channel=channel) if (client, channel) not in inside:
                detail = f"{record.user} {'came' if record.added else 'went'}, in {channel}"
                yield Violation(Rule.EARLY, record.at, record.user, client, detail)
            case _:
                pass


def membership(
    facts: Facts,
    records: Sequence[Record],
    channel: str,
    owners: Mapping[str, str],
    sees: Callable[[str, str], bool],
    end: float,
    *,
    settled: bool = True,
) -> tuple[list[float], list[Violation]]:
    """Check all that a channel's clients were told of its members.

    Args:
        facts: what was done to the nodes.
        records: the trace of all clients.
        channel: which.
        owners: of each client that is to be in it, whose it is.
        sees: whether a viewer may see a user.
        end: until when the trace is.
        settled: whether all is quiet then, and everyone must know who is there.

    Returns:
        How long after its node's death each member's going came to each other; and what breaks a rule.
    """
    users = sorted(set(owners.values()))
    mine = [record for record in records if record.client in owners]
    trace = list(as_presence(mine, channel, users, lambda node, at: facts.deaf(node, at, at)))
    inside = msgspec.structs.replace(
        facts,
        sessions=sessions(trace, owners),
        moody=frozenset(),
        watches={
            client: frozenset(user for user in users if user == owner or sees(owner, user))
            for client, owner in owners.items()
        },
    )
    drawn = pictures(trace, inside.blind)
    found = [violation for picture in drawn.values() for violation in picture.violations]
    took, late = leaves(inside, trace, drawn, end)
    found += [*inside.false_offlines(trace), *late]
    here = [session for session in inside.sessions if session.greeted and session.end == INFINITY]
    there = {session.user for session in here}
    for session in here if settled else ():
        for user in sorted(inside.watches[session.client]):
            known = drawn[session.client].known(user)
            if known is not None and (known.status != OFFLINE) != (user in there):
                detail = (
                    f"knows {known.status} since {known.at:.0f}, and the user is {'' if user in there else 'not '}in"
                )
                found.append(Violation(Rule.MEMBERS, end, user, session.client, detail))
    return took, [
        msgspec.structs.replace(
            one, rule=_OF_PRESENCE.get(one.rule, one.rule), detail=f"member of {channel}: {one.detail}"
        )
        for one in found
    ]


def outside(records: Iterable[Record], channels: Mapping[str, Sequence[str]], end: float) -> Iterator[Violation]:
    """Clients that are connected in the end, and not in a channel that they had asked to be in."""
    inside: dict[str, set[str]] = {}
    for record in records:
        match record:
            case Up(client=client):
                inside[client] = set()
            case Left() | Lost():
                inside.pop(record.client, None)
            case Joined(client=client, channel=channel) if client in inside:
                inside[client].add(channel)
            case Parted(client=client, channel=channel) if client in inside:
                inside[client].discard(channel)
            case _:
                pass
    for client, has in inside.items():
        if missing := sorted(set(channels.get(client, ())) - has):
            yield Violation(Rule.STUCK, end, "", client, f"not in {', '.join(missing)}")


def rosters(told: Mapping[int, Collection[str]], there: Collection[str], at: float) -> Iterator[Violation]:
    """Check what each node says of who is in a channel, in the end."""
    for node, members in told.items():
        if set(members) != set(there):
            detail = f"node {node} has {sorted(set(members) - set(there))} too much, and lacks"
            yield Violation(Rule.MEMBERS, at, "", "", f"{detail} {sorted(set(there) - set(members))}")


# What is said


def repeated(
    facts: Facts, records: Iterable[Record], losses: Sequence[Impairment], spoken: Iterable[Spoken]
) -> Iterator[Violation]:
    """Messages that a client heard twice. A store that lost its data does not know what it has said before."""
    heard: set[tuple[str, str, int]] = set()
    for stay, record in _hearings(facts, records, losses, spoken):
        key = (stay, record.channel, record.number)
        if key in heard:
            yield Violation(Rule.REPEATED, record.at, "", record.client, f"{record.number} in {record.channel}")
        heard.add(key)


def shuffled(
    facts: Facts, records: Iterable[Record], losses: Sequence[Impairment], spoken: Iterable[Spoken]
) -> Iterator[Violation]:
    """Messages that came to one client in another order than to another."""
    orders: dict[str, dict[str, dict[int, int]]] = {}
    last: dict[str, Message] = {}
    for stay, record in _hearings(facts, records, losses, spoken):
        order = orders.setdefault(record.channel, {}).setdefault(stay, {})
        order.setdefault(record.number, len(order))
        last[stay] = record
    for channel, by_stay in orders.items():
        for (one, first), (other, second) in combinations(by_stay.items(), 2):
            common = sorted(first.keys() & second.keys(), key=first.__getitem__)
            if common != sorted(common, key=second.__getitem__):
                detail = f"in {channel}: {common} to {last[one].client}"
                yield Violation(Rule.SHUFFLED, last[other].at, "", last[other].client, detail)


def _hearings(
    facts: Facts, records: Iterable[Record], losses: Sequence[Impairment], spoken: Iterable[Spoken]
) -> Iterator[tuple[str, Message]]:
    """What was heard, with a name of the client's stay at nodes that were not behind.

    Whoever comes anew to a node that was away may hear from it what another has told before.
    """
    doubtful = {(one.channel, one.number) for one in spoken if _around(losses, one.begun, one.at)}
    stays: dict[str, int] = {}
    trace = list(records)
    anew = _anew(trace)
    for place, record in enumerate(trace):
        match record:
            case Up(client=client, node=node, at=at) if place in anew and any(
                each.node in (None, node) and each.begin <= at <= each.end + RECOVERY for each in facts.impairments
            ):
                stays[client] = stays.get(client, 0) + 1
            case Message() if (record.channel, record.number) not in doubtful:
                yield f"{record.client} {stays.get(record.client, 0)}", record
            case _:
                pass


def _anew(trace: Sequence[Record]) -> set[int]:
    """Where in a trace connections begin that recover nothing: these hear before they are told that they may."""
    again: dict[str, bool] = {}
    found: set[int] = set()
    for place in reversed(range(len(trace))):
        match trace[place]:
            case Joined() as joined:
                again[joined.client] = joined.again
            case Up(client=client) if not again.pop(client, True):
                found.add(place)
            case _:
                pass
    return found


def unheard(
    facts: Facts, records: Sequence[Record], spoken: Sequence[Spoken], losses: Sequence[Impairment], end: float
) -> Iterator[Violation]:
    """Messages that did not come to a client which was in their channel, or was put back into it."""
    by_client: dict[str, list[Record]] = {}
    for record in records:
        by_client.setdefault(record.client, []).append(record)
    for client, own in by_client.items():
        heard = {(each.channel, each.number) for each in own if isinstance(each, Message)}
        missing = [one for one in spoken if (one.channel, one.number) not in heard]
        for channel in sorted({one.channel for one in missing}):
            for node, begin, until in _stays(own, channel, end):
                for one in missing:
                    due = hears_by(facts, node, one.at)
                    there = one.channel == channel and begin < one.begun and due < until
                    if there and not _around(losses, one.begun, due):
                        detail = f"{one.number} in {channel}, said at {one.at:.0f}"
                        detail = f"{detail}; there from {begin:.0f} to {until:.0f}"
                        yield Violation(Rule.UNHEARD, due, "", client, detail)


def _stays(records: Iterable[Record], channel: str, end: float) -> Iterator[tuple[int, float, float]]:
    """By which node, in the end, from when and to when one client was in a channel; what it recovers goes on."""
    node = last = 0
    begin: float | None = None
    until: float | None = None
    for record in records:
        match record:
            case Up():
                node = record.node
                # What begins anew may recover, later, what it asked for and was not answered: no stay from before it.
                if begin is not None and until is not None and not record.recovered:
                    yield last, begin, until
                    begin = until = None
            case Joined() if record.channel == channel:
                if begin is None or (until is not None and not record.again):
                    if begin is not None and until is not None:
                        yield last, begin, until
                    begin = record.at
                until = None
            case Parted() if record.channel != channel:
                pass
            case Parted() | Left() | Lost() if until is None:
                last, until = node, record.at
            case _:
                pass
    if begin is not None:
        yield (node, begin, end) if until is None else (last, begin, until)


def _around(losses: Iterable[Impairment], begin: float, end: float) -> bool:
    """Whether the store may have lost what was said in a time, or what it knew of it."""
    return any(each.begin - PROMPT <= end and begin <= each.end + RECOVERY for each in losses)
