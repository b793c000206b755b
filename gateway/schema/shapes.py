"""The wire's types as JSON Schema, with what their code says of them beyond their annotations."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import wire
from gateway.channels import messages_wire
from gateway.channels import wire as channels_wire
from gateway.errors import REFUSAL_CODES, RequestError
from gateway.schema.events import EVENTS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

REF = "#/components/schemas/"
"""What the reference to a type begins with."""

_ONE_OF: dict[type, tuple[str, ...]] = {
    messages_wire.SendMessage: ("recipientId", "conversationId", "channel"),
    messages_wire.Typing: ("recipientId", "conversationId", "channel"),
    messages_wire.MarkRead: ("messageId", "userId"),
}
"""Of which properties a type has exactly one."""

_ANY_OF: dict[type, tuple[str, ...]] = {wire.Ack: ("id", "ids")}
"""Of which properties it has at least one."""

_MESSAGE = {"oneOf": [{"$ref": f"{REF}DirectMessage"}, {"$ref": f"{REF}RoomMessage"}]}

_PROPERTIES: dict[tuple[type, str], dict[str, Any]] = {
    (messages_wire.MessageSent, "message"): {"description": "As others hear it.", **_MESSAGE},
    (channels_wire.ChannelMember, "info"): {"type": "object", "additionalProperties": True},
    (channels_wire.MemberChanged, "info"): {"type": "object", "additionalProperties": True},
    (wire.ErrorBody, "code"): {"$ref": f"{REF}ErrorCode"},
    (wire.ExceptionEvent, "code"): {"$ref": f"{REF}ErrorCode"},
    (wire.Failure, "event"): {"const": "error"},
}
"""What is known of a property, and its annotation does not say."""


def error_codes() -> list[str]:
    """Every code that a request can fail with."""
    return sorted({kind.code for kind in _descendants(RequestError)})


def shapes() -> dict[str, dict[str, Any]]:
    """JSON Schemas of all that goes over the wire as events, by name."""
    types: list[type] = [wire.Failure]
    for request in REQUESTS.values():
        types += (request.payload, request.body)
    for told in EVENTS.values():
        types += told.bodies
    types = list(dict.fromkeys(types))
    _, components = msgspec.json.schema_components(types, ref_template=REF + "{name}")
    known = {kind.__name__: kind for kind in _reached(types)}
    found = {
        "ErrorCode": {"description": "Why a request failed.", "enum": error_codes()},
        "RefusalCode": {"description": "Why a connection was refused.", "enum": sorted(REFUSAL_CODES)},
        "Refusal": _refusal(),
    }
    for name, schema in components.items():
        found[name] = _completed(known[name], schema) if name in known else _plain(schema)
    return dict(sorted(found.items()))


def _refusal() -> dict[str, Any]:
    return {
        "description": "What the data of a connect_error says.",
        "type": "object",
        "properties": {
            "code": {"$ref": f"{REF}RefusalCode"},
            "message": {"description": "Why, and what to do about it.", "type": "string"},
            "retryAfter": {"description": "Seconds after which the same client may be let in.", "type": "number"},
        },
        "required": ["code", "message"],
    }


def _descendants(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def _reached(types: list[type]) -> Iterator[type[msgspec.Struct]]:
    """The structs among types, and those that their fields are of."""
    waiting = [msgspec.inspect.type_info(kind) for kind in types]
    seen: set[type] = set()
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            yield info.cls
            waiting += [field.type for field in info.fields]
        waiting += [getattr(info, part) for part in ("type", "item_type") if hasattr(info, part)]
        waiting += getattr(info, "types", ())


def _completed(kind: type[msgspec.Struct], schema: dict[str, Any]) -> dict[str, Any]:
    said = _said_of_fields(kind)
    properties: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        shape = _PROPERTIES.get((kind, name), _plain(schema["properties"][name]))
        if field.name in said:
            shape = {**shape, "description": said[field.name]}
        properties[name] = shape
    required = list(schema["required"])
    required += [name for owner, name in _PROPERTIES if owner is kind and name not in required]
    found: dict[str, Any] = {
        "description": _plain_words(schema.get("description", "")),
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in required],
    }
    for word, choices in (("oneOf", _ONE_OF.get(kind)), ("anyOf", _ANY_OF.get(kind))):
        if choices is not None:
            found[word] = [{"required": [each], "properties": {each: _given(properties[each])}} for each in choices]
    return found


def _given(shape: dict[str, Any]) -> dict[str, Any]:
    """A property where it is there, and not null."""
    return {"type": "array", "minItems": 1} if shape.get("type") == "array" else {"type": "string"}


def _plain(schema: Any) -> Any:
    """A schema without titles, which repeat the names."""
    if isinstance(schema, dict):
        found = {name: _plain(part) for name, part in schema.items() if name != "title"}
        if isinstance(found.get("description"), str):
            found["description"] = _plain_words(found["description"])
        return found
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def _said_of_fields(kind: type) -> dict[str, str]:
    """What stands under the fields of a type, and of those that it comes from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("gateway."):
            found |= _said_in(each)
    return found


def _said_in(kind: type) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - it is a class's source
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[field.target.id] = _plain_words(inspect.cleandoc(text))
    return found


def _plain_words(text: str) -> str:
    """A docstring without its marks, on one line, with JSON's word for None."""
    text = re.sub(r"``([^`]*)``|`([^`]*)`", lambda found: found[1] or found[2], text)
    text = re.sub(r"\bNone\b", lambda found: "null" if found.start() else "Null", text)
    return " ".join(text.split())
