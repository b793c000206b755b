"""An application's rule about who may see whom, through every door; whoever may not sees one who was never there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client, Plain, abort
from conftest import SERVICE_KEY, Running, eventually, make_token
from redis_servers import RedisServer, fresh_prefix
from structlog.testing import capture_logs
from test_channels_attacked import Page as EchoPage
from test_pusher_whole import APP
from test_pusher_whole import Page as PusherPage
from test_sessions import Tab

Serve = Callable[..., Awaitable[Running]]


class Blocks:
    """Who has blocked whom: the blocked may not see who blocked them."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = set(pairs)

    def rule(self, viewer: str, user: str) -> bool:
        return (user, viewer) not in self.pairs

    def batch(self, viewer: str, users: Collection[str]) -> set[str]:
        return {user for user in users if self.rule(viewer, user)}


@pytest.fixture(params=["one", "batch"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rules(blocks: Blocks, form: str = "one") -> dict[str, Any]:
    return {"visibility": blocks.rule} if form == "one" else {"visibility_of": blocks.batch}


async def get(gateway: Running, user: str | None, path: str) -> Any:
    headers = {"X-API-Key": SERVICE_KEY} if user is None else {"Authorization": f"Bearer {make_token(user)}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{gateway.url}{path}") as response:
        return await response.json()


def users_of(answer: Any) -> list[str]:
    return [user["userId"] for user in answer["data"]["users"]]


async def test_everyone_hears_of_those_whom_they_may_see_and_of_nobody_else(
    serve: Serve, closing: AsyncExitStack, form: str
) -> None:
    gateway = await serve(**rules(Blocks(("alice", "bob")), form))
    bob = await Client.connect(closing, gateway.url, "bob")
    carol = await Plain.connect(closing, gateway.ws_url, "carol")
    alice = await Client.connect(closing, gateway.url)
    dave = await Client.connect(closing, gateway.url, "dave")
    await alice.ask("set-status", {"status": "busy"})
    await bob.hears("user-online", userId="dave")
    await carol.until("user-status-changed")
    await dave.hears("user-status-changed", userId="alice")
    await alice.leave()
    await carol.until("user-offline")
    await dave.hears("user-offline", userId="alice")
    await bob.ask("heartbeat")
    assert bob.presence("alice") == []
    assert [name for name, _, _ in carol.presence("alice")] == ["user-online", "user-status-changed", "user-offline"]
    assert [name for name, _, _ in dave.presence("alice")] == ["user-status-changed", "user-offline"]


async def test_answers_lists_and_counts_leave_out_who_may_not_be_seen(
    serve: Serve, closing: AsyncExitStack, form: str
) -> None:
    gateway = await serve(**rules(Blocks(("alice", "bob")), form))
    await Client.connect(closing, gateway.url, "alice")
    bob = await Client.connect(closing, gateway.url, "bob")
    carol = await Client.connect(closing, gateway.url, "carol")
    seen, nobody = await bob.status("alice"), await bob.status("nobody")
    assert seen | {"userId": 0, "timestamp": 0} == nobody | {"userId": 0, "timestamp": 0}
    assert users_of(await bob.ask("get-online-users")) == ["bob", "carol"]
    answer = await bob.ask("get-online-users", {"limit": 1})
    assert (users_of(answer), answer["data"]["count"]) == (["bob"], 2)
    answer = await bob.ask("get-online-users", {"limit": 1, "cursor": answer["data"]["nextCursor"]})
    assert (users_of(answer), answer["data"]["nextCursor"]) == (["carol"], None)
    statuses = (await bob.ask("check-users-status", {"userIds": ["carol", "alice", "bob"]}))["data"]["statuses"]
    assert [each["status"] for each in statuses] == ["online", "offline", "online"]
    statuses = (await bob.ask("watch-users", {"userIds": ["carol", "alice"]}))["data"]["statuses"]
    assert [(each["status"], each["version"]) for each in statuses] == [("online", 1), ("offline", 0)]
    assert (await get(gateway, "bob", "/online-status?ids=alice,carol")) == [
        {"id": "alice", "online": False},
        {"id": "carol", "online": True},
    ]
    assert (await get(gateway, "bob", "/api/users/online"))["count"] == 2
    one = await get(gateway, "bob", "/api/users/alice/online-status")
    assert (one["online"], one["lastActive"], one["version"], one["meta"]) == (False, None, 0, None)
    assert users_of(await carol.ask("get-online-users")) == ["alice", "bob", "carol"]
    assert (await get(gateway, None, "/api/users/online"))["count"] == 3
    assert (await get(gateway, None, "/api/users/alice/online-status"))["online"]
    assert gateway.gateway.presence.online_count() == 3


async def test_watchers_hear_of_those_whom_they_may_see(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(**rules(Blocks(("alice", "bob"))))
    bob = await Client.connect(closing, gateway.url, "bob")
    await bob.ask("watch-users", {"userIds": ["alice", "carol"]})
    for user in ("alice", "carol", "dave"):
        await Client.connect(closing, gateway.url, user)
    await bob.hears("user-online", userId="carol")
    await bob.ask("heartbeat")
    assert [user for _, user, _ in bob.presence()] == ["carol"]
    assert (await bob.ask("unwatch-users"))["data"] == {"count": 2}


@pytest.mark.parametrize("watching", [False, True])
async def test_a_block_is_told_at_once_and_so_is_its_end(
    serve: Serve, closing: AsyncExitStack, *, watching: bool
) -> None:
    blocks = Blocks()
    gateway = await serve(**rules(blocks))
    presence = gateway.gateway.presence
    alice = await Client.connect(closing, gateway.url, "alice")
    bob, tab = await Client.connect(closing, gateway.url, "bob"), await Plain.connect(closing, gateway.ws_url, "bob")
    if watching:
        await bob.ask("watch-users", {"userIds": ["alice"]})
        await tab.ask("watch-users", {"userIds": ["alice"]})
    assert (await bob.status("alice"))["online"]
    blocks.pairs.add(("alice", "bob"))
    presence.visibility_changed("alice")
    told = await bob.hears("user-offline", userId="alice")
    assert {name: told[name] for name in told if name != "timestamp"} == {
        "userId": "alice",
        "online": False,
        "status": "offline",
        "lastActive": None,
        "version": 0,
    }
    assert (await tab.until("user-offline"))["data"]["userId"] == "alice"
    await alice.ask("set-status", {"status": "busy"})
    assert not (await bob.status("alice"))["online"]
    blocks.pairs.clear()
    presence.visibility_changed("alice")
    told = await bob.hears("user-online", userId="alice")
    assert (told["status"], told["version"]) == ("busy", 2)
    await tab.until("user-online")
    assert [(name, version) for name, _, version in bob.presence("alice")] == [
        ("user-offline", 0),
        ("user-online", 2),
    ]
    assert [name for name, _ in alice.heard if name == "user-offline"] == []


async def test_who_blocks_sees_no_more_where_the_rule_says_so(serve: Serve, closing: AsyncExitStack) -> None:
    blocks = Blocks()
    gateway = await serve(**rules(blocks))
    alice = await Client.connect(closing, gateway.url, "alice")
    await Client.connect(closing, gateway.url, "bob")
    await alice.hears("user-online", userId="bob")
    await alice.ask("get-online-users")
    blocks.pairs.add(("bob", "alice"))
    gateway.gateway.presence.visibility_changed("alice")
    await alice.hears("user-offline", userId="bob", version=0)


async def test_what_is_found_out_late_is_told_with_the_next_answer_or_event(
    serve: Serve, closing: AsyncExitStack
) -> None:
    blocks = Blocks()
    gateway = await serve(**rules(blocks))
    alice = await Client.connect(closing, gateway.url, "alice")
    bob, tab = await Client.connect(closing, gateway.url, "bob"), await Client.connect(closing, gateway.url, "bob")
    dave = await Client.connect(closing, gateway.url, "dave")
    for client in (bob, dave):
        assert (await client.status("alice"))["online"]
    blocks.pairs |= {("alice", "bob"), ("alice", "dave")}
    gateway.gateway.presence.visibility_changed()
    assert not (await bob.status("alice"))["online"]
    assert bob.presence("alice") == [("user-offline", "alice", 0)]  # heard before it was read
    await tab.hears("user-offline", userId="alice", version=0)
    await alice.ask("set-status", {"status": "busy"})
    await dave.hears("user-offline", userId="alice", version=0)
    blocks.pairs.clear()
    gateway.gateway.presence.visibility_changed()
    await alice.ask("set-status", {"status": "dnd"})
    for client in (bob, tab, dave):
        await client.hears("user-online", userId="alice", status="dnd", version=3)
        assert [name for name, _, _ in client.presence("alice")][-2:] == ["user-offline", "user-online"]


async def test_every_node_asks_anew(serve: Serve, closing: AsyncExitStack, redis_url: str) -> None:
    blocks = Blocks()
    values = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    one, other = await serve(**values, **rules(blocks)), await serve(**values, **rules(blocks))
    await Client.connect(closing, one.url, "alice")
    bob = await Client.connect(closing, other.url, "bob")
    assert (await bob.status("alice"))["online"]
    blocks.pairs.add(("alice", "bob"))
    one.gateway.presence.visibility_changed("alice")
    await bob.hears("user-offline", userId="alice", version=0)
    assert not (await bob.status("alice"))["online"]


async def test_what_was_missed_is_of_those_who_may_be_seen(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(**rules(Blocks(("alice", "bob"))))
    tab = await Tab.open(closing, gateway, "bob")
    await Client.connect(closing, gateway.url, "carol")
    assert (await tab.event())[1]["userId"] == "carol"
    abort(tab.packets.ws)
    await Client.connect(closing, gateway.url, "alice")
    await Client.connect(closing, gateway.url, "dave")
    again = await tab.back(closing, gateway, "bob")
    assert again.pid == tab.pid
    assert (await again.event())[1]["userId"] == "dave"
    await Client.connect(closing, gateway.url, "erin")
    assert (await again.event())[1]["userId"] == "erin"


async def test_who_was_away_when_a_rule_changed_begins_anew(serve: Serve, closing: AsyncExitStack) -> None:
    blocks = Blocks()
    gateway = await serve(**rules(blocks))
    tab = await Tab.open(closing, gateway, "bob")
    await Client.connect(closing, gateway.url, "alice")
    assert (await tab.event())[1]["userId"] == "alice"
    abort(tab.packets.ws)
    blocks.pairs.add(("alice", "bob"))
    gateway.gateway.presence.visibility_changed("alice")
    again = await tab.back(closing, gateway, "bob")
    assert again.pid != tab.pid


async def test_a_rule_may_read_presence_and_gets_the_truth(serve: Serve, closing: AsyncExitStack, form: str) -> None:
    def rule(viewer: str, user: str) -> bool:
        """Whoever is busy is seen by those alone who are busy, too."""
        presence = running.gateway.presence
        assert {viewer, user} <= {"nobody", *presence.online_users()}
        mine, theirs = presence.statuses([viewer, user])
        return "busy" not in {theirs.status, presence.status(user).status} or mine.status == "busy"

    def batch(viewer: str, users: Collection[str]) -> list[str]:
        return [user for user in users if rule(viewer, user)]

    running = await serve(**({"visibility": rule} if form == "one" else {"visibility_of": batch}))
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    assert (await alice.status("bob"))["status"] == "online"
    await bob.ask("set-status", {"status": "busy"})
    running.gateway.presence.visibility_changed("bob")
    assert not (await alice.status("bob"))["online"]
    await alice.ask("set-status", {"status": "busy"})
    running.gateway.presence.visibility_changed("alice")
    assert (await alice.status("bob"))["status"] == "busy"


async def test_a_rule_that_says_that_it_has_changed_hides_everyone_and_harms_nothing_else(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def restless(_viewer: str, user: str) -> bool:
        nonlocal asked
        asked += 1
        running.gateway.presence.visibility_changed(user)
        return True

    running = await serve(visibility=restless)
    told: list[str] = []
    monkeypatch.setattr(running.gateway._bus, "publish", lambda topic, _data: told.append(topic))
    with capture_logs() as logs:
        alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
        assert not (await alice.status("bob"))["online"]
    reasons = [str(each["exc_info"]) for each in logs if "exc_info" in each]
    assert reasons
    assert all("must not ask who may see whom" in reason for reason in reasons)
    assert asked <= 4
    assert told == []
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"
    assert (await bob.status("bob"))["online"]


async def test_a_rule_that_raises_hides_everyone_and_harms_nothing_else(
    serve: Serve, closing: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(viewer: str, user: str) -> bool:
        raise LookupError("for this test")

    gateway = await serve(visibility=broken)
    alice = await Client.connect(closing, gateway.url, "alice")
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    assert (await alice.status("alice"))["online"]
    assert not (await alice.status("bob"))["online"]
    assert users_of(await bob.ask("get-online-users")) == ["bob"]
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"
    await alice.ask("set-status", {"status": "busy"})
    await gateway.gateway.notify("bob", "notification", {"message": "hi"})
    await bob.until("notification")
    assert bob.presence() == []
    assert gateway.gateway.presence.online_count() == 2


async def test_with_a_rule_too_one_s_own_tabs_hear_of_oneself(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(visibility=lambda _viewer, _user: False)
    alice, tab = await Client.connect(closing, gateway.url), await Client.connect(closing, gateway.url)
    await alice.ask("set-status", {"status": "busy"})
    await tab.hears("user-status-changed", userId="alice", status="busy")


async def test_as_many_as_come_at_once_hear_of_whom_they_may(serve: Serve, closing: AsyncExitStack) -> None:
    even = {f"user-{n:02}" for n in range(0, 30, 2)}
    gateway = await serve(visibility=lambda viewer, user: (viewer in even) == (user in even))
    users = [f"user-{n:02}" for n in range(30)]
    clients = dict(
        zip(users, await asyncio.gather(*(Client.connect(closing, gateway.url, u) for u in users)), strict=True)
    )
    await asyncio.gather(*(client.ask("set-status", {"status": "busy"}) for client in clients.values()))
    for user, client in clients.items():
        expected = {each for each in users if (each in even) == (user in even)}

        def heard(client: Client = client) -> set[str]:
            return {data["userId"] for data in client.of("user-status-changed", status="busy")}

        await eventually(lambda heard=heard, expected=expected: heard() == expected)  # type: ignore[misc]
        assert {user for _, user, _ in client.presence()} == expected


async def test_a_rule_that_turns_takes_members_out_of_and_puts_them_into_the_picture_by_every_door(
    serve: Serve, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    blocks, channel = Blocks(), "presence-room-1"
    shared = {"redis_url": shared_redis.url, "redis_prefix": fresh_prefix(), **rules(blocks), **APP}
    one, two = await serve(**shared), await serve(**shared)
    alice = await Client.connect(closing, two.url, "alice")
    await alice.ask("join-channel", {"channel": channel})
    await eventually(lambda: [each.user_id for each in one.gateway.channels.members(channel)] == ["alice"])
    native = await Client.connect(closing, one.url, "bob")
    plain = await Plain.connect(closing, one.ws_url, "bob")
    for client in (native, plain):
        members = (await client.ask("join-channel", {"channel": channel}))["data"]["members"]
        assert {each["userId"] for each in members} == {"alice", "bob"}
    echo = await EchoPage.open(closing, one, make_token("bob"))
    await echo.subscribe(channel)
    assert (await echo.event())[0] == "presence:subscribed"
    pusher = await PusherPage.open(closing, one, "bob")
    assert set((await pusher.subscribe(channel))["presence"]["ids"]) == {"alice", "bob"}
    for event, echos, blocked in (
        ("member-removed", "presence:leaving", {("alice", "bob")}),
        ("member-added", "presence:joining", set()),
    ):
        blocks.pairs = blocked
        two.gateway.presence.visibility_changed("alice")
        heard = await native.hears(event, userId="alice")
        assert (heard["channel"], heard["userId"]) == (channel, "alice")
        assert (await plain.until(event))["data"] == heard
        name, where, member = await echo.event()
        assert (name, where, member["user_id"]) == (echos, channel, "alice")
        frame = await pusher.until(f"pusher_internal:{event.replace('-', '_')}", channel)
        assert frame["user_id"] == "alice"
    assert [alice.of(event) for event in ("member-removed", "member-added") if alice.of(event, userId="alice")] == []
