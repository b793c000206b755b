"""The Pusher protocol, with no network: frames and codes, and a client's side of the door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from conftest import eventually, make_settings, make_token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import Gateway
from gateway.channels.model import Said
from gateway.doors.pusher import PusherDoor
from gateway.engine.batch import Batch
from gateway.errors import (
    CloseCode,
    InvalidPayloadError,
    NodeBusyError,
    NotReadyError,
    RefusedError,
    TenantFullError,
    TokenInvalidError,
    TooManyConnectionsError,
)
from gateway.presence.model import Connection
from gateway.presence.store import Commit
from gateway.pusher import frames
from gateway.pusher.client import CLIENT_EVENTS, MAX_CLIENT_EVENT, Client
from gateway.pusher.codes import Code, closing, code_of, refused_version
from gateway.pusher.signature import Signer

KEY, APP_SECRET = "app-key", "app-secret"
SIGNER = Signer(KEY, APP_SECRET)
APP = {"pusher_app_id": "1", "pusher_app_key": KEY, "pusher_app_secret": APP_SECRET}


# Frames and codes


@pytest.mark.parametrize(
    ("version", "code"),
    [
        (None, Code.NO_VERSION),
        ("", Code.NO_VERSION),
        ("x", Code.INVALID_VERSION),
        ("\u0667", Code.INVALID_VERSION),
        ("4", Code.UNSUPPORTED_VERSION),
        ("8", Code.UNSUPPORTED_VERSION),
        ("7" * 5000, Code.UNSUPPORTED_VERSION),
    ],
)
def test_a_version_that_is_not_served_has_its_code(version: str | None, code: Code) -> None:
    refused = refused_version(version)
    assert refused is not None
    assert refused[0] is code


@pytest.mark.parametrize("version", ["5", "6", "7"])
def test_a_version_that_is_served_has_none(version: str) -> None:
    assert refused_version(version) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TokenInvalidError("x"), 4009),
        (TooManyConnectionsError("x"), 4004),
        (TenantFullError("x"), 4100),
        (NodeBusyError("x"), 4100),
        (NotReadyError("x"), 4100),
    ],
)
def test_who_is_not_let_in_is_told_whether_to_come_back(error: RefusedError, code: int) -> None:
    assert code_of(error) == code


def test_every_close_code_of_the_gateway_is_one_of_the_protocol_and_says_whether_to_come_back() -> None:
    again = {code: closing(code)[0] // 100 for code in CloseCode}
    assert {code for code, hundred in again.items() if hundred == 40} == {CloseCode.KICKED, CloseCode.TOKEN_REFUSED}
    assert {code for code, hundred in again.items() if hundred == 42} == {
        CloseCode.GOING_AWAY,
        CloseCode.TOKEN_EXPIRED,
    }


@pytest.mark.parametrize("data", [b'{"channel":"a"}', b'"{\\"channel\\":\\"a\\"}"'])
def test_data_is_read_as_it_is_or_in_a_text_of_its_own(data: bytes) -> None:
    frame = frames.read_frame(b'{"event":"pusher:subscribe","data":' + data + b"}")
    assert frames.read_data(frame, frames.Subscribe).channel == "a"


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"event":1}', "[" * 100_000, '{"event":"a","data":' * 5000])
def test_what_is_no_frame_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidPayloadError, match="a frame is"):
        frames.read_frame(text)


def said(event: str, data: bytes, channel: str, sender: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        frames.said_in(
            Said(tenant="t", channel=channel, event=event, data=msgspec.Raw(data), sender=sender, position=1, at=0)
        )
    )
    return found


def test_data_goes_out_in_a_text_of_its_own() -> None:
    assert said("e", b'{"a":[1]}', "news") == {"event": "e", "channel": "news", "data": '{"a":[1]}'}


def test_messages_have_the_names_that_laravel_gives_them() -> None:
    assert said("new-message", b"{}", "room-5")["event"] == "message.sent"


def test_a_text_that_is_no_json_goes_out_as_it_is() -> None:
    assert said("e", b'"hello"', "news")["data"] == "hello"
    assert said("e", b'"5"', "news")["data"] == '"5"'


def test_only_members_of_a_presence_channel_are_named_and_only_in_what_they_tell_each_other() -> None:
    assert said("client-e", b"1", "presence-a", "bob")["user_id"] == "bob"
    assert "user_id" not in said("client-e", b"1", "private-a", "bob")
    assert "user_id" not in said("e", b"1", "presence-a", "bob")


# A client


class HeldWire:
    """What a client was sent, and how it was closed."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None

    @property
    def sink(self) -> HeldWire:
        return self

    def write(self, batch: Batch) -> None:
        for text in batch.texts:
            self.send(text)

    def send(self, text: bytes) -> None:
        assert self.closed is None
        self.heard.append(json.loads(text))

    def close(self, code: int, why: str, *, drop: bool = False) -> None:
        if self.closed is None:
            self.closed = (code, why)


