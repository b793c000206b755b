"""What changed lately, kept encoded for those who lost their connection and are about to be back."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeVar

from gateway import wire
from gateway.errors import LogTrimmedError, StoreUnavailableError
from gateway.presence.model import Transition, net_event
from gateway.presence.view import RESYNCHRONISED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.presence.store import Store
    from gateway.presence.view import View

_KeyT = TypeVar("_KeyT", str, tuple[str, str])

Span = tuple[int, int]
"""A part of the log: what comes after a position, up to another."""

SIZE = 1024
"""Bytes that one change takes, about, besides what the last heartbeat said."""

REMEMBERED = 20_000
"""Users of whom it is known when their last change was that is kept no more."""

READS = 20
"""How often the store's log is read for one who comes from before what is kept here: some 20,000 entries."""


FLICKER = 1000
"""Milliseconds within which a change that was undone may have been told to nobody elsewhere; a flush waits for 200."""


class Change:
    """One transition, and the event that tells of it, encoded when it is first asked for."""

    __slots__ = ("_event", "at", "size", "transition")

    def __init__(self, transition: Transition, at: int) -> None:
        self.transition = transition
        self.at = at
        self.size = SIZE + len(transition.now.meta_json or b"")
        self._event: bytes | None = None

    @property
    def position(self) -> int:
        """Where it stands on the log."""
        return self.transition.position

    @property
    def event(self) -> bytes | None:
        """A JSON array of the event's name and its data; None for a change that no event tells of."""
        if self._event is None and (event := self.transition.event) is not None:
            self._event = wire.encode(wire.event_body(event, self.transition))
        return self._event


class History:
    """The changes of some time, by tenant, in the order of the log. A listener of the follower.

    Args:
        clock: the time, in Unix milliseconds.
        horizon: milliseconds that a change is kept.
        limit: bytes of all that is kept, about; past it, the oldest go first.
    """

    def __init__(self, clock: Callable[[], int], horizon: int, limit: int) -> None:
        self.size = 0
        """Bytes kept, about."""
        self._clock = clock
        self._horizon = horizon
        self._limit = limit
        self._by_tenant: dict[str, deque[Change]] = {}
        self._order: deque[str] = deque()
        """Whose change is the next oldest."""
        self._begin: int | None = None
        """From where on all that was published is kept or has its mark in `_forgotten`; None where nothing was."""
        self._end = 0
        self._forgotten: dict[str, int] = {}
        """The position of each tenant's last change that is kept no more."""
        self._silent: dict[str, deque[Span]] = {}
        """What nobody was told, by tenant: changes that were over before they were told."""
        self._of: dict[tuple[str, str], list[Change]] = {}
        """What is kept, by tenant and user id."""
        self._forgotten_of: OrderedDict[tuple[str, str], int] = OrderedDict()
        """The position of each user's last change that is kept no more."""
        self._unremembered: dict[str, int] = {}
        """Of those who are not remembered there, the latest, by tenant."""
        self._silent_of: dict[tuple[str, str], deque[Span]] = {}
        """What nobody was told who watches a user."""

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Keep news of the log."""
        now = self._clock()
        for transition in transitions:
            if transition.position < self._end or transition.reason == RESYNCHRONISED:
                # The log does not go on from what is kept: an offset before this says nothing here any more.
                self._begin_anew(transition.position)
            elif self._begin is None:
                self._begin = transition.position - 1
            self._end = transition.position
            if transition.reason == RESYNCHRONISED:
                continue
            change = Change(transition, now)
            tenant, user = transition.tenant, (transition.tenant, transition.user_id)
            if (changes := self._by_tenant.get(tenant)) is None:
                changes = self._by_tenant[tenant] = deque()
            changes.append(change)
            if user in self._of:
                self._of[user].append(change)
            else:
                self._of[user] = [change]
            self._order.append(tenant)
            self.size += change.size
        self.forget(now)

    def pass_over(self, tenant: str, after: int, to: int) -> None:
        """Take note that whoever had been told up to `after` was told nothing of what came then up to `to`.

        It was done and undone within a flush; an answer may have shown what it came to.
        """
        self._silent.setdefault(tenant, deque()).append((after, to))

    def pass_over_of(self, tenant: str, user_id: str, after: int, to: int) -> None:
        """The same of one user, and of those who watch them. What is noted already is not noted again."""
        spans = self._silent_of.setdefault((tenant, user_id), deque())
        if (after, to) not in spans:
            spans.append((after, to))

    def silent_until(self, tenant: str, position: int) -> Span:
        """The span of the log that ends at `position` and that its members were told nothing of; it may be empty."""
        begin = position
        for after, to in sorted(self._silent.get(tenant, ()), reverse=True):
            if to == begin:
                begin = after
        return begin, position

    def silent_of(self, tenant: str, users: Iterable[str], position: int) -> dict[str, list[Span]]:
        """Up to a position, the spans that nobody was told of who watches one of some users, by user id."""
        found = {}
        for user_id in users:
            if spans := [span for span in self._silent_of.get((tenant, user_id), ()) if span[1] <= position]:
                found[user_id] = spans
        return found

    def told(self, tenant: str, position: int, changes: Iterable[Change], silent: Sequence[Span] = ()) -> list[Change]:
        """Of changes after a position, in their order, those that whoever was there has been told of.

        Args:
            tenant: whose.
            position: up to where they are known already.
            changes: those after it.
            silent: what nobody was told elsewhere.
        """
        return _told(position, changes, (*self._silent.get(tenant, ()), *silent))

    def told_of(
        self,
        tenant: str,
        position: int,
        changes: Iterable[Change],
        users: Mapping[str, int],
        silent: Mapping[str, Sequence[Span]],
    ) -> list[Change]:
        """The same of users who are watched, each with a position, as `since_of` has it; `silent` as `silent_of`."""
        found: list[Change] = []
        for user_id, theirs in _by_user(changes).items():
            # Who began to watch in the middle of what was passed over knows its beginning, and no end.
            after = max(position, users.get(user_id, 0))
            found += _told(after, theirs, (*self._silent_of.get((tenant, user_id), ()), *silent.get(user_id, ())))
        return sorted(found, key=_position)

    def forget(self, now: int) -> None:
        """Let go of what is too old at `now`, or too much."""
        while self._order:
            changes = self._by_tenant[self._order[0]]
            if self.size <= self._limit and now - changes[0].at <= self._horizon:
                break
            tenant, oldest = self._order.popleft(), changes.popleft()
            self.size -= oldest.size
            self._forgotten[tenant] = oldest.position
            _forget_silent(self._silent, tenant, oldest.position)
            self._forget_of((tenant, oldest.transition.user_id), oldest.position)
            if not changes:
                del self._by_tenant[tenant]

    def since(self, tenant: str, position: int, *, known: bool = False) -> list[Change] | None:
        """The tenant's changes after a position.

        Args:
            tenant: whose.
            position: up to where they are known already.
            known: the position was read from this node's own log, whatever has been published since.

        Returns:
            None where they are not all here.
        """
        if not known and (self._begin is None or position < self._begin):
            return None
        if position < self._forgotten.get(tenant, 0):
            return None
        found: list[Change] = []
        for change in reversed(self._by_tenant.get(tenant, ())):
            if change.position <= position:
                break
            found.append(change)
        return found[::-1]

    def since_of(self, tenant: str, position: int, users: Mapping[str, int]) -> list[Change] | None:
        """The changes of some users after a position, in the order of the log. It looks at no others.

        Args:
            tenant: whose.
            position: up to where they are known already.
            users: their ids, each with a position before which nothing of them is asked for either.

        Returns:
            None where they are not all here.
        """
        found: list[Change] = []
        for user_id, since in users.items():
            after = max(position, since)
            gone = self._forgotten_of.get((tenant, user_id), self._unremembered.get(tenant, 0))
            if self._begin is None or after < self._begin or after < gone:
                return None
            for change in reversed(self._of.get((tenant, user_id), ())):
                if change.position <= after:
                    break
                found.append(change)
        return sorted(found, key=_position)

    def _forget_of(self, user: tuple[str, str], position: int) -> None:
        """Let go of a user's oldest change."""
        theirs = self._of[user]
        del theirs[0]
        if not theirs:
            del self._of[user]
        _forget_silent(self._silent_of, user, position)
        self._forgotten_of[user] = position
        self._forgotten_of.move_to_end(user)
        if len(self._forgotten_of) > REMEMBERED:
            (tenant, _user_id), last = self._forgotten_of.popitem(last=False)
            self._unremembered[tenant] = max(last, self._unremembered.get(tenant, 0))

    def _begin_anew(self, position: int) -> None:
        self._by_tenant.clear()
        for kept in (self._silent, self._silent_of, self._of, self._forgotten, self._forgotten_of, self._unremembered):
            kept.clear()
        self._order.clear()
        self.size = 0
        self._begin = position


