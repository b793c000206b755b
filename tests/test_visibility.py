"""An application's rule about who may see whom: asked as seldom as may be, and trusted only as far as it answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

import pytest
from conftest import Clock
from structlog import DropEvent, configure, get_config
from structlog.testing import capture_logs

from gateway.presence.model import Status, UserStatus
from gateway.presence.view import View
from gateway.presence.visibility import DISTRUST, SHARE, Seen, Sight, Visibility

T = "acme"


class Rule:
    """A rule that notes what it is asked."""

    def __init__(self, *hidden: str) -> None:
        self.hidden = set(hidden)
        self.asked: list[tuple[str, str]] = []

    def __call__(self, viewer: str, user: str) -> bool:
        self.asked.append((viewer, user))
        return user not in self.hidden

    def batch(self, viewer: str, users: Collection[str]) -> Collection[str]:
        self.asked += [(viewer, user) for user in users]
        return [user for user in users if user not in self.hidden]


class Stopwatch:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(
    rule: Callable[..., Any] | None = None, batch: Callable[..., Any] | None = None, **options: Any
) -> tuple[Visibility, Clock]:
    clock = Clock()
    values: dict[str, Any] = {"ttl": 60_000, "limit": 1000, "clock": clock, "stopwatch": Stopwatch()}
    return Visibility(rule, batch, **(values | options)), clock


@pytest.fixture(params=["one", "batch"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made_of(rule: Rule, form: str, **options: Any) -> tuple[Visibility, Clock]:
    return make(rule, **options) if form == "one" else make(batch=rule.batch, **options)


def test_a_pair_is_asked_once_until_its_time_is_over(form: str) -> None:
    rule = Rule("bob")
    visibility, clock = made_of(rule, form)
    for _ in range(3):
        assert not visibility.sees(T, "alice", "bob")
        assert visibility.sees(T, "alice", "carol")
    assert rule.asked == [("alice", "bob"), ("alice", "carol")]
    clock.advance(ms=60_000)
    rule.hidden = {"carol"}
    assert visibility.sees(T, "alice", "bob")
    assert not visibility.sees(T, "alice", "carol")


def test_everyone_sees_themselves_and_nobody_is_asked(form: str) -> None:
    rule = Rule("alice")
    visibility, _ = made_of(rule, form)
    assert visibility.sees(T, "alice", "alice")
    assert visibility.compare(T, "alice", ["alice", "alice"]) == [Seen("alice", before=True, now=True)] * 2
    assert rule.asked == []


def test_tenants_are_apart() -> None:
    def rule(viewer: str, user: str, *, tenant: str) -> bool:
        return tenant == "acme"

    visibility, _ = make(rule)
    assert visibility.sees("acme", "alice", "bob")
    assert not visibility.sees("other", "alice", "bob")


def test_a_batch_rule_may_take_the_tenant_too() -> None:
    def rule(viewer: str, users: Collection[str], tenant: str) -> Collection[str]:
        return {user for user in users if tenant == "acme"}

    visibility, _ = make(batch=rule)
    assert [each.now for each in visibility.compare("acme", "alice", ["bob", "carol"])] == [True, True]
    assert not visibility.sees("other", "alice", "bob")


def _raises(*_: Any) -> Any:
    raise LookupError("for this test")


BAD: list[Any] = [_raises, lambda _viewer, _user: None, lambda _viewer, _user: 1, lambda _viewer: True]


@pytest.mark.parametrize("rule", BAD)
def test_a_rule_that_fails_lets_nobody_be_seen_and_is_asked_again_soon(rule: Any) -> None:
    answers = [rule]
    visibility, clock = make(lambda viewer, user: answers[-1](viewer, user))  # noqa: PLW0108 - it changes
    assert not visibility.sees(T, "alice", "bob")
    answers.append(lambda _viewer, _user: True)
    assert not visibility.sees(T, "alice", "bob")
    assert visibility.sees(T, "alice", "carol")
    clock.advance(ms=DISTRUST)
    assert visibility.sees(T, "alice", "bob")


@pytest.mark.parametrize("batch", [_raises, lambda _viewer, _users: None, lambda _viewer, _users: [[]]])
def test_a_batch_rule_that_fails_lets_nobody_be_seen(batch: Any) -> None:
    answers = [batch]
    visibility, clock = make(batch=lambda viewer, users: answers[-1](viewer, users))  # noqa: PLW0108 - it changes
    assert [each.now for each in visibility.compare(T, "alice", ["bob", "alice", "carol"])] == [False, True, False]
    answers.append(lambda _viewer, users: users)
    clock.advance(ms=DISTRUST)
    assert visibility.sees(T, "alice", "bob")


def test_a_slow_rule_has_its_share_of_each_second_and_no_more() -> None:
    stopwatch, asked = Stopwatch(), []

    def slow(viewer: str, user: str) -> bool:
        asked.append(user)
        stopwatch.now += 0.1
        return True

    visibility, clock = make(slow, stopwatch=stopwatch)
    users = [f"user-{n}" for n in range(10)]
    seen = [each.now for each in visibility.compare(T, "alice", users)]
    assert seen == [True] * 4 + [False] * 6
    assert (len(asked) - 2) * 0.1 <= SHARE < (len(asked) - 1) * 0.1, "but for the longest, and the one that is past it"
    assert visibility.exhausted
    assert visibility.sees(T, "alice", "user-0")  # what is known is known
    clock.advance(s=1)
    assert not visibility.exhausted
    seen = [each.now for each in visibility.compare(T, "alice", users)]
    assert seen == [True] * 8 + [False] * 2


def test_a_machine_that_stood_still_in_a_call_of_the_rule_hides_nobody() -> None:
    stopwatch = Stopwatch()

    def quick(viewer: str, user: str) -> bool:
        stopwatch.now += 5.0 if user == "user-3" else 0.001
        return True

    visibility, _ = make(quick, stopwatch=stopwatch)
    assert all(each.now for each in visibility.compare(T, "alice", [f"user-{n}" for n in range(10)]))
    assert not visibility.exhausted


def test_the_line_in_the_log_about_a_failure_takes_none_of_the_rules_share(form: str) -> None:
    stopwatch = Stopwatch()

    def log(_logger: object, _method: str, _event: object) -> NoReturn:
        stopwatch.now += 2 * SHARE
        raise DropEvent

    fails = [True]

    def one(_viewer: str, _user: str) -> bool:
        return None if fails else True  # type: ignore[return-value]

    def batch(_viewer: str, users: Collection[str]) -> Collection[str]:
        return None if fails else users  # type: ignore[return-value]

    visibility, _clock = make(one, stopwatch=stopwatch) if form == "one" else make(batch=batch, stopwatch=stopwatch)
    before = get_config()
    configure(processors=[log], cache_logger_on_first_use=False)
    try:
        assert not visibility.sees(T, "alice", "bob")
    finally:
        configure(**before)
    assert stopwatch.now > SHARE
    fails.clear()
    assert visibility.sees(T, "alice", "carol")


def test_what_is_kept_is_bounded_and_whoever_looks_is_kept_for_longer(form: str) -> None:
    rule = Rule()
    visibility, _ = made_of(rule, form, limit=100)
    for n in range(1000):
        assert visibility.sees(T, f"viewer-{n}", "bob")
        assert visibility.sees(T, "faithful", "bob")
        assert visibility._pairs + len(visibility._answers) <= 100
    assert rule.asked.count(("faithful", "bob")) == 1
    assert all(each.now for each in visibility.compare(T, "greedy", [f"user-{n}" for n in range(5000)]))
    assert visibility._pairs + len(visibility._answers) <= 100
    assert visibility._pairs == sum(map(len, visibility._answers.values()))


def test_those_who_look_only_at_themselves_are_bounded_too() -> None:
    visibility, _ = make(Rule(), limit=10)
    for n in range(100):
        visibility.compare(T, f"viewer-{n}", [f"viewer-{n}"])
    assert len(visibility._answers) <= 10


def test_what_is_forgotten_is_asked_anew_and_the_difference_is_told() -> None:
    rule, flips = Rule(), []
    visibility, _ = make(rule)
    visibility.on_flip = lambda *flip: flips.append(flip)
    for viewer, user in (("alice", "bob"), ("bob", "alice"), ("alice", "carol"), ("dave", "carol")):
        assert visibility.sees(T, viewer, user)
        assert visibility.sees("other", viewer, user)
    rule.hidden, rule.asked = {"bob", "carol"}, []
    visibility.forget(T, "bob", 7)
    assert visibility.changed_at == {T: 7}
    assert (visibility.viewers(T, "bob"), visibility.looked_at(T, "bob")) == (["alice"], ["alice"])
    assert not visibility.sees(T, "alice", "bob")
    assert visibility.sees(T, "bob", "alice")
    assert visibility.sees(T, "alice", "carol")
    assert visibility.sees("other", "alice", "bob")
    assert rule.asked == [("alice", "bob"), ("bob", "alice")]
    assert flips == [(T, "alice", "bob", False)]
    visibility.forget(T, None, 8)
    assert not visibility.sees(T, "dave", "carol")
    assert flips[1:] == [(T, "dave", "carol", False)]
    assert not visibility.sees(T, "dave", "carol")
    assert len(flips) == 2


def test_who_tells_the_difference_is_told_it_once() -> None:
    rule, flips = Rule(), []
    visibility, _ = make(rule)
    visibility.on_flip = lambda *flip: flips.append(flip)
    visibility.sees(T, "alice", "bob")
    rule.hidden = {"bob"}
    visibility.forget(T, "bob", 1)
    assert visibility.compare(T, "alice", ["bob"], told=False) == [Seen("bob", before=True, now=False)]
    assert visibility.compare(T, "alice", ["bob"]) == [Seen("bob", before=False, now=False)]
    assert flips == []


async def _async(_viewer: str, _user: str) -> bool:
    return True


class _AsyncCall:
    async def __call__(self, _viewer: str, _user: str) -> bool:
        return True


@pytest.mark.parametrize("rule", [_async, _AsyncCall()])
def test_a_rule_is_a_plain_function(rule: Any) -> None:
    with pytest.raises(TypeError, match="plain function"):
        make(rule)
    with pytest.raises(TypeError, match="plain function"):
        make(batch=rule)


def test_one_rule_is_given() -> None:
    with pytest.raises(ValueError, match="visibility_of"):
        make(Rule(), Rule().batch)


# What is told


def online(user: str) -> UserStatus:
    return UserStatus(tenant=T, user_id=user, status=Status.ONLINE, version=3, active_at=1, online_since=1)


def sight(rule: Rule, *users: str) -> Sight:
    view = View()
    for user in users:
        view._put(online(user))
    return Sight(view, make(rule)[0])


def test_one_who_may_not_be_seen_is_one_never_seen() -> None:
    seen = sight(Rule("bob"), "alice", "bob", "carol")
    assert seen.statuses(T, "alice", ["carol", "bob", "alice"], 5) == [
        online("carol"),
        UserStatus(tenant=T, user_id="bob"),
        online("alice"),
    ]
    assert seen.statuses(T, "bob", ["bob"], 5) == [online("bob")]
    assert seen.statuses(T, None, ["bob"], 5) == [online("bob")]


def test_pages_and_counts_are_of_those_who_may_be_seen() -> None:
    users = [f"user-{n:02}" for n in range(20)]
    seen = sight(Rule(*users[:5], *users[7:9]), *users)
    page, count = seen.online(T, "user-01", after=None, limit=3)
    assert ([each.user_id for each in page], count) == (["user-01", "user-05", "user-06"], 14)
    page, count = seen.online(T, "user-01", after="user-06", limit=3)
    assert ([each.user_id for each in page], count) == (["user-09", "user-10", "user-11"], 14)
    assert seen.online(T, None, after=None, limit=1) == ([online("user-00")], 20)


@pytest.mark.parametrize("then", ["swallows", "fails"])
@pytest.mark.parametrize("what", ["looks", "changes"])
def test_a_rule_that_asks_for_its_own_answers_fails_and_is_asked_no_deeper(form: str, what: str, then: str) -> None:
    depth = deepest = 0

    def again() -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(depth, deepest)
        try:
            with nullcontext() if then == "fails" else suppress(RuntimeError):
                visibility.sees(T, "bob", "carol") if what == "looks" else visibility.forget(T, "alice", 1)
        finally:
            depth -= 1

    def rule(_viewer: str, _user: str) -> bool:
        again()
        return True

    def batch(_viewer: str, users: Collection[str]) -> Collection[str]:
        again()
        return users

    visibility, clock = make(rule) if form == "one" else make(batch=batch)
    with capture_logs() as logs:
        assert not visibility.sees(T, "alice", "bob")
    assert deepest == 1
    assert [each["event"] for each in logs] == ["a visibility rule failed; nobody is seen by it"]
    assert "must not ask who may see whom" in str(logs[0]["exc_info"])
    clock.advance(ms=DISTRUST)
    assert not visibility.sees(T, "alice", "bob")
    visibility.forget(T, "alice", 2)  # by itself nothing is wrong with that
