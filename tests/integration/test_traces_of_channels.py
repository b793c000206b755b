"""Traces of commands in channels, of messages and of notifications: each is one, on whatever nodes it goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client
from collectors import Collector, Span, collector, kept_spans, named, traced, traces_of
from conftest import SERVICE_KEY, STEP, Process, Running, eventually
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from receivers import HOOK_SECRET
from redis_servers import RedisServer, fresh_prefix
from test_pusher_whole import Page

from gateway.runtime.traces import Trace
from gateway.tracing import MAX_TRACESTATE, Tracing

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]
LONG = 4 * STEP
TRACE = "ab" * 16
CALLER = f"00-{TRACE}-{'cd' * 8}-01"
STATE = "vendor=of the caller,other=2"
ROOM = "presence-room-5"


@pytest.fixture
async def told() -> AsyncIterator[Collector]:
    async with collector() as made:
        yield made


class Nodes:
    """Two nodes of one Redis, each with its clients."""

    def __init__(self, a: Process, b: Process, told: Collector) -> None:
        self.a = a
        self.b = b
        self.told = told

    async def trace_of(self, name: str, **attributes: Any) -> Span:
        """The one span of a command."""
        await eventually(lambda: self.told.of(name, **attributes), within=LONG)
        [span] = self.told.of(name, **attributes)
        return span

    async def spans(self, trace_id: str, name: str, number: int, **attributes: Any) -> list[Span]:
        """So many spans of one trace."""
        await eventually(lambda: len(self.told.of_trace(trace_id, name, **attributes)) == number, within=LONG)
        return self.told.of_trace(trace_id, name, **attributes)


@pytest.fixture
def variables(told: Collector, shared_redis: RedisServer) -> dict[str, str]:
    return traced(told, shared_redis)


@pytest.fixture
async def nodes(spawn: Spawn, told: Collector, variables: dict[str, str]) -> Nodes:
    return Nodes(await spawn(**variables), await spawn(**variables), told)


async def call(url: str, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
    """Call a node as part of a trace, as the application or as a user."""
    headers = {"traceparent": CALLER, "tracestate": STATE}
    headers |= {"X-API-Key": SERVICE_KEY} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, f"{url}{path}", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def test_to_join_and_to_leave_is_one_trace_on_all_nodes_and_to_the_webhook(
    nodes: Nodes, told: Collector, closing: AsyncExitStack
) -> None:
    bob = await Client.connect(closing, nodes.b.url, "bob")
    await bob.ask("join-channel", {"channel": ROOM})
    alice = await Client.connect(closing, nodes.a.url, "alice")
    for event, name, heard, webhook in (
        ("join-channel", "presence.join", "member-added", "member.added"),
        ("leave-channel", "presence.leave", "member-removed", "member.removed"),
    ):
        await alice.ask(event, {"channel": ROOM})
        await bob.hears(heard, userId="alice")
        command = await nodes.trace_of(name, presence__user="alice")
        assert command.parent == ""
        assert (command.attributes["presence.tenant"], command.attributes["presence.channel"]) == ("default", ROOM)
        stores = [
            span
            for span in await nodes.spans(command.trace_id, "presence.store", 2)
            if span.attributes["presence.changes"] == 1
        ]
        [store] = stores  # the channel was occupied already, and still is: only of the member something is committed
        assert (store.parent, store.node) == (command.id, command.node)
        logs = await nodes.spans(command.trace_id, "presence.log", 2)
        assert {(span.parent, span.attributes["presence.channel"]) for span in logs} == {(store.id, ROOM)}
        assert len({span.node for span in logs}) == 2
        [other] = {span.node for span in logs} - {command.node}
        [fanout] = await nodes.spans(command.trace_id, "presence.fanout", 1, presence__node=other)
        assert (fanout.parent, fanout.attributes["presence.recipients"]) == (store.id, 1)
        [attempt] = await nodes.spans(command.trace_id, "presence.webhook", 1)
        assert attempt.parent == store.id
        [sent] = told.sent(command.trace_id)
        assert sent["type"] == webhook
        assert sent["traceparent"].startswith(f"00-{command.trace_id}-{attempt.id}-")
    for node in (nodes.a, nodes.b):
        assert await node.stop() == 0


async def test_a_message_is_one_trace_from_whoever_sends_it_to_whoever_reads_it(
    nodes: Nodes, told: Collector, closing: AsyncExitStack
) -> None:
    alice, bob = await Client.connect(closing, nodes.a.url, "alice"), await Client.connect(closing, nodes.b.url, "bob")
    await alice.ask("send-message", {"recipientId": "bob", "content": "Hi"})
    sent = await bob.hears("new-message", content="Hi")
    command = await nodes.trace_of("presence.send_message", presence__user="alice")
    [say] = await nodes.spans(command.trace_id, "presence.say", 1, presence__event="new-message")
    [store] = await nodes.spans(command.trace_id, "presence.store", 1)
    assert (command.parent, say.parent, store.parent) == ("", command.id, say.id)
    logs = await nodes.spans(command.trace_id, "presence.log", 4)  # to bob, and in the conversation; on each node
    assert {(span.parent, span.attributes["presence.topic"]) for span in logs} == {(store.id, "channel")}
    [other] = {span.node for span in logs} - {command.node}
    [fanout] = await nodes.spans(command.trace_id, "presence.fanout", 1, presence__node=other)
    assert (fanout.parent, fanout.attributes["presence.recipients"]) == (store.id, 1)
    # That it was read is another command, by another user on the other node, of which the first hears.
    await bob.ask("mark-read", {"messageId": sent["id"]})
    await alice.hears("message-read", message_id=sent["id"])
    read = await nodes.trace_of("presence.mark_read", presence__user="bob")
    assert (read.parent, read.node) == ("", other)
    [fanout] = await nodes.spans(read.trace_id, "presence.fanout", 1, presence__node=command.node)
    assert fanout.attributes["presence.recipients"] == 1


async def test_what_is_said_over_http_is_part_of_its_caller_s_trace_on_the_other_node(
    nodes: Nodes, closing: AsyncExitStack
) -> None:
    bob = await Client.connect(closing, nodes.b.url, "bob")
    await bob.ask("join-channel", {"channel": ROOM})
    await call(nodes.a.url, "POST", f"/api/channels/{ROOM}/events", {"event": "news", "data": {"n": 1}})
    await bob.hears("news")
    [http] = await nodes.spans(TRACE, "POST /api/channels/{channel}/events", 1)
    [say] = await nodes.spans(TRACE, "presence.say", 1, presence__channel=ROOM)
    assert (http.parent, say.parent) == ("cd" * 8, http.id)
    [fanout] = await nodes.spans(TRACE, "presence.fanout", 1)
    assert fanout.node != say.node


async def test_a_notification_is_one_trace_told_at_once_and_told_later(nodes: Nodes, closing: AsyncExitStack) -> None:
    bob = await Client.connect(closing, nodes.b.url, "bob")
    body = {"userId": "bob", "event": "order", "data": {"id": 7}}
    assert (await call(nodes.a.url, "POST", "/api/notifications", body))["method"] == "realtime"
    await bob.hears("order", id=7)
    [notify] = await nodes.spans(TRACE, "presence.notify", 1, presence__user="bob", presence__method="realtime")
    [log] = await nodes.spans(TRACE, "presence.log", 1)
    [fanout] = await nodes.spans(TRACE, "presence.fanout", 1)
    assert (log.node, log.attributes["presence.topic"]) == (fanout.node, "notification")
    assert fanout.node != notify.node
    assert {log.parent, fanout.parent} == {notify.id}
    # One who is not there is told when they come, wherever that is, as part of the same trace.
    body |= {"userId": "carol"}
    assert (await call(nodes.a.url, "POST", "/api/notifications", body))["method"] == "queued"
    [notify] = await nodes.spans(TRACE, "presence.notify", 1, presence__user="carol", presence__method="queued")
    carol = await Client.connect(closing, nodes.b.url, "carol")
    await carol.hears("order", id=7)
    [handed] = await nodes.spans(TRACE, "presence.fanout", 1, presence__user="carol")
    [store] = [span for span in await nodes.spans(TRACE, "presence.store", 2) if span.parent == notify.id]
    assert (handed.node, handed.parent) == (fanout.node, store.id)


async def test_what_systems_say_of_a_trace_goes_along_to_other_nodes_and_to_the_webhook(
    nodes: Nodes, told: Collector, closing: AsyncExitStack
) -> None:
    bob = await Client.connect(closing, nodes.b.url, "bob")
    await bob.ask("join-channel", {"channel": ROOM})
    # The node that is called has none of the room: the other one, which hears of it by the bus, has bob leave.
    await call(nodes.a.url, "DELETE", f"/api/channels/{ROOM}/members/bob")
    await bob.hears("channel-left", channel=ROOM)
    await eventually(lambda: len(told.sent(TRACE)) == 2, within=LONG)
    assert {each["type"] for each in told.sent(TRACE)} == {"member.removed", "channel.vacated"}
    assert {each["tracestate"] for each in told.sent(TRACE)} == {STATE}
    [remove] = await nodes.spans(TRACE, "presence.remove", 1)
    stores = await nodes.spans(TRACE, "presence.store", 2, presence__changes=1)
    assert {span.parent for span in stores} == {remove.id}
    assert remove.node not in {span.node for span in stores}
    # Of presence it is the same.
    await call(nodes.a.url, "POST", "/presence/online", {"userId": "dora"})
    await bob.hears("user-online", userId="dora")
    await eventually(lambda: len(told.sent(TRACE)) == 3, within=LONG)
    assert told.sent(TRACE)[-1]["tracestate"] == STATE
    assert told.sent(TRACE)[-1]["type"] == "user.online"


async def test_a_node_without_tracing_hears_and_tells_what_is_part_of_a_trace(
    spawn: Spawn, told: Collector, variables: dict[str, str], closing: AsyncExitStack
) -> None:
    b = await spawn(**variables | {"TRACING": "false"})  # the first, which sends webhooks, too
    a = await spawn(**variables)
    bob = await Client.connect(closing, b.url, "bob")
    await bob.ask("join-channel", {"channel": ROOM})
    await call(a.url, "POST", f"/api/channels/{ROOM}/events", {"event": "news", "data": {"n": 1}})
    await bob.hears("news")
    await call(a.url, "POST", "/api/notifications", {"userId": "bob", "event": "order", "data": {"id": 7}})
    await bob.hears("order", id=7)
    await call(a.url, "POST", "/api/notifications", {"userId": "carol", "event": "order", "data": {"id": 8}})
    await (await Client.connect(closing, b.url, "carol")).hears("order", id=8)
    alice = await Client.connect(closing, a.url, "alice")
    await alice.ask("join-channel", {"channel": ROOM})
    await bob.hears("member-added", userId="alice")
    await eventually(lambda: told.of("presence.join", presence__user="alice"), within=LONG)
    [join] = told.of("presence.join", presence__user="alice")
    await eventually(lambda: told.sent(join.trace_id), within=LONG)
    assert told.of("presence.webhook") == []
    [store] = [span for span in told.of_trace(join.trace_id, "presence.store") if span.attributes["presence.changes"]]
    assert [each["traceparent"].split("-")[2] for each in told.sent(join.trace_id)] == [store.id]
    assert len({span.node for span in told.spans}) == 1
    # And what it says itself is part of none.
    await bob.ask("leave-channel", {"channel": ROOM})
    await alice.hears("member-removed", userId="bob")
    await eventually(lambda: "member.removed" in {each["type"] for each in told.webhooks}, within=LONG)
    [sent] = [each for each in told.webhooks if each["type"] == "member.removed"]
    assert not {"traceparent", "tracestate"} & {name.lower() for name in sent}


async def test_without_tracing_nothing_that_travels_or_waits_says_so(
    spawn: Spawn, variables: dict[str, str], closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    node = await spawn(**variables | {"TRACING": "false"})
    alice = await Client.connect(closing, node.url, "alice")
    await alice.ask("join-channel", {"channel": ROOM})
    await call(node.url, "POST", f"/api/channels/{ROOM}/events", {"event": "news", "data": {"n": 1}})
    await alice.hears("news")
    for user in ("alice", "carol"):
        await call(node.url, "POST", "/api/notifications", {"userId": user, "event": "order", "data": {"id": 7}})
    await alice.hears("order", id=7)
    base = f"{{{variables['REDIS_PREFIX']}}}:"
    bus = str(await shared_redis.cli("XRANGE", f"{base}bus", "-", "+"))
    assert "news" in bus
    [key] = await shared_redis.cli("KEYS", f"{base}queue:*carol*bodies")
    waiting = str(await shared_redis.cli("HGETALL", key))
    assert "order" in waiting
    assert "trace" not in bus + waiting


# One node, whose application has a provider


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    return kept_spans(monkeypatch)


async def test_each_command_is_a_span_whoever_gives_it(
    serve: Serve, kept: InMemorySpanExporter, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(tracing=True, **store)
    gateway = running.gateway
    alice, bob = [await Client.connect(closing, running.url, user) for user in ("alice", "bob")]
    for client in (alice, bob):
        await client.ask("join-channel", {"channel": ROOM})
    await alice.ask("typing", {"channel": ROOM, "isTyping": True})
    await gateway.channels.say(ROOM, "news", {"n": 1})
    await gateway.channels.activity("5", "joined", "Ada")
    await gateway.channels.reauthorize("alice")
    await gateway.notify("alice", "order", {"id": 7})
    await alice.hears("order")
    assert (await gateway.notify("carol", "order", {"id": 8})).sent
    assert await gateway.disconnect("alice") == 1
    await bob.hears("member-removed", userId="alice")

    def found() -> set[str]:
        return {span.name.removeprefix("presence.") for span in kept.get_finished_spans()}

    expected = {"join", "type", "say", "report", "reauthorize", "notify", "kick", "leave_all", "store", "fanout"}
    await eventually(lambda: expected <= found(), within=LONG)
    [ended] = named(kept, "presence.leave_all")
    assert {"presence.user": "alice", "presence.reason": "kicked"}.items() <= (ended.attributes or {}).items()
    said = [
        (span.attributes or {})["presence.recipients"]
        for span in named(kept, "presence.fanout")
        if "presence.user" not in (span.attributes or {})
    ]
    assert said == [2], "of what nobody in particular said"
    assert all("presence.user" in (span.attributes or {}) for span in named(kept, "presence.notify"))


async def test_what_clients_say_to_others_and_a_missed_cache_are_told_to_the_webhook_as_part_of_their_traces(
    serve: Serve, told: Collector, kept: InMemorySpanExporter, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    hook = {
        "name": "hook",
        "url": f"{told.url}/hook",
        "secret": HOOK_SECRET,
        "events": ["client.event", "channel.cache_miss"],
    }
    pusher = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}

    async def rule(_identity: Any, _channel: str) -> bool:
        return True

    running = await serve(tracing=True, presence_webhooks=[hook], channel_auth=rule, **pusher, **store)
    ada = await Page.open(closing, running, "ada")
    await ada.subscribe(ROOM)
    await ada.whisper(ROOM, "client-typing", {"on": True})
    await eventually(lambda: len(told.webhooks) == 1, within=LONG)
    assert [told.webhooks[0]["traceparent"].split("-")[1]] == traces_of(kept, "presence.say_to_others")
    await ada.subscribe("private-cache-news")
    await eventually(lambda: len(told.webhooks) == 2, within=LONG)
    assert told.webhooks[1]["type"] == "channel.cache_miss"
    assert told.webhooks[1]["traceparent"].split("-")[1] == traces_of(kept, "presence.join")[-1]


async def test_a_call_of_pusher_s_api_is_part_of_its_caller_s_trace(serve: Serve, kept: InMemorySpanExporter) -> None:
    pusher = {"pusher_app_id": "42", "pusher_app_key": "app-key", "pusher_app_secret": "the application's secret"}
    running = await serve(tracing=True, **pusher)
    async with (
        aiohttp.ClientSession(headers={"traceparent": CALLER}) as session,
        session.post(f"{running.url}/apps/42/events", json={}) as response,
    ):
        assert response.status == 401  # it is not signed
    [span] = named(kept, "POST /apps/{app}/events")
    assert (span.attributes or {})["http.response.status_code"] == 401
    assert traces_of(kept, "POST /apps/{app}/events") == [TRACE]


async def test_whoever_turns_invisible_leaves_their_channels_as_part_of_that(
    serve: Serve, told: Collector, kept: InMemorySpanExporter, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(
        tracing=True,
        presence_webhooks=[
            {"name": "hook", "url": f"{told.url}/hook", "secret": HOOK_SECRET, "events": ["member.removed"]}
        ],
        **store,
    )
    alice = await Client.connect(closing, running.url, "alice")
    await alice.ask("join-channel", {"channel": ROOM})
    await running.gateway.presence.set_status("alice", "invisible")
    await eventually(lambda: told.webhooks, within=LONG)
    assert [each["traceparent"].split("-")[1] for each in told.webhooks] == traces_of(kept, "presence.set_status")


async def test_who_may_see_whom_is_told_one_by_one_and_that_is_a_span(
    serve: Serve, kept: InMemorySpanExporter, closing: AsyncExitStack
) -> None:
    running = await serve(tracing=True, visibility=lambda viewer, _user: viewer != "mallory")
    for user in ("bob", "carol", "mallory"):
        client = await Client.connect(closing, running.url, user)
        await client.ask("join-channel", {"channel": ROOM})
    alice = await Client.connect(closing, running.url, "alice")
    await alice.ask("join-channel", {"channel": ROOM})
    joined = traces_of(kept, "presence.join")[-1]
    told = [
        (span.attributes or {})["presence.recipients"]
        for span, trace_id in zip(named(kept, "presence.fanout"), traces_of(kept, "presence.fanout"), strict=True)
        if trace_id == joined and (span.attributes or {}).get("presence.channel") == ROOM
    ]
    assert told == [2]


# What systems say of a trace


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("a=1,b=2", "a=1,b=2"),
        ("", None),
        (f"a=1,b={'x' * 256},c={'y' * 256},d=4", "a=1,d=4"),
        (",".join(f"k{n}={'v' * 96}" for n in range(7)), ",".join(f"k{n}={'v' * 96}" for n in range(5))),
    ],
)
def test_of_what_systems_say_as_much_goes_on_as_the_specification_asks_for(state: str, expected: str | None) -> None:
    tracing = Tracing("node")
    with tracing.part_of(Trace(CALLER, state)):
        assert tracing.current() == Trace(CALLER, expected)
    assert tracing.current() is None
    assert len(expected or "") <= MAX_TRACESTATE
