"""The HTTP door, section 4 of the contract, and the pages for people."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import jsonschema
import pytest
from clients import USER_STATUS, Plain, Polling, is_timestamp
from conftest import ROOT, SERVICE_KEY, Running, eventually, make_token
from openapi_spec_validator import validate as validate_openapi
from yarl import URL

Serve = Callable[..., Awaitable[Running]]

SERVICE = {"X-API-Key": SERVICE_KEY}


class Answer:
    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.content_type = response.content_type
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, code: str) -> Any:
        """Check that this is a problem with this status and code, of exactly its keys; return it."""
        problem = self.json
        assert (self.status, self.content_type) == (status, "application/problem+json")
        assert (problem["status"], problem["code"], problem.get("type", "about:blank")) == (status, code, "about:blank")
        assert set(problem) - {"retryAfter", "type"} == {"title", "status", "detail", "code"}
        assert problem["detail"]
        return problem


class API:
    """The HTTP calls of one caller."""

    def __init__(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self.session = session
        self.headers = headers

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        headers = self.headers | options.pop("headers", {})
        async with self.session.request(method, path, headers=headers, allow_redirects=False, **options) as response:
            return Answer(response, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, payload: object = None, **options: Any) -> Answer:
        return await self.call("POST", path, json=payload, **options)


class Callers:
    """Who may call one gateway."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.nobody = API(session, {})
        self.backend = API(session, SERVICE)
        self.alice = self.user("alice")

    def user(self, user: str, **claims: Any) -> API:
        return API(self.session, {"Authorization": f"Bearer {make_token(user, **claims)}"})


async def callers(closing: AsyncExitStack, gateway: Running) -> Callers:
    return Callers(await closing.enter_async_context(aiohttp.ClientSession(gateway.url)))


# Who is online


