"""Channels without doors: who is in them, what is said in them, and that nothing of it is left over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from channel_nodes import Node, Tab, nodes, settled
from conftest import STEP, eventually
from redis_servers import redis_server

from gateway.channels import membership
from gateway.channels.model import ADDED, REMOVED
from gateway.channels.names import scope_of
from gateway.errors import ForbiddenError, InvalidPayloadError, StoreUnavailableError, UnavailableError
from gateway.presence.model import Ending, UserStatus

Start = Callable[..., Awaitable[list[Node]]]


@pytest.fixture(params=["memory", "redis"])
async def start(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Start]:
    """Start nodes: one in memory, two on Redis."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> list[Node]:
            count, url = (1, None) if request.param == "memory" else (2, redis_url)
            return await stack.enter_async_context(nodes(count, url, **settings))

        yield start


@pytest.fixture
async def two(redis_url: str) -> AsyncIterator[list[Node]]:
    async with nodes(2, redis_url) as started:
        yield started


async def heard_of(tab: Tab, count: int) -> None:
    await eventually(lambda: len(tab.heard()) >= count)


# Who is there


async def test_members_come_and_go_once_each_however_many_tabs(start: Start) -> None:
    started = await start()
    first, last = started[0], started[-1]
    watcher, tabs = last.tab("watcher"), [first.tab("alice"), last.tab("alice")]
    await watcher.join("presence-a")
    for tab in tabs:
        joined = await tab.join("presence-a")
        members = [(person.user_id, person.profile.name) for person in joined.members or ()]
        assert members == [("alice", "Alice"), ("watcher", "Watcher")]
    await settled(started, [watcher, *tabs])
    for tab in tabs:
        assert await tab.leave("presence-a")
        assert not await tab.leave("presence-a")
    await settled(started, [watcher])
    assert watcher.changes() == [(ADDED, "alice"), (REMOVED, "alice")]
    occupancy = last.part.channels.occupancy("acme", "presence-a")
    assert (occupancy.users, occupancy.subscriptions) == (1, 1)


async def test_who_joins_again_is_answered_and_is_there_once(start: Start) -> None:
    started = await start()
    alice, bob = started[0].tab("alice"), started[-1].tab("bob")
    await bob.join("presence-a")
    for _ in range(3):
        joined = await alice.join("presence-a")
        assert {person.user_id for person in joined.members or ()} == {"alice", "bob"}
    await alice.leave("presence-a")
    await settled(started, [bob])
    assert bob.changes() == [(ADDED, "alice"), (REMOVED, "alice")]


async def test_who_is_lost_and_comes_back_within_the_grace_was_never_gone(start: Start) -> None:
    started = await start(presence_offline_grace=1.0)
    watcher, alice = started[0].tab("watcher"), started[0].tab("alice")
    await watcher.join("presence-a")
    await alice.join("presence-a")
    await settled(started, [watcher, alice])
    await alice.end(Ending.LOST)
    back = started[-1].tab("alice")
    await back.join("presence-a")
    await asyncio.sleep(1.5)
    await settled(started, [watcher, back])
    assert watcher.changes() == [(ADDED, "alice")]
    await back.end(Ending.LOST)
    await settled(started, [watcher])
    assert watcher.changes() == [(ADDED, "alice"), (REMOVED, "alice")]


async def test_a_join_that_fails_ends_no_grace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    started = await start(presence_offline_grace=1.0)
    watcher, alice = started[0].tab("watcher"), started[0].tab("alice")
    await watcher.join("presence-a")
    await alice.join("presence-a")
    await settled(started, [watcher, alice])
    await alice.end(Ending.LOST)
    back = started[-1].tab("alice")

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(back.node.part.channels.log, "history", away)
        with pytest.raises(UnavailableError):
            await back.join("presence-a", since=0)
    assert back.subscriber.channels == {}
    await asyncio.sleep(0.2)  # in which it would be told
    await back.join("presence-a")
    await settled(started, [watcher, back])
    assert watcher.changes() == [(ADDED, "alice")]


async def test_who_was_drained_is_held(start: Start) -> None:
    started = await start()
    watcher, alice = started[-1].tab("watcher"), started[0].tab("alice")
    await watcher.join("presence-a")
    await alice.join("presence-a")
    await alice.end(Ending.DRAINED)
    await asyncio.sleep(1)
    assert watcher.knows("presence-a") == {"alice", "watcher"}


