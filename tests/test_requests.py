"""What is kept of requests that come again and again."""

import json
from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from gateway.errors import TokenInvalidError
from gateway.requests import Requests

TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.secret"


def requests(admit: Any = lambda *_: None) -> Requests:
    connections: Any = SimpleNamespace(admit_request=admit, catch_up=lambda _live: None)
    tracker: Any = SimpleNamespace(now=lambda: 1_000, touch=lambda *_: 1_000)
    authenticator: Any = SimpleNamespace(identify=_refuse)
    return Requests(connections, tracker, None, authenticator)  # type: ignore[arg-type]  # the view is not asked


async def _refuse(_token: str) -> None:
    raise TokenInvalidError("not accepted")


LIVE: Any = SimpleNamespace(identity=SimpleNamespace(tenant="acme", user_id="alice"), audience=None)


def test_a_request_that_comes_again_is_read_once() -> None:
    asked = requests()
    first = asked.answer_message(LIVE, b'["heartbeat"]')
    assert list(asked._prepared) == [b'["heartbeat"]']
    assert asked.answer_message(LIVE, b'["heartbeat"]') == first


async def test_a_token_is_kept_nowhere() -> None:
    asked = requests()
    waiting: Any = asked.answer_message(LIVE, json.dumps(["refresh-token", {"token": TOKEN}]).encode())
    assert (await waiting).error.code == "INVALID_PAYLOAD"
    assert asked._prepared == {}


def test_a_request_that_fails_inside_is_logged_without_what_it_held() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    with capture_logs() as logs:
        answer: Any = requests(fail).answer_message(LIVE, json.dumps(["refresh-token", {"token": TOKEN}]).encode())
    assert answer.error.code == "INTERNAL"
    assert [line["event"] for line in logs] == ["a request failed"]
    assert TOKEN[:8] not in str(logs)
