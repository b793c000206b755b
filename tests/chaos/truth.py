"""What must have been, from the clients' side and the faults: who was there, who was gone, and who had to hear of it.

Pure, like `trace`: no clock, no I/O; times are milliseconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from chaos.trace import (
    OFFLINE,
    Abandoned,
    Heard,
    Left,
    Lost,
    Picture,
    Record,
    Rule,
    Up,
    Violation,
)

INFINITY = float("inf")

RENEWAL = 1_000.0
"""How much of a lease may have passed at its node's last sign of life."""
RECOVERY = 2_000.0
"""How long a node that was cut off may take to be itself again."""
PROMPT = 2_000.0
"""How long anything may take that nothing holds up: the contract's "+ 2 s"."""
FAR = 1_000.0
"""How much later the store may hear of something by a node that is far from it: what was said before is under way."""
NETTING = 1_000.0
"""Changes of one user within this long may go out as their net effect: the flush interval, and a busy machine."""
PRECISION = 120.0
"""How well a timestamp, which goes by the store's clock, and a client's own clock agree."""
HEARING = 1_000.0
"""How long after its commit a change is heard by the first client, where its timestamp cannot be believed."""


class Harm(StrEnum):
    """What a fault does, as far as the rules care."""

    KILLED = "killed"
    STOPPED = "stopped"
    CUT_OFF = "cut off from the store"
    SHAKEN = "its connections to the store break"
    SLOWED = "far from the store"
    STORE_AWAY = "store away"


class Impairment(msgspec.Struct, frozen=True):
    """A time in which a node, or the store, could not do its work."""

    harm: Harm
    begin: float
    end: float = INFINITY
    node: int | None = None
    """None for the store, which is everyone's."""


class Timing(msgspec.Struct, frozen=True):
    """The gateways' settings, in milliseconds."""

    lease: float
    grace: float

    @property
    def detection(self) -> float:
        """Within what a dead node's users are told to be offline: the contract's section 3."""
        return self.lease + self.grace + PROMPT


class Session(msgspec.Struct, frozen=True):
    """One connection as its client saw it."""

    client: str
    user: str
    node: int
    begin: float
    end: float = INFINITY
    goodbye: bool = False
    greeted: bool = True
    """False for one that the client gave up before: nobody knows whether there was a connection."""


Interval = tuple[float, float]


def sessions(records: Iterable[Record], users: Mapping[str, str]) -> list[Session]:
    """The connections in a trace.

    Args:
        records: the trace of all clients.
        users: whose each client is.
    """
    open_: dict[str, Session] = {}
    found: list[Session] = []
    for record in records:
        match record:
            case Up():
                open_[record.client] = Session(record.client, users[record.client], record.node, record.at)
            case Abandoned(client=client, node=node, since=since):
                found.append(Session(client, users[client], node, since, record.at, greeted=False))
            case Left() | Lost():
                session = open_.pop(record.client, None)
                if session is not None:
                    goodbye = isinstance(record, Left)
                    found.append(msgspec.structs.replace(session, end=record.at, goodbye=goodbye))
            case _:
                pass
    return [*found, *open_.values()]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that touch, as one."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def without(interval: Interval, hole: Interval) -> Iterator[Interval]:
    """What is left of an interval."""
    if hole[0] > interval[0]:
        yield interval[0], min(interval[1], hole[0])
    if hole[1] < interval[1]:
        yield max(interval[0], hole[1]), interval[1]


