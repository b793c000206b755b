"""Watch lists through every door, engine and store, and over two nodes; what a client hears of them that comes back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from clients import NAMESPACE, USER_STATUS, Client, Listener, Plain, Polling, abort
from conftest import Running, eventually
from redis_servers import fresh_prefix
from test_sessions import Tab

Serve = Callable[..., Awaitable[Running]]
Heard = tuple[str, str, int]


class Watcher:
    """A client that watches, by any door."""

    def __init__(self, client: Client | Plain) -> None:
        self.client = client
        self.listener: Listener = client

    @classmethod
    async def connect(cls, closing: AsyncExitStack, running: Running, door: str, user: str = "alice") -> Watcher:
        if door == "websocket":
            return cls(await Plain.connect(closing, running.ws_url, user))
        return cls(await Client.connect(closing, running.url, user, transports=[door.removeprefix("socketio ")]))

    async def ask(self, event: str, payload: Any = None) -> Any:
        answer = await self.client.ask(event, payload)
        assert "data" in answer, answer
        return answer["data"]

    async def watch(self, *users: str) -> list[Any]:
        answered = await self.ask("watch-users", {"userIds": users})
        assert set(answered) == {"statuses", "timestamp"}
        assert [status["userId"] for status in answered["statuses"]] == list(users)
        assert all(set(status) == USER_STATUS for status in answered["statuses"])
        return [(status["userId"], status["status"], status["version"]) for status in answered["statuses"]]

    async def hears(self, *expected: Heard) -> None:
        """Hear these of all that it has ever heard of presence, and no other, until a request is answered."""
        await self.ask("heartbeat")
        assert self.listener.presence() == list(expected)


DOORS = ["socketio websocket", "socketio polling", "websocket"]


@pytest.fixture(params=["memory", "redis"])
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    return {"redis_url": request.getfixturevalue("redis_url"), "redis_prefix": fresh_prefix()}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("engine", ["fast", "stock"])
@pytest.mark.parametrize("audience", ["everyone", "watchers"])
async def test_a_connection_hears_of_those_it_watches_and_of_nobody_else(
    serve: Serve, closing: AsyncExitStack, stored: dict[str, Any], engine: str, door: str, audience: str
) -> None:
    running = await serve(gateway_engine=engine, presence_audience=audience, **stored)
    presence = running.gateway.presence
    alice = await Watcher.connect(closing, running, door)
    await presence.set_online("bob")
    before = [("user-online", "bob", 1)] if audience == "everyone" else []
    await alice.hears(*before)
    assert await alice.watch("zoe", "bob", "alice", "bob") == [
        ("zoe", "offline", 0),
        ("bob", "online", 1),
        ("alice", "online", 1),
        ("bob", "online", 1),
    ]
    await presence.set_online("carol")
    await presence.set_online("zoe", tenant="another")
    await presence.set_offline("bob")
    await presence.set_online("zoe")
    heard = [*before, ("user-offline", "bob", 2), ("user-online", "zoe", 1)]
    await alice.hears(*heard)
    assert await alice.watch("carol") == [("carol", "online", 1)]
    assert await alice.ask("unwatch-users", {"userIds": ["bob", "nobody", "bob"]}) == {"count": 1}
    await presence.set_online("bob")
    await presence.set_offline("carol")
    heard.append(("user-offline", "carol", 2))
    await alice.hears(*heard)
    assert await alice.ask("unwatch-users") == {"count": 3}
    await presence.set_online("carol")
    await alice.hears(*heard)
    assert running.gateway._watching._tenants["default"].watchers_of == {}


async def test_others_hear_on_as_they_did_and_who_leaves_leaves_nothing(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    alice, eve = [await Watcher.connect(closing, running, door) for door in DOORS[1:]]
    everyone = await Client.connect(closing, running.url, "carol")
    await alice.watch("bob")
    await eve.watch("dave", "bob")
    await running.gateway.presence.set_online("dave")
    await everyone.hears("user-online", userId="dave")
    await alice.hears(("user-online", "carol", 1))
    await eve.hears(("user-online", "carol", 1), ("user-online", "dave", 1))
    assert isinstance(alice.client, Client)
    assert isinstance(eve.client, Plain)
    await alice.client.leave()
    eve.client.vanish()
    await eventually(lambda: running.gateway._watching._tenants == {})
    assert everyone.presence("dave") == [("user-online", "dave", 1)]


@pytest.mark.parametrize("door", DOORS)
async def test_past_the_cap_a_request_is_refused_whole(serve: Serve, closing: AsyncExitStack, door: str) -> None:
    running = await serve(max_watched_users=3)
    alice = await Watcher.connect(closing, running, door)
    await alice.watch("a", "b")
    answer = await alice.client.ask("watch-users", {"userIds": ["a", "c", "d", "c"]})
    assert answer["event"] == "error"
    assert answer["error"]["code"] == "INVALID_PAYLOAD"
    assert "may watch 3 users" in answer["error"]["message"]
    await running.gateway.presence.set_online("c")
    await running.gateway.presence.set_online("b")
    await alice.hears(("user-online", "b", 1))
    await alice.watch("c", "c", "a")


@pytest.mark.parametrize("audience", ["everyone", "watchers"])
async def test_a_watcher_hears_of_changes_on_another_node(
    serve: Serve, closing: AsyncExitStack, redis_url: str, audience: str
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "presence_audience": audience}
    here, there = [await serve(**shared) for _ in range(2)]
    alice = await Watcher.connect(closing, here, "socketio websocket")
    assert await alice.watch("bob", "marker") == [("bob", "offline", 0), ("marker", "offline", 0)]
    bob = await Client.connect(closing, there.url, "bob")
    await Client.connect(closing, there.url, "carol")
    await alice.listener.hears("user-online", userId="bob")
    await bob.leave()
    await eventually(lambda: not there.gateway.presence.status("bob").online)  # before what comes next
    await there.gateway.presence.set_online("marker")
    await alice.listener.hears("user-online", userId="marker")
    assert alice.listener.presence() == [
        ("user-online", "bob", 1),
        ("user-offline", "bob", 2),
        ("user-online", "marker", 1),
    ]


async def test_one_who_watches_by_polls_gets_an_answer_for_each_request(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(presence_audience="watchers")
    raw = await Polling.connect(closing, running.url)
    assert await raw.post(f'42{NAMESPACE},1["watch-users",{{"userIds":["bob"]}}]') == 200
    [answer] = await raw.poll()
    assert answer.startswith(f'43{NAMESPACE},1[{{"event":"watching","data":{{"statuses":[{{"userId":"bob"')
    assert await raw.post(f'42{NAMESPACE},["watch-users",{{"userIds":["a\\nb"]}}]') == 200
    [complaint] = await raw.poll()
    assert json.loads(complaint[complaint.index("[") :])[1]["code"] == "INVALID_PAYLOAD"


# Going on after a lost connection


class WatchingTab:
    """A browser's connection that watches, loses its network, and comes back."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def ask(self, event: str, payload: Any) -> Any:
        await self.tab.packets.ws.send_str(f"42{NAMESPACE},5{json.dumps([event, payload])}")
        answer = await self.tab.packets.packet(f"43{NAMESPACE},5")
        return json.loads(answer[answer.index("[") :])[0]["data"]

    async def watch(self, *users: str) -> None:
        await self.ask("watch-users", {"userIds": users})

    async def next(self) -> Heard:
        name, data = await self.tab.event()
        return name, data["userId"], data["version"]

    async def lose(self, running: Running) -> None:
        number = len(running.gateway._connections)
        abort(self.tab.packets.ws)
        await eventually(lambda: len(running.gateway._connections) == number - 1)

    async def back(self, closing: AsyncExitStack, running: Running) -> bool:
        was = self.tab
        self.tab = await was.back(closing, running)
        return self.tab.pid == was.pid


