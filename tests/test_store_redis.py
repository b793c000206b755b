"""What the store in Redis does besides what every store does: keys, scripts, outages of Redis, work in pieces."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from conftest import STEP, TIMING, Clock
from redis.crc import key_slot
from redis_servers import RedisServer, fresh_prefix, redis_cluster, redis_server

from gateway.errors import LeaseLostError, LogTrimmedError, StoreUnavailableError
from gateway.presence import encoding, store_redis
from gateway.presence.follower import Follower
from gateway.presence.model import (
    Beat,
    Choice,
    Chosen,
    Connection,
    Ending,
    Profile,
    Retention,
    Status,
    UserStatus,
)
from gateway.presence.store import RETURNING, Commit, Snapshot, Store
from gateway.presence.store_redis import CHUNK, RedisStore
from gateway.presence.tracker import SWEEP_INTERVAL, Tracker
from gateway.presence.view import View
from gateway.redis.commands import TIMEOUT
from gateway.redis.connection import connect

T = 1_000_000
GRACE, LEASE, TTL = TIMING.grace, TIMING.lease, TIMING.ttl

OpenStore = Callable[..., RedisStore]


@pytest.fixture
async def open_store(redis_url: str) -> AsyncIterator[OpenStore]:
    """Open stores; a call takes the prefix, and where Redis is if it is not the shared one."""
    async with AsyncExitStack() as stack:

        def open_one(
            prefix: str, url: str = redis_url, *, timeout: float = STEP, kind: type[RedisStore] = RedisStore
        ) -> RedisStore:
            store = kind(connect(url, timeout=timeout), prefix, TIMING)
            stack.push_async_callback(store.close)
            return store

        yield open_one


def tab(name: str = "tab", *, user: str = "alice", node: str = "n1", tenant: str = "acme") -> Connection:
    return Connection(
        tenant=tenant,
        user_id=user,
        id=f"{tenant}/{user}/{name}",
        node=node,
        door="socketio",
        connected_at=T,
        profile=Profile(name=user),
    )


def hold(at: int, user: str = "alice") -> Beat:
    return Beat(tenant="acme", user_id=user, at=at, holds=True, meta_json=b"{}")


def known(user: str, version: int = 7) -> UserStatus:
    return UserStatus(tenant="acme", user_id=user, status=Status.ONLINE, version=version, active_at=T, online_since=T)


def changes(commit: Commit) -> list[str]:
    return [f"{c.user_id} v{c.now.version}: {c.was} -> {c.now.status} ({c.reason})" for c in commit.transitions]


async def scripts_run(server: RedisServer) -> int:
    """How many scripts a server has been asked to run by their hash."""
    stats = await server.cli("INFO", "commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


Commands = dict[str, Callable[[], Awaitable[Any]]]


def commands(store: Store) -> Commands:
    """Every command, each with something to do for a store in which they are given in this order."""
    return {
        "time": store.time,
        "renew": lambda: store.renew("n1", T),
        "connect": lambda: store.connect(tab(), T),
        "describe": lambda: store.describe(tab()),
        "disconnect": lambda: store.disconnect(tab(), Ending.LOST, T),
        "beat": lambda: store.beat("n1", [hold(T), hold(T, "bob"), hold(T, "bob")]),
        "release": lambda: store.release("acme", "bob", T),
        "restore": lambda: store.restore("n1", [known("carol"), known("dave")], T),
        "connections": lambda: store.connections("n1"),
        "snapshot": store.snapshot,
        "read": lambda: store.read(0, wait=False),
        "wait and read": lambda: store.read(0, wait=True),
        "explain": lambda: store.explain("acme", "alice"),
        "sessions": lambda: store.sessions("acme", "alice", T, 20),
        "sweep": lambda: store.sweep(T),
    }


async def outcome(command: Callable[[], Awaitable[Any]]) -> type | None:
    """How a command failed; None where it did not."""
    try:
        await asyncio.wait_for(command(), STEP)
    except (StoreUnavailableError, TimeoutError) as error:
        return type(error)
    return None


async def a_life(store: Store) -> list[str]:
    """Give every command, so that each script takes each of its ways at least once; return what was committed."""
    said = []
    for node in ("n1", "n2"):
        await store.renew(node, T)
    await store.connect(tab("dies", user="erin", node="n2"), T)
    for command in commands(store).values():
        done = await command()
        said += changes(done) if isinstance(done, Commit) else []
    await store.connect(tab(), T)
    await store.release("acme", "alice", T)
    await store.renew("n1", T + LEASE, position=(await store.snapshot()).position, returning=True)
    for later in (LEASE, 2 * LEASE, 2 * LEASE + GRACE):
        await store.renew("n1", T + later)
        said += changes(await store.sweep(T + later))
    said += changes(await store.disconnect(tab(), Ending.GOODBYE, AFTERWARDS))
    return said


AFTERWARDS = T + 2 * LEASE + GRACE
"""When a life is over, and what was lost and prolonged in it."""


LIFE = [
    "alice v1: offline -> online (connected)",
    "bob v1: offline -> online (active)",
    "bob v2: online -> offline (released)",
    "carol v7: offline -> online (restored)",
    "dave v7: offline -> online (restored)",
    "carol v8: online -> offline (node died)",
    "dave v8: online -> offline (node died)",
    # The other node's lease ended with the outage, and erin's grace began then.
    "erin v2: online -> offline (node died)",
    "alice v2: online -> offline (goodbye)",
]


# Keys


async def test_gateways_of_different_prefixes_know_nothing_of_each_other(open_store: OpenStore) -> None:
    prefix = fresh_prefix()
    store, same, *others = (open_store(name) for name in (prefix, prefix, f"{prefix}:user", f"{prefix}2", prefix[:-1]))
    for each in (store, *others):
        await each.renew("n1", T)
    commit = await store.connect(tab(), T)
    assert [(await same.snapshot()).statuses, await same.connections("n1")] == [(commit.transitions[0].now,), [tab()]]
    for other in others:
        assert (await other.snapshot()).statuses == ()
        assert (await other.read(0, wait=False), await other.connections("n1")) == ([], [])
        assert (await other.explain("acme", "alice")).because == "never seen"
        assert (await other.renew("n1", T, position=commit.position)).log_continues is False
        assert changes(await other.sweep(T + LEASE + GRACE)) == []
    assert await same.connections("n1") == [tab()]
    assert changes(await same.sweep(T + LEASE + GRACE)) == ["alice v2: online -> offline (node died)"]


async def test_all_keys_of_a_prefix_have_its_hash_tag_and_so_one_slot(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await a_life(store)
        await store.connect(tab(user="b}", tenant="{a}:{", node="n1"), T)
        keys = await server.cli("KEYS", "*")
    assert {key.split(":")[1] for key in keys} == {
        *("log", "state", "leases", "due", "users"),
        *("user", "recent", "node"),
    }
    assert [key for key in keys if not key.startswith("{gateway}:")] == []
    assert {key_slot(key.encode()) for key in keys} == {key_slot(b"gateway")}


# Scripts


SCRIPTS = {
    path.name: path.read_text() for path in (files("gateway.presence") / "lua").iterdir() if path.name.endswith(".lua")
}


def header_and_code(name: str) -> tuple[str, str]:
    lines = SCRIPTS[name].splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:first]), re.sub(r"--.*", "", "\n".join(lines[first:]))


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_s_header_names_the_keys_and_arguments_that_it_uses(name: str) -> None:
    header, code = header_and_code(name)
    for kind in ("KEYS", "ARGV"):
        assert kind in header
        # One described by another's place, such as [8…] for those from the eighth on, may be looked up in any way.
        said = header[header.index(kind) : header.find("ARGV", header.index(kind) + 1) if kind == "KEYS" else None]
        named = {int(number) for number in re.findall(r"\[(\d+)\]", said)}
        rest = [int(number) for number in re.findall(r"\[(\d+)…\]", said)]
        if "then for each" in said:
            rest.append(max(named) + 1)
        used = {int(number) for number in re.findall(rf"\b{kind}\[(\d+)", code)}
        assert {number for number in used if not any(number >= begin for begin in rest)} <= named
        assert named <= used


def test_every_script_is_used_and_says_what_it_returns() -> None:
    store = RedisStore(connect("redis://127.0.0.1:1", timeout=1), "gateway", TIMING)
    assert {f"{name}.lua" for name in store._scripts} | {"rules.lua"} == set(SCRIPTS)
    assert [name for name in SCRIPTS if "-- Returns " not in SCRIPTS[name]] == ["rules.lua"]


@asynccontextmanager
async def monitored(server: RedisServer) -> AsyncIterator[list[list[str]]]:
    """Every command that the server runs meanwhile, those of scripts with ``lua`` before them, as Redis writes them."""
    lines: list[list[str]] = []
    reader, writer = await asyncio.open_unix_connection(str(server.socket_path), limit=1 << 24)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    try:
        yield lines
        await server.cli("ECHO", "the end")
        while b"the end" not in (line := await reader.readline()):
            words = re.findall(r'"((?:[^"\\]|\\.)*)"', line.decode())
            lines.append(["lua", *words] if b" lua] " in line else words)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_script_touches_only_keys_that_it_was_given(open_store: OpenStore) -> None:
    async with redis_server() as server, monitored(server) as seen:
        assert await a_life(open_store("gateway", server.url)) == LIFE
    declared: set[str] = set()
    touched: dict[str, set[str]] = {}
    for name, *words in seen:
        if name in {"EVAL", "EVALSHA"}:
            declared = set(words[2 : 2 + int(words[1])])
        elif name == "lua" and words[0] != "TIME":
            assert words[1] in declared, words
            touched.setdefault(words[1].split(":")[1], set()).add(words[0])
    assert sorted(touched) == ["due", "dying", "leases", "log", "node", "queue", "recent", "state", "user", "users"]


async def test_on_a_cluster_every_command_is_done_where_its_keys_are(open_store: OpenStore) -> None:
    async with redis_cluster() as cluster:
        for prefix in ("presence", "b", "c"):  # whose slots are on three nodes
            assert await a_life(open_store(prefix, cluster.url)) == LIFE
        assert len({(await cluster.owner(prefix)).port for prefix in ("presence", "b", "c")}) == 3
        for prefix in ("presence", "b", "c"):
            owner = await cluster.owner(prefix)
            for node in cluster.nodes:
                keys = await node.cli("KEYS", f"{{{prefix}}}*")
                assert bool(keys) == (node is owner)


async def test_scripts_that_redis_forgot_are_brought_again(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        assert await a_life(store) == LIFE
        for command in commands(store).values():
            await server.cli("SCRIPT", "FLUSH")
            await asyncio.wait_for(command(), STEP)


async def test_scripts_that_redis_forgot_are_run_in_the_order_in_which_they_were_asked(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        for _ in range(2):
            await server.cli("SCRIPT", "FLUSH")
            commits = await asyncio.gather(
                store.connect(tab("one"), T),
                store.disconnect(tab("one"), Ending.KICKED, T),
                store.connect(tab("two"), T),
                store.beat("n1", [hold(T)]),
                store.disconnect(tab("two"), Ending.GOODBYE, T),
                store.release("acme", "alice", T),
            )
            entries = [entry.position for commit in commits for entry in commit.transitions]
            assert entries == sorted(entries)
            assert [len(commit.transitions) for commit in commits] == [1, 1, 1, 0, 0, 1]


async def test_the_store_s_clock_is_redis_s(open_store: OpenStore) -> None:
    store = open_store(fresh_prefix())
    before, redis_s, after = time.time_ns(), await store.time(), time.time_ns()
    assert redis_s is not None
    assert before // 1_000_000 <= redis_s <= after // 1_000_000


# What Redis loses


async def test_who_follows_the_log_of_a_redis_that_was_emptied_is_told_so(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        position = (await store.connect(tab(), T)).position
        assert (await store.renew("n1", T, position=position)).log_continues
        waiting = asyncio.create_task(store.read(position, wait=True))
        await server.cli("FLUSHALL")
        lease = await store.renew("n1", T, position=position)
        assert (lease.held, lease.log_continues) == (False, False)
        await store.connect(tab(user="bob"), T)
        for reading in (waiting, store.read(position, wait=True), store.read(position, wait=False)):
            with pytest.raises(LogTrimmedError):
                await asyncio.wait_for(reading, STEP)
        assert [entry.user_id for entry in await store.read(0, wait=False)] == ["bob"]


async def test_a_node_whose_lease_was_lost_with_redis_s_data_commits_nothing_before_it_renews(
    open_store: OpenStore,
) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        await store.connect(tab(), T)
        await server.cli("FLUSHALL")
        given: list[Callable[[], Awaitable[Commit]]] = [
            lambda: store.connect(tab("two"), T),
            lambda: store.disconnect(tab(), Ending.KICKED, T),
            lambda: store.beat("n1", [hold(T)]),
            lambda: store.restore("n1", [known("alice")], T),
        ]
        for command in given:
            with pytest.raises(LeaseLostError):
                await command()
        assert await server.cli("DBSIZE") == 0


async def test_the_log_does_not_go_on_from_a_position_before_it_where_it_has_no_entry(open_store: OpenStore) -> None:
    store = open_store(fresh_prefix())
    await store.renew("n1", T)
    first = await store.connect(tab(), T)
    assert not (await store.renew("n1", T, position=first.position - 1)).log_continues
    with pytest.raises(LogTrimmedError):
        await store.read(first.position - 1, wait=False)


async def test_a_node_gives_back_what_an_emptied_redis_lost_and_goes_on(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store, view = open_store("gateway", server.url), View()
        heard: list[str] = []
        follower = Follower(store, view, [lambda news: heard.extend(f"{t.user_id} {t.event}" for t in news)])
        tracker = Tracker("n1", store, follower, Clock(T), away_after=TIMING.away_after)
        await tracker.tick()
        await follower.start()
        running = asyncio.create_task(follower.run())
        await tracker.connect(tab())
        await tracker.connect(tab(user="bob"))
        await tracker.disconnect(tab(user="bob"), Ending.GOODBYE)
        before = {user: view.status("acme", user) for user in ("alice", "bob")}
        await server.cli("FLUSHALL")
        await tracker.tick()
        assert {status.user_id: status for status in (await store.snapshot()).statuses} == before
        assert await store.connections("n1") == [tab()]
        await tracker.connect(tab(user="carol"))
        assert heard == ["alice user-online", "bob user-online", "bob user-offline", "carol user-online"]
        running.cancel()
        await asyncio.wait([running])


# Redis away


async def test_while_redis_is_down_every_command_says_so_at_once_and_it_works_again_afterwards(
    open_store: OpenStore,
) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        assert await a_life(store) == LIFE
        position = (await store.snapshot()).position
        waiting = asyncio.create_task(store.read(position, wait=True))
        await asyncio.sleep(0)
        await server.kill()
        began = time.monotonic()
        failed = {name: await outcome(command) for name, command in commands(store).items()}
        assert failed == dict.fromkeys(commands(store), StoreUnavailableError)
        assert time.monotonic() - began < STEP  # for all of them: nothing listens there
        with pytest.raises(StoreUnavailableError):
            await asyncio.wait_for(waiting, STEP)
        await server.start()
        assert await a_life(store) == LIFE


def test_after_an_outage_every_node_is_back_within_the_time_that_others_wait_for_it() -> None:
    assert RETURNING / 1000 >= TIMEOUT + SWEEP_INTERVAL


async def test_while_redis_hangs_every_command_says_so_within_the_time_out(open_store: OpenStore) -> None:
    timeout = 0.5
    async with redis_server() as server:
        store = open_store("gateway", server.url, timeout=timeout)
        await store.renew("n1", T)
        await server.pause()
        began = time.monotonic()
        # All in one moment: those that go out together wait together, and what waits behind them fails with them.
        failed = await asyncio.gather(*(outcome(command) for command in commands(store).values()))
        took = time.monotonic() - began
        await server.resume()
        assert set(failed) == {StoreUnavailableError}
        assert timeout <= took < STEP
        assert (await asyncio.wait_for(store.renew("n1", T), STEP)).held


async def test_a_redis_that_kept_its_data_goes_on_after_a_restart(open_store: OpenStore) -> None:
    async with redis_server(save=True, extra=["--appendfsync", "always"]) as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        commit = await store.connect(tab(), T)
        await server.kill()
        await server.start()
        lease = await store.renew("n1", T, position=commit.position, returning=True)
        assert (lease.held, lease.log_continues) == (True, True)
        assert await store.connections("n1") == [tab()]
        later = await store.disconnect(tab(), Ending.KICKED, T)
        assert await store.read(commit.position, wait=False) == list(later.transitions)


# Beats in batches


async def test_beats_of_one_moment_are_one_script_and_each_hears_of_its_own(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        await store.beat("n1", [])
        before = await scripts_run(server)
        users = [f"user-{number}" for number in range(100)]
        commits = await asyncio.gather(*(store.beat("n1", [hold(T, user), hold(T + 1, user)]) for user in users))
        assert await scripts_run(server) - before == 1
    assert [changes(commit) for commit in commits] == [[f"{user} v1: offline -> online (active)"] for user in users]
    assert len({commit.position for commit in commits}) == 1


async def test_more_beats_than_one_script_takes_are_several(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_redis, "BEATS", 10)
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        await store.beat("n1", [])
        before = await scripts_run(server)
        await asyncio.gather(*(store.beat("n1", [hold(T, f"user-{number}")]) for number in range(30)))
        assert 3 <= await scripts_run(server) - before <= 4
        assert len((await store.snapshot()).statuses) == 30


async def test_beats_keep_their_place_among_other_commands(open_store: OpenStore) -> None:
    now = AFTERWARDS
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await a_life(store)
        now = T + 2 * LEASE + GRACE
        before = await scripts_run(server)
        commits = await asyncio.gather(
            store.beat("n1", [hold(now, "frank")]),
            store.beat("n1", [hold(now, "grace")]),
            store.release("acme", "frank", now),
            store.beat("n1", [hold(now, "frank")]),
            store.connect(tab(user="heidi"), now),
            store.beat("n1", [Beat(tenant="acme", user_id="heidi", at=now + 5)]),
            store.disconnect(tab(user="heidi"), Ending.KICKED, now),
            store.beat("n1", [Beat(tenant="acme", user_id="heidi", at=now + 6)]),
        )
        assert await scripts_run(server) - before == 7
        heidi = (await store.explain("acme", "heidi")).status
    assert [changes(commit) for commit in commits] == [
        ["frank v1: offline -> online (active)"],
        ["grace v1: offline -> online (active)"],
        ["frank v2: online -> offline (released)"],
        ["frank v3: offline -> online (active)"],
        ["heidi v1: offline -> online (connected)"],
        [],
        ["heidi v2: online -> offline (kicked)"],
        [],
    ]
    assert heidi.active_at == now + 5


async def test_beats_of_two_nodes_are_two_scripts_of_which_one_may_be_refused(open_store: OpenStore) -> None:
    store = open_store(fresh_prefix())
    await store.renew("n1", T)
    commits = await asyncio.gather(
        store.beat("n1", [hold(T, "alice")]),
        store.beat("dead", [hold(T, "bob")]),
        store.beat("dead", [hold(T, "carol")]),
        store.beat("n1", [hold(T, "dave")]),
        return_exceptions=True,
    )
    assert [type(commit) for commit in commits] == [Commit, LeaseLostError, LeaseLostError, Commit]
    assert sorted(status.user_id for status in (await store.snapshot()).statuses) == ["alice", "dave"]


async def test_who_gives_up_a_beat_takes_nobody_else_s_along(open_store: OpenStore) -> None:
    store = open_store(fresh_prefix())
    await store.renew("n1", T)
    gone, stays = (asyncio.create_task(store.beat("n1", [hold(T, user)])) for user in ("alice", "bob"))
    await asyncio.sleep(0)
    gone.cancel()
    assert changes(await asyncio.wait_for(stays, STEP)) == ["bob v1: offline -> online (active)"]
    assert len((await store.snapshot()).statuses) == 2


# Work in pieces


MANY = 3 * CHUNK


async def crowd(store: Store, count: int = MANY, *, node: str = "n1") -> list[Connection]:
    """As many users, with a connection each on the node."""
    tabs = [tab(user=f"user-{number:04}", node=node) for number in range(count)]
    await asyncio.gather(*(store.connect(one, T) for one in tabs))
    return tabs


async def test_a_dead_node_is_buried_in_pieces(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        await store.renew("n1", T)
        tabs = await crowd(store)
        async with monitored(server) as seen:
            assert changes(await store.sweep(T + LEASE)) == []
        scripts = [len(words) for name, *words in seen if name in {"EVAL", "EVALSHA"}]
        assert len(scripts) >= MANY // CHUNK
        assert max(scripts) < 2 * 4 * CHUNK  # two keys and two arguments each; Redis may find some more than asked for
        assert await store.connections("n1") == []
        assert await server.cli("ZCARD", "{gateway}:dying") == 0
        died = await store.sweep(T + LEASE + GRACE)
    assert sorted(changes(died)) == [f"{one.user_id} v2: online -> offline (node died)" for one in tabs]


class Burying(RedisStore):
    """A store in which something comes between the first and the second piece of a burial."""

    between: Callable[[], Awaitable[Any]] | None = None

    async def _run(self, name: str, *arguments: Any) -> Any:
        reply = await super()._run(name, *arguments)
        if name == "bury" and self.between is not None:
            between, self.between = self.between, None
            await between()
        return reply


async def test_a_node_that_renews_in_the_middle_of_its_burial_keeps_what_is_left_and_registers_the_rest_again(
    open_store: OpenStore,
) -> None:
    prefix = fresh_prefix()
    node, sweeper = open_store(prefix), open_store(prefix, kind=Burying)
    assert isinstance(sweeper, Burying)
    await node.renew("n1", T)
    tabs = await crowd(node)

    async def come_back() -> None:
        assert not (await node.renew("n1", T + LEASE)).held

    sweeper.between = come_back
    assert changes(await sweeper.sweep(T + LEASE)) == []
    left = {connection.id for connection in await node.connections("n1")}
    assert 0 < len(left) < MANY
    assert changes(await sweeper.sweep(T + LEASE + 1)) == []
    assert {connection.id for connection in await node.connections("n1")} == left
    again = await asyncio.gather(*(node.connect(one, T + LEASE + 1) for one in tabs))
    assert [changes(commit) for commit in again] == [[]] * MANY
    assert {one.id for one, commit in zip(tabs, again, strict=True) if not commit.resumed} == left
    assert len(await node.connections("n1")) == MANY
    await node.renew("n1", T + LEASE + GRACE)
    assert changes(await sweeper.sweep(T + LEASE + GRACE)) == []


async def test_a_burial_that_was_broken_off_is_finished_by_any_sweep(open_store: OpenStore) -> None:
    prefix = fresh_prefix()
    store, sweeper = open_store(prefix), open_store(prefix, kind=Burying)
    assert isinstance(sweeper, Burying)
    await store.renew("n1", T)
    await crowd(store)

    async def die() -> None:
        raise StoreUnavailableError("the sweeper's own")

    sweeper.between = die
    with pytest.raises(StoreUnavailableError):
        await sweeper.sweep(T + LEASE)
    assert 0 < len(await store.connections("n1")) < MANY
    with pytest.raises(LeaseLostError):
        await store.beat("n1", [])
    died = await store.sweep(T + LEASE + GRACE)
    assert len(died.transitions) == MANY
    assert {transition.reason for transition in died.transitions} == {"node died"}


async def test_of_two_who_bury_a_node_each_change_is_made_by_one(open_store: OpenStore) -> None:
    prefix = fresh_prefix()
    sweepers = [open_store(prefix) for _ in range(3)]
    await sweepers[0].renew("n1", T)
    tabs = await crowd(sweepers[0])
    commits = await asyncio.gather(*(sweeper.sweep(T + LEASE + GRACE) for sweeper in sweepers))
    assert sorted(line for commit in commits for line in changes(commit)) == [
        f"{one.user_id} v2: online -> offline (node died)" for one in tabs
    ]


async def test_more_users_than_one_script_takes_are_swept_in_pieces(open_store: OpenStore) -> None:
    async with redis_server() as server:
        store = open_store("gateway", server.url)
        assert await a_life(store) == LIFE
        tabs = await crowd(store)
        await asyncio.gather(*(store.disconnect(one, Ending.LOST, T) for one in tabs))
        async with monitored(server) as seen:
            swept = await store.sweep(AFTERWARDS)
        scripts = [len(words) for name, *words in seen if name in {"EVAL", "EVALSHA"}]
        assert len(scripts) == MANY // CHUNK
        assert max(scripts) < 4 * CHUNK
    assert sorted(changes(swept)) == [f"{one.user_id} v2: online -> offline (connection lost)" for one in tabs]
    positions = [transition.position for transition in swept.transitions]
    assert positions == sorted(positions)
    assert swept.position == positions[-1]


async def test_what_changes_while_a_snapshot_is_read_in_pieces_comes_after_it(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_redis, "SCAN", 20)
    prefix = fresh_prefix()
    reader, writer = open_store(prefix), open_store(prefix)
    await writer.renew("n1", T)
    tabs = await crowd(writer)
    reading = asyncio.create_task(reader.snapshot())
    await asyncio.gather(
        *(writer.disconnect(one, Ending.KICKED, T) for one in tabs[::2]),
        *(writer.connect(tab(user=f"new-{number}"), T) for number in range(50)),
    )
    snapshot = await reading
    assert len(snapshot.statuses) == len({status.user_id for status in snapshot.statuses}) >= MANY
    view = View()
    view.load(snapshot)
    while entries := await reader.read(view.position, wait=False):
        view.apply(entries)
    statuses = (await reader.snapshot()).statuses
    assert len(statuses) == MANY + 50
    assert [view.status("acme", status.user_id) for status in statuses] == list(statuses)


class Interrupted(RedisStore):
    """A store of which something else happens while its users are read."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def _together(self, *commands: Sequence[Any]) -> list[Any]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return await super()._together(*commands)