class Page:
    """A client of the door's, driven directly."""

    def __init__(self, door: PusherDoor, query: str = "protocol=7", key: str = KEY, **headers: str) -> None:
        self.wire = HeldWire()
        transport = Mock()
        transport.get_extra_info.side_effect = {"peername": ("192.0.2.1", 1234)}.get
        request = make_mocked_request("GET", f"/app/{key}?{query}", headers=headers, transport=transport)
        self.client = Client(door, request, key)
        self.id = self.client.socket_id

    async def begin(self) -> Page:
        await self.client.begin(self.wire)
        return self

    async def send(self, text: str) -> list[dict[str, Any]]:
        """What comes in answer to a message."""
        before = len(self.wire.heard)
        waiting: Coroutine[Any, Any, None] | None = self.client.take(text)
        if waiting is not None:
            await waiting
        return self.wire.heard[before:]

    async def ask(self, event: str, data: Any = None, channel: str | None = None) -> list[dict[str, Any]]:
        return await self.send(json.dumps({"event": event, "data": data or {}, "channel": channel}))

    async def subscribe(self, channel: str, user: str | None = None, **data: Any) -> list[dict[str, Any]]:
        signed = None if user is None else json.dumps({"user_id": user, "user_info": {"name": user.title()}})
        auth = SIGNER.channel_auth(self.id, channel, signed)
        asked = {"channel": channel, "auth": auth} | ({} if signed is None else {"channel_data": signed}) | data
        return await self.ask("pusher:subscribe", asked)

    async def sign_in(self, user: str, **more: Any) -> list[dict[str, Any]]:
        data = json.dumps({"id": user} | more)
        return await self.ask("pusher:signin", {"auth": SIGNER.user_auth(self.id, data), "user_data": data})


@asynccontextmanager
async def door_of(**more: Any) -> AsyncIterator[tuple[Gateway, PusherDoor]]:
    gateway = Gateway(make_settings(**(APP | more)))
    running = gateway._run(None)  # type: ignore[arg-type]  # it takes no notice of the application
    await anext(running)
    assert gateway._pusher is not None
    gateway._channels.subscriptions.listeners.clear()  # counts come when they come
    try:
        yield gateway, gateway._pusher
    finally:
        await gateway.drain()
        async for _ in running:
            raise AssertionError("it has stopped")


def error_of(answers: list[dict[str, Any]]) -> dict[str, Any]:
    [answer] = answers
    assert answer["event"] == "pusher:subscription_error"
    found: dict[str, Any] = json.loads(answer["data"])
    return found


async def test_a_client_is_greeted_with_its_id_and_how_long_it_may_be_silent() -> None:
    async with door_of(ping_interval=30) as (_, door):
        page = await Page(door).begin()
        [greeting] = page.wire.heard
        assert greeting["event"] == "pusher:connection_established"
        assert json.loads(greeting["data"]) == {"socket_id": page.id, "activity_timeout": 30}


