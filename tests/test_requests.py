"""What is kept of requests that come again and again."""

import json
from types import SimpleNamespace
from typing import Any, cast

from conftest import make_settings
from structlog.testing import capture_logs

from gateway.auth import Identity
from gateway.buckets import TokenBucket
from gateway.connections import Connections, LiveConnection
from gateway.errors import TokenInvalidError
from gateway.limits import Rate
from gateway.presence.fanout import FanOut
from gateway.presence.model import Connection, Profile
from gateway.presence.view import View
from gateway.requests import Requests

TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.secret"


async def refuse(_token: str) -> None:
    raise TokenInvalidError("not accepted")


def requests(identify: Any = refuse) -> Requests:
    view, tracker = View(), cast("Any", SimpleNamespace(now=lambda: 1_000, touch=lambda *_: 1_000))
    scheduler: Any = SimpleNamespace()
    connections = Connections(make_settings(), tracker, view, FanOut(scheduler, 0.02), cast("Any", None))
    return Requests(connections, tracker, view, cast("Any", SimpleNamespace(identify=identify)))


def connection() -> LiveConnection:
    made = Connection(tenant="acme", user_id="alice", id="one", node="a", door="socketio", connected_at=0)
    peer: Any = SimpleNamespace(codec=object())
    buckets = [TokenBucket(Rate(100, 1.0), 0) for _ in range(2)]
    return LiveConnection(
        Identity(tenant="acme", user_id="alice", profile=Profile(), expires_at=None), made, peer, *buckets
    )


LIVE = connection()


def test_a_request_that_comes_again_is_read_once() -> None:
    asked = requests()
    first = asked.answer_message(LIVE, b'["heartbeat"]')
    assert list(asked._prepared) == [b'["heartbeat"]']
    assert asked.answer_message(LIVE, b'["heartbeat"]') == first


async def test_a_token_is_kept_nowhere() -> None:
    asked = requests()
    waiting: Any = asked.answer_message(LIVE, json.dumps(["refresh-token", {"token": TOKEN}]).encode())
    assert json.loads(await waiting)["error"]["code"] == "INVALID_PAYLOAD"
    assert asked._prepared == {}


async def test_a_request_that_fails_inside_is_logged_without_what_it_held() -> None:
    async def fail(_token: str) -> None:
        raise RuntimeError("broken")

    waiting: Any = requests(fail).answer_message(LIVE, json.dumps(["refresh-token", {"token": TOKEN}]).encode())
    with capture_logs() as logs:
        answer = json.loads(await waiting)
    assert answer["error"]["code"] == "INTERNAL"
    assert [line["event"] for line in logs] == ["a request failed"]
    assert TOKEN[:8] not in str(logs)