async def test_a_backend_takes_out_whom_it_will_on_every_node(start: Start) -> None:
    started = await start()
    first, last = started[0], started[-1]
    tabs = [first.tab("alice"), last.tab("alice"), last.tab("bob")]
    for tab in tabs:
        await tab.join("presence-a")
    await settled(started, tabs)
    await first.part.channels.remove("acme", "presence-a", "alice")
    await first.part.channels.say("acme", ["presence-a"], "e", "only for bob")
    await eventually(lambda: tabs[2].heard() == ["only for bob"])
    await eventually(lambda: [tab.listener.removals for tab in tabs] == [["presence-a"], ["presence-a"], []])
    for tab in tabs[:2]:
        tab.joined.clear()
    await settled(started, tabs[2:])
    assert [tab.heard() for tab in tabs[:2]] == [[], []]
    await first.part.channels.remove("acme", "presence-a")
    tabs[2].joined.clear()
    await settled(started, [])
    assert [node.leftovers() for node in started] == [[]] * len(started)


async def test_a_channel_is_bounded_and_what_was_refused_leaves_nothing(start: Start) -> None:
    started = await start(max_channels_per_connection=2)
    alice = started[0].tab("alice")
    await alice.join("a")
    await alice.join("presence-b")
    await alice.join("a")
    with pytest.raises(ForbiddenError, match="MAX_CHANNELS_PER_CONNECTION"):
        await alice.join("c")
    for wrong in ("", "a b", "é", "x" * 165, "a\n"):
        with pytest.raises(InvalidPayloadError, match="a channel's name"):
            await alice.join(wrong)
    assert started[0].part.channels.refused == 1
    await settled(started, [alice])
    await alice.end()
    with pytest.raises(ForbiddenError, match="has ended"):
        await alice.join("a")
    await settled(started, [])
    assert started[0].leftovers() == []


async def test_a_join_that_is_cancelled_leaves_nothing(start: Start) -> None:
    started = await start()
    for turns in range(12):
        alice = started[0].tab("alice")
        joining = asyncio.create_task(alice.join("presence-a", since=0))
        for _ in range(turns):
            await asyncio.sleep(0)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await alice.end()
    await settled(started, [])
    assert started[0].leftovers() == []


async def test_tenants_are_apart(start: Start) -> None:
    started = await start()
    alice = started[0].tab("alice")
    await alice.join("a")
    assert await started[0].part.channels.say("other", ["a"], "e", "not for acme")
    await started[0].part.channels.say("acme", ["a"], "e", "for acme")
    await eventually(alice.heard)
    assert alice.heard() == ["for acme"]
    assert list(started[0].part.channels.occupied("other")) == []


async def test_by_a_rule_of_who_sees_whom_members_are_told_of_those_they_may_see(start: Start) -> None:
    started = await start(rule=lambda viewer, user: (viewer, user) not in {("bob", "alice"), ("bob", "carol")})
    tabs = {user: started[n % len(started)].tab(user) for n, user in enumerate(("bob", "alice", "dave"))}
    seen = {}
    for user, tab in tabs.items():
        joined = await tab.join("presence-a")
        seen[user] = [person.user_id for person in joined.members or ()]
    assert seen == {"bob": ["bob"], "alice": ["alice", "bob"], "dave": ["alice", "bob", "dave"]}
    carol = started[0].tab("carol")
    await carol.join("presence-a")
    await carol.leave("presence-a")
    await tabs["alice"].leave("presence-a")
    await eventually(lambda: tabs["dave"].knows("presence-a") == {"bob", "dave"})
    await eventually(lambda: tabs["bob"].knows("presence-a") == {"bob", "dave"})
    assert [user for _, user in tabs["bob"].changes()] == ["dave"]
    nobody = started[0].tab("")
    nobody.subscriber.user_id = None
    assert started[0].part.channels.members_seen_by(nobody.subscriber, "presence-a") == []


async def test_of_somebody_invisible_nothing_is_left_when_they_are_gone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "FORGET", 500)
    started = await start()
    for node in started:
        node.presence.hidden["acme", "alice"] = UserStatus(tenant="acme", user_id="alice")
    alice = started[0].tab("alice")
    await alice.join("presence-a")
    assert started[-1].members("presence-a") == set()
    store = started[-1].part._store
    scope = scope_of("acme", "presence-a")
    assert [each.user_id for each in (await store.snapshot()).statuses if each.tenant == scope] == ["alice"]
    await alice.leave("presence-a")

    async def is_forgotten() -> bool:
        return not (await store.snapshot()).statuses

    async with asyncio.timeout(2 * STEP):
        while not await is_forgotten():  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.1)
    assert [node.leftovers() for node in started] == [[]] * len(started)


