"""The recent changes, kept for clients that have lost their connection and come back."""

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
"""A part of the log: the entries behind the first position, up to and including the second."""

SIZE = 1024
"""Bytes that one change takes, about, besides the user's meta."""

REMEMBERED = 20_000
"""Users for whom the position of their last discarded change is remembered."""

READS = 20
"""How often the store's log is read, at the most, for a client that was away for longer than is kept here: that is
some 20,000 entries."""


FLICKER = 1000
"""Milliseconds within which another node may have seen a change and its undoing in one flush, and told nobody of
either. A flush waits for 200 at the most."""


class Change:
    """One transition, and the event that tells of it, encoded when it is first asked for."""

    __slots__ = ("_event", "at", "transition")

    def __init__(self, transition: Transition, at: int) -> None:
        self.transition = transition
        self.at = at
        self._event: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return SIZE + len(self.transition.now.meta_json or b"")

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
        """The tenants of all changes that are kept, oldest change first."""
        self._begin: int | None = None
        """The position behind which every change was published here: it is kept, or has been discarded since and
        noted in `_forgotten`. None before the first."""
        self._end = 0
        """The position of the last change."""
        self._forgotten: dict[str, int] = {}
        """The position of each tenant's last discarded change."""
        self._silent: dict[str, deque[Span]] = {}
        """By tenant, the spans that nobody was told of, because their changes cancelled out within a flush."""
        self._of: dict[tuple[str, str], list[Change]] = {}
        """The changes that are kept, by tenant and user id."""
        self._forgotten_of: OrderedDict[tuple[str, str], int] = OrderedDict()
        """The position of each user's last discarded change; of `REMEMBERED` users."""
        self._unremembered: dict[str, int] = {}
        """By tenant, the latest such position of all other users."""
        self._silent_of: dict[tuple[str, str], deque[Span]] = {}
        """By tenant and user id, the spans that the user's watchers were not told of."""

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Keep new transitions."""
        now = self._clock()
        for transition in transitions:
            if transition.position < self._end or transition.reason == RESYNCHRONISED:
                # The log does not go on from what is kept: positions before this one are of no use any more.
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
        """Take note that nobody was told of the changes behind `after`, up to `to`: they cancelled out within a flush.

        A client may have seen one of them all the same, in the answer to a request.
        """
        self._silent.setdefault(tenant, deque()).append((after, to))

    def pass_over_of(self, tenant: str, user_id: str, after: int, to: int) -> None:
        """The same for the watchers of one user. A span that is noted already is not noted twice."""
        spans = self._silent_of.setdefault((tenant, user_id), deque())
        if (after, to) not in spans:
            spans.append((after, to))

    def silent_until(self, tenant: str, position: int) -> Span:
        """The longest span that ends at `position` and that nobody of the tenant was told of; it may be empty."""
        begin = position
        for after, to in sorted(self._silent.get(tenant, ()), reverse=True):
            if to == begin:
                begin = after
        return begin, position

    def silent_of(self, tenant: str, users: Iterable[str], position: int) -> dict[str, list[Span]]:
        """By user id, the spans up to a position that their watchers were not told of; users without are omitted."""
        found = {}
        for user_id in users:
            if spans := [span for span in self._silent_of.get((tenant, user_id), ()) if span[1] <= position]:
                found[user_id] = spans
        return found

    def told(self, tenant: str, position: int, changes: Iterable[Change], silent: Sequence[Span] = ()) -> list[Change]:
        """Of the changes after a position, those that a connected client would have been told of, in order.

        Args:
            tenant: whose.
            position: up to where the client knows everything.
            changes: those after it.
            silent: spans that nobody was told of on the client's former node.
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
        """The same for a client that watches `users`, as given to `since_of`; `silent` is as `silent_of` returns it."""
        found: list[Change] = []
        for user_id, theirs in _by_user(changes).items():
            # A watcher that began in the middle of a silent span has seen its beginning, so it needs the rest.
            after = max(position, users.get(user_id, 0))
            found += _told(after, theirs, (*self._silent_of.get((tenant, user_id), ()), *silent.get(user_id, ())))
        return sorted(found, key=_position)

    def forget(self, now: int) -> None:
        """Discard the oldest changes: those too old at `now`, and as many as exceed the limit."""
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
        """The tenant's changes after a position, in order.

        Args:
            tenant: whose.
            position: up to where the client knows everything.
            known: whether the position is known to be in this log, since this node read on from it itself.

        Returns:
            None if not all of them are kept.
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
        """The changes of some users after a position, in order. It costs as much as these users have changes.

        Args:
            tenant: whose.
            position: up to where the client knows everything.
            users: their ids, each with the position at which the client began to watch them: earlier changes are not
                asked for either.

        Returns:
            None if not all of them are kept.
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
        """Discard a user's oldest change."""
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
    """The changes without each user's first ones that were undone within `FLICKER` milliseconds.

    The client's former node may have told nobody of these, and have answered a request with what they came to.
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
    """The changes that lie in no silent span."""
    # A span that began before the position counts for nothing: the client may have seen its first changes, and needs
    # the rest. Nor does one that begins within another, which was noted for a client that joined there.
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
    """Read a tenant's changes after a position from the store's log, at least as far as the view has read.

    Returns:
        How far was read, and the changes; None if they cannot be read, or are too far back.
    """
    found: list[Change] = []
    reached = position
    try:
        for _ in range(READS):
            entries = await store.read(reached, wait=False)
            if not entries:
                # Reading after a position that this log does not know also returns nothing.
                return (reached, found) if reached != position or reached == view.position else None
            found += [Change(entry, 0) for entry in entries if isinstance(entry, Transition) and entry.tenant == tenant]
            reached = entries[-1].position
            if reached >= view.position:
                return reached, found
    except (LogTrimmedError, StoreUnavailableError):
        pass
    return None