@pytest.mark.parametrize(
    ("query", "key", "headers", "code"),
    [
        ("protocol=7", "other", {}, 4001),
        ("", KEY, {}, 4008),
        ("protocol=4", KEY, {}, 4007),
        ("protocol=7", KEY, {"Origin": "https://evil.example"}, 4009),
        ("protocol=7&token=nonsense", KEY, {}, 4009),
    ],
)
async def test_who_is_not_let_in_is_told_why(query: str, key: str, headers: dict[str, str], code: int) -> None:
    async with door_of() as (_, door):
        page = await Page(door, query, key, **headers).begin()
        assert page.wire.closed is not None
        assert page.wire.closed[0] == code
        [error] = page.wire.heard
        assert error == {"event": "pusher:error", "data": {"code": code, "message": page.wire.closed[1]}}
        assert not door.clients


async def test_a_token_says_whose_a_client_is_and_a_cookie_that_is_none_says_nothing() -> None:
    async with door_of() as (gateway, door):
        await Page(door, f"protocol=7&token={make_token('alice')}").begin()
        assert gateway.presence.status("alice").online
        nobody = await Page(door, Cookie="jwt=of-another-service").begin()
        assert nobody.wire.closed is None
        assert nobody.client.live is None


async def test_the_first_presence_channel_says_whose_a_client_is() -> None:
    async with door_of() as (gateway, door):
        page = await Page(door).begin()
        [answer] = await page.subscribe("presence-a", "alice")
        assert answer["event"] == "pusher_internal:subscription_succeeded"
        assert json.loads(answer["data"]) == {
            "presence": {"count": 1, "ids": ["alice"], "hash": {"alice": {"name": "Alice"}}}
        }
        status = gateway.presence.status("alice")
        assert (status.online, status.profile.name) == (True, "Alice")
        await page.client.end(1000)
        assert not gateway.presence.status("alice").online  # it said goodbye


async def test_who_leaves_while_they_are_let_in_is_out_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async with door_of() as (gateway, door):
        page = Page(door, f"protocol=7&token={make_token('alice')}")
        connect = gateway._tracker.connect

        async def leaves(connection: Connection) -> Commit:
            await page.client.end(None)
            return await connect(connection)

        monkeypatch.setattr(gateway._tracker, "connect", leaves)
        await page.begin()
        assert (page.wire.heard, len(gateway._connections)) == ([], 0)


async def test_a_client_that_is_lost_has_its_grace() -> None:
    async with door_of(presence_offline_grace=60) as (gateway, door):
        page = await Page(door).begin()
        await page.subscribe("presence-a", "alice")
        await page.client.end(None)
        assert gateway.presence.status("alice").online


@pytest.mark.parametrize(
    ("channel", "data", "status"),
    [
        ("private-a", {"auth": "nonsense"}, 401),
        ("private-a", {"auth": None}, 401),
        ("presence-a", {}, 400),
        ("presence-a", {"channel_data": "{}"}, 401),
        ("no name", {}, 400),
        ("#server-to-user-alice", {}, 403),
    ],
)
async def test_a_subscription_that_is_not_in_order_is_refused(channel: str, data: Any, status: int) -> None:
    async with door_of() as (_, door):
        page = await Page(door).begin()
        error = error_of(await page.subscribe(channel, **data))
        assert error["status"] == status
        assert error["type"] in {"AuthError", "SubscriptionError"}
        assert not page.client.subscriber.channels