class Facts(msgspec.Struct, frozen=True):
    """All that the harness knows of a run without asking a gateway."""

    timing: Timing
    sessions: Sequence[Session]
    impairments: Sequence[Impairment] = ()
    wall: float = 0.0
    """Unix milliseconds minus those of the monotonic clock."""
    skewed: bool = False
    """True where a node's clock is wrong: timestamps tell nothing then."""
    moody: frozenset[str] = frozenset()
    """Users who set their status by hand: what others see of them is not whether they are there."""
    watches: Mapping[str, frozenset[str]] = {}
    """Whom a client watches; one that is not here hears of everyone."""

    def hears(self, client: str, user: str) -> bool:
        """Whether a client is told of a user."""
        return client not in self.watches or user in self.watches[client]

    def of_node(self, node: int, *harms: Harm) -> list[Impairment]:
        return [each for each in self.impairments if each.node == node and each.harm in harms]

    def hampering(self, node: int) -> list[Impairment]:
        """What kept a node from its work. One that is only far from the store does it, if later."""
        return [each for each in self.impairments if each.node in (node, None) and each.harm is not Harm.SLOWED]

    @property
    def outages(self) -> list[Impairment]:
        return [each for each in self.impairments if each.harm is Harm.STORE_AWAY]

    def died_at(self, session: Session, slack: float = 0.0) -> float | None:
        """When a session's node was killed under it, or `slack` after its end; None where it was not."""
        kills = self.of_node(session.node, Harm.KILLED)
        return min((kill.begin for kill in kills if session.begin <= kill.begin <= session.end + slack), default=None)

    def recovered(self, node: int, at: float) -> float:
        """When a node was itself again that was impaired at a time; one impairment may follow upon another."""
        for each in sorted(self.hampering(node), key=lambda one: one.begin):
            if each.begin <= at < each.end + RECOVERY:
                at = each.end + RECOVERY
        return at

    def impaired_since(self, node: int, at: float) -> float:
        """When it began that a node was impaired at a time, or had just been; that time where it was not."""
        for each in sorted(self.hampering(node), key=lambda one: one.begin, reverse=True):
            if each.begin <= at <= each.end + RECOVERY:
                at = each.begin
        return at

    def blind(self, node: int, at: float) -> bool:
        """Whether a node may have told at a time what was before, because it could not read the store."""
        harms = (Harm.CUT_OFF, Harm.SHAKEN, Harm.STORE_AWAY)
        return any(
            each.harm in harms and each.begin <= at <= self.recovered(node, each.end) for each in self.hampering(node)
        )

    # Who was surely there

    def present(self, user: str) -> list[Interval]:
        """When nothing may have told a user to be offline: each session, and the hold after it.

        Where a node is cut off or stopped, its sessions count for as long as its lease surely did, and again once it
        has recovered. The store's outages take nothing away: presence freezes then.
        """
        pieces: list[Interval] = []
        # Who went before they were greeted may have been let in all the same, and their goodbye ends a hold.
        alive = {session: self._alive_until(session) for session in self.sessions if session.user == user}
        for session, end in alive.items():
            if not session.greeted:
                continue
            goodbye = session.goodbye and end == session.end
            until = end if goodbye else self._held_until(session, end, alive)
            pieces += self._while_node_was_there(session, (session.begin, until), alive)
        return union(pieces)

    def _alive_until(self, session: Session) -> float:
        """Until when the store surely takes a session for alive."""
        died = self.died_at(session)
        return session.end if died is None else died + self.timing.lease - RENEWAL

    def _told_by(self, session: Session, end: float) -> float:
        """By when the store knows of a session's end: a goodbye to a node that is away comes when it is back."""
        if not session.goodbye:
            return end
        far = any(each.begin <= end <= each.end for each in self.of_node(session.node, Harm.SLOWED))
        return self.recovered(session.node, end) + (FAR if far else 0.0)

    def _held_until(self, session: Session, lost: float, alive: Mapping[Session, float]) -> float:
        """Until when a user is there whose session was lost: what ended the last one decides, and ends this one's."""
        held = lost + self.timing.grace
        later = [
            max(lost, end)
            for one, end in alive.items()
            # Of two that end at once by different nodes, the store may hear in either order.
            if one is not session and one.begin <= held and self._told_by(one, end) > lost - PRECISION
        ]
        return min([held, *later])

    def _while_node_was_there(
        self, session: Session, interval: Interval, alive: Mapping[Session, float]
    ) -> list[Interval]:
        died = self.died_at(session)
        slowed = self.of_node(session.node, Harm.SLOWED)
        pieces = [interval]
        for each in self.of_node(session.node, Harm.STOPPED, Harm.CUT_OFF):
            if each.begin < session.end:
                # Of a session that began while its node was away nobody knew; one that was killed then stays away.
                least = self._held_until(session, each.begin + self.timing.lease - RENEWAL, alive)
                since = least if session.begin < each.begin else session.begin
                hole = (
                    since,
                    INFINITY if died is not None and died >= each.begin else self.recovered(session.node, each.end),
                )
                if hole[0] < hole[1]:
                    pieces = [left for piece in pieces for left in without(piece, hole)]
        for outage in self.outages:
            # Who came meanwhile is known to their node alone, which says so when the store is back. Others wait for it
            # with what may be a user's last goodbye, but not for one that is far from the store.
            far = any(each.begin <= outage.end and outage.begin <= each.end for each in slowed)
            if far and outage.begin <= session.begin < outage.end:
                hole = (session.begin, outage.end if outage.end < session.end else INFINITY)
                pieces = [left for piece in pieces for left in without(piece, hole)]
        return pieces

    def false_offlines(self, records: Iterable[Record]) -> Iterator[Violation]:
        """Offlines of users who were surely there when they were committed."""
        first: dict[tuple[str, int], Heard] = {}
        for record in records:
            if isinstance(record, Heard) and record.status == OFFLINE:
                first.setdefault((record.user, record.version), record)
        for heard in first.values():
            if heard.user in self.moody:
                continue
            begin, end = self._committed(heard)
            for there in self.present(heard.user):
                if there[0] <= begin and end <= there[1]:
                    committed = f"version {heard.version}, committed between {begin:.0f} and {end:.0f}"
                    detail = f"{committed}; there from {there[0]:.0f} to {there[1]:.0f}"
                    yield Violation(Rule.FALSE_OFFLINE, heard.at, heard.user, heard.client, detail)

    def _committed(self, heard: Heard) -> Interval:
        """Within when an event that was first heard now was committed."""
        stamp = heard.stamp - self.wall
        begin = min(heard.at, self._deaf_since(heard)) - HEARING
        if not self.skewed and begin <= stamp <= heard.at + PRECISION:
            return stamp - PRECISION, stamp + PRECISION
        for outage in self.outages:  # nobody could hear what was committed just before
            if outage.begin <= heard.at and begin <= outage.end + RECOVERY:
                begin = min(begin, outage.begin - HEARING)
        return begin, heard.at

    def _deaf_since(self, heard: Heard) -> float:
        """When a client was lost that has just come back, and is told what it missed; otherwise now."""
        mine = sorted(
            (one for one in self.sessions if one.client == heard.client and one.begin <= heard.at),
            key=lambda one: one.begin,
        )
        heard_by = [(session, heard.at) for session in mine[-1:]]
        if len(mine) > 1 and heard.at - mine[-1].begin <= HEARING:
            heard_by.append((mine[-2], mine[-2].end))
        since = min([heard.at, *(until for _session, until in heard_by)])
        # One whose node was away is told late, and perhaps alone: for others a change and the next were netted out.
        return min([since, *(self.impaired_since(session.node, until) for session, until in heard_by)])

    # Who was surely gone

    def departures(self) -> Iterator[Departure]:
        """Every time after which a user must have been told to be offline."""
        by_user: dict[str, list[Departure]] = {}
        for session in self.sessions:
            by_user.setdefault(session.user, []).extend(self._pieces(session))
        for pieces in by_user.values():
            pieces.sort(key=lambda piece: piece.begin)
            latest = pieces[0]
            for piece in pieces[1:]:
                if piece.begin > latest.due:
                    yield latest
                latest = max(latest, piece, key=lambda one: one.due)
            if latest.due < INFINITY:
                yield latest

    def _pieces(self, session: Session) -> Iterator[Departure]:
        """A session as the store may see it: it ends with its node, and again where the node comes back to it."""
        if not session.greeted:
            at = self.recovered(session.node, session.end)
            yield self._departure(session, session.begin, at, self.timing.grace + RECOVERY)
            return
        begin = session.begin
        # A node that was killed right after a goodbye may not have passed it on.
        died = self.died_at(session, PRECISION)
        for each in sorted(
            self.of_node(session.node, Harm.STOPPED, Harm.CUT_OFF, Harm.KILLED), key=lambda one: one.begin
        ):
            gone = each.harm is Harm.KILLED
            # Who came or went just as the node was cut off: nobody knows which the store heard of before.
            there = begin <= each.begin + HEARING and each.begin < session.end + PRECISION
            if (gone and each.begin == died) or (not gone and there):
                yield self._departure(session, begin, each.begin, self.timing.lease + self.timing.grace, died=True)
                if gone or each.end >= session.end:
                    # Ended while its node was away: what the node said of it came when it was back, if ever.
                    if not gone and each.end < INFINITY:
                        yield self._departure(session, each.end, each.end, self.timing.grace + RECOVERY)
                    return
                begin = each.end
        hold = 0.0 if session.goodbye else self.timing.grace
        yield self._departure(session, begin, session.end, hold)

    def _departure(self, session: Session, begin: float, at: float, hold: float, *, died: bool = False) -> Departure:
        due = at + hold + PROMPT
        for outage in sorted(self.outages, key=lambda one: one.begin):
            if outage.begin - RENEWAL <= due and outage.end >= at:
                # Leases begin anew when the store is back.
                due = max(due, outage.end + RECOVERY + self.timing.lease + hold + PROMPT)
        if all(self._is_impaired(node, at, due) for node in {one.node for one in self.sessions}):
            due += RECOVERY  # what time does is committed by any node, and nobody was whole
        return Departure(session.user, session.node, begin, at, due, died)

    def _is_impaired(self, node: int, begin: float, end: float) -> bool:
        """Whether anything at all was wrong with a node in a time."""
        return any(
            each.node == node and each.begin <= end and each.end + RECOVERY >= begin for each in self.impairments
        )

    def deaf(self, node: int, begin: float, end: float) -> bool:
        """Whether a node's clients may have heard nothing at some moment of a time."""
        return any(each.begin <= end and each.end + RECOVERY >= begin for each in self.hampering(node))