async def test_a_snapshot_is_as_of_its_position_also_in_what_was_committed_while_it_was_read(
    open_store: OpenStore,
) -> None:
    prefix = fresh_prefix()
    reader, writer = open_store(prefix, kind=Interrupted), open_store(prefix)
    assert isinstance(reader, Interrupted)
    await writer.renew("n1", T)
    for user in ("alice", "bob", "carol"):
        await writer.connect(tab(user=user), T)

    async def busy() -> None:
        await writer.disconnect(tab(), Ending.GOODBYE, T + 1)
        await writer.connect(tab(user="dave"), T + 1)
        await writer.set_status("acme", "bob", Choice(Chosen.INVISIBLE, "unseen"), T + 1)
        await writer.set_status("acme", "bob", Choice(Chosen.INVISIBLE, "quite"), T + 1)
        await writer.beat("n1", [hold(T + 2, "carol")])

    reader.meanwhile = busy
    snapshot, again = await reader.snapshot(), await reader.snapshot()
    assert snapshot.position == again.position == await writer.position()
    assert {each.user_id: each for each in snapshot.statuses} == {each.user_id: each for each in again.statuses}
    assert len(snapshot.statuses) == 4


async def test_a_snapshot_of_what_redis_loses_meanwhile_is_begun_anew(open_store: OpenStore) -> None:
    async with redis_server() as server:
        reader, writer = open_store("gateway", server.url, kind=Interrupted), open_store("gateway", server.url)
        assert isinstance(reader, Interrupted)
        await writer.renew("n1", T)
        await writer.connect(tab(), T)
        reader.meanwhile = lambda: server.cli("FLUSHALL")
        assert await reader.snapshot() == Snapshot(0, ())