@pytest.mark.parametrize(
    "signed",
    [
        *(
            "",
            "[]",
            "{}",
            '{"user_id":null}',
            '{"user_id":""}',
            '{"user_id":1.5}',
            '{"user_id":"a\\u0000"}',
            "[" * 5000,
        ),
        json.dumps({"user_id": "a", "user_info": "x" * 3000}),
        json.dumps({"user_id": "a" * 200}),
    ],
)
async def test_channel_data_that_is_signed_and_no_good_is_refused(signed: str) -> None:
    async with door_of() as (_, door):
        page = await Page(door).begin()
        auth = SIGNER.channel_auth(page.id, "presence-a", signed)
        answers = await page.ask("pusher:subscribe", {"channel": "presence-a", "auth": auth, "channel_data": signed})
        assert error_of(answers)["status"] == 400
        assert page.client.live is None


async def test_a_signature_is_good_for_one_connection() -> None:
    async with door_of() as (_, door):
        first, second = await Page(door).begin(), await Page(door).begin()
        auth = SIGNER.channel_auth(first.id, "private-a")
        assert error_of(await second.ask("pusher:subscribe", {"channel": "private-a", "auth": auth}))["status"] == 401


async def test_a_second_subscription_changes_nothing() -> None:
    async with door_of() as (_, door):
        page = await Page(door).begin()
        await page.subscribe("news")
        [error] = await page.subscribe("news")
        assert error["data"] == {"code": None, "message": "Existing subscription to channel news"}


async def test_who_signs_in_may_enter_a_presence_channel_without_saying_who_they_are_again() -> None:
    async with door_of() as (_, door):
        page = await Page(door).begin()
        [answer] = await page.sign_in("alice", user_info={"name": "Al"})
        assert answer["event"] == "pusher:signin_success"
        [answer] = await page.subscribe("#server-to-user-alice")
        assert answer["event"] == "pusher_internal:subscription_succeeded"
        [answer] = await page.subscribe("presence-a")
        assert json.loads(answer["data"])["presence"]["hash"] == {"alice": {"name": "Al"}}


async def test_a_connection_is_one_users() -> None:
    async with door_of() as (_, door):
        page = await Page(door, f"protocol=7&token={make_token('alice')}").begin()
        await page.sign_in("bob")
        assert page.wire.closed is not None
        assert page.wire.closed[0] == 4009


async def test_what_waited_for_a_user_is_theirs_when_they_sign_in() -> None:
    async with door_of() as (gateway, door):
        await gateway.notify("alice", "hello", {"n": 1})
        page = await Page(door).begin()
        [_] = await page.subscribe("presence-a", "alice")
        answers = await page.sign_in("alice")
        assert [answer["event"] for answer in answers] == ["pusher:signin_success", "hello"]
        assert answers[1] == {"event": "hello", "channel": "#server-to-user-alice", "data": '{"n":1}'}
        await gateway.notify("alice", "hello", {"n": 2})
        assert page.wire.heard[-1]["data"] == '{"n":2}'
        await eventually(lambda: gateway._inbox.acknowledged)
        again = await Page(door).begin()
        assert len(await again.sign_in("alice")) == 1


async def test_a_client_hears_nothing_of_presence_but_its_watchlist() -> None:
    async with door_of(presence_flush_interval=0) as (gateway, door):
        page = await Page(door).begin()
        [_, watchlist] = await page.sign_in("alice", watchlist=["alice", "bob", 3])
        assert json.loads(watchlist["data"]) == {"events": [{"name": "online", "user_ids": ["alice"]}]}
        assert page.client.live is not None
        await gateway.presence.set_online("bob")
        await gateway.presence.set_online("carol")
        gateway._connections.catch_up(page.client.live)
        assert json.loads(page.wire.heard[-1]["data"]) == {"events": [{"name": "online", "user_ids": ["bob"]}]}