@pytest.fixture(params=["fast", "stock"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("audience", ["everyone", "watchers"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_who_comes_back_has_the_list_again_and_what_was_missed_of_it(
    serve: Serve, closing: AsyncExitStack, redis_url: str, engine: str, audience: str, *, elsewhere: bool
) -> None:
    shared: dict[str, Any] = {"gateway_engine": engine, "presence_audience": audience, "presence_offline_grace": 30}
    shared |= {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if elsewhere else {}
    first = await serve(**shared)
    second = await serve(**shared) if elsewhere else first
    presence = second.gateway.presence
    alice = WatchingTab(await Tab.open(closing, first))
    await alice.watch("bob", "carol", "dave")
    await presence.set_online("bob")
    assert await alice.next() == ("user-online", "bob", 1)
    await presence.set_online("eve")
    await alice.ask("unwatch-users", {"userIds": ["dave"]})
    await alice.watch("frank")
    recovery: Any = first.gateway._recovery
    await alice.lose(first)
    if elsewhere:  # as its node says: whoever is back before that is told the net effect of what came within a second
        await eventually(lambda: recovery.sessions._lost and not recovery.directory._changed)
    for user in ("eve", "bob"):
        await presence.set_offline(user)
    for user in ("dave", "frank", "carol", "bob"):
        await presence.set_online(user)
    await presence.set_offline("carol")
    assert await alice.back(closing, second)
    assert [await alice.next() for _ in range(5)] == [
        ("user-offline", "bob", 2),
        ("user-online", "frank", 1),
        ("user-online", "carol", 1),
        ("user-online", "bob", 3),
        ("user-offline", "carol", 2),
    ]
    await presence.set_offline("dave")
    await presence.set_offline("frank")
    assert await alice.next() == ("user-offline", "frank", 2)
    # Once more: nothing comes twice, and the list goes on as it is.
    await alice.lose(second)
    await presence.set_online("carol")
    assert await alice.back(closing, second)
    assert await alice.next() == ("user-online", "carol", 3)
    assert await alice.ask("unwatch-users", None) == {"count": 3}
    await alice.lose(second)
    await presence.set_online("frank")
    assert await alice.back(closing, second)
    await second.gateway.notify("alice", "notification", {"userId": "nobody", "version": 0})
    assert await alice.next() == ("notification", "nobody", 0)


async def test_one_that_watched_nobody_missed_nothing(serve: Serve, closing: AsyncExitStack, engine: str) -> None:
    running = await serve(gateway_engine=engine, presence_audience="watchers", recovery_memory=65536)
    alice = WatchingTab(await Tab.open(closing, running))
    await alice.lose(running)
    for n in range(60):  # more than is kept
        await running.gateway.presence.set_online(f"user-{n}")
    assert await alice.back(closing, running)
    await running.gateway.notify("alice", "notification", {"userId": "nobody", "version": 0})
    assert await alice.next() == ("notification", "nobody", 0)


async def test_one_whose_users_are_quiet_has_missed_nothing_however_busy_others_are(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, recovery_memory=65536)
    presence = running.gateway.presence
    alice, eve = [WatchingTab(await Tab.open(closing, running, user)) for user in ("alice", "eve")]
    await alice.watch("bob")
    await eve.watch("user-1")
    for tab in (alice, eve):
        await tab.lose(running)
    for n in range(60):  # more than is kept
        await presence.set_online(f"user-{n}")
    await presence.set_online("bob")
    assert await alice.back(closing, running)
    assert await alice.next() == ("user-online", "bob", 1)
    asked: list[int] = []
    store = running.gateway._store
    read = store.read

    async def count(position: int, *, wait: bool) -> Any:
        asked.append(position)
        return await read(position, wait=wait)

    running.gateway._recovery._store = SimpleNamespace(read=count, near=True)  # type: ignore[union-attr]
    was, eve.tab = eve.tab, await eve.tab.back(closing, running, "eve")
    assert eve.tab.pid == was.pid
    assert await eve.next() == ("user-online", "user-1", 1)
    assert len(asked) == 1, "what is kept no more was read from the log"


async def test_a_list_that_is_too_long_to_be_kept_is_a_new_beginning(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine)
    alice = WatchingTab(await Tab.open(closing, running))
    for begin in range(0, 1000, 250):
        await alice.watch(*(f"{n:0>100}" for n in range(begin, begin + 250)))
    await alice.lose(running)
    assert len(running.gateway._recovery.sessions) == 0  # type: ignore[union-attr]
    assert not await alice.back(closing, running)
    await running.gateway.presence.set_online("bob")
    assert await alice.next() == ("user-online", "bob", 1)


async def test_a_batch_whose_half_was_heard_goes_on_for_those_who_are_watched(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, presence_flush_interval=0.3)
    presence = running.gateway.presence
    alice = WatchingTab(await Tab.open(closing, running))
    await alice.watch("first", "bob", "carol", "dave")
    await presence.set_online("first")
    assert (await alice.next())[1] == "first"  # from now on an interval gathers
    for user in ("bob", "eve", "carol", "dave"):
        await presence.set_online(user)
    await presence.set_offline("carol")
    assert await alice.next() == ("user-online", "bob", 1)
    in_its_middle = alice.tab.offset
    assert await alice.next() == ("user-online", "dave", 1)
    # Of these the client says that it heard only the first.
    alice.tab.offset = in_its_middle
    assert await alice.back(closing, running)
    assert await alice.next() == ("user-online", "dave", 1)
    # But not where it has heard of fewer since: what it was told then cannot be made again.
    await alice.ask("unwatch-users", {"userIds": ["bob"]})
    alice.tab.offset = in_its_middle
    assert not await alice.back(closing, running)


async def test_what_was_over_before_it_was_told_is_not_told_later(
    serve: Serve, closing: AsyncExitStack, engine: str
) -> None:
    running = await serve(gateway_engine=engine, presence_flush_interval=0.2)
    presence = running.gateway.presence
    alice = WatchingTab(await Tab.open(closing, running))
    await presence.set_online("bob")
    await alice.next()
    await alice.watch("first", "bob")
    await presence.set_online("first")
    assert await alice.next() == ("user-online", "first", 1)  # from now on an interval gathers
    await presence.set_offline("bob")
    await presence.set_online("bob")
    assert (await alice.ask("check-user-status", {"userId": "bob"}))["version"] == 3
    await alice.lose(running)
    await presence.set_offline("bob")
    assert await alice.back(closing, running)
    assert await alice.next() == ("user-offline", "bob", 4)


async def test_a_session_is_told_of_nobody_s_list_but_its_own(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    alice = WatchingTab(await Tab.open(closing, running))
    await alice.watch("bob")
    # Before the server knows that it was lost: the old connection and the new one have a list each.
    was = alice.tab
    assert await alice.back(closing, running)
    assert await was.packets.closed() == 1001
    await alice.watch("carol")
    await eventually(lambda: len(running.gateway._watching._tenants["default"].watchers) == 1)
    assert running.gateway._watching._tenants["default"].watchers_of.keys() == {"bob", "carol"}


async def test_a_status_set_by_hand_is_heard_by_those_who_watch(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(presence_audience="watchers")
    presence = running.gateway.presence
    await presence.set_online("bob")
    alice = await Watcher.connect(closing, running, "websocket")
    await alice.watch("bob")
    changed = "user-status-changed"
    heard: list[Heard] = []
    for status, text, event in (
        ("busy", None, changed),
        ("busy", "in a call", changed),
        ("busy", "in a call", None),
        ("invisible", None, "user-offline"),
        ("invisible", "still in a call", None),
        ("online", None, "user-online"),
    ):
        await presence.set_status("bob", status, text)
        heard += [] if event is None else [(event, "bob", len(heard) + 2)]
        await alice.hears(*heard)