def without_flickers(changes: Sequence[Change]) -> list[Change]:
    """Changes but for what each user began with and what undid it at once.

    The node that told a client last may have passed that over, and have answered with what it came to.
    """
    undone: set[Change] = set()
    for theirs in _by_user(changes).values():
        first = 0
        for last, change in enumerate(theirs):
            begun = theirs[first].transition
            if change.transition.at - begun.at > FLICKER:
                break
            if net_event(begun, change.transition) is None:
                undone.update(theirs[first : last + 1])
                first = last + 1
    return [change for change in changes if change not in undone]


def _by_user(changes: Iterable[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.transition.user_id, []).append(change)
    return found


def _position(change: Change) -> int:
    return change.position


def _told(position: int, changes: Iterable[Change], silent: Iterable[Span]) -> list[Change]:
    """Of changes after a position, those that lie in no part that nobody was told of."""
    # Who was told of the first of them may know no more: then the rest is none to be passed over. Nor is one that
    # begins within another, for whoever joined there: it undoes what only they knew.
    spans = sorted((span for span in silent if span[0] >= position), key=lambda span: (span[0], -span[1]))
    found: list[Change] = []
    begun, end = 0, 0
    for change in changes:
        while begun < len(spans) and spans[begun][0] < change.position:
            if spans[begun][0] >= end:
                end = spans[begun][1]
            begun += 1
        if change.position > end:
            found.append(change)
    return found


def _forget_silent(silent: dict[_KeyT, deque[Span]], key: _KeyT, position: int) -> None:
    spans = silent.get(key)
    while spans and spans[0][1] <= position:
        spans.popleft()
    if spans is not None and not spans:
        del silent[key]


async def read_back(store: Store, view: View, tenant: str, position: int) -> tuple[int, list[Change]] | None:
    """Read a tenant's changes after a position from the store's log, at least as far as the view has come.

    Returns:
        How far was read, and the changes; None where they cannot be had, or are too far back.
    """
    found: list[Change] = []
    reached = position
    try:
        for _ in range(READS):
            entries = await store.read(reached, wait=False)
            if not entries:
                # A position that this log does not know reads like its end.
                return (reached, found) if reached != position or reached == view.position else None
            found += [Change(entry, 0) for entry in entries if isinstance(entry, Transition) and entry.tenant == tenant]
            reached = entries[-1].position
            if reached >= view.position:
                return reached, found
    except (LogTrimmedError, StoreUnavailableError):
        pass
    return None
