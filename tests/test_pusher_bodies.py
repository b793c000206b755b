"""Pusher's HTTP API, fed anything: every body is taken, or refused for what is wrong with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from aiohttp.test_utils import make_mocked_request
from conftest import make_settings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.channels.model import Occupancy
from gateway.channels.names import is_name
from gateway.doors.pusher_api import MAX_CHANNELS, MAX_EVENT, TO_USER, PusherAPI
from gateway.errors import InvalidPayloadError
from gateway.pusher.api import BatchTriggered, Triggered
from gateway.pusher.signature import Signer
from gateway.wire import is_id


class Channels:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[Sequence[str], str, bytes, str | None]] = []

    async def say(self, tenant: str, channels: Sequence[str], event: str, data: Any, *, source: str | None) -> None:
        assert tenant == "default"
        self.said.append((channels, event, bytes(data), source))

    def occupancy(self, tenant: str, channel: str) -> Occupancy:
        return Occupancy(channel=channel, users=None, subscriptions=0)


class Cluster:
    """Keeps what is told to users."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bytes]] = []

    def tell(self, tenant: str, user_id: str, event: str, data: Any) -> None:
        self.told.append((user_id, event, bytes(data)))


TEXT = st.text(max_size=12) | st.sampled_from(["orders", "presence-room-5", TO_USER + "ada", TO_USER, "x" * 300, "{}"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
EVENT = st.fixed_dictionaries(
    {"name": TEXT | JSON, "data": TEXT | JSON},
    optional={
        "channel": TEXT | JSON,
        "channels": st.lists(TEXT, max_size=4) | JSON,
        "socket_id": TEXT | JSON,
        "info": TEXT | st.sampled_from(["user_count", "subscription_count,cache"]) | JSON,
    },
)


def feed(call: str, body: bytes, query: str = "") -> tuple[Channels, Cluster] | None:
    """What was said by a body; None where it was refused, for which there must be a reason."""
    channels, cluster = Channels(), Cluster()
    given = make_settings(pusher_app_id="1", pusher_app_key="k", pusher_app_secret="s")
    api = PusherAPI(given, Signer("k", "s"), channels, cluster, lambda: 0)  # type: ignore[arg-type]
    refused, answer = None, object()
    try:
        request = make_mocked_request("POST", f"/?{query}")
        answer = asyncio.run(getattr(api, call)(request, body))
    except InvalidPayloadError as error:
        refused = error
    if refused is None:
        assert isinstance(answer, Triggered | BatchTriggered)
        return channels, cluster
    assert refused.http_status in {400, 413}
    assert len(str(refused)) > 10
    assert not channels.said
    assert not cluster.told
    return None


def check(said: tuple[Channels, Cluster] | None) -> None:
    if said is None:
        return
    channels, cluster = said
    for names, event, data, source in channels.said:
        assert 1 <= len(names) <= MAX_CHANNELS
        assert all(is_name(name) for name in names)
        assert 1 <= len(event) <= MAX_EVENT
        assert source is None or is_id(source)
        json.loads(data)
    for user_id, _event, data in cluster.told:
        assert is_id(user_id)
        json.loads(data)


@given(EVENT | JSON)
@example({"name": "a", "data": "{}", "channel": "\ud800"})
@example({"name": "a\ud800", "data": "{}", "channel": "orders"})
@settings(max_examples=1000, deadline=None)
def test_one_event(body: object) -> None:
    check(feed("_events", json.dumps(body).encode(errors="surrogatepass")))


QUERY = st.lists(st.tuples(st.sampled_from(["name", "data", "channel", "channels[]", "socket_id", "info"]), TEXT))


@given(QUERY, st.just(b"") | EVENT.map(lambda event: json.dumps(event).encode()))
@settings(max_examples=1000, deadline=None)
def test_one_event_by_its_query(query: list[tuple[str, str]], body: bytes) -> None:
    check(feed("_events", body, urlencode(query)))


@given(st.fixed_dictionaries({"batch": st.lists(EVENT, max_size=12) | JSON}))
@settings(max_examples=500, deadline=None)
def test_a_batch(body: object) -> None:
    check(feed("_batch_events", json.dumps(body).encode(errors="surrogatepass")))


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_what_is_no_json(body: bytes) -> None:
    for call in ("_events", "_batch_events"):
        check(feed(call, body))


def test_a_good_one_is_said() -> None:
    body = {"name": "shipped", "data": "[1]", "channels": ["orders", TO_USER + "ada", "orders"], "socket_id": "1.2"}
    said = feed("_events", json.dumps(body).encode())
    assert said is not None
    assert said[0].said == [(["orders"], "shipped", b"[1]", "1.2")]
    assert said[1].told == [("ada", "shipped", b"[1]")]
