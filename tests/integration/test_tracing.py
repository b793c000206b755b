"""Traces: a command is one, on whatever nodes it goes on; and where they are off, nothing knows of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from clients import Client, Plain
from collectors import Collector, Span, collector, kept_spans, named, traced
from conftest import ROOT, SECRET, SERVICE_KEY, STEP, Process, Running, eventually, make_settings
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from receivers import HOOK_SECRET
from redis_servers import RedisServer, fresh_prefix

from gateway.errors import ConfigurationError
from gateway.parts import make_tracing

Serve = Callable[..., Awaitable[Running]]
Spawn = Callable[..., Awaitable[Process]]
LONG = 4 * STEP
CALLER = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
async def told() -> AsyncIterator[Collector]:
    async with collector() as made:
        yield made


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of an application that has a provider of its own."""
    return kept_spans(monkeypatch)


# Two nodes


async def test_a_command_is_one_trace_on_all_nodes_and_to_the_webhook(
    spawn: Spawn, told: Collector, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    variables = traced(told, shared_redis)
    a, b = await spawn(**variables), await spawn(**variables)
    bob = await Client.connect(closing, b.url, "bob")
    alice = await Plain.connect(closing, a.url.replace("http", "ws", 1), "alice")
    await bob.hears("user-online", userId="alice")

    def of_alice(name: str) -> list[Span]:
        return told.of(name, presence__user="alice")

    await eventually(lambda: of_alice("presence.connect"), within=LONG)
    [connect] = of_alice("presence.connect")
    assert connect.parent == ""

    def within(name: str) -> list[Span]:
        return [span for span in told.spans if span.name == name and span.trace_id == connect.trace_id]

    await eventually(lambda: len(within("presence.log")) == 2, within=LONG)
    [store] = within("presence.store")
    assert store.parent == connect.id
    assert store.node == connect.node
    assert store.attributes["presence.changes"] == 1
    logs = within("presence.log")
    assert {span.parent for span in logs} == {store.id}
    assert len({span.node for span in logs}) == 2
    [other] = {span.node for span in logs} - {connect.node}
    await eventually(lambda: [span for span in within("presence.fanout") if span.node == other], within=LONG)
    [fanout] = [span for span in within("presence.fanout") if span.node == other]
    assert (fanout.parent, fanout.attributes["presence.recipients"]) == (store.id, 1)
    await eventually(lambda: within("presence.webhook"), within=LONG)
    [webhook] = within("presence.webhook")
    assert webhook.parent == store.id
    [sent] = [each for each in told.webhooks if each.get("traceparent", "").split("-")[1:2] == [connect.trace_id]]
    assert sent["type"] == "user.online"
    assert sent["traceparent"].startswith(f"00-{connect.trace_id}-{webhook.id}-")
    assert told.services == {"presence-gateway"}
    # Whoever is lost goes by a sweep, which is a trace of its own; those that commit nothing are none.
    alice.vanish()
    await bob.hears("user-offline", userId="alice")
    await eventually(lambda: "user.offline" in {each["type"] for each in told.webhooks}, within=LONG)
    await eventually(lambda: told.of("presence.sweep"), within=LONG)
    [sweep] = told.of("presence.sweep")
    [sent] = [each for each in told.webhooks if each["type"] == "user.offline"]
    assert sent["traceparent"].split("-")[1] == sweep.trace_id
    for node in (a, b):
        assert await node.stop() == 0


# One node, whose application has a provider


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


async def test_a_call_over_http_goes_on_with_its_caller_s_trace(
    serve: Serve, told: Collector, kept: InMemorySpanExporter, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(
        tracing=True, presence_webhook_url=f"{told.url}/hook", presence_webhook_secret=HOOK_SECRET, **store
    )
    await Plain.connect(closing, running.ws_url, "alice")
    headers = {"X-API-Key": SERVICE_KEY, "traceparent": CALLER}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{running.url}/presence/online", json={"userId": "bob"}) as response,
    ):
        assert response.status == 200
    trace_id = int("ab" * 16, 16)

    def found() -> set[str]:
        return {span.name for span in kept.get_finished_spans() if span.context and span.context.trace_id == trace_id}

    expected = {"POST /presence/online", "presence.beat", "presence.store", "presence.log", "presence.fanout"}
    await eventually(lambda: found() == expected | {"presence.webhook"}, within=LONG)
    [call] = named(kept, "POST /presence/online")
    assert call.parent is not None
    assert call.parent.span_id == int("cd" * 8, 16)
    assert (call.attributes or {})["http.response.status_code"] == 200
    assert [each["traceparent"].split("-")[1] for each in told.webhooks if "ab" * 16 in each["traceparent"]]


async def test_each_command_is_a_span_and_what_is_part_of_none_has_none(
    serve: Serve, kept: InMemorySpanExporter, closing: AsyncExitStack
) -> None:
    running = await serve(tracing=True)
    alice = await Client.connect(closing, running.url, "alice")
    watcher = await Client.connect(closing, running.url, "watcher")
    await watcher.ask("watch-users", {"userIds": ["alice"]})
    await running.gateway.presence.set_status("alice", "dnd")
    await watcher.hears("user-status-changed", userId="alice")
    assert await running.gateway.disconnect("alice") == 1
    await alice.closed()
    await eventually(lambda: {"presence.disconnect", "presence.release"} <= {s.name for s in kept.get_finished_spans()})
    [set_status] = named(kept, "presence.set_status")
    assert set_status.context is not None
    told = [
        span
        for span in named(kept, "presence.fanout")
        if span.context is not None and span.context.trace_id == set_status.context.trace_id
    ]
    assert [(span.attributes or {})["presence.recipients"] for span in told] == [1, 1]  # alice, and who watches her
    [ended] = [
        span for span in named(kept, "presence.disconnect") if (span.attributes or {})["presence.user"] == "alice"
    ]
    assert (ended.attributes or {})["presence.reason"] == "kicked"
    assert named(kept, "presence.sweep") == []
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/health/live") as response:
        assert response.status == 200
    assert not [span for span in kept.get_finished_spans() if "health" in span.name]


async def test_a_node_stops_in_time_though_nobody_takes_its_spans(
    serve: Serve, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    running = await serve(tracing=True)
    await Plain.connect(closing, running.ws_url, "alice")
    begun = time.monotonic()
    await running.runner.cleanup()
    assert time.monotonic() - begun < LONG


# Where there are none


async def test_without_tracing_nothing_of_it_is_imported_said_or_sent(
    spawn: Spawn, told: Collector, closing: AsyncExitStack, shared_redis: RedisServer
) -> None:
    prefix = fresh_prefix()
    node = await spawn(
        REDIS_URL=shared_redis.url,
        REDIS_PREFIX=prefix,
        PRESENCE_WEBHOOK_URL=f"{told.url}/hook",
        PRESENCE_WEBHOOK_SECRET=HOOK_SECRET,
        OTEL_EXPORTER_OTLP_ENDPOINT=told.url,
    )
    await Plain.connect(closing, node.url.replace("http", "ws", 1), "alice")
    await eventually(lambda: told.webhooks, within=LONG)
    assert "traceparent" not in {name.lower() for name in told.webhooks[0]}
    entries = await shared_redis.cli("XRANGE", f"{{{prefix}}}:log", "-", "+")
    assert "alice" in str(entries)
    assert "traceparent" not in str(entries)
    assert told.spans == []


@pytest.mark.parametrize("installed", [True, False])
def test_a_gateway_without_tracing_imports_nothing_that_traces(*, installed: bool) -> None:
    # Where it is installed, redis-py imports what OpenTelemetry has for metrics.
    code = (
        f"import sys; sys.modules.update({{}} if {installed} else {{'opentelemetry': None}});"
        "from gateway import Gateway, Settings; from gateway.app import create_app;"
        f"create_app(Gateway(Settings(_env_file=None, jwt_secret={SECRET!r}, redis_url='redis://127.0.0.1:9')));"
        "ours = ('gateway.tracing', 'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'google.protobuf');"
        "assert not [name for name in sys.modules if name.startswith(ours)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'presence-gateway\[otel\]'"):
        make_tracing(make_settings(tracing=True), "node")


def test_an_exporter_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER takes otlp or none; not 'zipkin'"):
        make_tracing(make_settings(tracing=True), "node")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert make_tracing(make_settings(tracing=True), "node") is not None
