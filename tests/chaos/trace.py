"""What the clients saw, and the rules that each client's trace must follow by itself. Pure: no clock, no I/O.

Every `at` is in milliseconds of the machine's monotonic clock, which the clients' process and the harness share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

import msgspec

OFFLINE = "offline"
NEVER = -1
"""Before every version that can be told; 0 is what a user has who was never seen, or may not be seen any more."""
ONLINE_EVENT, OFFLINE_EVENT, CHANGED_EVENT = "user-online", "user-offline", "user-status-changed"

Blind = Callable[[int, float], bool]
Told = tuple[str, int, str]
"""One user in an answer: id, version, status."""


class Record(msgspec.Struct, frozen=True, tag_field="kind"):
    """One thing that happened to one client."""

    at: float
    client: str


class Up(Record, frozen=True, tag="up"):
    """A gateway greeted the client."""

    node: int
    resumed: bool
    recovered: bool = True
    """Whether it goes on with what it had before; where that is not known, it may."""


class Left(Record, frozen=True, tag="left"):
    """The client said goodbye."""


class Lost(Record, frozen=True, tag="lost"):
    """The connection ended without a goodbye, for whatever reason."""

    why: str


class Heard(Record, frozen=True, tag="heard"):
    """A presence event came."""

    event: str
    user: str
    version: int
    status: str
    stamp: float
    """The event's own timestamp: Unix milliseconds of the clock of the node that committed it."""


class Answer(Record, frozen=True, tag="answer"):
    """A request was answered. Where `whole`, users that are not in it are offline."""

    users: list[Told]
    whole: bool = False
    unknown: list[str] = []
    """Of whom no more was said than of one never seen."""
    count: int | None = None
    """How many there are, as a list says."""


class Refused(Record, frozen=True, tag="refused"):
    """A connection did not come about."""

    node: int
    why: str


class Abandoned(Record, frozen=True, tag="abandoned"):
    """The client went before it was greeted; the gateway may have let it in."""

    node: int
    since: float
    """When the client began to try."""


class Failed(Record, frozen=True, tag="failed"):
    """A request got an error, or no answer."""

    why: str


class Watching(Record, frozen=True, tag="watching"):
    """The client's watch list is in force: until its connection ends it hears of nobody else."""


class Chose(Record, frozen=True, tag="chose"):
    """The client had set its user's status by hand, and got an answer, or none."""

    status: str
    since: float
    """When it asked."""
    sure: bool
    """False where nobody knows whether it was set, or will be."""


class Notified(Record, frozen=True, tag="notified"):
    """A notification came; it is acknowledged where that is asked for."""

    number: int


class Joined(Record, frozen=True, tag="joined"):
    """The client is in a channel, and was told who is."""

    channel: str
    members: list[str] = []
    again: bool = False
    """True where the gateway put it back, which came back to what it had missed."""


class Parted(Record, frozen=True, tag="parted"):
    """The client was told that it is not in a channel any more."""

    channel: str


class Member(Record, frozen=True, tag="member"):
    """The client heard of one who came into a channel, or went."""

    channel: str
    user: str
    added: bool
    stamp: float = 0.0
    """As an event's; 0 where the client is not told."""


class Message(Record, frozen=True, tag="message"):
    """The client heard a message in a channel."""

    channel: str
    number: int


AnyRecord = (
    Up
    | Left
    | Lost
    | Heard
    | Answer
    | Refused
    | Abandoned
    | Failed
    | Watching
    | Chose
    | Notified
    | Joined
    | Parted
    | Member
    | Message
)
"""What a line of the clients' process is."""


class Rule(StrEnum):
    """What can be violated."""

    DUPLICATE = "duplicate"
    LOST = "lost"
    FALSE_OFFLINE = "false offline"
    BACKWARDS = "version went back"
    ALTERNATION = "events do not alternate"
    AHEAD = "an answer knows what no event told"
    DIVERGENT = "two truths of one version"
    LATE = "offline too late"
    DISAGREE = "views and store disagree"
    WRONG = "the store is wrong about who is there"
    STUCK = "the cluster does not recover"
    WEBHOOK = "a webhook is lost, out of order, or repeated under another id"
    UNWATCHED = "heard of one it does not watch"
    FORGOTTEN = "a status set by hand is another"
    SEEN = "told of one who is invisible"
    HIDDEN = "told of one whom a rule hides"
    HISTORY = "sessions are not when a user was there"
    REVOKED = "let in, or left in, by a revoked token"
    EXPORT = "an export lacks a change, or has one twice"
    UNDELIVERED = "a notification did not come"
    DISORDER = "notifications came out of order"
    EARLY = "told of a channel that it is not in"
    MEMBERS = "members are not who is there"
    REMOVED = "a member who was there is told to have gone"
    UNHEARD = "a message in a channel did not come"
    REPEATED = "a message in a channel came twice"
    SHUFFLED = "messages in a channel have two orders"
    OCCUPIED = "a channel is occupied that nobody is in"