async def test_client_events_have_rules() -> None:
    async with door_of() as (_, door):
        page, other = await Page(door).begin(), await Page(door).begin()
        for each in (page, other):
            for channel in ("news", "private-a", "private-encrypted-a"):
                await each.subscribe(channel)
        await page.subscribe("presence-a", "alice")
        await other.subscribe("presence-a", "bob")
        heard = len(other.wire.heard)
        for nowhere in (None, "private-b", "news", "private-encrypted-a"):
            [error] = await page.ask("client-e", {"a": 1}, nowhere)
            assert error["event"] == "pusher:error"
            assert error["data"]["code"] is None
        [error] = await page.ask("client-e", "x" * MAX_CLIENT_EVENT, "private-a")
        assert "bytes" in error["data"]["message"]
        [error] = await page.ask("client-" + "e" * 300, 1, "private-a")
        assert "characters" in error["data"]["message"]
        assert len(other.wire.heard) == heard

        assert await page.ask("client-e", {"a": 1}, "private-a") == []
        assert other.wire.heard[-1] == {"event": "client-e", "channel": "private-a", "data": '{"a": 1}'}
        await page.ask("client-e", 1, "presence-a")
        assert other.wire.heard[-1]["user_id"] == "alice"


async def test_more_client_events_than_a_connection_may_send_are_refused_and_it_goes_on() -> None:
    async with door_of() as (_, door):
        page = await Page(door).begin()
        await page.subscribe("private-a")
        refused = [answer for _ in range(30) for answer in await page.ask("client-e", 1, "private-a")]
        assert len(refused) >= 30 - CLIENT_EVENTS.count - 5
        assert {answer["data"]["code"] for answer in refused} == {4301}
        assert page.wire.closed is None


async def test_ten_thousand_subscriptions_are_each_answered() -> None:
    async with door_of(max_channels_per_connection=50) as (_, door):
        page = await Page(door).begin()
        answers = [answer for n in range(10_000) for answer in await page.subscribe(f"news-{n}")]
        told = [answer["event"] for answer in answers if answer["event"] != "pusher:error"]
        assert told.count("pusher_internal:subscription_succeeded") == 50
        assert len(page.client.subscriber.channels) == 50
        if page.wire.closed is None:
            assert len(told) == 10_000
        else:
            assert page.wire.closed[0] == 4100


async def test_a_cache_channel_begins_with_what_was_said_last() -> None:
    async with door_of() as (gateway, door):
        channels = gateway._channels.channels
        page = await Page(door).begin()
        assert [answer["event"] for answer in await page.subscribe("cache-a")][1] == "pusher:cache_miss"
        for n in range(3):
            await channels.say("default", ["cache-a"], "e", n)
        later = await Page(door).begin()
        answers = await later.subscribe("cache-a")
        assert [answer["data"] for answer in answers] == ["{}", "2"]


async def test_a_backend_takes_a_member_out_and_the_client_is_told() -> None:
    async with door_of() as (gateway, door):
        page = await Page(door).begin()
        await page.subscribe("presence-a", "alice")
        await gateway._channels.channels.remove("default", "presence-a", "alice")
        assert error_of(page.wire.heard[-1:])["status"] == 403
        assert not page.client.subscriber.channels


@pytest.mark.parametrize(("close", "code"), [("kick", 4009), ("drain", 4200), ("slow", 4100), ("flood", 4100)])
async def test_a_connection_is_closed_with_a_code_that_says_whether_to_come_back(close: str, code: int) -> None:
    async with door_of() as (gateway, door):
        page = await Page(door).begin()
        await page.subscribe("presence-a", "alice")
        if close == "kick":
            await gateway.disconnect("alice")
        elif close == "drain":
            await gateway.drain()
        elif close == "slow":
            page.client.too_slow()
        else:
            for _ in range(20_000):
                await page.send("nonsense")
        assert page.wire.closed is not None
        assert page.wire.closed[0] == code


async def test_one_that_is_nobodys_goes_when_the_node_drains_and_counts_for_its_address() -> None:
    async with door_of(max_connections_per_address=2) as (gateway, door):
        pages = [await Page(door).begin() for _ in range(3)]
        closed = [page.wire.closed for page in pages]
        assert closed[:2] == [None, None]
        assert closed[2] is not None
        assert closed[2][0] == 4004
        await pages[0].subscribe("presence-a", "alice")  # who is counted still
        again = await Page(door).begin()
        assert again.wire.closed is not None
        await pages[1].client.end(1000)
        assert (await Page(door).begin()).wire.closed is None
        await gateway.drain()
        late = await Page(door).begin()
        assert late.wire.closed is not None
        assert late.wire.closed[0] == 4100