def look_again(started: Sequence[Node], *pairs: tuple[str, str]) -> None:
    """As where an application says that its rule has changed: nodes ask for the pairs that they know of anew."""
    for node in started:
        visibility = node.part.channels._visibility
        assert visibility is not None
        for viewer, user in pairs:
            visibility.forget("acme", user, 1)
            visibility.compare("acme", viewer, [user])


async def test_members_whom_somebody_may_see_no_more_go_for_them_and_come_again(start: Start) -> None:
    hidden: set[tuple[str, str]] = set()
    started = await start(rule=lambda viewer, user: (viewer, user) not in hidden)
    tabs = {user: started[n % len(started)].tab(user) for n, user in enumerate(("alice", "bob", "carol"))}
    for tab in tabs.values():
        await tab.join("presence-a")
    alice, bob, carol = tabs.values()
    await settled(started, list(tabs.values()))
    for _ in range(2):
        hidden.add(("bob", "alice"))
        look_again(started, ("bob", "alice"), ("alice", "bob"))
        assert bob.knows("presence-a") == {"bob", "carol"}
        look_again(started, ("bob", "alice"))
        hidden.clear()
        look_again(started, ("bob", "alice"))
        assert bob.knows("presence-a") == {"alice", "bob", "carol"}
    assert (alice.knows("presence-a"), carol.knows("presence-a")) == ({"alice", "bob", "carol"},) * 2
    # Who goes while they are not seen has gone for whoever was told so; who is seen afterwards is not there.
    hidden.add(("bob", "alice"))
    look_again(started, ("bob", "alice"))
    await alice.leave("presence-a")
    await eventually(lambda: carol.knows("presence-a") == {"bob", "carol"})
    hidden.clear()
    look_again(started, ("bob", "alice"))
    assert bob.knows("presence-a") == {"bob", "carol"}
    # Whoever is not asked about first is told when it turns out: who came is new, and who went had been there.
    hidden.add(("bob", "alice"))
    await alice.join("presence-a")
    await eventually(lambda: carol.knows("presence-a") == {"alice", "bob", "carol"})
    await asyncio.sleep(0.1)
    assert bob.knows("presence-a") == {"alice", "bob", "carol"}, "an answer is good for its time"
    hidden.add(("bob", "carol"))
    for node in started:
        node.part.channels._visibility.forget("acme", None, 1)  # type: ignore[union-attr]  # it has one
    await carol.leave("presence-a")
    await eventually(lambda: bob.knows("presence-a") == {"alice", "bob"})


async def test_who_comes_as_a_rule_turns_is_told_once(start: Start) -> None:
    hidden = {("bob", "alice")}
    started = await start(rule=lambda viewer, user: (viewer, user) not in hidden)
    alice, bob = started[0].tab("alice"), started[-1].tab("bob")
    await bob.join("presence-a")
    await alice.join("presence-a")
    await eventually(lambda: started[-1].members("presence-a") == {"alice", "bob"})
    await alice.leave("presence-a")
    await eventually(lambda: started[-1].members("presence-a") == {"bob"})
    hidden.clear()
    for node in started:
        node.part.channels._visibility.forget("acme", "alice", 1)  # type: ignore[union-attr]  # it has one
    await alice.join("presence-a")
    await eventually(lambda: bob.changes() == [(ADDED, "alice")])
    hidden.add(("bob", "alice"))
    for node in started:
        node.part.channels._visibility.forget("acme", "alice", 1)  # type: ignore[union-attr]  # it has one
    await alice.leave("presence-a")
    await eventually(lambda: bob.changes() == [(ADDED, "alice"), (REMOVED, "alice")])
    await bob.leave("presence-a")
    await eventually(lambda: [node.leftovers() for node in started] == [[]] * len(started))


