import re
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from conftest import make_settings
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway import Gateway
from gateway.app import create_app
from gateway.version import __version__

# What is no part of the HTTP door: pages, and the doors that speak in events.
ELSEWHERE = re.compile(
    r"/|/ws|/(socket\.io|docs|static|dev|app)(/.*)?|/(open|async)api\.json|/metrics|/test-presence\.html|/admin"
)
APP = {"pusher_app_id": "1", "pusher_app_key": "key", "pusher_app_secret": "secret"}


@pytest.fixture
async def document(serve: Any) -> dict[str, Any]:
    """The document as a client gets it."""
    running = await serve()
    async with ClientSession() as session, session.get(f"{running.url}/openapi.json") as response:
        assert response.headers["Content-Type"].split(";")[0] == "application/json"
        found: dict[str, Any] = await response.json()
        return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): row for path, rows in document["paths"].items() for method, row in rows.items()}


async def test_it_is_a_valid_openapi_document(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", __version__)


@pytest.fixture
async def with_pusher(serve: Any) -> dict[str, Any]:
    """The document of a gateway that is a Pusher application, too."""
    running = await serve(**APP)
    async with ClientSession() as session, session.get(f"{running.url}/openapi.json") as response:
        found: dict[str, Any] = await response.json()
        return found


def routes_of(**settings: Any) -> set[tuple[str, str]]:
    app = create_app(Gateway(make_settings(**settings)))
    return {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
        and route.method not in {"OPTIONS", "HEAD"}
        and not ELSEWHERE.fullmatch(route.resource.canonical)
    }


async def test_every_route_of_the_http_door_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    assert set(operations(document)) == routes_of()
    assert ("get", "/online-status") in routes_of()


async def test_pushers_api_is_described_where_it_is_served(with_pusher: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(with_pusher).validate()
    described = operations(with_pusher)
    assert set(described) == routes_of(**APP)
    ids = [row["operationId"] for row in described.values()]
    assert len(set(ids)) == len(ids)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', msgspec.json.encode(with_pusher).decode()))
    assert named - set(with_pusher["components"]["schemas"]) == set()

    pushers = {where: row for where, row in described.items() if row["security"] == [{"signature": []}]}
    assert len(pushers) == 9
    assert set(pushers) == {where for where in described if where[1].startswith(("/apps/", "/users/"))}
    for (_method, path), row in pushers.items():
        assert set(row["responses"]["default"]["content"]) == {"text/plain"}
        in_path = {parameter["name"] for parameter in row["parameters"] if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        in_query = {parameter["name"] for parameter in row["parameters"] if parameter["in"] == "query"}
        assert {"auth_key", "auth_timestamp", "auth_version", "body_md5"} <= in_query
    old = pushers["post", "/apps/{app}/channels/{channel}/events"]
    assert (old["deprecated"], set(old["responses"])) == (True, {"202", "default"})
    events = pushers["post", "/apps/{app}/events"]
    assert events["requestBody"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/TriggerEvent"}}
    }
    assert set(with_pusher["components"]["schemas"]["TriggerEvent"]["required"]) == {"name", "data"}


async def test_what_signs_for_pushers_clients_is_described_where_it_is_served(with_pusher: dict[str, Any]) -> None:
    document = with_pusher
    body = document["paths"]["/broadcasting/auth"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-www-form-urlencoded"}
    assert set(document["components"]["schemas"]["AuthorizeChannel"]["properties"]) == {"socket_id", "channel_name"}


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("/online-status", "Presence"),
        ("/api/users/{id}/explain", "Presence"),
        ("/api/users/{id}/reauthorize", "Channels"),
        ("/api/channels/{channel}/events", "Channels"),
        ("/api/messages", "Channels"),
        ("/api/rooms/{id}/activity", "Channels"),
        ("/api/notifications", "Notifications"),
        ("/api/tokens/revoke", "Tokens"),
        ("/api/webhooks/replay", "Webhooks"),
        ("/health/live", "Health"),
    ],
)
async def test_calls_are_shown_under_headings(document: dict[str, Any], path: str, heading: str) -> None:
    assert [row["tags"] for row in document["paths"][path].values()] == [[heading]]


async def test_every_operation_has_an_id_of_its_own(document: dict[str, Any]) -> None:
    ids = [row["operationId"] for row in operations(document).values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+[A-Za-z]*", one) for one in ids)


@pytest.mark.parametrize(
    ("method", "path", "security"),
    [
        ("get", "/health/live", []),
        ("get", "/online-status", [{"token": []}, {"serviceKey": []}]),
        ("post", "/presence/heartbeat", [{"token": []}]),
        ("get", "/api/users/{id}/explain", [{"serviceKey": []}]),
        ("get", "/api/users/{id}/sessions", [{"token": []}, {"serviceKey": []}]),
    ],
)
async def test_who_may_call_is_said(
    document: dict[str, Any], method: str, path: str, security: list[dict[str, list[str]]]
) -> None:
    assert operations(document)[method, path]["security"] == security
    assert set(document["components"]["securitySchemes"]) == {"token", "serviceKey"}


async def test_parameters_are_those_of_the_path_the_query_and_the_tenant(document: dict[str, Any]) -> None:
    named = {
        where: {(p["in"], p["name"], p.get("required", False)) for p in row["parameters"]}
        for where, row in operations(document).items()
    }
    assert named["get", "/online-status"] == {("query", "ids", True), ("query", "tenant", False)}
    assert named["get", "/api/users/online"] == {
        ("query", "limit", False),
        ("query", "cursor", False),
        ("query", "tenant", False),
    }
    sessions = {("path", "id", True), ("query", "limit", False), ("query", "tenant", False)}
    assert named["get", "/api/users/{id}/sessions"] == sessions
    assert named["get", "/api/users/{id}/online-status"] == {("path", "id", True), ("query", "tenant", False)}
    assert named["post", "/presence/heartbeat"] == set()
    assert named["get", "/health/live"] == set()


async def test_bodies_answers_and_problems_name_the_wire_s_types(document: dict[str, Any]) -> None:
    row = operations(document)["post", "/presence/online"]
    body = row["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ReportPresence"}
    answer = row["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/UserStatusAt"}
    for described in operations(document).values():
        problem = described["responses"]["default"]["content"]["application/problem+json"]["schema"]
        assert problem == {"$ref": "#/components/schemas/Problem"}
    listed = operations(document)["get", "/online-status"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert listed == {"type": "array", "items": {"$ref": "#/components/schemas/IdOnline"}}


async def test_every_type_that_is_named_is_described(document: dict[str, Any]) -> None:
    named = set(re.findall(r'"#/components/schemas/(\w+)"', msgspec.json.encode(document).decode()))
    assert named - set(document["components"]["schemas"]) == set()
    user_status = document["components"]["schemas"]["UserStatusAt"]["properties"]
    assert {"userId", "lastActive", "connectedAt", "timestamp"} <= set(user_status)
