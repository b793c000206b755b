"""``/asyncapi.json``: the events of section 3, as an AsyncAPI 3.0 document."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.schema.events import EVENTS, REQUESTS, Told
from gateway.schema.shapes import REF, shapes
from gateway.version import __version__

_ABOUT = (
    "Who is online, as it happens. Over Socket.IO (protocol 5), in the namespace /ws/messages, a request is an event"
    " with one argument, its payload, and is acknowledged; what the server tells is an event with one argument. Over a"
    " plain WebSocket, /ws, both are text frames {event, data, id?}. What a backend does over HTTP is in /openapi.json."
)
_SOCKET_IO, _WEBSOCKET = "socketio", "websocket"


def asyncapi() -> dict[str, Any]:
    """The document, of plain JSON types."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Presence gateway",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {
                "host": "{host}",
                "protocol": "wss",
                "description": "ws in development. Socket.IO's path is /socket.io/, and it may also poll over HTTP.",
                "variables": {"host": {"default": "127.0.0.1:3000"}},
                "security": [{"$ref": "#/components/securitySchemes/token"}],
            }
        },
        "channels": {
            _SOCKET_IO: {
                "address": "/ws/messages",
                "title": "Socket.IO",
                "description": "The namespace. The token is auth.token of the handshake.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _messages()},
            },
            _WEBSOCKET: {
                "address": "/ws",
                "title": "Plain WebSocket",
                "description": "The same requests and events in frames of JSON, for clients without Socket.IO.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _frames()},
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "query": {"type": "object", "properties": {"token": {"type": "string"}}},
                    }
                },
            },
        },
        "operations": _operations(),
        "components": {
            "messages": {**_messages(), **_frames()},
            "schemas": shapes(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A user's token; also as auth.token of Socket.IO, ?token=, or the cookie jwt.",
                }
            },
        },
    }


def as_json() -> str:
    """The document as it stands in its file."""
    return msgspec.json.format(msgspec.json.encode(asyncapi()), indent=2).decode() + "\n"


def _operations() -> dict[str, Any]:
    """What the gateway receives, and what it sends."""
    found: dict[str, Any] = {}
    for name, request in REQUESTS.items():
        found[name] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{_SOCKET_IO}"},
            "summary": request.about,
            "messages": [_in(_SOCKET_IO, name)],
            "reply": {
                "channel": {"$ref": f"#/channels/{_SOCKET_IO}"},
                "messages": [_in(_SOCKET_IO, request.answer), _in(_SOCKET_IO, "error")],
            },
        }
    for name, told in EVENTS.items():
        found[name] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{_SOCKET_IO}"},
            "summary": told.about,
            "messages": [_in(_SOCKET_IO, name)],
        }
    for name, action in (("request-frame", "receive"), ("frame", "send")):
        found[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{_WEBSOCKET}"},
            "messages": [_in(_WEBSOCKET, name)],
        }
    return found


def _messages() -> dict[str, Any]:
    """What goes over Socket.IO: requests, what they are answered with, and what the server tells."""
    found: dict[str, Any] = {}
    for name, request in REQUESTS.items():
        payload: dict[str, Any] = _ref(request.payload)
        if request.bare:
            payload = {"anyOf": [payload, {"type": "null"}]}
        found[name] = {"name": name, "summary": request.about, "payload": payload}
        found[request.answer] = {
            "name": request.answer,
            "summary": f"The acknowledgement of {name}.",
            "payload": {
                "type": "object",
                "properties": {"event": {"const": request.answer}, "data": _ref(request.body)},
                "required": ["event", "data"],
            },
        }
    found["error"] = {
        "name": "error",
        "summary": "The acknowledgement of a request that failed.",
        "payload": {"$ref": f"{REF}Failure"},
    }
    for name, told in EVENTS.items():
        found[name] = {"name": name, "summary": told.about, "payload": _payload(told)}
    return found


def _payload(told: Told) -> dict[str, Any]:
    bodies = [_ref(body) for body in told.bodies]
    if not bodies:
        return {"description": "What the backend sent."}
    return bodies[0] if len(bodies) == 1 else {"oneOf": bodies}


def _frames() -> dict[str, Any]:
    """What goes over a plain WebSocket."""
    number = {"description": "Of a request: its answer has the same.", "type": ["integer", "string", "null"]}
    return {
        "request-frame": {
            "name": "request-frame",
            "summary": "A request, as a text frame.",
            "payload": {
                "type": "object",
                "properties": {
                    "event": {"enum": list(REQUESTS)},
                    "data": {"description": "The payload of the Socket.IO request of the same name."},
                    "id": number,
                },
                "required": ["event"],
            },
        },
        "frame": {
            "name": "frame",
            "summary": "An answer, or an event, as a text frame.",
            "payload": {
                "type": "object",
                "properties": {
                    "event": {"description": "The name of an event or an answer, or error.", "type": "string"},
                    "data": {"description": "The payload of the Socket.IO message of the same name."},
                    "error": {"$ref": f"{REF}ErrorBody"},
                    "id": number,
                },
                "required": ["event"],
            },
        },
    }


def _in(channel: str, message: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{channel}/messages/{message}"}


def _ref(kind: type) -> dict[str, Any]:
    return {"$ref": f"{REF}{kind.__name__}"}
