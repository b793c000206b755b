"""What ``/metrics`` tells: for each figure, what it tells of is made to happen, and the number moves."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from clients import Client, Plain
from conftest import ROOT, SERVICE_KEY, STEP, Running, eventually, make_settings, make_token, require_program
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from receivers import HOOK_SECRET, Call, Receiver, receiver
from redis_servers import fresh_prefix, redis_server

from gateway import Gateway
from gateway.app import create_app
from gateway.connections.counts import DOORS
from gateway.errors import CODES, REFUSAL_CODES
from gateway.inprocess.hooks import OUTCOMES
from gateway.presence.figures import CAUSES

Serve = Callable[..., Awaitable[Running]]
LONG = 4 * STEP


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_url: str) -> dict[str, Any]:
    return {} if request.param == "memory" else {"redis_url": redis_url, "redis_prefix": fresh_prefix()}


class Figures:
    """What one node told at one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: list[Metric] = list(text_string_to_metric_families(text))

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels, among others; 0 for none."""
        return math.fsum(
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        return {sample.labels[label] for family in self.families for sample in family.samples if sample.name == name}


async def read(running: Running) -> Figures:
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/metrics") as response:
        assert response.status == 200
        return Figures(await response.text())


async def until(running: Running, condition: Callable[[Figures], bool], *, within: float = LONG) -> Figures:
    """Read until it is so."""
    deadline = time.monotonic() + within
    while not condition(figures := await read(running)):
        assert time.monotonic() < deadline, figures.text
        await asyncio.sleep(0.02)
    return figures


async def request(running: Running, method: str, path: str, *, token: str | None = None, body: Any = None) -> int:
    headers = {"X-API-Key": SERVICE_KEY} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, running.url + path, json=body) as response,
    ):
        await response.read()
        return response.status


# Connections and users


async def test_connections_are_told_by_door_and_their_ends_by_how(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve()
    before = await read(running)
    assert before.labels("presence_connections", "door") == set(DOORS)
    assert before.labels("presence_connections_ended_total", "door") == set(DOORS)
    assert before("presence_connections") == before("presence_connections_opened_total") == 0
    alice = await Client.connect(closing, running.url, "alice")
    bob = await Plain.connect(closing, running.ws_url, "bob")
    await Plain.connect(closing, running.ws_url, "carol")
    figures = await read(running)
    assert figures("presence_connections", door="socketio") == 1
    assert figures("presence_connections", door="websocket") == 2
    assert figures("presence_connections_opened_total", door="websocket") == 2
    await alice.leave()
    bob.vanish()
    figures = await until(running, lambda found: found("presence_connections") == 1)
    assert figures("presence_connections_ended_total", door="socketio", reason="goodbye") == 1
    assert figures("presence_connections_ended_total", door="websocket", reason="connection_lost") == 1
    assert figures("presence_connections_ended_total") == 2
    assert figures("presence_connections_opened_total") == 3
    assert await request(running, "DELETE", "/api/users/carol/connections") == 200
    figures = await until(running, lambda found: found("presence_connections") == 0)
    assert figures("presence_connections_ended_total", door="websocket", reason="kicked") == 1


async def test_users_online_are_told_of_the_largest_tenants_only(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(metrics_tenants=2)
    for tenant, users in {"a": 1, "b": 3, "c": 2}.items():
        for number in range(users):
            token = make_token(f"user-{number}", tenant=tenant)
            await Client.connect(closing, running.url, auth={"token": token})
    figures = await read(running)
    assert figures("presence_users_online") == 6
    assert figures("presence_tenants_online") == 3
    assert figures.labels("presence_tenant_users_online", "tenant") == {"b", "c"}
    assert figures("presence_tenant_users_online", tenant="b") == 3
    assert 'tenant="' not in (await read(await serve(metrics_tenants=0))).text


# The log


async def test_commits_are_told_by_kind_and_reason(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(**store)
    alice = await Client.connect(closing, running.url, "alice")
    await running.gateway.presence.set_status("alice", "dnd")
    assert (await alice.ask("join-channel", {"channel": "presence-a"}))["event"] == "joined-channel"
    figures = await read(running)
    assert figures("presence_commits_total", log="presence", kind="online", reason="connected") == 1
    assert figures("presence_commits_total", log="presence", kind="changed", reason="set_by_hand") == 1
    assert figures("presence_commits_total", log="presence", kind="offline") == 0
    assert figures("presence_commits_total", log="channels", kind="online") >= 1
    await alice.leave()
    figures = await until(running, lambda found: found("presence_commits_total", log="presence", kind="offline") == 1)
    assert figures("presence_commits_total", kind="offline", reason="goodbye", log="presence") == 1


async def test_what_time_does_is_told_with_how_late_it_was_and_how_long_it_took(
    serve: Serve, closing: AsyncExitStack, store: dict[str, Any]
) -> None:
    running = await serve(presence_offline_grace=0.2, presence_ttl=1, presence_away_after=100, **store)
    before = await read(running)
    assert before.labels("presence_leave_detection_seconds_count", "cause") == {
        "said",
        "lost",
        "heartbeats",
        "node_died",
    }
    assert before("presence_leave_detection_seconds_count") == before("presence_sweep_lag_seconds_count") == 0
    bob = await Plain.connect(closing, running.ws_url, "bob")
    carol = await Client.connect(closing, running.url, "carol")
    assert await request(running, "POST", "/presence/heartbeat", token=make_token("alice"), body={}) == 200
    bob.vanish()
    await carol.leave()
    figures = await until(running, lambda found: found("presence_leave_detection_seconds_count") == 3)
    for cause in ("lost", "heartbeats", "said"):
        assert figures("presence_leave_detection_seconds_count", cause=cause) == 1
    assert figures("presence_leave_detection_seconds_sum", cause="lost") >= 0.2
    assert figures("presence_leave_detection_seconds_sum", cause="heartbeats") >= 1
    figures = await until(running, lambda found: found("presence_sweep_lag_seconds_count") == 2)
    assert 0 <= figures("presence_sweep_age_seconds") < LONG


async def test_a_node_that_died_is_told_by_the_others(serve: Serve, closing: AsyncExitStack, redis_url: str) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix(), "node_lease": 2, "presence_offline_grace": 0.2}
    dying, living = [await serve(**shared) for _ in range(2)]
    await Plain.connect(closing, dying.ws_url, "alice")
    await until(living, lambda found: found("presence_users_online") == 1)
    tracker = dying.gateway._tracker

    async def stand_still() -> None:
        """As a node that is gone."""

    tracker.keep = tracker.sweep = stand_still  # type: ignore[method-assign]
    cause = {"cause": "node_died"}
    figures = await until(
        living, lambda found: found("presence_leave_detection_seconds_count", **cause) == 1, within=2 * LONG
    )
    assert figures("presence_leave_detection_seconds_sum", **cause) >= 2.2


async def test_what_another_node_commits_takes_time_to_come(
    serve: Serve, closing: AsyncExitStack, redis_url: str
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    a, b = [await serve(**shared) for _ in range(2)]
    assert (await read(b))("presence_log_delay_seconds_count") == 0
    await Plain.connect(closing, a.ws_url, "alice")
    figures = await until(b, lambda found: found("presence_log_delay_seconds_count") >= 1)
    assert figures("presence_users_online") == 1
    assert figures("presence_log_delay_seconds_sum") < LONG
    assert figures("presence_commits_total", log="presence", kind="online") == 0  # it was the other node


async def test_a_node_that_does_not_read_the_log_lags(
    serve: Serve, closing: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"redis_url": redis_url, "redis_prefix": fresh_prefix()}
    a, b = [await serve(**shared) for _ in range(2)]
    go_on = asyncio.Event()
    advance = b.gateway._follower._advance

    async def stuck() -> None:
        await go_on.wait()
        await advance()

    await Plain.connect(closing, a.ws_url, "alice")
    await until(b, lambda found: found("presence_users_online") == 1)
    monkeypatch.setattr(b.gateway._follower, "_advance", stuck)
    await Plain.connect(closing, a.ws_url, "bob")  # what the reader waits for at the moment
    await Plain.connect(closing, a.ws_url, "carol")
    figures = await until(b, lambda found: found("presence_log_lag_seconds") > 0.3)
    assert figures("presence_users_online") < 3
    assert (await read(a))("presence_log_lag_seconds") == 0
    go_on.set()
    figures = await until(b, lambda found: found("presence_log_lag_seconds") == 0)
    assert figures("presence_users_online") == 3


# What clients are told


async def test_deliveries_are_told_by_what_they_are_of(serve: Serve, closing: AsyncExitStack) -> None:
    running = await serve(presence_flush_interval=0.001)
    assert (await read(running))("presence_fanout_deliveries_total") == 0
    alice = await Client.connect(closing, running.url, "alice")
    plain = await Plain.connect(closing, running.ws_url, "bob")
    await alice.hears("user-online", userId="bob")
    figures = await read(running)
    told = figures("presence_fanout_deliveries_total", of="presence")
    assert told >= 1
    assert figures("presence_fanout_batch_changes_count", of="presence") >= 1
    assert figures("presence_fanout_batch_changes_sum", of="presence") >= 1
    assert figures("presence_fanout_flush_seconds_count", of="presence") >= 1
    await alice.ask("watch-users", {"userIds": ["carol"]})
    await Plain.connect(closing, running.ws_url, "carol")
    await alice.hears("user-online", userId="carol")
    figures = await read(running)
    assert figures("presence_fanout_deliveries_total", of="watched") == 1
    assert figures("presence_fanout_batch_changes_sum", of="watched") == 1
    assert figures("presence_fanout_deliveries_total", of="presence") > told  # bob
    await alice.ask("join-channel", {"channel": "presence-a"})
    await plain.ask("join-channel", {"channel": "presence-a"})
    figures = await until(running, lambda found: found("presence_fanout_deliveries_total", of="members") >= 1)
    assert figures("presence_fanout_deliveries_total", of="said") == 0
    await running.gateway._channels.channels.say("default", ["presence-a"], "said", {"n": 1})
    await until(running, lambda found: found("presence_fanout_deliveries_total", of="said") == 2)


# The node itself


async def test_a_loop_that_is_held_up_is_told(serve: Serve) -> None:
    running = await serve()
    figures = await until(running, lambda found: found("presence_event_loop_lag_seconds_count") >= 1)
    late = figures("presence_event_loop_lag_seconds_sum")
    time.sleep(0.6)  # noqa: ASYNC251 - that is what happens
    figures = await until(running, lambda found: found("presence_event_loop_lag_seconds_sum") >= late + 0.3)
    above = figures("presence_event_loop_lag_seconds_count") - figures(
        "presence_event_loop_lag_seconds_bucket", le="0.25"
    )
    assert above >= 1


async def test_calls_over_http_that_are_refused_are_told_by_code(serve: Serve) -> None:
    running = await serve()
    assert (await read(running))("presence_http_refusals_total") == 0
    assert await request(running, "GET", "/api/users/online", token="nonsense") == 401
    assert await request(running, "GET", "/api/users/online", token=make_token("alice", ttl=-60)) == 401
    assert await request(running, "GET", "/api/users/online?limit=x") == 400
    figures = await read(running)
    for code in ("TOKEN_INVALID", "TOKEN_EXPIRED", "INVALID_PAYLOAD"):
        assert figures("presence_http_refusals_total", code=code) == 1


async def test_a_node_that_drains_says_so(serve: Serve) -> None:
    running = await serve()
    assert (await read(running))("presence_draining") == 0
    await running.gateway.drain()
    assert (await read(running))("presence_draining") == 1


async def test_hooks_that_wait_are_told(serve: Serve, closing: AsyncExitStack) -> None:
    gateway, go_on = Gateway(make_settings()), asyncio.Event()

    @gateway.on("user-online")
    async def slow(_change: object) -> None:
        await go_on.wait()

    runner = web.AppRunner(create_app(gateway), shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running = Running(gateway, "http://{}:{}".format(*runner.addresses[0][:2]), runner)
    for number in range(3):
        await Plain.connect(closing, running.ws_url, f"user-{number}")
    await until(running, lambda found: found("presence_queue_length", queue="hooks") == 2)
    go_on.set()
    await until(running, lambda found: found("presence_queue_length", queue="hooks") == 0)


# Redis


async def test_redis_is_told_by_its_round_trips_and_what_waits_for_it(serve: Serve, closing: AsyncExitStack) -> None:
    server = await closing.enter_async_context(redis_server())
    running = await serve(redis_url=server.url, redis_prefix=fresh_prefix())
    before = await read(running)
    await Plain.connect(closing, running.ws_url, "alice")
    figures = await read(running)
    for name in ("round_trip_seconds_count", "round_trip_seconds_sum", "batch_commands_sum"):
        assert figures(f"presence_redis_{name}") > before(f"presence_redis_{name}")
    assert figures("presence_redis_failures_total") == 0
    assert figures("presence_store_up") == 1
    await server.pause()
    try:
        connecting = asyncio.create_task(Plain.connect(closing, running.ws_url, "bob"))
        running.gateway._bus.publish("nothing", {})
        await until(running, lambda found: found("presence_queue_length", queue="bus") >= 1)
        await until(running, lambda found: found("presence_redis_failures_total") >= 1)
        await until(running, lambda found: found("presence_store_up") == 0)
    finally:
        await server.resume()
    await asyncio.wait_for(connecting, LONG)
    await until(running, lambda found: found("presence_store_up") == 1)
    await until(running, lambda found: found("presence_queue_length", queue="bus") == 0)


async def test_commands_that_wait_for_redis_or_for_the_view_are_told(
    serve: Serve, closing: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await serve(redis_url=redis_url, redis_prefix=fresh_prefix())
    follower = running.gateway._follower
    go_on, advance = asyncio.Event(), follower._advance

    async def stuck() -> None:
        await go_on.wait()
        await advance()

    await Plain.connect(closing, running.ws_url, "alice")
    monkeypatch.setattr(follower, "_advance", stuck)
    await Plain.connect(closing, running.ws_url, "bob")
    connecting = asyncio.create_task(Plain.connect(closing, running.ws_url, "carol"))
    await until(running, lambda found: found("presence_queue_length", queue="view") >= 1)
    go_on.set()
    await asyncio.wait_for(connecting, LONG)
    await until(running, lambda found: found("presence_queue_length", queue="view") == 0)


# Webhooks


async def test_attempts_and_dead_letters_are_told_by_endpoint(serve: Serve, closing: AsyncExitStack) -> None:
    async def fail(_call: Call) -> web.Response:
        return web.Response(status=500)

    hook = await closing.enter_async_context(receiver())
    hook.answers = fail
    running = await serve(presence_webhook_url=hook.url, presence_webhook_secret=HOOK_SECRET, webhook_queue_size=1)
    for user in ("alice", "bob"):
        await Plain.connect(closing, running.ws_url, user)
        await eventually(lambda user=user: user in {each.user for each in hook.calls}, within=LONG)  # type: ignore[misc]
    labels = {"endpoint": "default"}
    figures = await until(running, lambda found: found("presence_webhooks_dead_letters", **labels) == 1)
    assert figures("presence_webhooks_attempt_seconds_count", **labels) >= 2
    assert figures("presence_webhooks_failed_total", **labels) >= 2
    assert figures("presence_webhooks_waiting", **labels) >= 1
    await until(running, lambda found: found("presence_webhooks_lag_seconds", **labels) > 0)
    hook.answers = Receiver().answers
    figures = await until(running, lambda found: found("presence_webhooks_sent_total", **labels) == 1)


# Names, and what is said of them


@pytest.fixture
async def everything(serve: Serve, closing: AsyncExitStack, redis_url: str, tmp_path: Path) -> Figures:
    """What a node tells that has all there is, when a client has come, gone and been refused."""
    hook = await closing.enter_async_context(receiver())
    running = await serve(
        redis_url=redis_url,
        redis_prefix=fresh_prefix(),
        presence_webhook_url=hook.url,
        presence_webhook_secret=HOOK_SECRET,
        export_database_url=f"sqlite:///{tmp_path / 'presence.db'}",
        pusher_app_id="42",
        pusher_app_key="app-key",
        pusher_app_secret="the application's secret",
        channel_auth_url="http://127.0.0.1:9/auth",
    )
    alice = await Client.connect(closing, running.url, "alice")
    await Plain.connect(closing, running.ws_url, "bob")
    await alice.leave()
    await request(running, "GET", "/api/users/online", token="nonsense")
    return await until(
        running,
        lambda found: (
            bool(found.labels("presence_webhooks_waiting", "endpoint"))
            and found("presence_commits_total", kind="offline") >= 1
        ),
    )


OURS = ("presence_",)


async def test_names_follow_prometheus_s_conventions(everything: Figures) -> None:
    for family in everything.families:
        if not family.name.startswith(OURS):
            continue
        assert re.fullmatch(r"presence(_[a-z0-9]+)+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|kilobytes|percent|gauge|counter|histogram)\b", family.name)
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
            elif family.type == "gauge":
                assert not sample.name.endswith(("_total", "_count", "_sum", "_bucket"))
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels), sample
            assert all(value >= 0 for value in (sample.value,) if family.type in {"counter", "histogram"})


async def test_the_values_of_labels_are_of_known_sets(everything: Figures) -> None:
    known = {
        "door": set(DOORS),
        "code": {*REFUSAL_CODES, *CODES},
        "log": {"presence", "channels"},
        "kind": {"online", "offline", "changed"},
        "of": {"presence", "watched", "members", "said"},
        "cause": {"said", "lost", "heartbeats", "node_died"},
        "queue": {"redis", "view", "bus", "hooks"},
        "endpoint": {"default"},
        "tenant": {"default"},
    }
    free = {"limit", "outcome", "reason", "le", "version"}  # of enumerations in the code
    for family in everything.families:
        for sample in family.samples if family.name.startswith(OURS) else ():
            for label, value in sample.labels.items():
                assert label in free or value in known[label], sample


async def test_promtool_finds_nothing_to_say_of_them(everything: Figures) -> None:
    promtool = require_program("promtool")
    done = subprocess.run(  # noqa: ASYNC221 - nothing else goes on
        [promtool, "check", "metrics"], input=everything.text, capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("presence_")]
    assert lines == []


# What reads them: the reference, the alerts, the dashboard


METRICS = ROOT / "docs/operations/metrics.md"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
ALERTS_TEST = ROOT / "deploy/prometheus/alerts_test.yml"
RUNBOOK = ROOT / "docs/operations/alerts.md"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"

SCRAPED = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
"""What Prometheus itself adds, besides the label of each node."""
FUNCTIONS = {"abs", "by", "histogram_quantile", "increase", "label_values", "max", "rate", "sum", "and"}
TEXT = re.compile(r'"[^"]*"')
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def told(figures: Figures) -> dict[str, set[str]]:
    """Each name that can be asked for, with its labels."""
    found: dict[str, set[str]] = {}
    for family in figures.families:
        for sample in family.samples:
            found.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def unknown(expression: str, known: dict[str, set[str]]) -> set[str]:
    """What an expression names that nobody tells: metrics, and labels of those that it names."""
    bare = re.sub(r"\[[^]]*\]", "", TEXT.sub("", expression.replace("$__rate_interval", "")))
    by = {name for group in re.findall(r"\bby \(([^)]*)\)", bare) for name in NAME.findall(group)}
    selected = {name for group in re.findall(r"\{([^}]*)\}", bare) for name in NAME.findall(group)}
    plain = re.sub(r"\bby \([^)]*\)|\{[^}]*\}", "", bare)
    metrics = set(NAME.findall(plain)) - FUNCTIONS - {"instance"}  # which label_values() asks for
    labels = set().union(*(known.get(name, set()) for name in metrics))
    return (metrics - known.keys()) | ((by | selected) - labels)


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if isinstance(each["query"], dict)]
    annotations = [each["expr"] for each in dashboard["annotations"]["list"]]
    return [*panels, *variables, *annotations, *(rule["expr"] for rule in rules())]


async def test_the_reference_has_every_metric_with_its_labels_and_its_type(everything: Figures) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (\w+) \| (.+) \|$", METRICS.read_text(), re.MULTILINE)
    documented = {name: (set(re.findall(r"\w+", labels)), kind) for name, labels, kind, _text in rows}
    assert len(documented) == len(rows)
    expected = {}
    for family in everything.families:
        if family.name.startswith(OURS):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            expected[name] = (labels, "info" if name.endswith("_info") else family.type)
    assert documented == expected
    texts = {name: text for name, _labels, _kind, text in rows}
    for family in everything.families:
        if family.name.startswith(OURS):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert texts[name].startswith(family.documentation)


async def test_alerts_and_dashboard_name_nothing_that_nobody_tells(everything: Figures) -> None:
    known = told(everything) | SCRAPED
    for rule in rules():
        if "record" in rule:
            by = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            known[rule["record"]] = {name for group in by for name in NAME.findall(group)} - {"le"}
    assert unknown("sum by (door) (rate(presence_no_such_total[5m]))", known) == {"presence_no_such_total", "door"}
    assert unknown('sum by (color) (rate(presence_connections{door="x", size="1"}[5m]))', known) == {"color", "size"}
    found = expressions()
    assert len(found) > 60
    assert {expression: names for expression in found if (names := unknown(expression, known))} == {}


def test_each_alert_says_how_bad_it_is_what_it_is_and_where_to_read_what_to_do() -> None:
    headings = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert headings == set(alerts)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == f"docs/operations/alerts.md#{name.lower()}"
        # What rises once and is over is told of at once; what is so goes on for a while before anybody is called.
        assert ("for" in rule) or "increase(" in rule["expr"], name


def test_the_alerts_label_values_are_those_that_are_told() -> None:
    text = ALERTS.read_text() + DASHBOARD.read_text().replace('\\"', '"')
    for cause in re.findall(r'\bcause="(\w+)"', text):
        assert cause in CAUSES
    for outcome in re.findall(r'outcome=~"([\w|]+)"', text):
        assert set(outcome.split("|")) <= set(OUTCOMES)
    for code in re.findall(r'\bcode="(\w+)"', text):
        assert code in {*REFUSAL_CODES, *CODES}


def test_promtool_takes_the_rules_and_they_fire_when_they_should() -> None:
    promtool = require_program("promtool")
    for command in (("check", "rules", str(ALERTS)), ("test", "rules", str(ALERTS_TEST))):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _y in places) < 24
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