class Violation(msgspec.Struct, frozen=True):
    """One rule broken, once."""

    rule: Rule
    at: float
    user: str
    client: str
    detail: str


class Known(msgspec.Struct, frozen=True):
    """What a client knows of a user, from `at` on."""

    at: float
    version: int
    status: str


class Picture:
    """What one client knows of everyone, and what of its trace breaks a rule that needs no other client.

    A client that reconnects keeps the versions it knew: a later connection, to whatever node, is never told less.
    Statuses it must learn anew, because changes went by while it was away. From a node that is blind, which cannot
    read the store now, it may learn what was before.

    Args:
        client: whose.
        blind: tells whether a node was blind at a time.
    """

    def __init__(self, client: str, blind: Blind) -> None:
        self.client = client
        self._blind = blind
        self.violations: list[Violation] = []
        self._history: dict[str, list[Known]] = {}
        self._current: set[str] = set()
        """Users of whom this connection was told: whatever is said of them must follow from what was."""

    def known(self, user: str, at: float = float("inf")) -> Known | None:
        """What the client knew of a user at a time; None for nothing."""
        history = self._history.get(user, [])
        index = bisect_right(history, at, key=lambda known: known.at)
        return history[index - 1] if index else None

    def take(self, record: Record) -> None:
        """Follow the trace by one record."""
        match record:
            case Up():
                self._current.clear()
                if self._blind(record.node, record.at):
                    for history in self._history.values():
                        history.append(Known(record.at, NEVER, "unknown"))
            case Heard():
                self._hear(record)
            case Answer():
                self._read(record)
            case _:
                pass

    def _hear(self, heard: Heard) -> None:
        known = self.known(heard.user)
        if known is not None and heard.version == known.version:
            self._broken(Rule.DUPLICATE, heard, heard.user, f"{heard.event} of version {heard.version} again")
        elif known is not None and heard.version < known.version:
            self._broken(
                Rule.BACKWARDS, heard, heard.user, f"{heard.event} of version {heard.version} after {known.version}"
            )
        elif known is not None and heard.user in self._current and heard.event != event_of(known.status, heard.status):
            self._broken(
                Rule.ALTERNATION,
                heard,
                heard.user,
                f"{heard.event} ({heard.status}, version {heard.version}) to one who knew: {known.status},"
                f" version {known.version}",
            )
        elif heard.event != OFFLINE_EVENT and heard.status == OFFLINE:
            self._broken(Rule.ALTERNATION, heard, heard.user, f"{heard.event} says offline")
        self._know(heard.user, heard.at, heard.version, heard.status)

    def _read(self, answer: Answer) -> None:
        for user, version, status in answer.users:
            known = self.known(user)
            if known is not None and version < known.version:
                self._broken(Rule.BACKWARDS, answer, user, f"answered version {version} after {known.version}")
            elif known is not None and version > known.version and user in self._current and status != known.status:
                self._broken(
                    Rule.AHEAD,
                    answer,
                    user,
                    f"answered {status}, version {version}; heard last: {known.status}, version {known.version}",
                )
            self._know(user, answer.at, version, status)
        if answer.whole:
            listed = {user for user, _version, _status in answer.users}
            for user in sorted(self._current - listed):
                known = self.known(user)
                if known is not None and known.status != OFFLINE:
                    self._broken(Rule.AHEAD, answer, user, f"not listed; heard last: {known.status}")

    def _know(self, user: str, at: float, version: int, status: str) -> None:
        self._history.setdefault(user, []).append(Known(at, version, status))
        self._current.add(user)

    def _broken(self, rule: Rule, record: Record, user: str, detail: str) -> None:
        self.violations.append(Violation(rule, record.at, user, self.client, detail))


def event_of(was: str, now: str) -> str | None:
    """The event that tells of a change from one status to another; None where there is none to tell."""
    if was == now:
        return None
    if was == OFFLINE:
        return ONLINE_EVENT
    return OFFLINE_EVENT if now == OFFLINE else CHANGED_EVENT


def pictures(records: Iterable[Record], blind: Blind = lambda _node, _at: False) -> dict[str, Picture]:
    """What each client knows after its whole trace."""
    drawn: dict[str, Picture] = {}
    for record in records:
        if record.client not in drawn:
            drawn[record.client] = Picture(record.client, blind)
        drawn[record.client].take(record)
    return drawn


def divergences(records: Iterable[Record]) -> Iterator[Violation]:
    """Versions that mean one thing to one client and another to the next."""
    first: dict[tuple[str, int], str] = {}
    for record in records:
        match record:
            case Heard(user=user, version=version, status=status):
                told: Iterable[Told] = [(user, version, status)]
            case Answer(users=users):
                told = users
            case _:
                continue
        for user, version, status in told:
            before = first.setdefault((user, version), status)
            if status != before:
                detail = f"version {version} is {status}, and was {before}"
                yield Violation(Rule.DIVERGENT, record.at, user, record.client, detail)
