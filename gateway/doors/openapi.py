"""``/openapi.json``: the HTTP door's table and the wire's types, as an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway import wire
from gateway.channels.names import MAX_NAME
from gateway.doors.http import Caller

if TYPE_CHECKING:
    from collections.abc import Iterable


class Row(Protocol):
    """What is described: a row of a door's table."""

    @property
    def method(self) -> str:
        """GET, say."""

    @property
    def path(self) -> str:
        """With its parameters in braces."""

    @property
    def summary(self) -> str:
        """One sentence."""

    @property
    def caller(self) -> Caller:
        """Who may call."""

    @property
    def query(self) -> type[msgspec.Struct]:
        """The type of the query."""

    @property
    def body(self) -> Any:
        """The type of the body; None where there is none."""

    @property
    def media(self) -> tuple[str, ...]:
        """What a body may be."""

    @property
    def answers(self) -> Any:
        """The type of the answer."""

    @property
    def status(self) -> int:
        """Of the answer."""

    @property
    def deprecated(self) -> bool:
        """Whether it is there for those who have always called it."""

    @property
    def operation_id(self) -> str | None:
        """What it is called; None for what its path makes."""


_SECURITY: dict[Caller, list[dict[str, list[str]]]] = {
    Caller.ANYONE: [],
    Caller.USER: [{"token": []}],
    Caller.SERVICE: [{"serviceKey": []}],
    Caller.USER_OR_SERVICE: [{"token": []}, {"serviceKey": []}],
    Caller.APPLICATION: [{"signature": []}],
}
_TENANT = {
    "name": "tenant",
    "in": "query",
    "description": "With a service key: whose users. A user's token names its own.",
    "schema": {"type": "string", "default": "default"},
}
_GROUPS = {
    "/api/channels": "Channels",
    "/api/messages": "Channels",
    "/api/rooms": "Channels",
    "/api/users/{id}/reauthorize": "Channels",
    "/broadcasting": "Channels",
    "/api/notifications": "Notifications",
    "/api/tokens": "Tokens",
    "/api/webhooks": "Webhooks",
    "/apps/": "Pusher",
    "/health": "Health",
    "/api/admin": "Operators",
}
"""Under which heading ``/docs`` shows a call, by what its path begins with; the others are about presence."""
_ABOUT = (
    "Who is online, over HTTP. Pages and scripts hear of changes over Socket.IO or WebSocket. To try it, authorize with"
    " a user's token (development mode gives one at /dev/token?user=alice), or with a service key, one of"
    " SERVICE_API_KEYS; one of SERVICE_API_KEYS_READONLY calls what is a GET."
)
_SIGNATURE = {
    "type": "apiKey",
    "in": "query",
    "name": "auth_signature",
    "description": "HMAC-SHA256 of method, path and query by PUSHER_APP_SECRET, which Pusher's server libraries make.",
}
_IN_PATH = {
    name: {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": length}}
    for name, length in (("id", 128), ("channel", MAX_NAME), ("app", 64), ("user", 128))
}


def document(operations: Iterable[Row], version: str) -> dict[str, Any]:
    """Describe the operations.

    Args:
        operations: the tables of all doors.
        version: the gateway's own.

    Returns:
        A document of plain JSON types.
    """
    operations = tuple(operations)
    types = [part for row in operations for part in (row.answers, row.body, row.query) if part is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, wire.Problem], ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(map(repr, types), schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        query = components[row.query.__name__]
        described: dict[str, Any] = {
            "operationId": _operation_id(row),
            "tags": [_group(row.path)],
            "summary": row.summary,
            "security": _SECURITY[row.caller],
            "parameters": [
                *(parameter for name, parameter in _IN_PATH.items() if f"{{{name}}}" in row.path),
                *_query_parameters(query),
                *([_TENANT] if row.caller in {Caller.SERVICE, Caller.USER_OR_SERVICE} else []),
            ],
            "responses": {
                str(row.status): _response("Done.", "application/json", schema_of[repr(row.answers)]),
                "default": _response("What went wrong; code says which.", "application/problem+json", schemas[-1]),
            },
        }
        if row.caller is Caller.APPLICATION:
            described["responses"]["default"] = _response("What went wrong.", "text/plain", {"type": "string"})
        if row.deprecated:
            described["deprecated"] = True
        if row.body is not None:
            schema = schema_of[repr(row.body)]
            described["requestBody"] = {"content": {kind: {"schema": schema} for kind in row.media}}
        paths.setdefault(row.path, {})[row.method.lower()] = described
    queries = {row.query.__name__ for row in operations}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Presence gateway",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "serviceKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                **({"signature": _SIGNATURE} if any(row.caller is Caller.APPLICATION for row in operations) else {}),
            },
        },
    }


def _query_parameters(query: dict[str, Any]) -> list[dict[str, Any]]:
    required = set(query.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in query.get("properties", {}).items()
    ]


def _response(description: str, content_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {content_type: {"schema": schema}}}


def _group(path: str) -> str:
    return next((group for beginning, group in _GROUPS.items() if path.startswith(beginning)), "Presence")


def _operation_id(row: Row) -> str:
    if row.operation_id is not None:
        return row.operation_id
    words = [word for word in re.split(r"[^a-z]+", re.sub(r"{\w+}", "", row.path)) if word]
    return row.method.lower() + "".join(word.capitalize() for word in words)