class Departure(msgspec.Struct, frozen=True):
    """The end of a user's last connection."""

    user: str
    node: int
    begin: float
    """When the presence that ended had begun."""
    at: float
    due: float
    """By when every watcher must know."""
    died: bool
    """True where it was the node that went."""


def leaves(
    facts: Facts, records: Sequence[Record], drawn: Mapping[str, Picture], until: float
) -> tuple[list[float], list[Violation]]:
    """Check that every departure was told in time, to every watcher whose own node could hear of it.

    Returns:
        How long after its node's death each user's ``user-offline`` came to each watcher; and what came too late.
    """
    took: list[float] = []
    late: list[Violation] = []
    offlines: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if isinstance(record, Heard) and record.status == OFFLINE:
            offlines.setdefault((record.client, record.user), []).append(record.at)
    for departure in facts.departures():
        if departure.due > until or departure.user in facts.moody:
            continue
        for watcher in facts.sessions:
            if not _must_hear(facts, watcher, departure):
                continue
            heard = [at for at in offlines.get((watcher.client, departure.user), []) if at >= departure.at - PRECISION]
            known = drawn[watcher.client].known(departure.user, departure.due)
            in_time = bool(heard) and heard[0] <= departure.due  # who comes back is told so only after
            if known is not None and known.status != OFFLINE and not in_time:
                detail = f"{departure.due - departure.at:.0f} ms after the last connection ended, still {known.status}"
                late.append(Violation(Rule.LATE, departure.due, departure.user, watcher.client, detail))
            if heard and departure.died:
                took.append(heard[0] - departure.at)
    return took, late