class Now:
    """The loop's time, for a door."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_silent_client_is_asked_and_then_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Now()
    async with door_of(ping_interval=10, ping_timeout=5) as (_, door):
        monkeypatch.setattr(door, "loop_time", now)
        page = await Page(door).begin()
        now.now += 8
        await page.ask("pusher:ping")
        now.now += 4
        page.client._look()
        assert page.wire.heard[-1]["event"] == "pusher:pong"  # it was heard of four seconds ago
        now.now += 6
        page.client._look()
        assert page.wire.heard[-1]["event"] == "pusher:ping"
        asked_at = page.client._heard_at
        await page.ask("pusher:pong")
        now.now += 1
        page.client._look_again(asked_at - 1)
        assert page.wire.closed is None
        now.now += 30
        page.client._look()
        page.client._look_again(page.client._heard_at)
        assert page.wire.closed is not None
        assert page.wire.closed[0] == 4201


# Whatever is sent

_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(_TEXT, each, max_size=3),
    max_leaves=6,
)
_EVENTS = st.sampled_from(
    ["pusher:subscribe", "pusher:unsubscribe", "pusher:signin", "pusher:ping", "pusher:pong", "client-e", "client-"]
)
_CHANNELS = st.sampled_from(
    ["news", "private-a", "presence-a", "cache-a", "private-encrypted-a", "#server-to-user-a", "presence-cache-a", ""]
)
_SIGNED = st.sampled_from(["{}", '{"user_id":"a"}', '{"id":"a"}', '{"user_id":1,"user_info":[]}', '{"id":""}'])
_FIELDS = {"channel": _CHANNELS | _JSON, "auth": _TEXT | _JSON, "channel_data": _SIGNED | _JSON, "user_data": _SIGNED}
_DATA = st.fixed_dictionaries({}, optional=_FIELDS) | _JSON
_BODIES = st.fixed_dictionaries(
    {"event": _EVENTS | _JSON}, optional={"data": _DATA | _DATA.map(json.dumps), "channel": _CHANNELS | _JSON}
)
_MESSAGES = _BODIES.map(json.dumps) | _JSON.map(json.dumps) | st.text(max_size=50)
_HEARD = {
    "pusher:error",
    "pusher:pong",
    "pusher:connection_established",
    "pusher:subscription_error",
    "pusher:cache_miss",
    "pusher_internal:subscription_succeeded",
}


@pytest.fixture
async def door() -> AsyncIterator[PusherDoor]:
    async with door_of(rate_limit_events="100000/s") as (_, door):
        yield door


_SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=400, deadline=None, suppress_health_check=_SUPPRESSED)
@given(messages=st.lists(_MESSAGES, min_size=25, max_size=30))
async def test_whatever_a_client_sends_costs_nobody_else_anything(door: PusherDoor, messages: list[str]) -> None:
    """Four hundred times twenty-five messages and more: ten thousand of them."""
    page, other = await Page(door).begin(), await Page(door).begin()
    await other.subscribe("presence-a", "bob")
    heard = len(other.wire.heard)
    for message in messages:
        answers = await page.send(message)
        assert {answer["event"] for answer in answers} <= _HEARD
        assert all("the gateway failed" not in str(answer) for answer in answers)
        if page.wire.closed is not None:  # a sign-in with a wrong signature
            assert page.wire.closed[0] == 4009
            await page.client.end(4009)
            page = await Page(door).begin()
    assert len(other.wire.heard) == heard
    assert (await other.ask("pusher:ping"))[0]["event"] == "pusher:pong"
    await page.client.end(1000)
    await other.client.end(1000)
    assert not door.clients
