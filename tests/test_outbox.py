"""What every adapter of the outbox's port does, together with the store that writes it; and what is Redis's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import pytest
from conftest import STEP, TIMING
from redis_servers import RedisServer, fresh_prefix, redis_server
from test_store_redis import monitored

from gateway.channels.names import scope_of
from gateway.client import PresenceClient
from gateway.presence.model import Choice, Chosen, Connection, Ending, Profile, Transition
from gateway.presence.store import Store
from gateway.presence.store_memory import MemoryStore
from gateway.presence.store_redis import RedisStore
from gateway.redis.connection import connect
from gateway.redis.keys import CHANNELS
from gateway.webhooks.endpoint import Endpoint, types_of
from gateway.webhooks.event import Message, message
from gateway.webhooks.outbox import BEGIN, OVERFLOW, Bounds, Letter, Outbox, Taken
from gateway.webhooks.outbox_memory import MemoryOutbox
from gateway.webhooks.outbox_redis import RedisOutbox

T = 1_000_000
NODE = "node-1"
ALL = Endpoint("all", "http://127.0.0.1:1", (b"key",))
COMINGS = Endpoint("comings", "http://127.0.0.1:1", (b"key",), types_of(["user.online"]))


@dataclass
class Site:
    """A store, and the outbox that it writes."""

    store: Store
    outbox: Outbox

    async def online(self, user: str, now: int = T) -> Connection:
        connection = Connection(
            tenant="acme", user_id=user, id=f"{user}-{now}", node=NODE, door="socketio", connected_at=now
        )
        await self.store.connect(connection, now)
        return connection

    async def queue(self, name: str = "all", after: str = BEGIN, limit: int = 1000) -> list[tuple[str, str]]:
        """Type and user of what waits."""
        return [
            (each.message.type, each.message.key.partition("\x1f")[2])
            for each in await self.outbox.read(name, after, limit)
        ]


Make = Callable[..., Awaitable[Site]]


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(bounds: Bounds | None = None, part: str = "") -> Site:
            bounds = bounds or Bounds()
            store: Store
            outbox: Outbox
            if request.param == "memory":
                outbox = MemoryOutbox(bounds)
                store = MemoryStore(TIMING, keep=outbox.keep)
            else:
                client, prefix = connect(redis_url, timeout=STEP), fresh_prefix()
                outbox = RedisOutbox(client, prefix, bounds)
                store = RedisStore(client, prefix, TIMING, outbox_length=bounds.queue, part=part)
            stack.push_async_callback(store.close)
            stack.push_async_callback(outbox.close)
            await store.renew(NODE, T)
            return Site(store, outbox)

        yield make


def body_of(each: Message) -> dict[str, object]:
    body: dict[str, object] = msgspec.json.decode(each.body)
    return body


async def test_what_is_committed_is_taken_in_order_by_those_who_want_it(make: Make) -> None:
    site = await make()
    alice = await site.online("alice")
    await site.online("bob")
    await site.store.disconnect(alice, Ending.GOODBYE, T + 1)
    assert await site.outbox.take([ALL, COMINGS], T) == Taken(moved=3)
    assert await site.queue() == [("user.online", "alice"), ("user.online", "bob"), ("user.offline", "alice")]
    assert await site.queue("comings") == [("user.online", "alice"), ("user.online", "bob")]
    assert await site.outbox.take([ALL, COMINGS], T) == Taken(), "it was taken"


async def test_what_channels_commit_is_told_as_theirs(make: Make) -> None:
    site = await make(part=CHANNELS)
    members = scope_of("acme", "presence-a")
    profile = Profile(name="Bob")
    here = [
        Connection(tenant=tenant, user_id=name, id=f"{n}", node=NODE, door="channels", connected_at=T, profile=profile)
        for n, (tenant, name) in enumerate(((scope_of("acme"), "presence-a"), (members, "bob"), (members, "bob")))
    ]
    for each in here:
        await site.store.connect(each, T)
    await site.store.set_status(members, "bob", Choice(Chosen.DND, "nobody hears of it"), T)
    for each in here:
        await site.store.disconnect(each, Ending.GOODBYE, T + 1)
    await site.outbox.take([ALL], T)
    bodies = [body_of(each.message) for each in await site.outbox.read("all", BEGIN, 10)]
    begin = {"tenant": "acme", "channel": "presence-a", "timestamp": "1970-01-01T00:16:40.000Z"}
    end = begin | {"timestamp": "1970-01-01T00:16:40.001Z"}
    assert [(body["type"], body["data"]) for body in bodies] == [
        ("channel.occupied", begin | {"version": 1}),
        ("member.added", begin | {"userId": "bob", "info": {"name": "Bob"}, "version": 1}),
        ("channel.vacated", end | {"version": 2}),
        ("member.removed", end | {"userId": "bob", "info": {"name": "Bob"}, "version": 3}),
    ]
    assert await site.queue() == [
        ("channel.occupied", "presence-a"),
        ("member.added", "bob"),
        ("channel.vacated", "presence-a"),
        ("member.removed", "bob"),
    ]


async def test_what_no_store_commits_stands_in_one_order_with_the_rest_and_gives_way_to_it(make: Make) -> None:
    site = await make(Bounds(queue=6))
    notes = [message("client.event", f"acme\x1f{n}", T, {"n": n}, f"{n}") for n in range(5)]
    wants = Endpoint("wants", "http://127.0.0.1:1", (b"key",), types_of(["user.*", "client.event"]))
    await site.online("alice")
    assert await site.outbox.add(notes[:1]) == 0
    await site.online("bob")
    assert await site.outbox.add(notes[1:3]) == 2, "half of the outbox is for what must not be lost"
    for user in ("carol", "dave", "eve"):
        await site.online(user)
    assert await site.outbox.add(notes[3:]) == 2
    assert await site.outbox.take([ALL, wants], T) == Taken(moved=6), "and nothing of it had to go"
    online = [("user.online", user) for user in ("alice", "bob", "carol", "dave", "eve")]
    assert await site.queue() == online
    assert await site.queue("wants") == [online[0], ("client.event", "0"), *online[1:]]
    assert await site.outbox.add(notes[1:]) == 1
    await site.outbox.take([wants], T)
    waiting = await site.outbox.read("wants", BEGIN, 10)
    assert [each.message for each in waiting][-3:] == notes[1:4]


async def test_two_stores_of_one_prefix_have_one_outbox_and_what_it_lets_go_of_is_counted(
    redis_url: str,
) -> None:
    client, prefix, bounds = connect(redis_url, timeout=STEP), fresh_prefix(), Bounds(queue=3)
    outbox = RedisOutbox(client, prefix, bounds)
    stores = [RedisStore(client, prefix, TIMING, outbox_length=3, part=part) for part in ("", CHANNELS)]
    for number, store in enumerate(stores):
        await store.renew(NODE, T)
        for user in ("a", "b", "c"):
            await Site(store, outbox).online(f"{user}{number}")
    assert await outbox.take([ALL], T) == Taken(moved=3, let_go=3)
    assert await Site(stores[0], outbox).queue() == [("user.online", f"{user}1") for user in ("a", "b", "c")]
    await outbox.close()
    for store in stores:
        await store.close()


async def test_every_way_to_commit_is_written(make: Make) -> None:
    site = await make()
    for user in ("lost", "watched"):
        await site.online(user)
    dnd = Choice(Chosen.DND, "busy", T + 50)
    await site.store.set_status("acme", "lost", dnd, T + 10)
    lost = Connection(tenant="acme", user_id="lost", id=f"lost-{T}", node=NODE, door="socketio", connected_at=T)
    await site.store.disconnect(lost, Ending.LOST, T + 20)
    await site.store.sweep(T + 20 + TIMING.grace)
    await site.store.sweep(T + TIMING.lease + TIMING.grace)
    await site.store.sweep(T + TIMING.lease + 2 * TIMING.grace)
    entries = await site.store.read(0, wait=False)
    await site.outbox.take([ALL], T)
    versions = [body_of(each.message)["data"] for each in await site.outbox.read("all", BEGIN, 100)]
    told = [(data["userId"], data["version"]) for data in versions if isinstance(data, dict)]
    assert told == [(entry.user_id, entry.now.version) for entry in entries if isinstance(entry, Transition)]
    assert told[-1] == ("watched", 2), "the dead node's user is gone"


async def test_who_is_invisible_looks_like_one_who_left(make: Make) -> None:
    site = await make()
    alice = await site.online("alice")
    await site.store.set_status("acme", "alice", Choice(Chosen.INVISIBLE, "hidden text"), T + 1)
    await site.store.disconnect(alice, Ending.GOODBYE, T + 2)
    await site.online("alice", T + 3)
    await site.outbox.take([ALL], T)
    found = await site.outbox.read("all", BEGIN, 100)
    assert [each.message.type for each in found] == ["user.online", "user.offline"]
    assert body_of(found[1].message)["data"] == {
        "userId": "alice",
        "online": False,
        "status": "offline",
        "lastActive": "1970-01-01T00:16:40.001Z",
        "timestamp": "1970-01-01T00:16:40.001Z",
        "version": 2,
        "tenant": "acme",
    }
    assert b"hidden" not in bytes(found[1].message.body)


async def test_an_event_is_the_same_whoever_makes_it_and_another_for_each_commit(make: Make) -> None:
    first, second = await make(), await make()
    for site in (first, second):
        alice = await site.online("alice")
        await site.store.disconnect(alice, Ending.GOODBYE, T + 1)
        await site.online("alice", T + 2)
        await site.outbox.take([ALL], T)
    messages = [each.message for each in await first.outbox.read("all", BEGIN, 9)]
    assert messages == [each.message for each in await second.outbox.read("all", BEGIN, 9)]
    assert len({each.id for each in messages}) == 3
    body = body_of(messages[0])
    assert (body["id"], body["type"], body["timestamp"]) == (messages[0].id, "user.online", "1970-01-01T00:16:40.000Z")


async def test_what_waits_stays_until_it_is_done(make: Make) -> None:
    site = await make()
    for user in ("a", "b", "c"):
        await site.online(user)
    await site.outbox.take([ALL], T)
    found = await site.outbox.read("all", BEGIN, 2)
    assert await site.queue(after=found[-1].place) == [("user.online", "c")]
    await site.outbox.done("all", found[0].place)
    await site.outbox.done("all", found[0].place)
    assert await site.queue() == [("user.online", "b"), ("user.online", "c")]


async def test_senders_at_the_same_time_move_each_event_once(make: Make) -> None:
    site = await make()
    for number in range(50):
        await site.online(f"user-{number}")
    taken = await asyncio.gather(*(site.outbox.take([ALL], T) for _ in range(4)))
    assert sum(each.moved for each in taken) == 50
    assert await site.queue() == [("user.online", f"user-{number}") for number in range(50)]


async def test_a_dead_letter_is_kept_and_sent_again(make: Make) -> None:
    site = await make()
    for user in ("a", "b"):
        await site.online(user)
    await site.outbox.take([ALL], T)
    waiting = await site.outbox.read("all", BEGIN, 9)
    letters = [Letter(message=each.message, reason="it answered 500", attempts=3, failed_at=T + 5) for each in waiting]
    for each, letter in zip(waiting, letters, strict=True):
        assert await site.outbox.bury("all", each.place, letter) == 0
        await site.outbox.bury("all", each.place, letter)  # its answer was lost
    assert await site.outbox.letters("all") == letters
    assert await site.queue() == []
    ids = [letter.message.id for letter in letters]
    assert await site.outbox.replay("all", ["nobody's"]) == []
    assert await site.outbox.replay("all", [ids[1]]) == [ids[1]]
    assert [each.message for each in await site.outbox.read("all", BEGIN, 9)] == [letters[1].message]
    assert await site.outbox.replay("all", None) == [ids[0]]
    assert await site.queue() == [("user.online", "b"), ("user.online", "a")]
    assert await site.outbox.letters("all") == []
    assert await site.outbox.letters("nobody") == []
    assert await site.outbox.replay("nobody", None) == []


async def test_a_full_queue_makes_dead_letters_of_its_oldest_and_of_these_the_oldest_go(make: Make) -> None:
    site = await make(Bounds(queue=3, dead=2))
    taken = []
    for number in range(7):
        await site.online(f"user-{number}")
        taken.append(await site.outbox.take([ALL], T))
    assert await site.queue() == [("user.online", f"user-{number}") for number in (4, 5, 6)]
    letters = await site.outbox.letters("all")
    assert [letter.message.key for letter in letters] == ["acme\x1fuser-2", "acme\x1fuser-3"]
    assert {(letter.reason, letter.attempts, letter.failed_at) for letter in letters} == {(OVERFLOW, 0, T)}
    assert (sum(each.buried for each in taken), sum(each.dropped for each in taken)) == (4, 2)


async def test_a_queue_that_dead_letters_filled_is_bounded_though_nothing_new_comes(make: Make) -> None:
    site = await make(Bounds(queue=2))
    for number in range(4):
        await site.online(f"user-{number}")
        await site.outbox.take([ALL], T)
    assert len(await site.outbox.replay("all", None)) == 2
    assert len(await site.queue()) == 4
    assert await site.outbox.take([ALL], T + 1) == Taken(buried=2)
    assert await site.queue() == [("user.online", "user-0"), ("user.online", "user-1")]
    assert await site.outbox.take([ALL], T + 1) == Taken()


async def test_what_an_outbox_let_go_of_is_said_though_nothing_is_left_in_it(make: Make) -> None:
    site = await make(Bounds(queue=1))
    for number in range(3):
        await site.online(f"user-{number}")
    if isinstance(site.outbox, MemoryOutbox):
        site.outbox._committed.clear()
    else:
        assert isinstance(site.outbox, RedisOutbox)
        await site.outbox._commands.send("DEL", site.outbox._outbox)
    assert await site.outbox.take([ALL], T) == Taken(let_go=2)


async def test_an_outbox_that_nobody_takes_from_lets_the_oldest_go_and_says_how_many(make: Make) -> None:
    site = await make(Bounds(queue=3))
    for number in range(5):
        await site.online(f"user-{number}")
    assert await site.outbox.take([ALL], T) == Taken(moved=3, let_go=2)
    assert await site.queue() == [("user.online", f"user-{number}") for number in (2, 3, 4)]
    await site.online("late")
    assert (await site.outbox.take([ALL], T)).let_go == 0, "it is said once"


async def test_an_endpoint_stops_and_is_resumed(make: Make) -> None:
    site = await make()
    await site.outbox.register(["all", "comings"])
    assert await site.outbox.resume("all") is False
    assert await site.outbox.resume("nobody") is False
    await site.outbox.stop("all", "it answered 410")
    await site.outbox.register(["all", "comings"])
    assert {name: state.stopped for name, state in (await site.outbox.states()).items()} == {
        "all": "it answered 410",
        "comings": None,
    }
    assert await site.outbox.resume("all") is True
    assert (await site.outbox.states())["all"].stopped is None


async def test_an_endpoint_that_is_one_no_more_is_forgotten_with_all_that_is_kept_for_it(make: Make) -> None:
    site = await make(Bounds(queue=1))
    await site.outbox.register(["all", "comings"])
    for user in ("a", "b"):
        await site.online(user)
        await site.outbox.take([ALL, COMINGS], T)
    assert await site.outbox.forget("all") == (1, 1)
    assert await site.outbox.forget("all") is None
    assert list(await site.outbox.states()) == ["comings"]
    assert (await site.outbox.read("all", BEGIN, 10), await site.outbox.letters("all")) == ([], [])
    assert len(await site.outbox.letters("comings")) == 1
    # Configured again, it begins anew.
    await site.outbox.register(["all"])
    state = (await site.outbox.states())["all"]
    assert (state.waiting, state.dead, state.stopped) == (0, 0, None)


async def test_what_waits_and_what_is_dead_is_counted(make: Make) -> None:
    site = await make(Bounds(queue=1))
    await site.outbox.register(["all"])
    await site.online("a")
    await site.outbox.take([ALL], T)
    await site.online("b")
    await site.outbox.take([ALL], T)
    state = (await site.outbox.states())["all"]
    assert (state.waiting, state.dead) == (1, 1)


async def test_events_of_other_kinds_are_carried(make: Make) -> None:
    """What channels will tell has no user; of one key it is in order all the same."""
    site = await make()
    occupied = message("channel.occupied", "acme\x1f#room", T, {"channel": "room", "tenant": "acme"}, "room 1")
    endpoint = msgspec.structs.replace(ALL, types=frozenset({"channel.occupied"}))
    await site.online("alice")
    if isinstance(site.outbox, MemoryOutbox):
        site.outbox.keep(occupied)
    else:
        assert isinstance(site.outbox, RedisOutbox)
        body = msgspec.json.encode(occupied)
        await site.outbox._commands.send("XADD", site.outbox._outbox, "*", "message", body)
    assert (await site.outbox.take([endpoint], T)).moved == 2
    assert [each.message for each in await site.outbox.read("all", BEGIN, 9)] == [occupied]


# Redis's own


async def test_where_no_node_sends_webhooks_nothing_is_written(shared_redis: RedisServer) -> None:
    client, prefix = connect(shared_redis.url, timeout=STEP), fresh_prefix()
    store = RedisStore(client, prefix, TIMING)
    site = Site(store, RedisOutbox(client, prefix, Bounds()))
    await store.renew(NODE, T)
    alice = await site.online("alice")
    await store.disconnect(alice, Ending.GOODBYE, T + 1)
    assert not await shared_redis.cli("KEYS", f"{{{prefix}}}:outbox*")
    state = await shared_redis.cli("HKEYS", f"{{{prefix}}}:state")
    assert not {b"webhooks", b"webhooks_at", b"outbox_dropped"} & set(state)
    await site.outbox.close()
    await store.close()


async def test_one_node_that_sends_is_enough_for_all_and_for_an_hour_after_it(redis_url: str) -> None:
    client, prefix = connect(redis_url, timeout=STEP), fresh_prefix()
    sends, silent = (RedisStore(client, prefix, TIMING, outbox_length=length) for length in (100, 0))
    site = Site(silent, RedisOutbox(client, prefix, Bounds()))
    await silent.renew(NODE, T)
    await site.online("before")
    await sends.renew("node-2", T)
    await site.online("alice")
    async with PresenceClient(redis_url, prefix=prefix) as process:
        await process.presence.set_status("alice", "busy", tenant="acme")
    await silent.renew(NODE, T + 3_600_000)
    await site.online("bob")
    assert (await site.outbox.take([ALL], T)).moved == 4
    await silent.renew(NODE, T + 3_600_001)
    await site.online("carol")
    assert (await site.outbox.take([ALL], T)).moved == 0
    assert await site.queue() == [
        ("user.online", "alice"),
        ("user.status_changed", "alice"),  # that she is away: by the process's clock, which is the present
        ("user.status_changed", "alice"),
        ("user.online", "bob"),
    ]
    await site.outbox.close()
    await silent.close()


async def test_what_a_newer_version_wrote_waits_for_one(redis_url: str) -> None:
    client, prefix = connect(redis_url, timeout=STEP), fresh_prefix()
    store = RedisStore(client, prefix, TIMING, outbox_length=100)
    outbox = RedisOutbox(client, prefix, Bounds())
    site = Site(store, outbox)
    await store.renew(NODE, T)
    for kind, body in (("hologram", "{}"), ("transition", "what is this")):
        await outbox._commands.send("XADD", outbox._outbox, "*", kind, body)
    await site.online("alice")
    assert (await outbox.take([ALL], T)).moved == 1
    assert (await outbox.take([ALL], T)).moved == 0
    assert await site.queue() == [("user.online", "alice")]
    assert await outbox._commands.send("XLEN", outbox._outbox) == 2
    await outbox.close()
    await store.close()


async def test_what_cannot_be_read_in_a_queue_is_put_aside_and_said_once(redis_url: str) -> None:
    client, prefix = connect(redis_url, timeout=STEP), fresh_prefix()
    store = RedisStore(client, prefix, TIMING, outbox_length=100)
    outbox = RedisOutbox(client, prefix, Bounds())
    site = Site(store, outbox)
    await store.renew(NODE, T)
    queue, dead = outbox._keys("all")
    for kind, body in (("message", "what is this"), ("message", '{"id":7}'), ("hologram", "{}")):
        await outbox._commands.send("XADD", queue, "*", kind, body)
    assert await outbox.read("all", BEGIN, 2) == []
    await outbox._commands.send("XADD", queue, "*", "message", "what is this")
    await site.online("alice")
    assert await outbox.take([ALL], T) == Taken(moved=1, unreadable=3)
    assert await site.queue() == [("user.online", "alice")]
    assert await outbox.take([ALL], T) == Taken(unreadable=1)
    assert await outbox.take([ALL], T) == Taken()
    kept = [fields[b"message"] for _place, fields in await outbox._commands.send("XRANGE", dead, "-", "+")]
    assert kept == [b"what is this", b'{"id":7}', b"{}", b"what is this"]
    assert await outbox.letters("all") == [], "a newer version can read them"
    assert await outbox.replay("all", None) == []
    await outbox.close()
    await store.close()


async def test_a_script_touches_only_keys_that_it_was_given() -> None:
    async with redis_server() as server, monitored(server) as seen:
        client = connect(server.url, timeout=STEP)
        store = RedisStore(client, "gateway", TIMING, outbox_length=1)
        outbox = RedisOutbox(client, "gateway", Bounds(queue=1, dead=1))
        site = Site(store, outbox)
        await store.renew(NODE, T)
        await outbox.register(["all"])
        for number in range(4):
            await site.online(f"user-{number}")
            await site.online(f"friend-{number}")
            await outbox.take([ALL], T)
        waiting = (await outbox.read("all", BEGIN, 9))[0]
        letter = Letter(message=waiting.message, reason="", attempts=1, failed_at=T)
        await outbox.bury("all", waiting.place, letter)
        await outbox.replay("all", None)
        await outbox.stop("all", "gone")
        await outbox.resume("all")
        await outbox.close()
        await store.close()
    declared: set[str] = set()
    touched: set[str] = set()
    for name, *words in seen:
        if name in {"EVAL", "EVALSHA"}:
            declared = set(words[2 : 2 + int(words[1])])
        elif name == "lua" and words[0] != "TIME":
            assert words[1] in declared
            touched.add(words[1])
    ours = {"outbox", "outbox:endpoints", "outbox:queue:all", "outbox:dead:all"}
    assert {f"{{gateway}}:{name}" for name in ours} <= touched


def test_an_event_of_no_trace_is_written_as_before_and_read_either_way() -> None:
    plain = message("user.online", "k", 7, {}, "i")
    written = msgspec.json.encode(plain)
    assert b"traceparent" not in written
    assert msgspec.json.decode(written, type=Message) == plain
    assert b"tracestate" not in msgspec.json.encode(plain.within("00-a-b-01"))
    traced = plain.within("00-a-b-01", "us=1")
    assert msgspec.json.decode(msgspec.json.encode(traced), type=Message) == traced
    assert (traced.id, traced.body) == (plain.id, plain.body)
