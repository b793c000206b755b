"""Types for socket.io-client: ``static/presence-events.d.ts``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gateway.schema.events import EVENTS, REQUESTS, Request, Told
from gateway.schema.shapes import REF, shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPENING = """\
// What goes over the namespace /ws/messages, as types for socket.io-client. Generated from the types that the gateway
// checks and encodes by: python -m gateway schema types > static/presence-events.d.ts
//
//     import { io, type Socket } from "socket.io-client";
//     import type { ClientToServerEvents, ServerToClientEvents } from "./presence-events.js";
//
//     const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io("/ws/messages", {
//       auth: { token },
//       ackTimeout: 5000, // milliseconds; what .timeout(5000).emitWithAck() returns is any, by the client's own types
//     });
"""

_ANSWERS = """\
/** What a request that succeeded is acknowledged with. */
export interface Success<Event extends string, Data> {
  event: Event;
  data: Data;
}

/** What a request is acknowledged with: `event` tells which of the two it is. */
export type Answer<Event extends string, Data> = Success<Event, Data> | Failure;

/** What takes a request's acknowledgement. */
export type Acknowledge<Event extends string, Data> = (answer: Answer<Event, Data>) => void;

/** Why a connection was refused, as socket.io-client's `connect_error` has it. */
export type ConnectError = Error & { data?: Refusal };
"""

_WORDS = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_NOTIFICATION = "(data: any, id?: string, acknowledge?: () => void) => void"


def typescript() -> str:
    """The text of the file."""
    parts = [_OPENING]
    parts += [_declaration(name, schema) for name, schema in shapes().items()]
    parts.append(_ANSWERS)
    requests = ((name, request.about, _asked(request)) for name, request in REQUESTS.items())
    parts.append(_map("ClientToServerEvents", "What a client asks for, by name.", requests))
    events = ((name, told.about, _told(told)) for name, told in EVENTS.items())
    parts.append(
        _map(
            "ServerToClientEvents",
            "What a client is told, by name. Names of your own backend's go into an interface that extends this one.",
            events,
        )
    )
    return "\n".join(parts)


def _map(name: str, about: str, rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [f"/** {about} */", f"export interface {name} {{"]
    for event, said, signature in rows:
        lines += [f"  /** {said} */", f'  "{event}": {signature};']
    return "\n".join([*lines, "}\n"])


def _asked(request: Request) -> str:
    payload = request.payload.__name__
    acknowledge = f'acknowledge: Acknowledge<"{request.answer}", {request.body.__name__}>'
    if request.bare:
        return f"(...request: [payload: {payload}, {acknowledge}] | [{acknowledge}]) => void"
    return f"(payload: {payload}, {acknowledge}) => void"


def _told(told: Told) -> str:
    if not told.bodies:
        return _NOTIFICATION
    return f"(data: {' | '.join(body.__name__ for body in told.bodies)}) => void"


def _declaration(name: str, schema: dict[str, Any]) -> str:
    lines = [f"/** {schema['description']} */"]
    if "enum" in schema:
        return "\n".join([*lines, f"export type {name} = {_type(schema)};\n"])
    branches = schema.get("oneOf") or schema.get("anyOf")
    if branches is None:
        return "\n".join([*lines, f"export interface {name} {{", *_fields(schema), "}\n"])
    choices = [each for branch in branches for each in branch["required"]]
    common = {each: shape for each, shape in schema["properties"].items() if each not in choices}
    unions = []
    for chosen in choices:
        others = [each for each in choices if each != chosen]
        parts = [f"{chosen}: {_without_null(schema['properties'][chosen])}"]
        if "oneOf" in schema:
            parts += [f"{each}?: null" for each in others]
        else:
            parts += [f"{each}?: {_type(schema['properties'][each])}" for each in others]
        unions.append(f"{{ {'; '.join(parts)} }}")
    union = "".join(f"\n  | {each}" for each in unions)
    if not common:
        return "\n".join([*lines, f"export type {name} ={union};\n"])
    return "\n".join(
        [*lines, f"export type {name} = {{", *_fields({**schema, "properties": common}), f"}} & ({union}\n);\n"]
    )


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    for name, shape in schema["properties"].items():
        if said := shape.get("description"):
            yield f"  /** {said} */"
        mark = "" if name in schema.get("required", ()) else "?"
        yield f"  {name}{mark}: {_type(shape)};"


def _without_null(shape: dict[str, Any]) -> str:
    return " | ".join(part for part in _type(shape).split(" | ") if part != "null")


def _type(shape: dict[str, Any]) -> str:  # noqa: PLR0911 - one for each kind
    if "$ref" in shape:
        return str(shape["$ref"]).removeprefix(REF)
    if "const" in shape:
        return json.dumps(shape["const"])
    if "enum" in shape:
        return " | ".join(json.dumps(each) for each in shape["enum"])
    for word in ("anyOf", "oneOf"):
        if word in shape:
            return " | ".join(dict.fromkeys(_type(each) for each in shape[word]))
    match shape.get("type"):
        case "array":
            inner = _type(shape["items"])
            return f"({inner})[]" if " | " in inner else f"{inner}[]"
        case "object":
            return "Record<string, any>"
        case str(word):
            return _WORDS[word]
        case _:
            return "any"
