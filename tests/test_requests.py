"""What is kept of requests that come again and again."""

import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from conftest import make_settings
from structlog.testing import capture_logs

from gateway.access.auth import Identity
from gateway.access.buckets import TokenBucket
from gateway.access.limits import Rate
from gateway.connections.connections import Connections
from gateway.connections.live import LiveConnection
from gateway.connections.requests import Requests
from gateway.delivery.queue import Queued
from gateway.errors import TokenInvalidError
from gateway.presence.fanout import FanOut
from gateway.presence.model import ONLINE, Connection, Profile, UserStatus
from gateway.presence.store import Snapshot
from gateway.presence.touches import Touches
from gateway.presence.view import View
from gateway.presence.watching import Watching

TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.secret"


async def refuse(_token: str) -> None:
    raise TokenInvalidError("not accepted")


def requests(identify: Any = refuse) -> Requests:
    view = View()
    view.load(Snapshot(1, (UserStatus(tenant="acme", user_id="alice", status=ONLINE, active_at=1_000, version=1),)))
    tracker: Any = SimpleNamespace(now=lambda: 1_000, touches=Touches(view, 60_000))
    scheduler: Any = SimpleNamespace()
    watching = Watching(scheduler, 0.02, lambda: view.position)
    connections = Connections(make_settings(), tracker, view, FanOut(scheduler, 0.02), watching, cast("Any", None))
    return Requests(connections, tracker, view, cast("Any", SimpleNamespace(identify=identify)))


def connection() -> LiveConnection:
    made = Connection(tenant="acme", user_id="alice", id="one", node="a", door="socketio", connected_at=0)
    peer: Any = SimpleNamespace(codec=object())
    bucket = TokenBucket(Rate(100, 1.0), 0)
    return LiveConnection(
        Identity(tenant="acme", user_id="alice", profile=Profile(), expires_at=None), made, peer, bucket
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


def test_only_what_a_connection_was_sent_is_acknowledged_to_the_queue() -> None:
    """Else one request is a thousand look-ups in the store, and a hundred of them in a second are allowed."""
    asked, live, told = requests(), connection(), list[tuple[str, ...]]()
    asked._connections.inbox = cast("Any", SimpleNamespace(acknowledge=lambda *of: told.append(of)))
    first, second = (Queued(name, "said", msgspec.Raw(b"1")) for name in ("n-1", "n-2"))
    live.hand([first, second])
    live.hand([first])  # what had been read before, for a connection that was being opened
    for ids in (["n-1", "n-2"], ["w-9", *(f"n-{number}" for number in range(100, 999))]):
        answer = asked.answer_message(live, json.dumps(["ack", {"ids": ids}]).encode())
        assert isinstance(answer, bytes)
        assert json.loads(answer)["data"] == {"count": len(ids)}
    assert told == [("acme", "alice", "n-1"), ("acme", "alice", "n-2")]