def _must_hear(facts: Facts, watcher: Session, departure: Departure) -> bool:
    """Whether a client was there for all of a departure, at a node that could hear of it."""
    there = watcher.greeted and watcher.begin < departure.at and departure.due < watcher.end
    if not there or not facts.hears(watcher.client, departure.user):
        return False
    return not facts.deaf(watcher.node, departure.at, departure.due) or _only_outages(facts, watcher, departure)


def _only_outages(facts: Facts, watcher: Session, departure: Departure) -> bool:
    """Whether all that held a watcher up is in the departure's due time already."""
    return not any(
        each.begin <= departure.due and each.end + RECOVERY >= departure.at
        for each in facts.hampering(watcher.node)
        if each.node is not None
    )


def missed(facts: Facts, records: Iterable[Record], drawn: Mapping[str, Picture], until: float) -> Iterator[Violation]:
    """Versions that one client heard of, and another, who had to, did not.

    Who knows an older version is right all the same where its status is that of a later change soon after: their net
    effect was nothing.
    """
    first: dict[tuple[str, int], Heard] = {}
    for record in records:
        if isinstance(record, Heard):
            first.setdefault((record.user, record.version), record)
    by_user: dict[str, list[Heard]] = {}
    for heard in first.values():
        by_user.setdefault(heard.user, []).append(heard)
    for session in facts.sessions:
        for heard in first.values():
            due = hears_by(facts, session.node, heard.at)
            if not (session.greeted and session.begin + PROMPT < due < min(session.end, until)):
                continue
            if not facts.hears(session.client, heard.user):
                continue
            known = drawn[session.client].known(heard.user, due)
            if known is not None and known.version >= heard.version:
                continue
            # What a node that was deaf catches up on is one net effect, too.
            together = max(heard.at + NETTING, due - PROMPT)
            netted = known is not None and any(
                later.version >= heard.version and later.at <= together and later.status == known.status
                for later in by_user[heard.user]
            )
            if not netted:
                detail = f"{heard.event} of version {heard.version}, first heard at {heard.at:.0f}; knew {known}"
                yield Violation(Rule.LOST, due, heard.user, session.client, detail)


