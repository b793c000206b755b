"""Who may see whom: an application's rule, its answers kept for a while, and what is told of who may not be seen."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from gateway import wire
from gateway.presence.model import OFFLINE, Event, UserStatus
from gateway.runtime.functions import is_async, takes_tenant

if TYPE_CHECKING:
    from gateway.presence.view import View

_log = structlog.get_logger(__name__)

Rule = Callable[..., bool]
"""``visibility(viewer, user)``, both ids: whether the one may see the other. One that takes ``tenant`` is told it."""

BatchRule = Callable[..., Collection[str]]
"""``visibility_of(viewer, users)``: those of the users whom the viewer may see."""

SHARE = 0.25
"""Seconds of each second that the rule may take. Past it nobody is seen of whom its answer is not known: it runs where
everything runs, and what it takes all others wait for."""

DISTRUST = 5_000
"""Milliseconds for which nobody is seen of whom the rule could not say whether they may be."""

LOG_INTERVAL = 10_000
"""Milliseconds between log lines about a rule that fails, or is slow."""


_REENTERED = (
    "a visibility rule must not ask who may see whom, nor say that this has changed, while it is asked itself: it may"
    " read gateway.presence.status, statuses and online_users, which no rule stands before"
)


class Seen(NamedTuple):
    """Whether one user may see another, and whether that is news."""

    user_id: str
    before: bool
    """As it was answered last; where nobody knows, as it is now."""
    now: bool


class Visibility:
    """Asks an application's rule, and keeps what it answered.

    Everyone sees themselves. A rule that raises, or returns what is no answer, lets nobody be seen; so does one that
    takes more than its `SHARE` of the time, and one that leads back to itself.

    Args:
        rule: of one pair; None where there is `batch`.
        batch: of one viewer and many users.
        ttl: milliseconds that an answer is good for.
        limit: pairs whose answers are kept; past it those of the viewer who has asked for nothing for longest go.
        clock: the time, in Unix milliseconds.
        stopwatch: seconds on a clock that goes on within one turn of the loop.

    Raises:
        ValueError: it is not one of both.
        TypeError: it is an async function.
    """

    def __init__(
        self,
        rule: Rule | None,
        batch: BatchRule | None,
        *,
        ttl: int,
        limit: int,
        clock: Callable[[], int],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        asked = batch if rule is None else rule
        if asked is None or (rule is not None and batch is not None):
            raise ValueError("pass visibility, for one pair, or visibility_of, for one viewer and many users")
        if is_async(asked):
            raise TypeError("a visibility rule is a plain function: what it decides by has to be at hand")
        self.on_flip: Callable[[str, str, str, bool], object] | None = None
        """Called with a tenant, a viewer, a user, and whether the one sees the other from now on, where an answer is
        another than the last."""
        self.heeds: list[Callable[[str, str, str, bool], object]] = []
        """Called as `on_flip` is, also where a caller of `compare` tells what has changed: others tell it elsewhere."""
        self.changed_at: dict[str, int] = {}
        """The position of the log at which an application last said that a rule had changed, by tenant."""
        self._rule = rule
        self._batch = batch
        self._takes_tenant = takes_tenant(asked)
        self._ttl = ttl
        self._limit = limit
        self._clock = clock
        self._stopwatch = stopwatch
        self._answers: OrderedDict[tuple[str, str], dict[str, int]] = OrderedDict()
        """By tenant and viewer, for each user until when the answer is good; negative for one who may not be seen."""
        self._pairs = 0
        self._second = 0
        self._spent = 0.0
        self._logged_at: int | None = None
        self._asking = self._reentered = False
        """Whether the rule is being asked, and has led back here."""

    def check(self) -> None:
        """Let the rule not lead back to itself.

        Raises:
            RuntimeError: it is being asked; it counts as failed then, whatever it makes of this.
        """
        if self._asking:
            self._reentered = True
            raise RuntimeError(_REENTERED)

    @property
    def exhausted(self) -> bool:
        """Whether the rule has had its share of this second."""
        return self._spent > SHARE and self._clock() // 1000 == self._second

    # Asked for every answer and every event

    def sees(self, tenant: str, viewer: str, user_id: str) -> bool:
        """Whether a user may see another of the tenant."""
        return viewer == user_id or self.compare(tenant, viewer, (user_id,))[0].now

    def shown(self, tenant: str, viewer: str, statuses: Sequence[UserStatus]) -> list[UserStatus]:
        """What a viewer is told of users: of those whom they may not see, what is told of one never seen."""
        seen = self.compare(tenant, viewer, [status.user_id for status in statuses])
        return [
            status if each.now else UserStatus(tenant=tenant, user_id=status.user_id)
            for status, each in zip(statuses, seen, strict=True)
        ]

    def compare(self, tenant: str, viewer: str, user_ids: Collection[str], *, told: bool = True) -> list[Seen]:
        """Whether a viewer may see each of some users.

        Args:
            tenant: of all of them.
            viewer: who looks.
            user_ids: at whom, in the order of the answer.
            told: whether `on_flip` is called; False where the caller tells what has changed.
        """
        now = self._clock()
        key = (tenant, viewer)
        answers = self._answers.get(key)
        if answers is None:
            answers = self._answers[key] = {}
        else:
            self._answers.move_to_end(key)
            known = _known(answers, viewer, user_ids, now)
            if known is not None:
                return known
        before = {user_id: answers.get(user_id) for user_id in user_ids}
        unknown = [user_id for user_id, until in before.items() if until is None or abs(until) <= now]
        if unknown:
            self._learn(tenant, viewer, [user_id for user_id in unknown if user_id != viewer], answers, now)
        found = []
        for user_id in user_ids:
            was = before[user_id]
            is_seen = user_id == viewer or answers[user_id] > 0
            found.append(Seen(user_id, is_seen if was is None else was > 0, is_seen))
        self._shrink()
        heeds = [*self.heeds] if self.on_flip is None or not told else [self.on_flip, *self.heeds]
        if heeds:
            for each in dict.fromkeys(found):
                if each.before is not each.now:
                    for heed in heeds:
                        heed(tenant, viewer, each.user_id, each.now)
        return found

    # What an application says

    def forget(self, tenant: str, user_id: str | None, position: int) -> None:
        """Ask the rule anew, whoever looks at a user or whomever the user looks at; None for everyone of the tenant.

        What was answered last is still known, so that what is another now can be told.

        Raises:
            RuntimeError: a rule says so while it is asked.
        """
        self.check()
        self.changed_at[tenant] = position
        for (of, viewer), answers in self._answers.items():
            if of != tenant:
                continue
            if user_id is None or viewer == user_id:
                answers.update({each: _stale(until) for each, until in answers.items()})
            elif user_id in answers:
                answers[user_id] = _stale(answers[user_id])

    def viewers(self, tenant: str, user_id: str) -> list[str]:
        """Those who have looked at a user, as far as is known."""
        return [viewer for (of, viewer), answers in self._answers.items() if of == tenant and user_id in answers]

    def looked_at(self, tenant: str, viewer: str) -> list[str]:
        """Those whom a user has looked at, as far as is known."""
        return list(self._answers.get((tenant, viewer), ()))

    # One step each

    def _learn(self, tenant: str, viewer: str, user_ids: list[str], answers: dict[str, int], now: int) -> None:
        """Ask the rule about users."""
        self.check()
        size = len(answers)
        if self._batch is not None:
            seen, trusted = self._ask_batch(self._batch, tenant, viewer, user_ids, now)
            for user_id in user_ids:
                answers[user_id] = now + self._ttl if user_id in seen else -(now + trusted)
        elif self._rule is not None:
            for user_id in user_ids:
                answers[user_id] = self._ask(self._rule, tenant, viewer, user_id, now)
        self._pairs += len(answers) - size

    def _ask(self, rule: Rule, tenant: str, viewer: str, user_id: str, now: int) -> int:
        if self._over(now):
            return -now  # asked again with the next look
        began, self._asking = self._stopwatch(), True
        try:
            answer = rule(viewer, user_id, tenant=tenant) if self._takes_tenant else rule(viewer, user_id)
            self._check_answered()
            if not isinstance(answer, bool):
                raise TypeError(f"a visibility rule returns True or False, not {type(answer).__name__}")
        except Exception as error:
            self._complain("a visibility rule failed; nobody is seen by it", now, error)
            return -(now + DISTRUST)
        finally:
            self._asked(began)
        return now + self._ttl if answer else -(now + self._ttl)

    def _ask_batch(
        self, rule: BatchRule, tenant: str, viewer: str, user_ids: list[str], now: int
    ) -> tuple[Collection[str], int]:
        """Those who may be seen, and for how long the others may not."""
        if not user_ids or self._over(now):
            return (), 0
        began, self._asking = self._stopwatch(), True
        try:
            answer = rule(viewer, user_ids, tenant=tenant) if self._takes_tenant else rule(viewer, user_ids)
            seen = frozenset(answer)
            self._check_answered()
            return seen, self._ttl  # noqa: TRY300 - what is raised above is caught, too
        except Exception as error:
            self._complain("a visibility rule failed; nobody is seen by it", now, error)
            return (), DISTRUST
        finally:
            self._asked(began)

    def _check_answered(self) -> None:
        if self._reentered:
            raise RuntimeError(_REENTERED)

    def _asked(self, began: float) -> None:
        self._asking = self._reentered = False
        self._spent += self._stopwatch() - began

    def _over(self, now: int) -> bool:
        """Whether the rule has had its share of this second; what it takes is counted anew in each."""
        if now // 1000 != self._second:
            self._second, self._spent = now // 1000, 0.0
        if self._spent <= SHARE:
            return False
        self._complain("the visibility rule is too slow; nobody is seen of whom its answer is not known", now)
        return True

    def _shrink(self) -> None:
        while (excess := self._pairs + len(self._answers) - self._limit) > 0:
            key, answers = next(iter(self._answers.items()))
            if len(answers) > excess:
                for user_id in list(answers)[:excess]:
                    del answers[user_id]
                self._pairs -= excess
            else:
                del self._answers[key]
                self._pairs -= len(answers)

    def _complain(self, message: str, now: int, error: Exception | None = None) -> None:
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            _log.error(message, exc_info=error)


class Sight:
    """What one user is told of others: the view, through the rule.

    Args:
        view: what is known.
        visibility: the rule; None where everyone sees everyone.
    """

    def __init__(self, view: View, visibility: Visibility | None) -> None:
        self.view = view
        self._visibility = visibility

    def statuses(self, tenant: str, viewer: str | None, user_ids: Sequence[str], now: int) -> list[UserStatus]:
        """What is told of users, in the order asked.

        Args:
            tenant: of all of them.
            viewer: who asks, who is told the truth about themselves; None for a service, which sees everyone.
            user_ids: of whom.
            now: Unix milliseconds.
        """
        statuses = self.view.statuses(tenant, user_ids)
        if viewer is None:
            return statuses
        if self._visibility is not None:
            statuses = self._visibility.shown(tenant, viewer, statuses)
        if (tenant, viewer) in self.view.hidden:
            own = self.view.own_status(tenant, viewer, now)
            statuses = [own if status.user_id == viewer else status for status in statuses]
        return statuses

    def online(self, tenant: str, viewer: str | None, *, after: str | None, limit: int) -> tuple[list[UserStatus], int]:
        """Those who are online, ordered by user id, and how many they are in all.

        Args:
            tenant: whose users.
            viewer: as for `statuses`.
            after: only ids greater than this one; None begins at the first.
            limit: at most so many are returned.
        """
        if viewer is None or self._visibility is None:
            return self.view.online(tenant, after=after, limit=limit), self.view.online_count(tenant)
        everyone = self.view.online(tenant)
        seen = self._visibility.compare(tenant, viewer, [status.user_id for status in everyone])
        theirs = [status for status, each in zip(everyone, seen, strict=True) if each.now]
        return [status for status in theirs if after is None or status.user_id > after][:limit], len(theirs)


def never_seen(user_id: str, at: int) -> wire.EventBody:
    """The event that takes back all that was told of a user: its version is that of one never seen."""
    return Event.OFFLINE, wire.UserOffline(
        user_id=user_id, online=False, status=OFFLINE, last_active=None, timestamp=wire.timestamp(at), version=0
    )


def _known(answers: dict[str, int], viewer: str, user_ids: Iterable[str], now: int) -> list[Seen] | None:
    """What has been answered, and is still good; None where that is not all."""
    found = []
    for user_id in user_ids:
        until = answers.get(user_id, 0)
        if -now <= until <= now and user_id != viewer:
            return None
        is_seen = until > 0 or user_id == viewer
        found.append(Seen(user_id, is_seen, is_seen))
    return found


def _stale(until: int) -> int:
    return 1 if until > 0 else -1