async def test_a_dead_node_of_any_size_is_ended(open_store: OpenStore) -> None:
    store = open_store(fresh_prefix())
    await store.renew("n1", T)
    many = [tab(f"tab-{number}", user=f"user-{number % 50}") for number in range(8_000)]
    for start in range(0, len(many), 500):
        await asyncio.gather(*(store.connect(one, T) for one in many[start : start + 500]))
    commit = await asyncio.wait_for(store.sweep(T + LEASE + GRACE), 60)
    assert len(commit.transitions) == 50
    assert await store.connections("n1") == []


async def test_who_left_before_last_seen_had_an_end_is_forgotten_too(redis_url: str) -> None:
    prefix = fresh_prefix()

    @asynccontextmanager
    async def kept(retention: Retention) -> AsyncIterator[RedisStore]:
        timing = msgspec.structs.replace(TIMING, retention=retention)
        store = RedisStore(connect(redis_url, timeout=STEP), prefix, timing)
        await store.renew("n1", T)
        try:
            yield store
        finally:
            await store.close()

    async with kept(Retention(sessions=0)) as store:
        for user in ("alice", "bob", "carol"):
            await store.connect(tab(user=user), T)
        for user in ("alice", "bob"):
            await store.disconnect(tab(user=user), Ending.GOODBYE, T)
        await store.sweep(T)
    async with kept(Retention(last_seen_ttl=60_000)) as store:
        for later in (1, 5_000, 14_000, 23_000, 32_000, 41_000, 50_000, 59_999):
            await store.renew("n1", T + later)
            await store.sweep(T + later)
        assert len((await store.snapshot()).statuses) == 3
        await store.sweep(T + 60_000)
        assert [status.user_id for status in (await store.snapshot()).statuses] == ["carol"]


# What other versions wrote


@pytest.mark.parametrize("more", [b"", b',"due":7,"traceparent":"00-a-b-01","of a later version":[1]'])
def test_a_change_is_read_whoever_wrote_it(more: bytes) -> None:
    body = (
        b'{"user":"acme\\u001falice","version":2,"status":"offline","at":9,"was":"online","reason":"goodbye"%b}' % more
    )
    change = encoding.transition_of(body)
    assert (change.tenant, change.user_id, change.at, change.reason) == ("acme", "alice", 9, "goodbye")
    assert (change.due, change.traceparent) == ((7, "00-a-b-01") if more else (None, None))
