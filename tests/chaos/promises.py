"""What was promised besides who is there: statuses set by hand, watch lists, and notifications that wait.

Pure, like `truth`: no clock, no I/O; times are milliseconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

import msgspec

from chaos.trace import OFFLINE, Answer, Chose, Heard, Left, Lost, Notified, Record, Rule, Up, Violation, Watching
from chaos.truth import (
    INFINITY,
    PRECISION,
    PROMPT,
    RECOVERY,
    Facts,
    Harm,
    Impairment,
    Session,
    Truth,
    hears_by,
)

CLOCKS = 500.0
"""By how much the clocks of two nodes may differ: each is right to the way to the store and back, however long."""
PENDING = 10_000.0
"""How long after it was asked for something may come into force that was never answered: a node that was stopped goes
on with what had reached it."""
STATUSES = ("online", "away", "busy", "dnd", "invisible")
QUEUED = "queued"


class Sent(msgspec.Struct, frozen=True):
    """A notification that a node took."""

    at: float
    """When it had said so."""
    user: str
    number: int
    """Counts all of a run, each sent after the one before was answered."""
    method: str
    node: int
    """Which node took it."""


def seen_as(status: str) -> str:
    """What others are told of a user who is there and has set a status."""
    return OFFLINE if status == "invisible" else status


def without_own(records: Iterable[Record], owners: Mapping[str, str], moody: Collection[str]) -> Iterator[Record]:
    """The trace without what the moody are told of themselves, which is the truth and not what others see."""
    for record in records:
        owner = owners[record.client]
        if owner not in moody:
            yield record
        elif isinstance(record, Answer):
            others = [told for told in record.users if told[0] != owner]
            yield msgspec.structs.replace(record, users=others)
        elif not isinstance(record, Heard) or record.user != owner:
            yield record


def unwatched(facts: Facts, records: Iterable[Record]) -> Iterator[Violation]:
    """Events of users that a client does not watch, though its list was in force."""
    listed: set[str] = set()
    for record in records:
        match record:
            case Watching(client=client):
                listed.add(client)
            case Up() | Left() | Lost():
                listed.discard(record.client)
            case Heard(client=client, user=user) if client in listed and not facts.hears(client, user):
                yield Violation(Rule.UNWATCHED, record.at, user, client, f"{record.event}, version {record.version}")
            case _:
                pass


def unhidden(
    records: Iterable[Record], owners: Mapping[str, str], may_see: Callable[[str, str], bool]
) -> Iterator[Violation]:
    """What viewers are told of users whom they may not see, other than what is said of one never seen.

    Args:
        records: the trace of all clients.
        owners: whose each client is.
        may_see: whether a viewer may see a user.
    """
    for record in records:
        viewer = owners[record.client]
        match record:
            case Heard(user=user) if not may_see(viewer, user):
                yield Violation(Rule.HIDDEN, record.at, user, record.client, f"{record.event}, {record.status}")
            case Answer(users=users):
                for user, version, status in users:
                    if not may_see(viewer, user) and user not in record.unknown:
                        detail = f"answered {status}, version {version}"
                        yield Violation(Rule.HIDDEN, record.at, user, record.client, detail)
                if record.whole and record.count is not None and record.count != len(users):
                    detail = f"{record.count} are counted, and {len(users)} listed"
                    yield Violation(Rule.HIDDEN, record.at, "", record.client, detail)
            case _:
                pass


def statuses(records: Sequence[Record], owners: Mapping[str, str], truth: Truth) -> Iterator[Violation]:
    """Check that in the end everybody has the status that they set last."""
    for user, chosen in _choices(records, owners).items():
        sure = [one for one in chosen if one.sure]
        if not sure:
            continue
        last = sure[-1]
        possible = [last, *(one for one in chosen if not one.sure and one.since > last.since - PENDING)]
        expected = {seen_as(one.status) for one in possible}
        if truth.store[user][1] not in expected:
            detail = f"{truth.store[user][1]} in the end, and {' or '.join(sorted(expected))} was set at {last.at:.0f}"
            yield Violation(Rule.FORGOTTEN, truth.at, user, "", detail)


def history(truth: Truth) -> Iterator[Violation]:
    """Check that the sessions which are kept follow one another, and that one goes on of whoever is there."""
    for user, kept in truth.past.items():
        going_on = sum(end is None for _begin, end in kept)
        if going_on != truth.there[user]:
            detail = f"{going_on} sessions go on, and the user is {'' if truth.there[user] else 'not '}there"
            yield Violation(Rule.HISTORY, truth.at, user, "", detail)
        for (begin, _end), (_before, before_end) in pairwise(kept):
            if before_end is None or _milliseconds(before_end) > _milliseconds(begin) + CLOCKS:
                yield Violation(Rule.HISTORY, truth.at, user, "", f"from {begin}, after one until {before_end}")


def _milliseconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() * 1000


def sightings(facts: Facts, records: Sequence[Record], owners: Mapping[str, str]) -> Iterator[Violation]:
    """Events that were committed while their user was invisible, and say otherwise."""
    if facts.skewed:  # when they were committed is not known
        return
    hidden: dict[str, list[tuple[float, float]]] = {}
    for user, chosen in _choices(records, owners).items():
        for one, after in pairwise([*chosen, None]):
            assert one is not None
            doubtful = any(not each.sure and each.since > one.since - PENDING for each in chosen)
            if one.status == "invisible" and not doubtful:
                hidden.setdefault(user, []).append((one.at, INFINITY if after is None else after.since))
    for record in records:
        if isinstance(record, Heard) and record.status != OFFLINE:
            committed = record.stamp - facts.wall
            if any(begin + PRECISION < committed < end - PRECISION for begin, end in hidden.get(record.user, ())):
                detail = f"{record.event}, {record.status}, version {record.version}, committed at {committed:.0f}"
                yield Violation(Rule.SEEN, record.at, record.user, record.client, detail)


def _choices(records: Iterable[Record], owners: Mapping[str, str]) -> dict[str, list[Chose]]:
    """What each user set by hand, in the order in which it was asked for."""
    found: dict[str, list[Chose]] = {}
    for record in records:
        if isinstance(record, Chose):
            found.setdefault(owners[record.client], []).append(record)
    return {user: sorted(chosen, key=lambda one: one.since) for user, chosen in found.items()}


def revoked(
    facts: Facts, since: Mapping[str, float], truth: Truth, losses: Iterable[Impairment] = ()
) -> Iterator[Violation]:
    """Connections by tokens that were revoked, at nodes that must have heard of it.

    Args:
        facts: who was there.
        since: when a node had said of a user that the tokens are revoked.
        truth: what is so in the end.
        losses: when the store may have lost what is revoked.
    """
    losses = list(losses)
    for session in facts.sessions:
        if session.user not in since or not session.greeted:
            continue
        due = _knows_by(facts, session, since[session.user], losses)
        if max(session.begin, due) < min(session.end, truth.at):
            detail = f"from {session.begin:.0f} to {session.end:.0f}, and revoked at {since[session.user]:.0f}"
            yield Violation(Rule.REVOKED, due, session.user, session.client, detail)
    for user in since:
        if truth.there[user]:
            yield Violation(Rule.REVOKED, truth.at, user, "", "online in the end")


def _knows_by(facts: Facts, session: Session, since: float, losses: Iterable[Impairment]) -> float:
    """By when the node that a session went to must know what was revoked at a time.

    One that started when the store had just lost it knows it when the others have given it back.
    """
    due = hears_by(facts, session.node, since)
    deaths = [each for each in facts.of_node(session.node, Harm.KILLED) if each.begin < session.begin]
    if not deaths:
        return due
    last = max(deaths, key=lambda one: one.begin)
    for loss in losses:
        back = max(hears_by(facts, node, loss.end) for node in {one.node for one in facts.sessions})
        if loss.end > since and loss.begin < last.end + RECOVERY and last.begin < back:
            due = max(due, back)
    return due


def exported(rows: Iterable[tuple[str, int]], truth: Truth) -> Iterator[Violation]:
    """Check that an export has each change once, in order.

    Args:
        rows: user and version of each exported transition, by position.
        truth: up to which version each user came.
    """
    versions: dict[str, list[int]] = {}
    for user, version in rows:
        versions.setdefault(user, []).append(version)
    for user, (last, _status) in truth.store.items():
        if versions.get(user, []) != list(range(1, last + 1)):
            yield Violation(Rule.EXPORT, truth.at, user, "", f"{versions.get(user, [])}, and the store is at {last}")


def undelivered(
    facts: Facts, records: Iterable[Record], owners: Mapping[str, str], sent: Iterable[Sent], *, lost_before: float
) -> Iterator[Violation]:
    """Notifications that nobody got who was there for them.

    Args:
        facts: who was there.
        records: the trace of all clients.
        owners: whose each client is.
        sent: those that nodes took.
        lost_before: until when the store may have lost what it had said yes to.
    """
    got = {(owners[record.client], record.number) for record in records if isinstance(record, Notified)}
    here = {session.user for session in facts.sessions if session.greeted and session.end == INFINITY}
    for one in sent:
        if (one.user, one.number) in got:
            continue
        if one.method == QUEUED and one.user in here and one.at > lost_before:
            yield Violation(Rule.UNDELIVERED, one.at, one.user, "", f"number {one.number}, which was queued")
        if one.method != QUEUED and _was_there(facts, one):
            yield Violation(Rule.UNDELIVERED, one.at, one.user, "", f"number {one.number}, said to be delivered")


def _was_there(facts: Facts, sent: Sent) -> bool:
    """Whether a user was connected all the time about which a notification was sent, with nothing in its way."""
    begin, end = sent.at - 2 * PROMPT, sent.at + 2 * PROMPT
    return not facts.deaf(sent.node, begin, end) and any(
        session.user == sent.user
        and session.greeted
        and session.begin < begin
        and end < session.end
        and not facts.deaf(session.node, begin, end)
        for session in facts.sessions
    )


def disorder(records: Iterable[Record], sent: Iterable[Sent]) -> Iterator[Violation]:
    """Notifications that had waited, and came to one connection after a later one."""
    queued = {one.number: one.user for one in sent if one.method == QUEUED}
    last: dict[str, int] = {}
    for record in records:
        match record:
            case Up(client=client):
                last.pop(client, None)
            case Notified(client=client, number=number) if number in queued:
                if number < last.get(client, -1):
                    detail = f"number {number} after {last[client]}"
                    yield Violation(Rule.DISORDER, record.at, queued[number], client, detail)
                last[client] = number
            case _:
                pass