@pytest.mark.parametrize("rule", [None, lambda _viewer, _user: True], ids=["free", "ruled"])
async def test_who_is_put_back_into_a_channel_hears_of_its_members_from_the_answer_on(start: Start, rule: Any) -> None:
    started = await start(rule=rule)
    tab = started[0].tab("alice")
    started[0].part.channels.go_on(tab.subscriber, ["presence-a"])
    await started[0].tab("bob").join("presence-a")
    await asyncio.sleep(0.1)
    assert tab.changes() == []
    joined = await tab.join("presence-a")
    assert [person.user_id for person in joined.members or ()] == ["alice", "bob"]
    await started[0].tab("carol").join("presence-a")
    await eventually(lambda: tab.changes() == [(ADDED, "carol")])


# What is said


async def test_all_hear_what_is_said_but_for_its_source(start: Start) -> None:
    started = await start()
    source, other = started[0].tab("alice"), started[-1].tab("bob")
    await source.join("a")
    await other.join("a")
    source_id = source.subscriber.connection_id
    await started[0].part.channels.say("acme", ["a"], "e", 1, source=source_id, sender="alice")
    await started[0].part.channels.say("acme", ["a", "b"], "e", 2)
    await eventually(lambda: len(other.heard()) == 2)
    await eventually(source.heard)
    assert (source.heard(), other.heard()) == ([2], [1, 2])


async def test_between_an_answer_with_history_and_the_events_nothing_is_lost_and_nothing_twice(start: Start) -> None:
    started = await start(channel_history=1000)
    count, stop = 0, False

    async def talk(node: Node) -> None:
        nonlocal count
        while not stop:
            count += 1
            await node.part.channels.say("acme", ["a"], "e", count)
            await asyncio.sleep(random.random() / 500)

    talking = [asyncio.create_task(talk(node)) for node in started]
    heard = []
    for number in range(30):
        tab = started[number % len(started)].tab()
        joined = await tab.join("a", since=0)
        heard.append((tab, joined))
        await asyncio.sleep(0.005)
    stop = True
    await asyncio.gather(*talking)
    whole = await started[0].part.channels.history("acme", "a", after=0, limit=1000)
    expected = [said.position for said in whole.events]
    assert len(expected) == count
    for tab, joined in heard:
        assert joined.history is not None
        assert joined.history.recovered
        before = [said.position for said in joined.history.events]
        await heard_of(tab, count - len(before))
        assert before + [said.position for _, said in tab.listener.sink] == expected


async def test_who_is_put_back_into_channels_misses_nothing_that_is_said_before_each(start: Start) -> None:
    started = await start()
    channels, tab = started[0].part.channels, started[0].tab("alice")
    channels.go_on(tab.subscriber, ["presence-a", "b", "c"])
    await tab.join("presence-a")
    for channel in ("presence-a", "b", "c"):
        await channels.say("acme", [channel], "e", f"in {channel}")
    await eventually(lambda: tab.heard() == ["in presence-a", "in b", "in c"])
    await tab.join("b")
    channels.give_up(tab.subscriber, "c")
    await channels.say("acme", ["b", "c"], "e", "later")
    await eventually(lambda: tab.heard() == ["in presence-a", "in b", "in c", "later"])
    await tab.end()
    await settled(started, [])
    assert [node.leftovers() for node in started] == [[]] * len(started)


async def test_two_nodes_tell_in_one_order_what_is_said_on_both_at_once(two: list[Node]) -> None:
    tabs = [node.tab() for node in two]
    for tab in tabs:
        await tab.join("a")
    await asyncio.gather(*(two[n % 2].part.channels.say("acme", ["a"], "e", n) for n in range(300)))
    for tab in tabs:
        await heard_of(tab, 300)
    assert tabs[0].heard() == tabs[1].heard()
    history = await two[0].part.channels.history("acme", "a", limit=100)
    assert [said.position for said in history.events] == [said.position for _, said in tabs[0].listener.sink][-100:]


async def test_counts_are_of_all_nodes(two: list[Node]) -> None:
    tabs = [node.tab() for node in two for _ in range(2)]
    for tab in tabs:
        await tab.join("a")
    await eventually(
        lambda: [node.part.channels.occupancy("acme", "a").subscriptions for node in two] == [4, 4],
    )


# Redis goes, and comes back with nothing