def hears_by(facts: Facts, node: int, at: float) -> float:
    """When a node's clients must have heard what others heard."""
    due = at + PROMPT
    for each in sorted(facts.hampering(node), key=lambda one: one.begin):
        if each.begin - PROMPT <= due and each.end + RECOVERY >= at:
            due = max(due, each.end + RECOVERY + PROMPT)
    return due


class Truth(msgspec.Struct, frozen=True):
    """What the gateways say at the end, when all is quiet."""

    at: float
    views: Mapping[int, Mapping[str, tuple[int, str]]]
    """Each node's view: version and status by user."""
    store: Mapping[str, tuple[int, str]]
    """The same of the store, as others are told it."""
    ledger: Mapping[str, Sequence[tuple[int, str, str]]] = {}
    """Each user's last transitions, oldest first: version, status before, status after. Those of which the store was
    told, because it had lost them, are not among them."""
    past: Mapping[str, Sequence[tuple[str, str | None]]] = {}
    """Each user's sessions that are kept, newest first: from, and to, None for one that goes on."""
    there: Mapping[str, bool] = {}
    """Whether each user is there, as they are told themselves."""


def agreement(facts: Facts, drawn: Mapping[str, Picture], truth: Truth) -> Iterator[Violation]:
    """Check that after quiet all views, all clients and the store agree, with who is really there."""
    here = [session for session in facts.sessions if session.end == INFINITY]
    there = {session.user for session in here}
    for user, (version, status) in sorted(truth.store.items()):
        if user not in facts.moody and (status != OFFLINE) != (user in there):
            detail = f"{status}, version {version}, with {sum(one.user == user for one in here)} connections"
            yield Violation(Rule.WRONG, truth.at, user, "", detail)
        for node, view in truth.views.items():
            if view[user] != (version, status):
                detail = f"node {node} has {view[user]}, the store {(version, status)}"
                yield Violation(Rule.DISAGREE, truth.at, user, "", detail)
        for session in here:
            if not facts.hears(session.client, user):
                continue
            known = drawn[session.client].known(user)
            # An older version is a net effect of nothing; `missed` looks whether it may be.
            if known is None or known.status != status or known.version > version:
                detail = f"knows {known}, and the store has {status}, version {version}"
                yield Violation(Rule.LOST, truth.at, user, session.client, detail)
        yield from _ledger(user, truth)


def _ledger(user: str, truth: Truth) -> Iterator[Violation]:
    before: tuple[int, str, str] | None = None
    for entry in truth.ledger.get(user, ()):
        version, was, now = entry
        if before is not None and (version <= before[0] or was != before[2]):
            yield Violation(Rule.DIVERGENT, truth.at, user, "", f"the store's log has {entry} after {before}")
        if was == now:
            yield Violation(Rule.DIVERGENT, truth.at, user, "", f"the store's log has {entry}, which is no change")
        before = entry
