"""Who may see whom: the application's rule, a cache of its answers, and what a viewer is told of hidden users."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import structlog

from gateway import wire
from gateway.presence.model import OFFLINE, Event, UserStatus
from gateway.runtime.functions import is_async, takes_tenant

if TYPE_CHECKING:
    from gateway.presence.view import View

_log = structlog.get_logger(__name__)

_AnswerT = TypeVar("_AnswerT")

Rule = Callable[..., bool]
"""``visibility(viewer, user)``, given two ids, returns whether the viewer may see the user. If it has a parameter
``tenant``, it is given that, too."""

BatchRule = Callable[..., Collection[str]]
"""``visibility_of(viewer, users)``, given ids, returns those of the users whom the viewer may see."""

SHARE = 0.25
"""Seconds of each second that the rule may take, since the event loop waits for it. The longest call is not counted: on
a busy machine any call may be held up. When they are used up, the rule is not called again in this second: users
without a cached answer are not seen."""

DISTRUST = 5_000
"""Milliseconds for which users are not seen after the rule failed for them."""

LOG_INTERVAL = 10_000
"""Milliseconds between log lines about a rule that fails, or is slow."""


_REENTERED = (
    "a visibility rule must not ask who may see whom, nor tell the gateway that a rule has changed, while it runs"
    " itself; it may read gateway.presence.status, statuses and online_users, which apply no rule"
)


class Seen(NamedTuple):
    """Whether one user may see another, and whether that is news."""

    user_id: str
    before: bool
    """The previous answer; the same as `now` if there was none."""
    now: bool


class Visibility:
    """Asks an application's rule, and caches its answers.

    Everyone sees themselves. If the rule raises or returns something else than an answer, if it has used up its `SHARE`
    of the time, or if it calls back into this class, the users that it was asked about are not seen.

    Args:
        rule: answers for one pair; None if `batch` is given.
        batch: answers for one viewer and many users; None if `rule` is given.
        ttl: milliseconds that an answer is good for.
        limit: pairs whose answers are cached. Past it, the answers of the viewer who has not asked for longest go.
        clock: the time, in Unix milliseconds.
        stopwatch: returns seconds of a clock that goes on within one turn of the loop.

    Raises:
        ValueError: not exactly one of `rule` and `batch` is given.
        TypeError: the rule is an async function.
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
            raise TypeError("a visibility rule must be a plain function, not async: it has to answer at once")
        self.on_flip: Callable[[str, str, str, bool], object] | None = None
        """Called when an answer differs from the one before, with a tenant, a viewer, a user, and whether the viewer
        sees the user from now on. It tells the viewer's connections."""
        self.heeds: list[Callable[[str, str, str, bool], object]] = []
        """Called as `on_flip` is, and also if the caller of `compare` tells the viewer's connections itself: for what
        has to follow a flip elsewhere, such as in channels."""
        self.changed_at: dict[str, int] = {}
        """The position of the log at which the application last said that the rule's answers had changed, by tenant."""
        self._rule = rule
        self._batch = batch
        self._takes_tenant = takes_tenant(asked)
        self._ttl = ttl
        self._limit = limit
        self._clock = clock
        self._stopwatch = stopwatch
        self._answers: OrderedDict[tuple[str, str], dict[str, int]] = OrderedDict()
        """By tenant and viewer: until when the answer for each user is good, in Unix milliseconds; negative if the user
        may not be seen. The viewer who asked last comes last."""
        self._pairs = 0
        """How many answers these are together."""
        self._second = 0
        """The Unix second that `_spent` is of."""
        self._spent = self._longest = 0.0
        """Seconds that the rule has taken in it, and its longest call of these."""
        self._logged_at: int | None = None
        self._asking = self._reentered = False
        """Whether the rule is running, and whether it has called back into this class."""

    def check(self) -> None:
        """Refuse a call that the rule itself has led to.

        Raises:
            RuntimeError: the rule is running. Its answer counts as failed then, even if it catches this.
        """
        if self._asking:
            self._reentered = True
            raise RuntimeError(_REENTERED)

    @property
    def exhausted(self) -> bool:
        """Whether the rule has used up its `SHARE` of this second."""
        return self._spent - self._longest > SHARE and self._clock() // 1000 == self._second

    # Asked for every answer and every event

    def sees(self, tenant: str, viewer: str, user_id: str) -> bool:
        """Whether one user may see another user of the same tenant."""
        return viewer == user_id or self.compare(tenant, viewer, (user_id,))[0].now

    def shown(self, tenant: str, viewer: str, statuses: Sequence[UserStatus]) -> list[UserStatus]:
        """The statuses as a viewer is told them: users whom they may not see look as if never seen."""
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
            user_ids: at whom. The answer is in this order.
            told: whether `on_flip` is called; False if the caller tells the viewer what has changed.
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
        """Let every cached answer about a user, as viewer or as viewed, run out, so that the rule is asked again.

        The last answers stay known, so that a changed one is noticed.

        Args:
            tenant: whose user.
            user_id: who; None for all users of the tenant.
            position: of the log, now; it is kept in `changed_at`.

        Raises:
            RuntimeError: the rule itself called this.
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
        """The viewers with a cached answer about a user."""
        return [viewer for (of, viewer), answers in self._answers.items() if of == tenant and user_id in answers]

    def looked_at(self, tenant: str, viewer: str) -> list[str]:
        """The users about whom a viewer has a cached answer."""
        return list(self._answers.get((tenant, viewer), ()))

    # One step each

    def _learn(self, tenant: str, viewer: str, user_ids: list[str], answers: dict[str, int], now: int) -> None:
        """Ask the rule about users, and cache its answers."""
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
            return -now  # good until now: it is asked again next time
        seen = self._call(rule, _yes_or_no, tenant, viewer, user_id, now)
        if seen is None:
            return -(now + DISTRUST)
        return now + self._ttl if seen else -(now + self._ttl)

    def _ask_batch(
        self, rule: BatchRule, tenant: str, viewer: str, user_ids: list[str], now: int
    ) -> tuple[Collection[str], int]:
        """Those who may be seen, and for how many milliseconds the others may not."""
        if not user_ids or self._over(now):
            return (), 0
        seen = self._call(rule, frozenset, tenant, viewer, user_ids, now)
        return ((), DISTRUST) if seen is None else (seen, self._ttl)

    def _call(
        self,
        rule: Callable[..., Any],
        read: Callable[[Any], _AnswerT],
        tenant: str,
        viewer: str,
        asked: str | list[str],
        now: int,
    ) -> _AnswerT | None:
        """Call the rule, and read its answer; None if either failed, which is logged."""
        began, self._asking = self._stopwatch(), True
        try:
            answer = rule(viewer, asked, tenant=tenant) if self._takes_tenant else rule(viewer, asked)
            found = read(answer)  # which may be a generator: the rule runs here, too
            if self._reentered:
                raise RuntimeError(_REENTERED)
            return found  # noqa: TRY300 - what is raised above is caught, too
        except Exception as error:
            failure = error
        finally:
            self._asking = self._reentered = False
            took = self._stopwatch() - began
            self._spent += took
            self._longest = max(took, self._longest)
        self._complain("a visibility rule failed; nobody is seen by it", now, failure)  # in no time of the rule's
        return None

    def _over(self, now: int) -> bool:
        """Whether the rule has used up its `SHARE` of this second; each second counts anew."""
        if now // 1000 != self._second:
            self._second, self._spent, self._longest = now // 1000, 0.0, 0.0
        if self._spent - self._longest <= SHARE:
            return False
        self._complain("the visibility rule is too slow; users without a cached answer are not seen", now)
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
    """Answers what one user may read of others: the view, filtered by the visibility rule.

    Args:
        view: this node's.
        visibility: the rule; None if everyone sees everyone.
    """

    def __init__(self, view: View, visibility: Visibility | None) -> None:
        self.view = view
        self._visibility = visibility

    def statuses(self, tenant: str, viewer: str | None, user_ids: Sequence[str], now: int) -> list[UserStatus]:
        """The statuses of users as a viewer is told them, in the order asked.

        Args:
            tenant: of all of them.
            viewer: who asks; they are told the truth about themselves. None for a service, which sees everyone.
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
        """A page of the users who are online to a viewer, ordered by user id, and how many there are in all.

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
    """The event that takes back everything that was told of a user: offline, at the version of a user never seen."""
    return Event.OFFLINE, wire.UserOffline(
        user_id=user_id, online=False, status=OFFLINE, last_active=None, timestamp=wire.timestamp(at), version=0
    )


def _known(answers: dict[str, int], viewer: str, user_ids: Iterable[str], now: int) -> list[Seen] | None:
    """The cached answers, if there is a good one for each user; otherwise None."""
    found = []
    for user_id in user_ids:
        until = answers.get(user_id, 0)
        if -now <= until <= now and user_id != viewer:
            return None
        is_seen = until > 0 or user_id == viewer
        found.append(Seen(user_id, is_seen, is_seen))
    return found


def _yes_or_no(answer: object) -> bool:
    if not isinstance(answer, bool):
        raise TypeError(f"a visibility rule returns True or False, not {type(answer).__name__}")
    return answer


def _stale(until: int) -> int:
    return 1 if until > 0 else -1