async def test_online_status_answers_in_the_order_asked(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    for user in ("2", "bob"):
        await gateway.gateway.presence.set_online(user)
    answer = await http.alice.get("/online-status?ids=3,2,bob,2,1")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json == [
        {"id": 3, "online": False},
        {"id": 2, "online": True},
        {"id": "bob", "online": True},
        {"id": 2, "online": True},
        {"id": 1, "online": False},
    ]


IDS: list[tuple[str, int | str]] = [
    ("0", 0),
    ("1", 1),
    ("42", 42),
    ("9007199254740991", 9007199254740991),
    ("9007199254740992", "9007199254740992"),
    ("99999999999999999999", "99999999999999999999"),
    ("1" * 128, "1" * 128),
    ("01", "01"),
    ("00", "00"),
    ("-1", "-1"),
    ("-0", "-0"),
    ("%2B1", "+1"),
    ("1.0", "1.0"),
    ("1e3", "1e3"),
    ("1_000", "1_000"),
    ("%201", " 1"),
    ("0x10", "0x10"),
    ("%D9%A3", "\N{ARABIC-INDIC DIGIT THREE}"),
    ("%C2%B2", "\N{SUPERSCRIPT TWO}"),
    ("alice", "alice"),
]


async def test_an_id_of_plain_digits_comes_back_as_a_number(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    for asked, answered in IDS:
        answer = await http.alice.get(f"/online-status?ids={asked}")
        assert answer.json == [{"id": answered, "online": False}]
        assert type(answer.json[0]["id"]) is type(answered)


async def test_a_user_with_a_numeric_sub_is_found_by_number(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={make_token(7)}")
    assert (await client.frame())["data"]["userId"] == "7"
    assert (await http.alice.get("/online-status?ids=7,07")).json == [
        {"id": 7, "online": True},
        {"id": "07", "online": False},
    ]


async def test_online_status_of_none_is_empty(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    assert (await http.alice.get("/online-status?ids=")).json == []


async def test_online_status_takes_a_thousand_ids_and_no_more(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    thousand = ",".join(str(number) for number in range(1000))
    assert len((await http.alice.get(f"/online-status?ids={thousand}")).json) == 1000
    (await http.alice.get(f"/online-status?ids={thousand},1000")).problem(400, "INVALID_PAYLOAD")


@pytest.mark.parametrize("query", ["", "?ids=1,,2", "?ids=,", "?ids=a%0Ab", f"?ids={'x' * 129}"])
async def test_online_status_refuses_what_is_no_list_of_ids(serve: Serve, closing: AsyncExitStack, query: str) -> None:
    http = await callers(closing, await serve())
    (await http.alice.get(f"/online-status{query}")).problem(400, "INVALID_PAYLOAD")


async def test_the_list_of_who_is_online_comes_page_by_page(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    for user in ("a", "b", "c"):
        await gateway.gateway.presence.set_online(user)
    first = (await http.backend.get("/api/users/online?limit=2")).json
    assert set(first) == {"users", "count", "nextCursor"}
    assert ([user["userId"] for user in first["users"]], first["count"]) == (["a", "b"], 3)
    assert all(set(user) == USER_STATUS for user in first["users"])
    second = (await http.backend.get("/api/users/online", params={"limit": 2, "cursor": first["nextCursor"]})).json
    assert ([user["userId"] for user in second["users"]], second["nextCursor"]) == (["c"], None)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=many", "limit=-1", "cursor=!", "cursor=a"])
async def test_a_page_that_cannot_be_is_refused(serve: Serve, closing: AsyncExitStack, query: str) -> None:
    http = await callers(closing, await serve())
    (await http.alice.get(f"/api/users/online?{query}")).problem(400, "INVALID_PAYLOAD")


async def test_one_users_status_says_how_long_ago_and_what_the_heartbeat_said(
    serve: Serve, closing: AsyncExitStack
) -> None:
    http = await callers(closing, await serve())
    await http.user("bob").post("/presence/heartbeat", {"meta": {"page": "home"}})
    answer = (await http.alice.get("/api/users/bob/online-status")).json
    assert set(answer) == USER_STATUS | {"secondsAgo", "meta"}
    assert (answer["userId"], answer["online"], answer["status"]) == ("bob", True, "online")
    assert answer["meta"] == {"page": "home"}
    assert 0 <= answer["secondsAgo"] < 60
    assert is_timestamp(answer["lastActive"])
    assert is_timestamp(answer["connectedAt"])


async def test_one_never_seen_has_no_last_time(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    assert (await http.alice.get("/api/users/nobody/online-status")).json == {
        "userId": "nobody",
        "online": False,
        "status": "offline",
        "statusText": None,
        "lastActive": None,
        "connectedAt": None,
        "version": 0,
        "secondsAgo": None,
        "meta": None,
    }


@pytest.mark.parametrize("path", ["/api/users/a%0Ab/online-status", f"/api/users/{'x' * 129}/online-status"])
async def test_an_id_that_cannot_be_is_refused(serve: Serve, closing: AsyncExitStack, path: str) -> None:
    http = await callers(closing, await serve())
    (await http.alice.get(path)).problem(400, "INVALID_PAYLOAD")


async def test_an_id_may_hold_what_a_path_escapes(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    answer = await http.alice.get("/api/users/a%2Fb%3F%20%C3%A9/online-status")
    assert answer.json["userId"] == "a/b? é"


async def test_explain_tells_a_backend_why(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=60)
    http = await callers(closing, gateway)
    client = await Plain.connect(closing, gateway.ws_url, "bob")
    explained = (await http.backend.get("/api/users/bob/explain")).json
    assert set(explained) == {
        "status",
        "because",
        "connections",
        "leases",
        "graceUntil",
        "ttlUntil",
        "transitions",
    }
    assert set(explained["status"]) == USER_STATUS
    [connection] = explained["connections"]
    assert set(connection) == {"id", "node", "door", "connectedAt", "lastActive", "userAgent", "page", "meta"}
    assert connection["door"] == "websocket"
    assert list(explained["leases"]) == [connection["node"]]
    [transition] = explained["transitions"]
    assert set(transition) == {"version", "was", "status", "timestamp", "reason"}
    assert (transition["was"], transition["status"], transition["reason"]) == ("offline", "online", "connected")
    assert "1 live connection" in explained["because"]
    client.vanish()
    await eventually(lambda: len(gateway.gateway._connections) == 0)
    explained = (await http.backend.get("/api/users/bob/explain")).json
    assert is_timestamp(explained["graceUntil"])
    assert "grace" in explained["because"]
    assert (await http.backend.get("/api/users/nobody/explain")).json["because"] == "never seen"


# Who calls


OPERATIONS = [
    ("GET", "/online-status?ids=1"),
    ("GET", "/api/users/online"),
    ("GET", "/api/users/bob/online-status"),
    ("GET", "/api/users/bob/explain"),
    ("DELETE", "/api/users/bob/connections"),
    ("POST", "/presence/heartbeat"),
    ("POST", "/presence/online"),
    ("POST", "/presence/offline"),
    ("POST", "/api/notifications"),
    ("GET", "/api/users/bob/sessions"),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_without_a_good_key_or_token_every_call_is_refused(
    serve: Serve, closing: AsyncExitStack, method: str, path: str
) -> None:
    http = await callers(closing, await serve())
    answer = await http.nobody.call(method, path)
    answer.problem(401, "TOKEN_MISSING")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    for headers, code in [
        ({"Authorization": "Bearer nonsense"}, "TOKEN_INVALID"),
        ({"Authorization": "Basic YWxpY2U6"}, "TOKEN_MISSING"),
        ({"Authorization": f"Bearer {make_token(ttl=-60)}"}, "TOKEN_EXPIRED"),
        ({"X-API-Key": "another key"}, "TOKEN_INVALID"),
        ({"X-API-Key": ""}, "TOKEN_INVALID"),
        ({"X-API-Key": "another key", "Authorization": f"Bearer {make_token()}"}, "TOKEN_INVALID"),
    ]:
        answer = await http.nobody.call(method, path, headers=headers)
        answer.problem(401, code)
        assert not re.search(r"ey[A-Za-z0-9_-]{10}", answer.body.decode())


@pytest.mark.parametrize(("method", "path"), OPERATIONS[3:5] + OPERATIONS[6:])
async def test_a_backends_calls_are_not_a_users(serve: Serve, closing: AsyncExitStack, method: str, path: str) -> None:
    http = await callers(closing, await serve())
    (await http.alice.call(method, path, json={"userId": "bob"})).problem(403, "FORBIDDEN")


async def test_a_heartbeat_is_a_users(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    (await http.backend.post("/presence/heartbeat")).problem(403, "FORBIDDEN")


@pytest.mark.parametrize(
    "place",
    [
        lambda token: {"headers": {"Authorization": f"bearer {token}"}},
        lambda token: {"params": {"token": token}},
        lambda token: {"headers": {"Cookie": f"jwt={token}"}},
    ],
    ids=["header", "query", "cookie"],
)
async def test_a_users_token_is_found_in_its_places(
    serve: Serve, closing: AsyncExitStack, place: Callable[[str], dict[str, Any]]
) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    answer = await http.nobody.post("/presence/heartbeat", **place(make_token("carol")))
    assert answer.status == 200
    assert gateway.gateway.presence.status("carol").online is True


async def test_a_service_key_picks_the_tenant_and_a_token_does_not(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    await http.backend.post("/presence/online?tenant=red", {"userId": "bob"})
    assert gateway.gateway.presence.online_users(tenant="red") == ["bob"]
    assert gateway.gateway.presence.online_users() == []
    asked = "/online-status?ids=bob"
    assert (await http.backend.get(f"{asked}&tenant=red")).json == [{"id": "bob", "online": True}]
    assert (await http.backend.get(asked)).json == [{"id": "bob", "online": False}]
    assert (await http.user("al", tenant="red").get(asked)).json == [{"id": "bob", "online": True}]
    assert (await http.alice.get(f"{asked}&tenant=red")).json == [{"id": "bob", "online": False}]
    assert (await http.backend.get("/api/users/online?tenant=red")).json["count"] == 1
    assert (await http.backend.get("/api/users/bob/online-status?tenant=red")).json["online"] is True
    assert (await http.backend.call("DELETE", "/api/users/bob/connections?tenant=blue")).json == {"closed": 0}
    assert gateway.gateway.presence.status("bob", tenant="red").online is True
    await http.backend.post("/presence/offline?tenant=red", {"userId": "bob"})
    assert gateway.gateway.presence.online_users(tenant="red") == []
    (await http.backend.get(f"{asked}&tenant=")).problem(400, "INVALID_PAYLOAD")


async def test_each_of_several_service_keys_is_good(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve(service_api_keys="first-key, second-key"))
    for key, status in [("first-key", 200), ("second-key", 200), ("first-key, second-key", 401), ("", 401)]:
        assert (await http.nobody.get("/online-status?ids=", headers={"X-API-Key": key})).status == status


async def test_where_no_service_key_is_set_none_is_good(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve(service_api_keys=""))
    for key in ("", SERVICE_KEY, "é"):
        answer = await http.nobody.get("/online-status?ids=", headers={"X-API-Key": key})
        answer.problem(401, "TOKEN_INVALID")


# Heartbeats, logins, logouts, kicks


async def test_a_heartbeat_keeps_a_user_online_for_the_ttl(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_ttl=0.4)
    http = await callers(closing, gateway)
    observer = await Plain.connect(closing, gateway.ws_url, "observer")
    answer = (await http.alice.post("/presence/heartbeat", {"meta": {"page": "home"}})).json
    assert set(answer) == {"status", "timestamp"}
    assert answer["status"] == "online"
    assert is_timestamp(answer["timestamp"])
    await observer.until("user-online")
    await observer.until("user-offline")
    assert observer.presence() == [("user-online", "alice", 1), ("user-offline", "alice", 2)]


async def test_heartbeats_in_time_keep_a_user_online(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_ttl=0.5, rate_limit_heartbeat="100/s")
    http = await callers(closing, gateway)
    started = time.monotonic()
    while time.monotonic() - started < 1.2:  # more than two TTLs, within which it must not go offline
        await http.alice.post("/presence/heartbeat")
        await asyncio.sleep(0.05)
    assert gateway.gateway.presence.status("alice").version == 1


@pytest.mark.parametrize("body", ["", "{}", '{"meta": null}', '{"meta": {}}', '{"meta": {"a": [1]}, "more": 1}'])
async def test_a_heartbeat_may_say_nothing(serve: Serve, closing: AsyncExitStack, body: str) -> None:
    http = await callers(closing, await serve())
    assert (await http.alice.call("POST", "/presence/heartbeat", data=body)).status == 200


async def test_past_the_rate_a_heartbeat_is_told_when_to_come_again(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve(rate_limit_heartbeat="2/h"))
    assert [(await http.alice.post("/presence/heartbeat")).status for _ in range(2)] == [200, 200]
    answer = await http.alice.post("/presence/heartbeat")
    problem = answer.problem(429, "RATE_LIMITED")
    assert 0 < problem["retryAfter"] <= 1800
    assert answer.headers["Retry-After"].isdigit()
    assert problem["retryAfter"] <= int(answer.headers["Retry-After"]) <= problem["retryAfter"] + 1
    assert (await http.user("bob").post("/presence/heartbeat")).status == 200
    assert (await http.user("alice", tenant="other").post("/presence/heartbeat")).status == 200


async def test_a_backend_says_who_logs_in_and_out(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    answer = await http.backend.post("/presence/online", {"userId": "bob", "meta": {"from": "web"}})
    assert answer.status == 200
    assert set(answer.json) == USER_STATUS | {"timestamp"}
    assert (answer.json["userId"], answer.json["online"], answer.json["version"]) == ("bob", True, 1)
    assert (await http.backend.get("/api/users/bob/online-status")).json["meta"] == {"from": "web"}
    answer = await http.backend.post("/presence/offline", {"userId": "bob"})
    assert set(answer.json) == USER_STATUS | {"timestamp"}
    assert (answer.json["online"], answer.json["connectedAt"], answer.json["version"]) == (False, None, 2)
    assert is_timestamp(answer.json["lastActive"])
    again = await http.backend.post("/presence/offline", {"userId": "bob"})
    assert again.json["version"] == 2


async def test_a_logout_does_not_hide_a_live_connection(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    answer = await http.backend.post("/presence/offline", {"userId": "bob"})
    assert answer.json["online"] is True
    assert (await bob.ask("heartbeat"))["event"] == "heartbeat-ack"


async def test_a_backend_closes_a_users_connections(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(presence_offline_grace=60)
    http = await callers(closing, gateway)
    bob = await Plain.connect(closing, gateway.ws_url, "bob")
    other = await Plain.connect(closing, gateway.ws_url, "other")
    await Polling.connect(closing, gateway.url, "bob")
    await http.user("bob").post("/presence/heartbeat")
    answer = await http.backend.call("DELETE", "/api/users/bob/connections")
    assert (answer.status, answer.json) == (200, {"closed": 2})
    assert await bob.closed() == 4003
    assert (await http.backend.get("/online-status?ids=bob")).json == [{"id": "bob", "online": False}]
    assert (await http.backend.call("DELETE", "/api/users/bob/connections")).json == {"closed": 0}
    assert (await other.ask("heartbeat"))["event"] == "heartbeat-ack"


BODIES = [
    b"{",
    b"nonsense",
    b"[]",
    b'"alice"',
    b"{}",
    b'{"userId": 5}',
    b'{"userId": ""}',
    b'{"userId": "a\\u0000"}',
    b'{"userId": "bob", "meta": []}',
    b'{"userId": "bob", "meta": {"a": ' + b"[" * 3000 + b"]" * 3000 + b"}}",
    b'{"userId": "\xff"}',
    b"\x00\x01",
]


@pytest.mark.parametrize("path", ["/presence/online", "/presence/offline"])
async def test_a_body_of_another_form_is_refused(serve: Serve, closing: AsyncExitStack, path: str) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    for body in BODIES:
        (await http.backend.call("POST", path, data=body)).problem(400, "INVALID_PAYLOAD")
    assert gateway.gateway.presence.online_count() == 0


async def test_a_meta_is_of_two_kibibytes_at_the_most(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    meta = {"a": "x" * (2048 - len('{"a":""}'))}
    assert (await http.backend.post("/presence/online", {"userId": "bob", "meta": meta})).status == 200
    meta["a"] += "x"
    answer = await http.backend.post("/presence/online", {"userId": "bob", "meta": meta})
    answer.problem(400, "INVALID_PAYLOAD")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_large_is_refused(serve: Serve, closing: AsyncExitStack, *, chunked: bool) -> None:
    http = await callers(closing, await serve(max_payload=2048))

    async def chunks() -> Any:
        for _ in range(10):
            yield b" " * 1000

    answer = await http.backend.call("POST", "/presence/online", data=chunks() if chunked else b" " * 10_000)
    answer.problem(413, "INVALID_PAYLOAD")


async def test_there_is_nothing_where_there_is_nothing(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    nothing = await http.backend.get("/no/such/path")
    nothing.problem(404, "NOT_FOUND")
    assert nothing.json["detail"] == "there is nothing at /no/such/path; /docs shows what there is"
    method = await http.backend.call("PUT", "/presence/heartbeat")
    method.problem(405, "INVALID_PAYLOAD")
    assert method.json["detail"] == "/presence/heartbeat takes OPTIONS, POST, not PUT"


# Health


async def test_health_needs_no_token(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    for path in ("/health/live", "/health/ready"):
        answer = await http.nobody.get(path)
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert answer.json["status"] == "ok"


async def test_a_node_that_drains_is_alive_and_not_ready(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    await gateway.gateway.drain()
    assert (await http.nobody.get("/health/live")).status == 200
    (await http.nobody.get("/health/ready")).problem(503, "UNAVAILABLE")


# Browsers


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize(
    ("origin", "settings", "allowed", "credentials"),
    [
        ("https://app.example", {"cors_allowed_origins": "https://app.example,https://b.example"}, True, True),
        ("https://app.example", {"cors_allowed_origins": "https://app.example/"}, True, True),
        ("https://evil.example", {"cors_allowed_origins": "https://app.example"}, False, False),
        ("https://evil.example", {}, False, False),
        ("https://any.example", {"cors_allowed_origins": "*"}, True, False),
        ("http://localhost:5173", {"dev": True}, True, True),
    ],
)
async def test_a_page_of_an_allowed_origin_may_read_the_answers(
    serve: Serve,
    closing: AsyncExitStack,
    origin: str,
    settings: dict[str, Any],
    *,
    allowed: bool,
    credentials: bool,
) -> None:
    http = await callers(closing, await serve(**settings))
    preflight = await http.nobody.call("OPTIONS", "/presence/heartbeat", headers=PREFLIGHT | {"Origin": origin})
    answer = await http.alice.get("/online-status?ids=1", headers={"Origin": origin})
    failure = await http.nobody.get("/online-status?ids=1", headers={"Origin": origin})
    assert [preflight.status, answer.status, failure.status] == [204, 200, 401]
    for each in (preflight, answer, failure):
        assert each.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert each.headers.get("Access-Control-Allow-Credentials") == ("true" if credentials else None)
        if allowed:
            assert "Origin" in each.headers["Vary"]
    assert preflight.headers["Access-Control-Allow-Methods"] == "POST"
    assert {"authorization", "content-type", "x-api-key"} <= {
        name.strip().lower() for name in preflight.headers["Access-Control-Allow-Headers"].split(",")
    }


async def test_a_page_of_another_site_cannot_act_with_its_visitors_cookie(
    serve: Serve, closing: AsyncExitStack
) -> None:
    gateway = await serve()
    http = await callers(closing, gateway)
    cookie = {"Cookie": f"jwt={make_token()}"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", gateway.url + "0"):
        answer = await http.nobody.post("/presence/heartbeat", headers=cookie | {"Origin": origin})
        answer.problem(403, "FORBIDDEN")
    assert gateway.gateway.presence.online_count() == 0
    answer = await http.nobody.post("/presence/heartbeat", headers=cookie | {"Origin": gateway.url})
    assert answer.status == 200


async def test_a_star_lets_no_page_use_its_visitors_cookie(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve(cors_allowed_origins="*"))
    headers = {"Origin": "https://evil.example", "Cookie": f"jwt={make_token()}"}
    (await http.nobody.post("/presence/heartbeat", headers=headers)).problem(401, "TOKEN_MISSING")


# The description


def operations_of(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


async def test_openapi_is_valid_and_every_call_answers_as_it_says(serve: Serve, closing: AsyncExitStack) -> None:
    hook = {"presence_webhook_url": "http://127.0.0.1:1/hook", "presence_webhook_secret": "a secret"}
    gateway = await serve(**hook)
    http = await callers(closing, gateway)
    await http.user("bob", name="Bob").post("/presence/heartbeat", {"meta": {"page": "home"}})
    answer = await http.nobody.get("/openapi.json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    document = answer.json
    validate_openapi(document)
    paths = {(method, path) for method, path, _described in operations_of(document)}
    assert len(paths) >= len(OPERATIONS) + 2
    drain, node = "/api/admin/nodes/{id}/drain", gateway.gateway._tracker.node
    for method, path, described in sorted(operations_of(document), key=lambda row: row[1] == drain):  # after all others
        if path == "/api/webhooks/forget":  # takes an endpoint that is configured no more: see test_webhooks
            continue
        schemes = {name for choice in described["security"] for name in choice}
        caller = http.backend if "serviceKey" in schemes else http.alice if "token" in schemes else http.nobody
        query = {"/online-status": {"ids": "1,bob"}, drain: {"force": "true"}}.get(path, {})  # it is the last node
        sent = {"userId": "bob", "status": "busy", "event": "order-shipped", "all": True, "endpoint": "default"}
        sent |= {"recipientId": "bob", "content": "hello", "action": "joined", "userName": "Bob", "senderId": "carol"}
        body = sent if "requestBody" in described else None
        place = path.replace("{id}", node if "/nodes/" in path else "bob").replace("{channel}", "presence-a")
        called = await caller.call(method, place, params=query, json=body)
        assert called.status == 200, (method, path, called.body)
        [(content_type, content)] = described["responses"]["200"]["content"].items()
        assert called.content_type == content_type
        jsonschema.validate(called.json, content["schema"] | {"components": document["components"]})


async def test_every_failure_is_as_openapi_says(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    document = (await http.nobody.get("/openapi.json")).json
    for method, path, described in operations_of(document):
        if not described["security"]:
            continue
        failed = await http.nobody.call(method, path.replace("{id}", "bob"))
        content = described["responses"]["default"]["content"][failed.content_type]
        jsonschema.validate(failed.json, content["schema"] | {"components": document["components"]})


# The pages


def links(html: str) -> list[str]:
    return re.findall(r"""(?:src|href)=["']([^"']+)["']""", html)


async def test_the_documentation_loads_from_this_server_alone(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    answer = await http.nobody.get("/docs")
    if answer.status in {301, 302, 307, 308}:
        answer = await http.nobody.get(answer.headers["Location"])
    assert (answer.status, answer.content_type) == (200, "text/html")
    html = answer.body.decode()
    needed = [link for link in links(html) if not link.startswith(("data:", "#"))]
    assert needed
    assert [link for link in needed if re.match(r"[a-z]+:|//", link)] == []
    assert re.findall(r"https?://[^\s\"'<>]+", html) == []
    for link in needed:
        loaded = await http.nobody.get(link if link.startswith("/") else f"/docs/{link}")
        assert loaded.status == 200, link
    [described] = re.findall(r"""url: ["']([^"']+)["']""", html)
    assert set((await http.nobody.get(described)).json["paths"]) == set(
        (await http.nobody.get("/openapi.json")).json["paths"]
    )


async def test_the_test_page_runs_nothing_but_its_own_script(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    answer = await http.nobody.get("/test-presence.html")
    assert (answer.status, answer.content_type) == (200, "text/html")
    assert answer.body == (ROOT / "test-presence.html").read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self' https://cdn.socket.io"
    assert policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    html = answer.body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", html) == []
    files = [link for link in links(html) if not link.startswith(("data:", "#", "?"))]
    assert files
    for link in files:
        assert (await http.nobody.get(f"/{link}")).status == 200, link


async def test_the_root_leads_to_the_test_page(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    answer = await http.nobody.get("/")
    assert (answer.status, answer.headers["Location"]) == (302, "/test-presence.html")


@pytest.mark.parametrize(
    ("path", "content_types"),
    [
        ("/static/test-presence.js", {"text/javascript", "application/javascript"}),
        ("/static/test-presence.css", {"text/css"}),
        ("/static/presence-client.js", {"text/javascript"}),
        ("/static/presence-client.d.ts", {"text/plain"}),
    ],
)
async def test_static_files_are_served(
    serve: Serve, closing: AsyncExitStack, path: str, content_types: set[str]
) -> None:
    http = await callers(closing, await serve())
    answer = await http.nobody.get(path)
    assert answer.status == 200
    assert answer.content_type in content_types


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/no-such-file.js",
        "/static/presence-nothing.js",
        "/static/..%2fpyproject.toml",
        "/static/%2e%2e/pyproject.toml",
        "/static//etc/passwd",
        "/socket.io/socket.io.evil.js",
        "/socket.io/..%2f..%2fpackage.json",
    ],
)
async def test_nothing_but_the_static_files_is_served(serve: Serve, closing: AsyncExitStack, path: str) -> None:
    http = await callers(closing, await serve())
    async with http.session.get(URL(str(http.session._base_url).rstrip("/") + path, encoded=True)) as answer:
        assert answer.status in {400, 403, 404}


async def test_modules_are_for_pages_of_any_origin_and_asked_for_again_by_their_tag(
    serve: Serve, closing: AsyncExitStack
) -> None:
    http = await callers(closing, await serve())
    modules = sorted(path.name for path in (ROOT / "static").glob("presence-*.js"))
    assert {"presence-client.js", "presence-dot.js"} < set(modules)
    for name in modules:
        path = f"/static/{name}"
        async with http.session.get(path, headers={"Origin": "https://elsewhere.example"}) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-cache"
            assert await answer.text() == (ROOT / "static" / name).read_text()
        async with http.session.get(path, headers={"If-None-Match": answer.headers["ETag"]}) as again:
            assert again.status == 304


@pytest.mark.parametrize("name", ["socket.io.js", "socket.io.min.js", "socket.io.min.js.map", "socket.io.esm.min.js"])
async def test_the_clients_script_is_served_where_node_has_it(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    file = ROOT / "node_modules" / "socket.io-client" / "dist" / name
    http = await callers(closing, await serve())
    answer = await http.nobody.get(f"/socket.io/{name}")
    if file.is_file():
        assert (answer.status, answer.body) == (200, file.read_bytes())
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    else:
        assert answer.status == 404
        assert b"npm install" in answer.body


# Tokens for development


async def test_a_development_token_is_accepted(serve: Serve, closing: AsyncExitStack) -> None:
    gateway = await serve(dev=True, jwt_secret=None)
    http = await callers(closing, gateway)
    answer = await http.nobody.get("/dev/token?user=alice&name=Alice&tenant=red&role=admin")
    assert answer.status == 200
    assert set(answer.json) == {"token", "userId", "expiresAt"}
    assert answer.json["userId"] == "alice"
    assert is_timestamp(answer.json["expiresAt"])
    client = await Plain.open(closing, f"{gateway.ws_url}/ws?token={answer.json['token']}")
    assert (await client.frame())["data"]["userId"] == "alice"
    [user] = (await http.backend.get("/api/users/online?tenant=red")).json["users"]
    assert (user["name"], user["role"]) == ("Alice", "admin")


async def test_development_tokens_are_for_development_mode_only(serve: Serve, closing: AsyncExitStack) -> None:
    http = await callers(closing, await serve())
    assert (await http.nobody.get("/dev/token?user=alice")).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:3000"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:3000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example:3000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:5173"}, 200),
        ({"Origin": "null"}, 200),
    ],
)
async def test_development_tokens_are_for_pages_of_this_machine(
    serve: Serve, closing: AsyncExitStack, headers: dict[str, str], status: int
) -> None:
    http = await callers(closing, await serve(dev=True))
    answer = await http.nobody.get("/dev/token?user=alice", headers=headers)
    if status == 403:
        answer.problem(403, "FORBIDDEN")
    else:
        assert answer.status == status
        assert answer.headers.get("Access-Control-Allow-Origin") == headers.get("Origin")


@pytest.mark.parametrize("query", ["", "?user=", "?user=a%0Ab", f"?user={'x' * 129}"])
async def test_a_development_token_is_for_a_user(serve: Serve, closing: AsyncExitStack, query: str) -> None:
    http = await callers(closing, await serve(dev=True))
    (await http.nobody.get(f"/dev/token{query}")).problem(400, "INVALID_PAYLOAD")