async def test_while_redis_is_away_clients_come_and_go_and_when_it_is_back_all_agree() -> None:
    async with redis_server() as server, nodes(2, server.url) as started:
        watcher, alice, bob = started[0].tab("watcher"), started[1].tab("alice"), started[1].tab("bob")
        for tab in (watcher, alice):
            await tab.join("presence-a")
        await settled(started, [watcher, alice])
        await server.kill()
        async with asyncio.timeout(STEP):
            joined = await bob.join("presence-a")
            assert {person.user_id for person in joined.members or ()} == {"alice", "bob", "watcher"}
            await alice.leave("presence-a")
            with pytest.raises(UnavailableError):
                await started[0].part.channels.say("acme", ["presence-a"], "e", 1)
            late = started[0].tab("late")
            with pytest.raises(UnavailableError):
                await late.join("presence-a", since=0)
        assert late.subscriber.channels == {}
        server.wipe()
        await server.start()
        await settled(started, [watcher, bob])
        await started[1].part.channels.say("acme", ["presence-a"], "e", "back")
        await eventually(lambda: [watcher.heard(), bob.heard()] == [["back"], ["back"]])
        for tab in (watcher, bob, late):
            await tab.end()
        await settled(started, [])
        assert [node.leftovers() for node in started] == [[], []]


@pytest.mark.parametrize("rule", [None, lambda _viewer, _user: True], ids=["free", "ruled"])
async def test_who_comes_while_redis_is_away_is_not_told_of_coming(rule: Any) -> None:
    async with redis_server(save=True) as server, nodes(2, server.url, rule=rule) as started:
        watcher, alice = started[0].tab("watcher"), started[1].tab("alice")
        await watcher.join("presence-a")
        await settled(started, [watcher])
        await server.kill()
        async with asyncio.timeout(STEP):
            joined = await alice.join("presence-a")
        assert {person.user_id for person in joined.members or ()} == {"alice", "watcher"}
        bob = started[1].tab("bob")
        await bob.join("presence-a")
        await bob.end()  # of whom nothing is left to be told ahead
        await server.start()
        await settled(started, [watcher, alice])
        await started[1].tab("carol").join("presence-a")
        await eventually(lambda: (ADDED, "carol") in alice.changes())
        assert [change for change in alice.changes() if change[1] == "alice"] == []
        assert (ADDED, "alice") in watcher.changes()
        assert (REMOVED, "alice") not in watcher.changes()


# All at once


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_at_once_all_agree_in_the_end_and_nothing_is_left(start: Start, seed: int) -> None:
    started = await start(presence_offline_grace=0.1)
    dice = random.Random(seed)
    channels = ["presence-a", "presence-b", "public"]
    tabs: list[Tab] = []

    async def live(user: str) -> Tab | None:
        """One connection's life: joins and leaves, several at once, and perhaps an end in their middle."""
        tab = dice.choice(started).tab(user)
        for _ in range(dice.randint(1, 4)):
            doing: list[Awaitable[object]] = [
                tab.join(channel, since=dice.choice([None, 0])) if dice.random() < 0.6 else tab.leave(channel)
                for channel in dice.sample(channels, dice.randint(1, 3))
            ]
            if dice.random() < 0.2:
                joining = asyncio.create_task(tab.join("presence-a"))
                await asyncio.sleep(dice.random() / 1000)
                joining.cancel()
                doing.append(joining)
            if dice.random() < 0.15:
                doing.append(tab.end(dice.choice([Ending.GOODBYE, Ending.LOST, Ending.KICKED])))
            await asyncio.gather(*doing, return_exceptions=True)
            tab.joined = {name: tab.joined[name] for name in tab.subscriber.channels if name in tab.joined}
            await asyncio.sleep(dice.random() / 100)
        if tab.subscriber.ended or dice.random() < 0.5:
            await tab.end(dice.choice([Ending.GOODBYE, Ending.LOST]))
            return None
        return tab

    for _ in range(3):
        found = await asyncio.gather(*(live(dice.choice(["alice", "bob", "carol"])) for _ in range(12)))
        tabs += [tab for tab in found if tab is not None]
        for tab in tabs:  # one whose answer was cancelled asks again
            for channel in tab.subscriber.channels:
                if channel not in tab.joined:
                    await tab.join(channel)
        await settled(started, tabs)
        leaving, tabs = tabs[::2], tabs[1::2]
        await asyncio.gather(*(tab.end(dice.choice([Ending.GOODBYE, Ending.LOST])) for tab in leaving))
    await asyncio.gather(*(tab.end() for tab in tabs))
    await settled(started, [])
    await asyncio.sleep(0.3)
    assert [node.leftovers() for node in started] == [[]] * len(started)
